"""Names and sizes of the types that a GGUF file's header speaks of."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple


class ScalarType(NamedTuple):
    """A GGUF metadata value type of fixed size."""

    name: str
    layout: struct.Struct


class TensorType(NamedTuple):
    """How ggml stores a row: blocks of `block_size` elements, `block_bytes` bytes each."""

    name: str
    block_size: int
    block_bytes: int


STRING_TYPE: Final = 8
ARRAY_TYPE: Final = 9

# gguf_type in llama.cpp's ggml/include/gguf.h
SCALAR_TYPES: Final = {
    0: ScalarType("u8", struct.Struct("<B")),
    1: ScalarType("i8", struct.Struct("<b")),
    2: ScalarType("u16", struct.Struct("<H")),
    3: ScalarType("i16", struct.Struct("<h")),
    4: ScalarType("u32", struct.Struct("<I")),
    5: ScalarType("i32", struct.Struct("<i")),
    6: ScalarType("f32", struct.Struct("<f")),
    7: ScalarType("bool", struct.Struct("<B")),
    10: ScalarType("u64", struct.Struct("<Q")),
    11: ScalarType("i64", struct.Struct("<q")),
    12: ScalarType("f64", struct.Struct("<d")),
}
VALUE_TYPE_NAMES: Final = {
    **{type_id: scalar.name for type_id, scalar in SCALAR_TYPES.items()},
    STRING_TYPE: "str",
    ARRAY_TYPE: "arr",
}

# ggml_type in ggml/include/ggml.h, block layouts in ggml/src/ggml-common.h. Left out: the numbers
# of removed types, and Q8_1 (9) and Q8_K (15): ggml makes those while it computes, and has no
# product for weights of these types, so that a file with them crashes the process.
TENSOR_TYPES: Final = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}
FLOAT_TYPES: Final = frozenset({"F32", "F16", "BF16"})
# Types that ggml stores and copies, and multiplies no matrix of.
UNCOMPUTABLE_TYPES: Final = frozenset({"I8", "I16", "I32", "I64", "F64"})

# llama_ftype in llama.h: what `general.file_type` says about the file as a whole.
FILE_TYPES: Final = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
