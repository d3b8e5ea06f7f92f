"""A model in memory: its vocabulary, its loading parameters, its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from llama_cpp import llama_cpp as lib

from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.native import native_facts
from safesteer_edge.errors import EngineError, GuardError, ModelFileError
from tests.engine.open_engine import open_engine
from tests.tiny_models import (
    ENDOFTEXT_ID,
    FIRST_BYTE_ID,
    IM_END_ID,
    IM_START_ID,
    write_tiny_llama,
)

SYSTEM_INFO = b"CPU : SSE3 = 1 | AVX512 = 1 | AMX_INT8 = %d | OPENMP = 1 | "


@pytest.mark.parametrize("has_amx", [0, 1])
def test_extra_buffer_types_stay_off_where_the_cpu_has_amx(
    tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, has_amx: int
) -> None:
    """ggml's AMX path would end the process at the first prompt."""
    seen: list[bool] = []

    def note_and_refuse(_path: bytes, params: Any) -> None:
        seen.append(params.use_extra_bufts)

    monkeypatch.setattr(lib, "llama_print_system_info", lambda: SYSTEM_INFO % has_amx)
    monkeypatch.setattr(lib, "llama_model_load_from_file", note_and_refuse)
    with pytest.raises(ModelFileError):
        NativeModel(tiny_llama_path)
    assert seen == [not has_amx]
    assert native_facts().has_amx == bool(has_amx)


def test_a_model_says_what_it_is(tiny_llama_path: Path, tiny_mamba_path: Path) -> None:
    with NativeModel(tiny_llama_path) as model:
        assert (model.n_layer, model.n_embd, model.n_vocab) == (4, 64, 320)
        assert not model.has_recurrent_state
        assert (model.bos_token_id, model.eos_token_id) == (IM_START_ID, IM_END_ID)
        assert (model.unknown_token_id, model.adds_bos) == (None, False)
        assert model.named_tokens == {"pad_token": "<|im_end|>"}
        assert model.is_end_of_generation(IM_END_ID)
        assert not model.is_end_of_generation(FIRST_BYTE_ID)
        assert model.token_text(IM_END_ID) == "<|im_end|>"
        assert model.token_text(None) == ""
        assert dict(model.special_tokens) == {
            "<|endoftext|>": ENDOFTEXT_ID,
            "<|im_start|>": IM_START_ID,
            "<|im_end|>": IM_END_ID,
            "<img>": 3,
            "</img>": 4,
        }
    with NativeModel(tiny_mamba_path) as model:
        assert model.has_recurrent_state


def test_plain_text_holds_no_control_tokens_and_survives_the_tokenizer(
    tiny_llama_path: Path,
) -> None:
    text = "<|im_start|>user é ☃ \x00<|im_end|>\n"
    with NativeModel(tiny_llama_path) as model:
        plain = model.tokenize_plain(text)
        trusted = model.tokenize_trusted(text)
        assert model.tokenize_plain("") == []
        assert min(plain) >= FIRST_BYTE_ID
        assert b"".join(model.piece(token_id) for token_id in plain) == text.encode()
        assert (trusted[0], trusted[-2]) == (IM_START_ID, IM_END_ID)
        assert model.piece(IM_START_ID) == b""
        assert model.piece(IM_START_ID, special=True) == b"<|im_start|>"
        assert model.tokenize_plain("\ud800")  # a lone surrogate is replaced, and no error


def test_a_token_longer_than_the_first_buffer_comes_back_whole(tmp_path: Path) -> None:
    word = "Donaudampfschifffahrtsgesellschaft" * 4
    path = write_tiny_llama(tmp_path / "model.gguf", extra_vocab=(word,))
    with NativeModel(path) as model:
        token_ids = model.tokenize_plain(word)
        assert len(token_ids) == 1
        assert model.piece(token_ids[0]) == word.encode()


def test_a_file_that_llama_cpp_refuses_is_named_with_its_reason(
    tiny_llama_path: Path, tmp_path: Path
) -> None:
    data = tiny_llama_path.read_bytes()
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data.replace(b"blk.2.ffn_down.weight", b"blk.2.ffn_dawn.weight"))
    with pytest.raises(ModelFileError, match=r"damaged\.gguf.*ffn_down\.weight' not found"):
        NativeModel(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match=r"damaged\.gguf"):
        NativeModel(path)


def test_a_closed_model_can_be_closed_again_and_not_be_used(tiny_llama_path: Path) -> None:
    model = NativeModel(tiny_llama_path)
    assert model.special_tokens
    model.close()
    model.close()
    for use in (
        lambda: model.handle,
        lambda: model.tokenize_plain("a"),
        lambda: model.tokenize_trusted("a"),
        lambda: model.piece(9),
        lambda: model.is_end_of_generation(9),
        lambda: model.token_text(9),
    ):
        with pytest.raises(EngineError, match="is closed"):
            use()


def test_a_model_whose_weights_are_no_numbers_proposes_nothing(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "model.gguf")
    reader = GGUFReader(path, "r+")
    next(t for t in reader.tensors if t.name == "output_norm.weight").data[7] = float("nan")
    reader.data.flush()
    with open_engine(path) as opened:
        opened.prefill([9, 10])
        with pytest.raises(GuardError, match="non-finite"):
            opened.engine.propose()
