"""The tokenizer metadata of a language model, checked for what llama.cpp takes on trust.

Source: llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from safesteer_edge.formats.gguf_file import GgufArray, GgufFile

TOKENS_KEY: Final = "tokenizer.ggml.tokens"
_MODEL_KEY = "tokenizer.ggml.model"
_TYPES_KEY = "tokenizer.ggml.token_type"
_SCORES_KEY = "tokenizer.ggml.scores"
_MERGES_KEY = "tokenizer.ggml.merges"
_PRE_KEY = "tokenizer.ggml.pre"

# Left out: 'bert' and 't5' belong to models that embed text, 'none' and 'test' have no words.
_TOKENIZERS = ("gpt2", "llama", "gemma4", "plamo2", "rwkv", "hybriddna", "whitespace")
_TOKENIZERS_WITH_MERGES = frozenset({"gpt2", "gemma4", "hybriddna", "whitespace"})
_PRE_WITHOUT_MERGES = "kimi-k2"
# The longest real tokens known are runs of a few hundred spaces. plamo2's loader takes time
# with the square of a token's length.
_MAX_TOKEN_BYTES = 4_096
_MAX_TOKENS = 4_000_000
_BYTE_TYPE = 6  # llama_token_type
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
# Ids that generation is steered by. llama.cpp ignores others that are out of range (unknown,
# padding …), and there are good models with such a padding id.
_USED_IDS = ("bos", "eos", "eot", "eom")


def check_vocabulary(file: GgufFile) -> int:
    """Return the number of tokens.

    Takes 20 ms for 49,152 tokens. Raises ModelFileError for a missing or unknown tokenizer, for
    token lists that do not fit together, and for tokens that crash llama.cpp.
    """
    tokenizer = file.text(_MODEL_KEY)
    if tokenizer is None:
        raise file.error("it has no tokenizer", "get the whole model, not a part of it")
    if tokenizer not in _TOKENIZERS:
        raise file.error(
            f"its tokenizer is of kind {tokenizer!r}; expected one of {', '.join(_TOKENIZERS)}",
            "use a model that is made for chat",
        )
    _check_merges(file, tokenizer)
    tokens = file.strings(TOKENS_KEY)
    if not 0 < len(tokens) <= _MAX_TOKENS:
        raise file.error(f"its vocabulary has {len(tokens)} tokens")
    _check_distinct(file, tokens)
    _check_token_types(file, tokens)
    scores = file.array(_SCORES_KEY)
    if scores is not None and scores.length < len(tokens):
        raise file.error(f"it has {scores.length} scores for {len(tokens)} tokens")
    for name in _USED_IDS:
        token_id = file.integer(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None and not 0 <= token_id < len(tokens):
            raise file.error(f"its {name} token is {token_id}, of {len(tokens)} tokens")
    return len(tokens)


def _check_merges(file: GgufFile, tokenizer: str) -> None:
    merges = file.metadata.get(_MERGES_KEY)
    if merges is None:
        if tokenizer in _TOKENIZERS_WITH_MERGES and file.text(_PRE_KEY) != _PRE_WITHOUT_MERGES:
            raise file.error(f"its {tokenizer!r} tokenizer has no merges")
    elif not isinstance(merges, GgufArray) or merges.element_type != "str":
        raise file.error(f"metadata key {_MERGES_KEY!r} is not an array of texts")


def _check_distinct(file: GgufFile, tokens: list[bytes]) -> None:
    """llama.cpp stops the process where two tokens have one text, as it reads texts: up to a NUL,
    and with names of its own for empty ones."""
    longest = max(map(len, tokens))
    if longest > _MAX_TOKEN_BYTES:
        raise file.error(f"a token has {longest} bytes; expected at most {_MAX_TOKEN_BYTES}")
    distinct = set(tokens)
    if len(distinct) == len(tokens) and b"" not in distinct and not any(0 in t for t in tokens):
        return  # nearly always, and five times as fast as looking for the culprit
    seen: dict[bytes, int] = {}
    for index, token in enumerate(tokens):
        text = token.split(b"\0", 1)[0] or b"[EMPTY_%d]" % index
        first = seen.setdefault(text, index)
        if first != index:
            raise file.error(f"tokens {first} and {index} are both {text!r}")


def _check_token_types(file: GgufFile, tokens: list[bytes]) -> None:
    """A byte token's text is parsed for its byte, and the byte used as an index (#25969)."""
    if file.array(_TYPES_KEY) is None:
        return
    types = file.numbers(_TYPES_KEY)
    if len(types) != len(tokens):
        raise file.error(f"it has {len(types)} token types for {len(tokens)} tokens")
    for index in np.flatnonzero(types == _BYTE_TYPE):
        if not _BYTE_TOKEN.fullmatch(tokens[index]):
            raise file.error(f"token {index} is a byte by type, and {tokens[index]!r} by its text")
