"""An owned mtmd input chunk: where the media tokens of a prompt lie, without their embeddings."""

from __future__ import annotations

import weakref
from typing import Any

from safesteer_edge.engine.native import mtmd_cpp
from safesteer_edge.errors import EngineError


class NativeChunk:
    """A copy of a chunk that mtmd made, freed with this object."""

    def __init__(self, borrowed_chunk_handle: Any) -> None:
        chunk_handle = mtmd_cpp.mtmd_input_chunk_copy(borrowed_chunk_handle)
        if not chunk_handle:
            raise EngineError("mtmd could not copy a media chunk; free some memory")
        self.handle = chunk_handle
        self._finalizer = weakref.finalize(self, mtmd_cpp.mtmd_input_chunk_free, chunk_handle)

    @property
    def n_tokens(self) -> int:
        """KV cells that the chunk takes."""
        return int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(self.handle))

    @property
    def n_positions(self) -> int:
        """Positions that the chunk takes."""
        return int(mtmd_cpp.mtmd_input_chunk_get_n_pos(self.handle))
