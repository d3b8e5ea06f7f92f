"""Directions of every form become the control vector that they stand for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from safesteer_edge.converters.vector_conversion import (
    VectorRequest,
    convert_vector,
)
from safesteer_edge.converters.vector_export import export_vector
from safesteer_edge.errors import InputError, SettingsError, VectorFileError
from safesteer_edge.formats.control_vector_file import (
    BLOCK_OUTPUT_0BASED,
    ControlVector,
    read_control_vector,
)
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from tests.converters.vector_files import write_cvector_generator_gguf, write_repeng_gguf

N_LAYER, N_EMBD = 4, 64  # of the tiny llama
ROWS = np.random.default_rng(0).standard_normal((N_LAYER, N_EMBD)).astype(np.float32)
STEERED = ROWS * (np.arange(N_LAYER) > 0)[:, None]


@pytest.fixture(scope="module")
def tiny_llama(tiny_llama_path: Path) -> ModelInfo:
    return check_language_model(tiny_llama_path)


def converted(path: Path, **options: Any) -> ControlVector:
    options = {"layer_base": "0", "model_hint": "llama", **options}
    return convert_vector(VectorRequest((path,), **options)).vector


def saved(folder: Path, rows: Any = None, **named: Any) -> Path:
    path = folder / "vector.npz"
    np.savez(path, **({"directions": rows} if rows is not None else named))
    return path


def test_a_matrix_has_one_row_per_block(tmp_path: Path):
    np.save(tmp_path / "v.npy", ROWS)
    for path in (tmp_path / "v.npy", saved(tmp_path, ROWS)):
        vector = converted(path)
        np.testing.assert_array_equal(vector.directions, STEERED)
        assert (vector.model_hint, vector.layer_convention) == ("llama", BLOCK_OUTPUT_0BASED)


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f4", "<i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_real_numbers_in_any_order_will_do(tmp_path: Path, dtype: str, order: Any):
    rows = np.asarray(ROWS * 8, dtype=dtype, order=order)
    np.save(tmp_path / "v.npy", rows)
    expected = rows.astype(np.float32)[1:]
    np.testing.assert_array_equal(converted(tmp_path / "v.npy").directions[1:], expected)


@pytest.mark.parametrize("name", ["{}", "layer_{}", "direction.{}", "model.layers.{}"])
@pytest.mark.parametrize("shape", [(N_EMBD,), (1, N_EMBD)])
def test_directions_may_be_named_by_their_layers(
    tmp_path: Path, name: str, shape: tuple[int, ...], tiny_llama: ModelInfo
):
    path = saved(tmp_path, **{name.format(k): ROWS[k].reshape(shape) for k in (1, 3)})
    vector = converted(path, model=tiny_llama)
    assert vector.n_layer == N_LAYER
    np.testing.assert_array_equal(vector.directions[[1, 3]], ROWS[[1, 3]])
    assert not vector.directions[[0, 2]].any()


@pytest.mark.parametrize(("layer_base", "block_of_2"), [("0", 2), ("1", 1), ("embedding", 1)])
def test_the_layer_base_decides_which_block_layer_2_is(
    tmp_path: Path, layer_base: str, block_of_2: int, tiny_llama: ModelInfo
):
    path = saved(tmp_path, **{"2": ROWS[2]})
    vector = converted(path, layer_base=layer_base, model=tiny_llama)
    assert np.flatnonzero(vector.directions.any(axis=1)).tolist() == [block_of_2]


def test_a_matrix_of_hidden_states_begins_with_the_embedding(tmp_path: Path):
    """hidden_states[k] is the output of block k − 1."""
    stacked = np.concatenate([np.full((1, N_EMBD), 9.0), ROWS])
    path = saved(tmp_path, stacked)
    vector = converted(path, layer_base="embedding", layers=(1, 2))
    assert vector.n_layer == N_LAYER
    np.testing.assert_array_equal(vector.directions[[1, 2]], ROWS[[1, 2]])
    assert not vector.directions[3].any()


def test_the_entry_after_the_final_norm_is_no_blocks_output(tmp_path: Path, tiny_llama: ModelInfo):
    stacked = np.concatenate([np.zeros((1, N_EMBD)), ROWS])
    named = {str(k): ROWS[k - 1] for k in (2, N_LAYER)}
    for path in (saved(tmp_path, stacked), saved(tmp_path, **named)):
        with pytest.raises(VectorFileError, match=r"entry 4 .* final norm.*--layers 1-2"):
            converted(path, layer_base="embedding", model=tiny_llama)


def test_named_hidden_states_need_the_model_to_know_the_last_one(tmp_path: Path):
    with pytest.raises(VectorFileError, match="--model"):
        converted(saved(tmp_path, **{"2": ROWS[2]}), layer_base="embedding")


def test_a_file_that_does_not_say_is_asked_about_not_guessed(tmp_path: Path):
    with pytest.raises(SettingsError, match="--layer-base"):
        converted(saved(tmp_path, ROWS), layer_base=None)
    gguf = write_repeng_gguf(tmp_path / "v.gguf", {1: ROWS[1]})
    with pytest.raises(SettingsError, match="--source-convention"):
        converted(gguf)


def test_what_cannot_be_steered_is_left_out_and_said(tmp_path: Path):
    stacked = np.concatenate([np.ones((1, N_EMBD)), ROWS[:3], np.zeros((1, N_EMBD))])
    result = convert_vector(VectorRequest((saved(tmp_path, ROWS),), "0", model_hint="llama"))
    assert len(result.notes) == 1
    assert "first block" in result.notes[0]
    with pytest.raises(VectorFileError, match="final norm"):  # zeros are an entry as well
        converted(saved(tmp_path, stacked), layer_base="embedding")


def test_repengs_layers_stay_and_the_generators_move_down_by_one(
    tmp_path: Path, tiny_llama: ModelInfo
):
    measured = {block: ROWS[block] for block in (0, 1, 2)}
    repeng = write_repeng_gguf(tmp_path / "r.gguf", {1: ROWS[1], 2: ROWS[2]}, model_type="mistral")
    generator = write_cvector_generator_gguf(tmp_path / "g.gguf", measured)
    first = converted(repeng, convention="repeng", model=tiny_llama)
    second = converted(generator, convention="cvector-generator", model=tiny_llama)
    np.testing.assert_array_equal(first.directions, second.directions)
    np.testing.assert_array_equal(first.directions[[1, 2]], ROWS[[1, 2]])
    assert first.model_hint == "llama"
    # What llama.cpp itself makes of the generator's file is one block later.
    assert read_control_vector(generator).directions[2].any()
    np.testing.assert_array_equal(read_control_vector(generator).directions[3], ROWS[2])


def test_repengs_last_layer_is_measured_after_the_final_norm_and_said(
    tmp_path: Path, tiny_llama: ModelInfo
):
    path = write_repeng_gguf(tmp_path / "r.gguf", {k: ROWS[k] for k in (3, 2, 1)})
    result = convert_vector(VectorRequest((path,), convention="repeng", model=tiny_llama))
    assert any("final norm" in note for note in result.notes)


@given(
    weights=st.tuples(*[st.floats(-4, 4).filter(lambda w: abs(w) > 0.01)] * 2),
    scale=st.floats(0.01, 10),
)
def test_several_sources_are_weighted_and_added(
    tmp_path_factory: pytest.TempPathFactory, weights: tuple[float, float], scale: float
):
    folder = tmp_path_factory.mktemp("sum")
    other = ROWS[::-1].astype(np.float64)
    np.save(folder / "a.npy", ROWS)
    np.save(folder / "b.npy", other)
    sources = (folder / "a.npy", folder / "b.npy")
    request = VectorRequest(sources, "0", weights=weights, scale=scale, model_hint="llama")
    expected = scale * (weights[0] * ROWS.astype(np.float64) + weights[1] * other)
    np.testing.assert_allclose(
        convert_vector(request).vector.directions[1:], expected[1:], rtol=1e-5, atol=1e-5
    )


def test_normalised_directions_have_length_1_before_weight_and_scale(tmp_path: Path):
    np.save(tmp_path / "v.npy", ROWS.astype(np.float64) * np.array([[1], [1e200], [1e-200], [0]]))
    vector = converted(tmp_path / "v.npy", normalise=True, weights=(0.5,), scale=4.0)
    lengths = np.linalg.norm(vector.directions, axis=1)
    np.testing.assert_allclose(lengths, [0, 2, 2, 0], rtol=1e-6)


def test_only_the_blocks_asked_for_are_kept(tmp_path: Path):
    vector = converted(saved(tmp_path, ROWS), layers=(2, 2))
    assert np.flatnonzero(vector.directions.any(axis=1)).tolist() == [2]


def test_a_turned_vector_is_said_to_be(tmp_path: Path):
    request = VectorRequest(
        (saved(tmp_path, ROWS),), "0", scale=-1.0, layers=(1, 3), model_hint="llama"
    )
    assert any("negative" in note for note in convert_vector(request).notes)


def test_the_vector_says_what_it_was_made_from(tmp_path: Path):
    export_vector(tmp_path / "v.gguf", converted(saved(tmp_path, ROWS), scale=2.0))
    story = json.loads(read_control_vector(tmp_path / "v.gguf").metadata["made_from"])
    assert story["scale"] == 2.0
    assert story["sources"][0]["file"] == "vector.npz"
    assert len(story["sources"][0]["sha256"]) == 64


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".gguf"])
def test_back_and_forth_changes_no_bit_and_asks_no_question(tmp_path: Path, suffix: str):
    vector = converted(saved(tmp_path, ROWS))
    export_vector(tmp_path / f"out{suffix}", vector)
    again = converted(tmp_path / f"out{suffix}", layer_base=None, model_hint=None)
    np.testing.assert_array_equal(again.directions, vector.directions)
    assert (again.model_hint, again.layer_convention) == ("llama", BLOCK_OUTPUT_0BASED)


def test_what_is_written_back_opens_in_numpy_and_safetensors(tmp_path: Path):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    vector = converted(saved(tmp_path, ROWS))
    export_vector(tmp_path / "v.npz", vector)
    export_vector(tmp_path / "v.safetensors", vector)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["directions"], STEERED)
    tensors = safetensors_numpy.load_file(tmp_path / "v.safetensors")
    np.testing.assert_array_equal(tensors["directions"], STEERED)


@pytest.mark.parametrize(
    ("rows", "found", "expected"),
    [
        (ROWS[:3], "3 rows", "4 layers"),
        (ROWS[:, :32], "32 numbers", "64 wide"),
    ],
)
def test_another_models_vector_is_refused_with_both_numbers(
    tmp_path: Path, tiny_llama: ModelInfo, rows: Any, found: str, expected: str
):
    with pytest.raises(VectorFileError, match=found) as refused:
        converted(saved(tmp_path, rows), model=tiny_llama)
    assert expected in str(refused.value)


def test_a_layer_that_the_model_does_not_have_is_refused(tmp_path: Path, tiny_llama: ModelInfo):
    for layer_base, number in (("0", 4), ("1", 5), ("embedding", 5), ("1", 0)):
        path = saved(tmp_path, **{str(number): ROWS[0]})
        with pytest.raises(VectorFileError, match=f"layer {number}"):
            converted(path, layer_base=layer_base, model=tiny_llama)


NEGATIVE_NAMES = (("-1", "-2"), ("layer_-1", "layer_-2"), ("−1", "−2"), ("-1", "2"))


@pytest.mark.parametrize("names", NEGATIVE_NAMES)
@pytest.mark.parametrize("base", ["0", "1"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_negative_layer_is_counted_from_the_models_last(
    tmp_path: Path, tiny_llama: ModelInfo, names: tuple[str, str], base: str, suffix: str
):
    last_but_one = {"2": "2" if base == "0" else "3"}.get(names[1], names[1])
    named = {names[0]: ROWS[3], last_but_one: ROWS[2]}
    path = tmp_path / f"v{suffix}"
    np.savez(path, **named) if suffix == ".npz" else save_file(named, path)
    vector = converted(path, layer_base=base, model=tiny_llama)
    np.testing.assert_array_equal(vector.directions, [0 * ROWS[0], 0 * ROWS[0], *ROWS[2:]])
    with pytest.raises(VectorFileError, match=r"layer -\d, counted from the last; .*--model"):
        converted(path, layer_base=base)


def test_the_last_entry_of_hidden_states_is_no_blocks_output(tmp_path: Path, tiny_llama: ModelInfo):
    path = saved(tmp_path, **{"-1": ROWS[3], "-2": ROWS[2]})
    with pytest.raises(VectorFileError, match="final norm"):
        converted(path, layer_base="embedding", model=tiny_llama)
    path = saved(tmp_path, **{"-2": ROWS[2]})
    vector = converted(path, layer_base="embedding", model=tiny_llama)
    np.testing.assert_array_equal(np.flatnonzero(vector.directions.any(axis=1)), [2])


@pytest.mark.parametrize("names", [("-5", "1"), ("-1", "3")])
def test_negative_layers_that_are_not_there_or_there_twice_are_refused(
    tmp_path: Path, tiny_llama: ModelInfo, names: tuple[str, str]
):
    path = saved(tmp_path, **{names[0]: ROWS[1], names[1]: ROWS[2]})
    with pytest.raises(VectorFileError, match=r"of 4 layers\) has not, or has by another number"):
        converted(path, model=tiny_llama)


def test_a_hyphen_behind_a_word_is_no_minus(tmp_path: Path):
    vector = converted(saved(tmp_path, **{"layer-1": ROWS[1], "layer-3": ROWS[3]}))
    np.testing.assert_array_equal(np.flatnonzero(vector.directions.any(axis=1)), [1, 3])


def test_repengs_direction_of_the_first_block_is_left_out_and_said(tmp_path: Path):
    path = write_repeng_gguf(tmp_path / "v.gguf", dict(enumerate(ROWS)))
    request = VectorRequest((path,), convention="repeng")
    result = convert_vector(request)
    np.testing.assert_array_equal(result.vector.directions, STEERED)
    assert "cannot steer the first block: its direction is left out" in result.notes[0]
    with pytest.raises(VectorFileError, match="has a layer 0, and --layer-base 1"):
        convert_vector(replace(request, convention="cvector-generator"))


def test_a_vector_made_for_another_architecture_is_said_to_be(
    tmp_path: Path, tiny_llama: ModelInfo
):
    path = write_repeng_gguf(tmp_path / "v.gguf", {2: ROWS[2]}, model_type="qwen2")
    request = VectorRequest((path,), convention="repeng", model=tiny_llama)
    (note,) = convert_vector(request).notes
    assert (
        note == "'v.gguf' says that it is for 'qwen2' models; the vector is for 'llama', as asked"
    )
    assert convert_vector(replace(request, model=None, model_hint="llama")).notes == (note,)
    assert not convert_vector(replace(request, model=None)).notes


def test_sources_of_different_models_are_not_added(tmp_path: Path):
    np.save(tmp_path / "a.npy", ROWS)
    np.save(tmp_path / "b.npy", ROWS[:, :32])
    np.save(tmp_path / "c.npy", ROWS[:3])
    for other in ("b.npy", "c.npy"):
        sources = (tmp_path / "a.npy", tmp_path / other)
        with pytest.raises(VectorFileError, match="use vectors of one model"):
            convert_vector(VectorRequest(sources, "0", model_hint="llama"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float):
    rows = ROWS.copy()
    rows[2, 5] = value
    with pytest.raises(VectorFileError, match=r"layer 2 .* not finite"):
        converted(saved(tmp_path, rows))


def test_what_float32_cannot_hold_is_refused(tmp_path: Path):
    for scale, problem in ((1e300, "not finite"), (1e-300, "is 0 once it is float32")):
        with pytest.raises(VectorFileError, match=problem):
            converted(saved(tmp_path, ROWS.astype(np.float64)), scale=scale)


def test_a_vector_with_nothing_left_is_refused(tmp_path: Path):
    with pytest.raises(VectorFileError, match="no direction is left"):
        converted(saved(tmp_path, np.zeros((4, 8))))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"scale": float("nan")},
        {"weights": (1.0, 2.0)},
        {"weights": (float("inf"),)},
        {"layers": (0, 2)},
        {"layers": (3, 2)},
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any]):
    with pytest.raises(SettingsError):
        replace(VectorRequest((Path("v.npz"),)), **change)


def test_an_unknown_architecture_is_asked_about(tmp_path: Path):
    with pytest.raises(SettingsError, match="--hint"):
        converted(saved(tmp_path, ROWS), model_hint=None)


def test_another_kind_of_output_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"\.gguf"):
        export_vector(tmp_path / "v.pt", converted(saved(tmp_path, ROWS)))
    with pytest.raises(InputError, match="cannot write"):
        export_vector(tmp_path / "none" / "v.gguf", converted(saved(tmp_path, ROWS)))
