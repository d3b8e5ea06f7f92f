"""Matrices of directions become control vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.converters.vector_gguf import (
    matrix_to_control_vector,
    write_vector,
)
from safesteer_edge.errors import VectorFileError
from safesteer_edge.formats.control_vector_file import BLOCK_OUTPUT_0BASED, read_control_vector
from tests.native_llama import native_forward, silence_native_logs
from tests.numpy_llama import NumpyLlama
from tests.tiny_models import IM_START_ID, write_tiny_llama

MATRIX = np.arange(1.0, 13.0).reshape(4, 3)


def test_rows_in_the_range_are_scaled_and_others_are_zero():
    vector = matrix_to_control_vector(MATRIX, model_hint="llama", layer_range=(2, 2), scale=-0.5)
    expected = np.zeros((4, 3))
    expected[2] = MATRIX[2] * -0.5
    np.testing.assert_array_equal(vector.directions, expected)
    assert (vector.model_hint, vector.layer_convention) == ("llama", BLOCK_OUTPUT_0BASED)
    assert vector.directions.dtype == np.float32


def test_all_blocks_but_the_first_are_steered_by_default():
    vector = matrix_to_control_vector(MATRIX, model_hint="llama")
    np.testing.assert_array_equal(vector.directions[1:], MATRIX[1:])
    assert not vector.directions[0].any()
    assert MATRIX[0, 0] == 1.0


@pytest.mark.parametrize("layer_range", [(0, 3), (1, 4), (3, 2), (-1, 2)])
def test_layers_that_are_not_there_are_refused(layer_range: tuple[int, int]):
    with pytest.raises(VectorFileError, match="expected 1 to 3"):
        matrix_to_control_vector(MATRIX, model_hint="llama", layer_range=layer_range)


def test_other_shapes_and_infinities_are_refused():
    with pytest.raises(VectorFileError, match="n_layer, n_embd"):
        matrix_to_control_vector(MATRIX[0], model_hint="llama")
    with pytest.raises(VectorFileError, match="expected 1 to 0"):
        matrix_to_control_vector(MATRIX[:1], model_hint="llama")
    with pytest.raises(VectorFileError, match="not finite"):
        matrix_to_control_vector(MATRIX * 1e300, model_hint="llama", scale=1e300)


def test_llama_cpp_adds_row_n_to_the_output_of_block_n(tmp_path: Path):
    silence_native_logs()
    model = write_tiny_llama(tmp_path / "model.gguf", n_layer=4)
    rows = np.random.default_rng(0).standard_normal((4, 64))
    write_vector(tmp_path / "v.gguf", rows, model_hint="llama", layer_range=(2, 2), scale=2.0)
    vector = read_control_vector(tmp_path / "v.gguf")
    tokens = (IM_START_ID, 9, 87)
    plain = native_forward(model, tokens)
    steered = native_forward(model, tokens, vector.directions)
    moved = steered.block_outputs - plain.block_outputs
    np.testing.assert_allclose(moved[:2], 0, atol=1e-6)
    np.testing.assert_allclose(moved[2], np.tile(2 * rows[2], (3, 1)), atol=1e-4)
    expected = NumpyLlama(model).forward(tokens, vector.directions)
    np.testing.assert_allclose(steered.logits, expected.logits, atol=1e-3)
