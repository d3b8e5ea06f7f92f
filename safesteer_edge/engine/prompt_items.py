"""What a prompt is made of when it reaches the context: runs of tokens, and encoded media."""

from __future__ import annotations

from collections.abc import Iterable
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
    """Text tokens, each at one position."""

    token_ids: tuple[int, ...]


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


def text_token_ids(items: Iterable[PromptItem]) -> tuple[int, ...]:
    """The tokens of a prompt's text, media left out."""
    return tuple(
        token_id for item in items if isinstance(item, TokenRun) for token_id in item.token_ids
    )
