"""How a probe's weights lie in the file: as they are, in float16, or in 8-bit integers.

Only matrices are made smaller. The graph turns them back before it computes, so a smaller file
costs the rounding of the weights and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import InputError

Quantization = Literal["none", "fp16", "int8"]
QUANTIZATIONS: Final = ("int8", "fp16")

_FLOAT32 = 1  # onnx.TensorProto.FLOAT
_MAX_INT8 = 127
_MAX_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight. name: what the graph calls it. arrays: what the file holds, by name."""

    name: str
    arrays: Mapping[str, NDArray[Any]]
    quantization: Quantization

    def nodes(self, helper: Any) -> list[Any]:
        """Return the ONNX nodes that make the weight of the stored arrays."""
        inputs = list(self.arrays)
        if self.quantization == "fp16":
            return [helper.make_node("Cast", inputs, [self.name], to=_FLOAT32)]
        if self.quantization == "int8":
            # Not DequantizeLinear: onnxruntime 1.31 joins it and the product to MatMulNBits, which
            # rounds the states as well and moved scores by 0.01. These two it folds when loading.
            codes, scale = inputs
            cast = helper.make_node("Cast", [codes], [f"{codes}_float"], to=_FLOAT32)
            return [cast, helper.make_node("Mul", [f"{codes}_float", scale], [self.name])]
        return []


def store_weight(name: str, array: NDArray[Any], quantization: Quantization) -> StoredWeight:
    """Return a weight in the form in which it is stored; all but matrices as they are.

    int8 has one scale for each column, and no zero points.
    Raises InputError for numbers that float16 cannot hold, and for float64 matrices.
    """
    if array.ndim != 2 or quantization == "none":
        return StoredWeight(name, {name: array}, "none")
    if array.dtype != np.float32:
        raise InputError(
            "cannot quantize this probe: its isotonic calibration needs float64; leave out "
            "--quantize, or calibrate it with method='sigmoid'"
        )
    if quantization == "fp16":
        if np.abs(array).max() > _MAX_FLOAT16:
            raise InputError(f"cannot quantize this probe: {name} exceeds float16; use int8")
        return StoredWeight(name, {f"{name}_fp16": array.astype(np.float16)}, "fp16")
    scales = (np.abs(array).max(axis=0) / _MAX_INT8).astype(np.float32)
    scales[scales == 0] = 1.0
    codes = np.clip(np.round(array / scales), -_MAX_INT8, _MAX_INT8).astype(np.int8)
    return StoredWeight(name, {f"{name}_int8": codes, f"{name}_scale": scales}, "int8")
