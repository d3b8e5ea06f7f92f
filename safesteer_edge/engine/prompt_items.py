"""What a prompt is made of when it reaches the context: runs of tokens, and encoded media."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.native import NativeObject, mtmd_cpp
from safesteer_edge.errors import EngineError


class NativeChunk(NativeObject):
    """A copy of a chunk that mtmd made: where media tokens lie, without their embeddings."""

    def __init__(self, borrowed_chunk_handle: Any) -> None:
        chunk_handle = mtmd_cpp.mtmd_input_chunk_copy(borrowed_chunk_handle)
        if not chunk_handle:
            raise EngineError("mtmd could not copy a media chunk; free some memory")
        self._own(chunk_handle, mtmd_cpp.mtmd_input_chunk_free)
        self.n_tokens = int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk_handle))  # KV cells
        self.n_positions = int(mtmd_cpp.mtmd_input_chunk_get_n_pos(chunk_handle))


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Text tokens, each at one position. is_content: a person wrote any of it."""

    token_ids: tuple[int, ...]
    is_content: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class MediaRun:
    """One encoded chunk of an image or audio file.

    key: content hash, projector and chunk number: equal keys mean equal cells. n_tokens: KV cells.
    n_positions: how far the next token's position moves on (fewer than n_tokens under M-RoPE).
    embeddings: float32 (n_tokens, n_embd). chunk: the native chunk that they belong to.
    """

    key: str
    n_tokens: int
    n_positions: int
    embeddings: NDArray[np.float32]
    chunk: NativeChunk


PromptItem = TokenRun | MediaRun


def n_tokens_of(items: Iterable[PromptItem]) -> int:
    """The KV cells that a prompt takes."""
    return sum(
        len(item.token_ids) if isinstance(item, TokenRun) else item.n_tokens for item in items
    )


def message_span(items: Iterable[PromptItem]) -> range:
    """Where the words of the last message lie among a prompt's tokens and media.

    The last run of content, but for the prompt's own last token; empty where nobody wrote any.
    """
    start, at, n_run = 0, 0, 0
    for item in items:
        length = len(item.token_ids) if isinstance(item, TokenRun) else 1
        if isinstance(item, TokenRun) and item.is_content:
            start, n_run = at, length
        at += length
    return range(start, min(start + n_run, at - 1))


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt without media. message: where the words of its last message lie; may be empty."""

    token_ids: Sequence[int]
    message: range = range(0)

    @property
    def n_sharable(self) -> int:
        """Tokens that need not be evaluated for it alone: none of its message, and not its last."""
        return self.message.start if self.message else len(self.token_ids) - 1


def text_prompt(items: Iterable[PromptItem]) -> TextPrompt:
    """A prompt's text, media left out."""
    runs = [item for item in items if isinstance(item, TokenRun)]
    return TextPrompt(text_token_ids(runs), message_span(runs))


def text_token_ids(items: Iterable[PromptItem]) -> tuple[int, ...]:
    """The tokens of a prompt's text, media left out."""
    return tuple(
        token_id for item in items if isinstance(item, TokenRun) for token_id in item.token_ids
    )
