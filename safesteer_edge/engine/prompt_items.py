"""What a prompt is made of when it reaches the context: runs of tokens, and encoded media."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.native_chunk import NativeChunk


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


def text_token_ids(items: Iterable[PromptItem]) -> tuple[int, ...]:
    """The tokens of a prompt's text, media left out."""
    return tuple(
        token_id for item in items if isinstance(item, TokenRun) for token_id in item.token_ids
    )
