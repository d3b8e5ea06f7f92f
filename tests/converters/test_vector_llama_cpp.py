"""Where converted directions land in llama.cpp's residual stream: at the block they came from.

Directions are differences of hidden states that NumPy computes for two tokens. Each is converted
in every numbering, switched on alone, and its shift read back through the hidden-state route.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.bundle.schema import ModalityScales
from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.converters.vector_conversion import (
    VectorRequest,
    convert_vector,
)
from safesteer_edge.converters.vector_export import export_vector
from safesteer_edge.evaluation.verify import LayerShift, measure_shifts
from safesteer_edge.formats.control_vector_file import ControlVector, read_control_vector
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings
from tests.converters.vector_files import (
    read_as_repeng,
    write_cvector_generator_gguf,
    write_repeng_gguf,
)
from tests.guarded_tiny import GuardedTiny
from tests.llama_cpp_loader import load_in_llama_cpp
from tests.numpy_llama import NumpyLlama

N_LAYER = 4
TOLERANCE = 1e-3
PROMPT = (70, 120, 200)


@pytest.fixture(scope="module")
def runtime(tiny_llama_path: Path) -> Iterator[Runtime]:
    """The tiny llama, with every block's output read."""
    settings = SessionSettings(model=str(tiny_llama_path), guard="off", n_ctx=256, n_threads=1)
    opened = open_runtime(settings, layers=range(N_LAYER))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def block_differences(tiny_llama_path: Path) -> NDArray[np.float32]:
    """Row L: the difference of block L's output for two tokens, (n_layer, n_embd)."""
    model = NumpyLlama(tiny_llama_path)
    first, second = (model.forward([token]).block_outputs[:, 0] for token in (90, 250))
    return first - second


def measured(runtime: Runtime, path: Path, **options: Any) -> dict[int, LayerShift]:
    """Convert, write, read back, and switch on each direction of the file."""
    model = check_language_model(runtime.info.path)
    vector = convert_vector(VectorRequest((path,), model=model, **options)).vector
    export_vector(path.with_name("converted.gguf"), vector)
    written = read_control_vector(path.with_name("converted.gguf"))
    return {shift.layer_index: shift for shift in measure_shifts(runtime, written, PROMPT)}


def assert_lands(shifts: dict[int, LayerShift], expected: dict[int, NDArray[np.float32]]) -> None:
    """The shift at each block is exactly the direction that was measured there."""
    assert shifts.keys() == expected.keys()
    for layer_index, shift in shifts.items():
        assert shift.landed_on == layer_index
        assert shift.shift_below == 0.0
        assert shift.relative_error < TOLERANCE
        length = np.linalg.norm(expected[layer_index].astype(np.float64))
        assert shift.direction_norm == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("layer_base", ["0", "1", "embedding"])
def test_a_direction_lands_on_the_block_that_it_was_measured_at(
    runtime: Runtime,
    block_differences: NDArray[np.float32],
    tmp_path: Path,
    layer_base: str,
):
    number_of_block_0 = 0 if layer_base == "0" else 1
    named = {str(block + number_of_block_0): block_differences[block] for block in (1, 2)}
    np.savez(tmp_path / "v.npz", **named)  # pyright: ignore[reportArgumentType]  # no such option
    shifts = measured(runtime, tmp_path / "v.npz", layer_base=layer_base)
    assert_lands(shifts, {block: block_differences[block] for block in (1, 2)})


def test_hugging_faces_hidden_states_land_one_block_down(
    runtime: Runtime, tiny_llama_path: Path, block_differences: NDArray[np.float32], tmp_path: Path
):
    """The matrix that `torch.stack(hidden_states)` gives: embedding, blocks, final norm."""
    stacked = np.concatenate([np.ones((1, 64), np.float32), block_differences])
    stacked[-1] = NumpyLlama(tiny_llama_path).forward([90]).final_norm[0]
    np.save(tmp_path / "v.npy", stacked)
    shifts = measured(runtime, tmp_path / "v.npy", layer_base="embedding", layers=(1, 2))
    assert_lands(shifts, {block: block_differences[block] for block in (1, 2)})


def test_repengs_file_lands_where_it_was_measured(
    runtime: Runtime, block_differences: NDArray[np.float32], tmp_path: Path
):
    directions = {block: block_differences[block] for block in (3, 2, 1)}
    path = write_repeng_gguf(tmp_path / "v.gguf", directions)
    assert_lands(measured(runtime, path, convention="repeng"), directions)


