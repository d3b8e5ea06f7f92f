"""The tokenizer metadata that llama.cpp takes on trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.formats.model_file import check_vocabulary
from tests.formats.edited_gguf import (
    TypedValue,
    boolean,
    edit_gguf,
    f32_array,
    i32_array,
    text,
    text_array,
    u32,
)
from tests.formats.mutations import BYTE_KINDS, tokenizer_of_kind
from tests.formats.native_loader import load_natively
from tests.tiny_models import tiny_vocabulary, write_tiny_llama

TOKENS: list[str] = list(tiny_vocabulary().tokens)
N_TOKENS = len(TOKENS)
BYTE_TYPE = 6


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", n_layer=1)


def with_tokens(**changed: str) -> TypedValue:
    tokens = list(TOKENS)
    for index, token in changed.items():
        tokens[int(index[1:])] = token
    return text_array(tokens)


def with_byte_token(index: int) -> TypedValue:
    types = [1] * N_TOKENS
    types[index] = BYTE_TYPE
    return i32_array(types)


def test_the_number_of_tokens_is_returned(model: Path):
    assert check_vocabulary(read_gguf(model)) == N_TOKENS


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.model": text("bert")}, "'bert'; expected one of gpt2"),
        ({"tokenizer.ggml.merges": None}, "no merges"),
        ({"tokenizer.ggml.merges": u32(1)}, "not an array of texts"),
        ({"tokenizer.ggml.merges": i32_array([1])}, "not an array of texts"),
        ({"tokenizer.ggml.tokens": None}, "tokens' is missing"),
        ({"tokenizer.ggml.tokens": i32_array([1])}, "not an array of texts"),
        ({"tokenizer.ggml.tokens": with_tokens(t9=TOKENS[4])}, "tokens 4 and 9 are both"),
        ({"tokenizer.ggml.tokens": with_tokens(t9=TOKENS[4] + "\0x")}, "tokens 4 and 9 are both"),
        ({"tokenizer.ggml.tokens": with_tokens(t7="", t9="[EMPTY_7]")}, "tokens 7 and 9 are both"),
        ({"tokenizer.ggml.tokens": with_tokens(t9="x" * 4097)}, "4097 bytes"),
        ({"tokenizer.ggml.token_type": i32_array([1] * 319)}, "319 token types for 320"),
        ({"tokenizer.ggml.token_type": text_array(["1"] * 320)}, "of texts, not of numbers"),
        ({"tokenizer.ggml.scores": f32_array([0.0])}, "1 scores for 320 tokens"),
        ({"tokenizer.ggml.eos_token_id": u32(N_TOKENS)}, "eos token is 320, of 320"),
        ({"tokenizer.ggml.bos_token_id": u32(2**32 - 1)}, "bos token is"),
        ({"tokenizer.ggml.token_type": with_byte_token(20)}, "token 20 is a byte by type"),
    ],
)
def test_token_lists_that_do_not_fit_together_are_refused(
    model: Path, values: Mapping[str, TypedValue | None], reason: str
):
    with pytest.raises(ModelFileError, match=reason):
        check_vocabulary(read_gguf(edit_gguf(model, values=values)))


@pytest.mark.parametrize("token", ["<0x-1>", "<0x0>", "<0x0G>", "0x00", "<0x000>", "<0x1g>"])
def test_a_byte_token_that_names_no_byte_is_refused(model: Path, token: str):
    values = {
        "tokenizer.ggml.tokens": with_tokens(t20=token),
        "tokenizer.ggml.token_type": with_byte_token(20),
    }
    with pytest.raises(ModelFileError, match="byte by type"):
        check_vocabulary(read_gguf(edit_gguf(model, values=values)))


def test_what_good_models_have_is_accepted(model: Path):
    values = {
        "tokenizer.ggml.tokens": with_tokens(t20="<0xfF>", t21="", t22=""),
        "tokenizer.ggml.token_type": with_byte_token(20),
        "tokenizer.ggml.padding_token_id": u32(N_TOKENS),  # llama.cpp ignores it
        "tokenizer.ggml.scores": f32_array([0.0] * (N_TOKENS + 1)),
    }
    assert check_vocabulary(read_gguf(edit_gguf(model, values=values))) == N_TOKENS


def test_only_kimi_k2_may_come_without_merges(model: Path):
    values = {"tokenizer.ggml.merges": None, "tokenizer.ggml.pre": text("kimi-k2")}
    assert check_vocabulary(read_gguf(edit_gguf(model, values=values))) == N_TOKENS


@pytest.mark.parametrize("kind", BYTE_KINDS)
def test_a_tokenizer_needs_a_token_for_each_byte_that_text_may_hold(model: Path, kind: str):
    whole = edit_gguf(model, values=tokenizer_of_kind(kind))
    assert check_vocabulary(read_gguf(whole)) == N_TOKENS
    assert (
        check_vocabulary(read_gguf(edit_gguf(model, values=tokenizer_of_kind(kind, [0xC0]))))
        == N_TOKENS
    )
    for byte in (0x0A, ord("a"), 0x80, 0xE2, 0xF4):
        lacking = edit_gguf(model, values=tokenizer_of_kind(kind, [byte]))
        with pytest.raises(ModelFileError, match=f"no token for byte 0x{byte:02X}"):
            check_vocabulary(read_gguf(lacking))


@pytest.mark.parametrize("kind", ["llama", "plamo2", "rwkv"])
def test_byte_level_tokens_under_another_tokenizer_are_refused(model: Path, kind: str):
    values = {"tokenizer.ggml.model": text(kind)}
    with pytest.raises(ModelFileError, match=f"'{kind}' tokenizer has no token for byte 0x00"):
        check_vocabulary(read_gguf(edit_gguf(model, values=values)))


@pytest.mark.parametrize("kind", ["gpt2", "hybriddna", "gemma4"])
def test_only_a_whitespace_tokenizer_may_split_at_whitespace(model: Path, kind: str):
    values = {"tokenizer.ggml.model": text(kind), "tokenizer.ggml.pre": text("whitespace")}
    with pytest.raises(ModelFileError, match="splits text as 'whitespace' ones do"):
        check_vocabulary(read_gguf(edit_gguf(model, values=values)))
    values["tokenizer.ggml.model"] = text("whitespace")
    assert check_vocabulary(read_gguf(edit_gguf(model, values=values))) == N_TOKENS


@pytest.mark.parametrize(
    ("kind", "pre", "adds"), [("gemma4", "gemma4", None), ("gpt2", "glm4", boolean(True))]
)
def test_a_token_that_begins_each_text_must_be_there(
    model: Path, kind: str, pre: str, adds: TypedValue | None
):
    values = {
        "tokenizer.ggml.model": text(kind),
        "tokenizer.ggml.pre": text(pre),
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.add_bos_token": adds,
    }
    with pytest.raises(ModelFileError, match="with a bos token, and has none"):
        check_vocabulary(read_gguf(edit_gguf(model, values=values)))
    values["tokenizer.ggml.bos_token_id"] = u32(1)
    assert check_vocabulary(read_gguf(edit_gguf(model, values=values))) == N_TOKENS


def test_llama_cpp_takes_any_text_for_each_tokenizer_that_is_accepted(model: Path):
    """The loader writes each byte of UTF-8 in tokens, which ended the process for some."""
    edits: list[dict[str, TypedValue | None]] = [tokenizer_of_kind(kind) for kind in BYTE_KINDS]
    edits += [
        dict[str, TypedValue | None](
            {"tokenizer.ggml.model": text(kind), "tokenizer.ggml.pre": text(pre)}
        )
        for kind, pre in (
            ("gpt2", "qwen2"),
            ("gpt2", "sarvam-moe"),
            ("gemma4", "gemma4"),
            ("hybriddna", "default"),
            ("whitespace", "whitespace"),
        )
    ]
    accepted: list[Path] = []
    for index, values in enumerate(edits):
        path = model.with_name(f"{index}.gguf")
        edit_gguf(model, values=values).rename(path)
        check_vocabulary(read_gguf(path))
        accepted.append(path)
    outcome = load_natively("model", accepted)
    assert (outcome.killer, outcome.n_loaded) == (None, len(edits)), outcome.last_words
