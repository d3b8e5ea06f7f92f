"""A projector (mmproj) in mtmd: pixels or sound to prompt items, with a cache of embeddings."""

from __future__ import annotations

import ctypes
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import MAIN_SEQUENCE, NativeContext
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.native import (
    NativeObject,
    forget_native_errors,
    lib,
    mtmd_cpp,
    native_error_cause,
)
from safesteer_edge.engine.prompt_items import MediaRun, NativeChunk, PromptItem, TokenRun
from safesteer_edge.errors import EngineError, MediaError, ModelFileError

_CACHE_BYTES = 256 * 1024 * 1024
_Visited = TypeVar("_Visited")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedMedia:
    """What a projector made of an image or a sound.

    items: for the prompt, begin and end tokens of the model included. n_tokens: of the media alone.
    encode_s: 0 where the items were in the cache.
    """

    items: tuple[PromptItem, ...]
    n_tokens: int
    encode_s: float
    from_cache: bool


class Projector(NativeObject):
    """Owns the mtmd context. Close it before the model it was made for."""

    _what = "the projector"

    def __init__(
        self,
        path: Path,
        model: NativeModel,
        *,
        n_threads: int,
        use_gpu: bool = False,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        """Load the projector. Run the pre-check (`formats.model_file`) first.

        cache_bytes: of embeddings that are kept for the next prompt with the same media; what was
        used last stays even if it is larger.
        Raises ModelFileError if mtmd refuses it.
        """
        forget_native_errors()
        self.path = path
        self._model = model
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu = use_gpu
        params.n_threads = n_threads
        params.print_timings = False
        params.warmup = False  # the first image pays for it, and text-only chats never do
        mtmd_handle = mtmd_cpp.mtmd_init_from_file(str(path).encode(), model.handle, params)
        if not mtmd_handle:
            raise ModelFileError(
                f"cannot load projector {str(path)!r} for {model.path.name!r}: mtmd refuses it "
                f"({native_error_cause()}); use the mmproj file that belongs to this model"
            )
        self._own(mtmd_handle, mtmd_cpp.mtmd_free)
        self.sees = bool(mtmd_cpp.mtmd_support_vision(mtmd_handle))
        self.hears = bool(mtmd_cpp.mtmd_support_audio(mtmd_handle))
        self.audio_sample_rate: int = (
            mtmd_cpp.mtmd_get_audio_sample_rate(mtmd_handle) if self.hears else 0
        )
        self._cache_bytes = cache_bytes
        # By a hash of the prepared pixels or samples, so that the same file prepared in another way
        # is another entry; the least recently used first.
        self._cache: OrderedDict[str, tuple[PromptItem, ...]] = OrderedDict()

    def close(self) -> None:
        """Free cached chunks and the native context. Idempotent."""
        self._cache.clear()
        super().close()

    def encode_image(self, rgb: NDArray[np.uint8], *, sha256: str) -> EncodedMedia:
        """Encode one image.

        rgb: uint8 (height, width, 3). sha256: of the pixels, the cache's key.
        Costs a pass of the vision tower unless cached. Raises MediaError if it cannot be used.
        """
        if not self.sees:
            raise MediaError(f"projector {str(self.path)!r} cannot take pictures; remove the image")
        height, width, _ = rgb.shape
        pixels = np.ascontiguousarray(rgb)
        return self._encode(
            lambda: mtmd_cpp.mtmd_bitmap_init(
                width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            ),
            sha256,
        )

    def largest_indivisible_chunk(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Tokens of the largest image chunk that must go into one batch; 0 if all can be cut.

        sizes: widths and heights of pictures to try. Some projectors decode an image non-causally,
        and llama.cpp ends the process where such an image is cut in two. Nothing is encoded.
        """
        if not self.sees or not mtmd_cpp.mtmd_decode_use_non_causal(self.handle, None):
            return 0
        counts: list[int] = []
        for width, height in sizes:
            counts += self._with_chunks(
                # No pixels: mtmd counts the tokens and prepares nothing.
                functools.partial(mtmd_cpp.mtmd_bitmap_init, width, height, None),
                lambda _index, chunk_handle: _n_media_tokens(chunk_handle),
            )
        return max(counts)

    def encode_audio(self, samples: NDArray[np.float32], *, sha256: str) -> EncodedMedia:
        """Encode one sound: float32 (n,), mono at `audio_sample_rate`."""
        if not self.hears:
            raise MediaError(f"projector {str(self.path)!r} cannot take sound; remove the audio")
        mono = np.ascontiguousarray(samples, dtype=np.float32)
        return self._encode(
            lambda: mtmd_cpp.mtmd_bitmap_init_from_audio(
                len(mono), mono.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            ),
            sha256,
        )

    def evaluate(self, context: NativeContext, item: MediaRun, position: int) -> None:
        """Put an encoded chunk into the main sequence at `position`."""
        # Some projectors decode an image non-causally and abort the process in two batches.
        if item.n_tokens > context.n_batch and mtmd_cpp.mtmd_decode_use_non_causal(
            self.handle, item.chunk.handle
        ):
            raise MediaError(
                f"an image of {item.n_tokens} tokens does not fit into one batch of "
                f"{context.n_batch}; use a smaller image"
            )
        new_position = lib.llama_pos(position)
        status = mtmd_cpp.mtmd_helper_decode_image_chunk(
            self.handle,
            context.handle,
            item.chunk.handle,
            item.embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            position,
            MAIN_SEQUENCE,
            context.n_batch,
            ctypes.byref(new_position),
            mtmd_cpp.mtmd_helper_post_decode_callback(),  # NULL: none
            None,
        )
        if status != 0:
            raise EngineError(f"llama.cpp failed to decode a media chunk (status {status})")

    def _encode(self, make_bitmap: Callable[[], Any], sha256: str) -> EncodedMedia:
        _ = self.handle  # raises if it is closed
        started_s = time.perf_counter()
        from_cache = sha256 in self._cache
        if not from_cache:
            items = self._with_chunks(
                make_bitmap,
                lambda index, chunk_handle: self._to_item(chunk_handle, f"{sha256}#{index}"),
            )
            self._cache[sha256] = tuple(items)
        self._cache.move_to_end(sha256)
        while len(self._cache) > 1 and self._n_cached_bytes > self._cache_bytes:
            self._cache.popitem(last=False)
        items = self._cache[sha256]
        n_tokens = sum(item.n_tokens for item in items if isinstance(item, MediaRun))
        encode_s = 0.0 if from_cache else time.perf_counter() - started_s
        return EncodedMedia(items, n_tokens, encode_s, from_cache)

    @property
    def _n_cached_bytes(self) -> int:
        entries = (item for items in self._cache.values() for item in items)
        return sum(item.embeddings.nbytes for item in entries if isinstance(item, MediaRun))

    def _with_chunks(
        self, make_bitmap: Callable[[], Any], visit: Callable[[int, Any], _Visited]
    ) -> list[_Visited]:
        """Let mtmd cut a bitmap into chunks, and visit each while it lives."""
        bitmap_handle = make_bitmap()
        if not bitmap_handle:
            raise MediaError("mtmd could not take the media; free some memory")
        chunks_handle = mtmd_cpp.mtmd_input_chunks_init()
        try:
            part = mtmd_cpp.mtmd_input_part(text=None, bitmap=bitmap_handle)
            parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(part))
            forget_native_errors()
            status = mtmd_cpp.mtmd_tokenize_from_parts(self.handle, chunks_handle, parts, 1, False)
            if status != 0:
                reason = native_error_cause(f"status {status}")
                raise MediaError(f"the projector cannot use this file ({reason})")
            n_chunks = mtmd_cpp.mtmd_input_chunks_size(chunks_handle)
            return [
                visit(index, mtmd_cpp.mtmd_input_chunks_get(chunks_handle, index))
                for index in range(n_chunks)
            ]
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks_handle)
            mtmd_cpp.mtmd_bitmap_free(bitmap_handle)

    def _to_item(self, chunk_handle: Any, key: str) -> PromptItem:
        kind = mtmd_cpp.mtmd_input_chunk_get_type(chunk_handle)
        if kind == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
            n_tokens = ctypes.c_size_t()
            tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk_handle, ctypes.byref(n_tokens))
            token_ids = tuple(tokens[: n_tokens.value])
            if min(token_ids, default=0) < 0:  # mtmd's answer for a mark that it did not find
                raise MediaError(
                    f"projector {str(self.path)!r} puts marks around images that the vocabulary of "
                    f"{self._model.path.name!r} lacks; use the mmproj file that belongs to it"
                )
            return TokenRun(token_ids)
        if mtmd_cpp.mtmd_encode_chunk(self.handle, chunk_handle) != 0:
            raise EngineError(f"the projector failed to encode ({native_error_cause()})")
        chunk = NativeChunk(chunk_handle)
        shape = (chunk.n_tokens, lib.llama_model_n_embd_inp(self._model.handle))
        output = mtmd_cpp.mtmd_get_output_embd(self.handle)
        embeddings = np.ctypeslib.as_array(output, shape=shape).copy()
        if not np.isfinite(embeddings).all():
            raise MediaError("the projector gave non-finite embeddings; its file may be damaged")
        return MediaRun(key, chunk.n_tokens, chunk.n_positions, embeddings, chunk)


def _n_media_tokens(chunk_handle: Any) -> int:
    """Tokens of a chunk; 0 for the text around an image."""
    kind = mtmd_cpp.mtmd_input_chunk_get_type(chunk_handle)
    if kind == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
        return 0
    return int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk_handle))