def test_the_generators_file_lands_one_block_late_unless_it_is_said_to_be_one(
    runtime: Runtime, block_differences: NDArray[np.float32], tmp_path: Path
):
    directions = {block: block_differences[block] for block in (1, 2)}
    path = write_cvector_generator_gguf(tmp_path / "v.gguf", directions)
    assert_lands(measured(runtime, path, convention="cvector-generator"), directions)
    as_llama_cpp_applies_it = {block + 1: row for block, row in directions.items()}
    assert_lands(measured(runtime, path, convention="repeng"), as_llama_cpp_applies_it)


def test_a_sum_shifts_by_the_sum(
    runtime: Runtime, block_differences: NDArray[np.float32], tmp_path: Path
):
    np.save(tmp_path / "a.npy", block_differences)
    np.save(tmp_path / "b.npy", block_differences[::-1])
    sources = (tmp_path / "a.npy", tmp_path / "b.npy")
    request = VectorRequest(
        sources, "0", weights=(0.5, -2.0), scale=0.1, model=check_language_model(runtime.info.path)
    )
    vector = convert_vector(request).vector
    expected = 0.1 * (0.5 * block_differences - 2.0 * block_differences[::-1])
    shifts = measure_shifts(runtime, vector, PROMPT)
    assert_lands(
        {shift.layer_index: shift for shift in shifts},
        {block: expected[block] for block in (1, 2, 3)},
    )


def test_llama_cpps_own_loader_reads_what_we_write(tmp_path: Path):
    rows = np.random.default_rng(4).standard_normal((6, 64)).astype(np.float32)
    np.save(tmp_path / "v.npy", rows)
    request = VectorRequest((tmp_path / "v.npy",), "0", layers=(2, 4), model_hint="llama")
    export_vector(tmp_path / "ours.gguf", convert_vector(request).vector)
    theirs = write_repeng_gguf(tmp_path / "theirs.gguf", {3: rows[3]})
    both = load_in_llama_cpp([(tmp_path / "ours.gguf", 2.0), (theirs, -1.0)])
    assert both is not None
    expected = 2 * rows * np.isin(np.arange(6), (2, 3, 4))[:, None]
    expected[3] -= rows[3]
    np.testing.assert_allclose(both, expected[1:], rtol=1e-6)
    assert load_in_llama_cpp([(tmp_path / "v.npy", 1.0)]) is None


def test_the_vector_of_a_bundle_is_read_by_llama_cpp_and_repeng_and_shifts_as_stated(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    parts = guarded_tiny.parts(has_vector=True)
    assert parts.vector is not None
    back = replace(parts.vector, modalities=ModalityScales(image=0.5), sign=-1)
    folder = write_bundle(
        tmp_path / "bundle", replace(parts, vector=back), allow_negative_scale=True
    )
    strength = -0.5
    with closing(load_bundle(folder, guarded_tiny.info, allow_negative_scale=True)) as bundle:
        stated = bundle.vector_for("image")
    assert stated is not None
    hint, directions = read_as_repeng(folder / "vector.gguf")
    assert (hint, sorted(directions)) == (guarded_tiny.info.architecture, [1, 2, 3])
    for number, direction in directions.items():
        np.testing.assert_array_equal(np.float32(strength) * direction, stated.directions[number])
    loaded = load_in_llama_cpp([(folder / "vector.gguf", strength)])
    assert loaded is not None
    np.testing.assert_array_equal(loaded, stated.directions[1:])

    # Switched on, what was loaded adds to each block's output what the bundle states.
    rows = np.concatenate([np.zeros_like(loaded[:1]), loaded])
    settings = guarded_tiny.settings(None, n_ctx=256)
    with closing(open_runtime(settings, layers=range(N_LAYER))) as runtime:
        shifts = measure_shifts(runtime, ControlVector(rows, hint), PROMPT)
    assert_lands({s.layer_index: s for s in shifts}, {n: stated.directions[n] for n in directions})


def test_a_direction_that_is_not_the_one_stored_is_noticed(runtime: Runtime):
    """The measurement itself: it must not call every shift right."""
    directions = np.random.default_rng(3).standard_normal((N_LAYER, 64)).astype(np.float32)
    directions[0] = 0
    vector = ControlVector(directions, "llama")
    good = measure_shifts(runtime, vector, PROMPT)[0]
    assert good.is_as_stored
    for wrong in (
        LayerShift(1, 8.0, 0.01, 1e-6, 0.0, 1),
        LayerShift(1, 8.0, 0.0, 1e-6, 0.01, 1),
        LayerShift(1, 8.0, 0.0, 1e-6, 0.0, 2),
        LayerShift(1, 8.0, 1.0, 1e-6, 0.0, None),
        LayerShift(1, 8.0, float("nan"), 1e-6, 0.0, 1),
    ):
        assert not wrong.is_as_stored
