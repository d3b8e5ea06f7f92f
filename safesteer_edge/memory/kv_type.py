"""The number formats of a KV cache."""

from __future__ import annotations

from typing import Final, Literal

KvType = Literal["f16", "q8_0", "q4_0"]
# Bytes of a block, and numbers in it (ggml-common.h); the widest first.
KV_BLOCKS: Final[dict[KvType, tuple[int, int]]] = {
    "f16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
}
KV_TYPES: Final[tuple[KvType, ...]] = tuple(KV_BLOCKS)
# enum ggml_type (ggml.h)
GGML_TYPE_OF_KV: Final[dict[KvType, int]] = {"f16": 1, "q8_0": 8, "q4_0": 2}
