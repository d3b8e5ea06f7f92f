"""Random tensors, drawn by name, written into a GGUF file in one quantization."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from numpy.typing import NDArray

Quantization = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


class RandomWeights:
    """Draws tensors and queues them in a GGUF writer.

    Each tensor has its own stream, from the seed and its name: a model with one more layer, or in
    another quantization, keeps the weights that it shares with this one.
    """

    def __init__(self, writer: GGUFWriter, *, seed: int, quantization: Quantization) -> None:
        self._writer = writer
        self._seed = seed
        self._matrix_type = GGMLQuantizationType[quantization]

    def draw(self, name: str, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
        """Normal values around 0, float32; `shape` in NumPy order (GGUF's reversed)."""
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        """Queue a tensor that llama.cpp wants in F32: a norm, a bias, a recurrence."""
        self._writer.add_tensor(name, values.astype(np.float32))

    def add_vector(self, name: str, size: int, *, centre: float, deviation: float = 0.1) -> None:
        """Queue normal values around `centre`, in F32."""
        self.add(name, centre + self.draw(name, (size,), deviation))

    def add_matrix(self, name: str, n_out: int, n_in: int, *, gain: float = 1.0) -> None:
        """Queue a matrix that maps inputs of deviation 1 to outputs of deviation `gain`."""
        self.add_quantized(name, self.draw(name, (n_out, n_in), gain / n_in**0.5))

    def add_quantized(self, name: str, values: NDArray[np.float32]) -> None:
        """Queue a matrix in the file's quantization; its rows must hold whole blocks (of 32)."""
        self._writer.add_tensor(
            name, quantize(values, self._matrix_type), raw_dtype=self._matrix_type
        )


@contextmanager
def gguf_output(path: Path, architecture: str) -> Iterator[GGUFWriter]:
    """A writer for the block to fill; the file is written when the block ends without an error."""
    writer = GGUFWriter(path, architecture)
    try:
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def add_file_type(writer: GGUFWriter, quantization: Quantization) -> None:
    """Write general.file_type, llama.cpp's number for "mostly this quantization"."""
    name = "ALL_F32" if quantization == "F32" else f"MOSTLY_{quantization}"
    writer.add_file_type(LlamaFileType[name])
    writer.add_quantization_version(GGML_QUANT_VERSION)
