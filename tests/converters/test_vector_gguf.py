"""Where a row of directions acts, and what a conversion refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.converters.vector_conversion import VectorRequest, convert_vector
from safesteer_edge.errors import VectorFileError
from safesteer_edge.formats.control_vector_file import (
    BLOCK_OUTPUT_0BASED,
    ControlVector,
    read_control_vector,
    write_control_vector,
)
from tests.native_llama import native_forward, silence_native_logs
from tests.numpy_llama import NumpyLlama
from tests.tiny_models import IM_START_ID, write_tiny_llama

MATRIX = np.arange(1.0, 13.0).reshape(4, 3)


def converted(folder: Path, matrix: np.ndarray, scale: float = 1.0) -> ControlVector:
    np.savez(folder / "v.npz", matrix)
    request = VectorRequest((folder / "v.npz",), layer_base="0", model_hint="llama", scale=scale)
    return convert_vector(request).vector


def test_all_blocks_but_the_first_are_steered(tmp_path: Path):
    vector = converted(tmp_path, MATRIX, scale=-0.5)
    np.testing.assert_array_equal(vector.directions[1:], MATRIX[1:] * -0.5)
    assert not vector.directions[0].any()
    assert (vector.model_hint, vector.layer_convention) == ("llama", BLOCK_OUTPUT_0BASED)
    assert vector.directions.dtype == np.float32


def test_what_becomes_infinite_is_refused(tmp_path: Path):
    with pytest.raises(VectorFileError, match="not finite"):
        converted(tmp_path, MATRIX * 1e300, scale=1e300)


def test_llama_cpp_adds_row_n_to_the_output_of_block_n(tmp_path: Path):
    silence_native_logs()
    model = write_tiny_llama(tmp_path / "model.gguf", n_layer=4)
    rows = np.zeros((4, 64), dtype=np.float32)
    rows[2] = np.random.default_rng(0).standard_normal(64)
    write_control_vector(tmp_path / "v.gguf", ControlVector(rows, "llama"))
    vector = read_control_vector(tmp_path / "v.gguf")
    tokens = (IM_START_ID, 9, 87)
    plain = native_forward(model, tokens)
    steered = native_forward(model, tokens, vector.directions)
    moved = steered.block_outputs - plain.block_outputs
    np.testing.assert_allclose(moved[:2], 0, atol=1e-6)
    np.testing.assert_allclose(moved[2], np.tile(rows[2], (3, 1)), atol=1e-4)
    expected = NumpyLlama(model).forward(tokens, vector.directions)
    np.testing.assert_allclose(steered.logits, expected.logits, atol=1e-3)
