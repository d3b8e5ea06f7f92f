"""Each route to hidden states against NumPy's forward pass, on every kind of decode."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.engine import node_catcher
from safesteer_edge.engine.hidden_states import (
    LAYER_INPUT_ARCHITECTURES,
    MAX_ROWS_READ,
    EvalCallbackRoute,
    RouteName,
    choose_route,
)
from safesteer_edge.engine.node_catcher import NodeCatcher, c_callback
from safesteer_edge.errors import EngineError
from tests.engine.open_engine import (
    F32_TOLERANCE,
    N_EMBD,
    N_LAYER,
    Float32Array,
    OpenEngine,
    open_engine,
    random_prompt,
    random_vector,
)
from tests.native_llama import native_forward
from tests.numpy_llama import NumpyForward, NumpyLlama
from tests.tiny_models import write_tiny_qwen2

PROMPT = random_prompt(np.random.default_rng(0), 12)
ANSWER = [50, 261, 99]
CANDIDATES = [60, 70, 300, 90]

ROUTES: list[tuple[RouteName, tuple[int, ...]]] = [
    ("layer_input", (0, 1, 2)),
    ("layer_input", (2, 0)),
    ("eval_callback", (0, 1, 2, 3)),
    ("eval_callback", (3, 1)),
    ("eval_callback", (N_LAYER,)),
    ("final_norm", (N_LAYER,)),
]


def states_at(forward: NumpyForward, layers: tuple[int, ...], position: int) -> Float32Array:
    """What a route gives: the states of `layers` at one position, joined in their order."""
    if layers == (N_LAYER,):
        return forward.final_norm[position]
    return np.concatenate([forward.block_outputs[layer, position] for layer in layers])


def read_everywhere(opened: OpenEngine, vector: Float32Array | None = None) -> Float32Array:
    """States at the prompt's end, at three decoding steps, and of four candidates."""
    prompt_state = opened.prefill(PROMPT, control_vector=vector).last_state
    answer_states = opened.feed(ANSWER)
    candidate_states = opened.engine.evaluate_candidates(CANDIDATES)
    return np.concatenate([prompt_state[None], answer_states, candidate_states])


def expect_everywhere(
    model: NumpyLlama, layers: tuple[int, ...], vector: Float32Array | None = None
) -> Float32Array:
    n_prompt = len(PROMPT)
    steered_from = n_prompt - 1
    answered = model.forward(PROMPT + ANSWER, vector, steered_from=steered_from)
    rows = [states_at(answered, layers, n_prompt - 1 + step) for step in range(len(ANSWER) + 1)]
    for token_id in CANDIDATES:
        forward = model.forward([*PROMPT, *ANSWER, token_id], vector, steered_from=steered_from)
        rows.append(states_at(forward, layers, -1))
    return np.stack(rows)


@pytest.mark.parametrize(("route_name", "layers"), ROUTES)
@pytest.mark.parametrize("is_steered", [False, True])
def test_a_route_gives_the_states_that_numpy_computes(
    tiny_llama_path: Path, route_name: RouteName, layers: tuple[int, ...], is_steered: bool
) -> None:
    vector = random_vector() if is_steered else None
    with open_engine(tiny_llama_path, layers=layers, route_name=route_name) as opened:
        actual = read_everywhere(opened, vector)
    expected = expect_everywhere(NumpyLlama(tiny_llama_path), layers, vector)
    assert actual.shape == (len(ANSWER) + len(CANDIDATES) + 1, len(layers) * N_EMBD)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=F32_TOLERANCE)


@pytest.mark.parametrize("is_steered", [False, True])
def test_layer_input_and_eval_callback_give_the_same_bits(
    tiny_llama_path: Path, is_steered: bool
) -> None:
    vector = random_vector() if is_steered else None
    read: list[Float32Array] = []
    for route_name in ("layer_input", "eval_callback"):
        with open_engine(tiny_llama_path, layers=(0, 1, 2), route_name=route_name) as opened:
            read.append(read_everywhere(opened, vector))
    np.testing.assert_array_equal(read[0], read[1])


def test_the_states_of_another_prompt_do_not_change_the_ones_read_before(
    tiny_llama_path: Path,
) -> None:
    with open_engine(tiny_llama_path, layers=(1,)) as opened:
        states = read_everywhere(opened)
        kept = states.copy()
        opened.prefill([7, 8, 9])
        opened.feed([10])
        np.testing.assert_array_equal(states, kept)


def test_an_architecture_without_layer_inputs_is_read_by_callback(tmp_path: Path) -> None:
    path = write_tiny_qwen2(tmp_path / "qwen2.gguf")
    expected = native_forward(path, PROMPT + ANSWER)
    with open_engine(path, layers=(0, 3)) as opened:
        opened.prefill(PROMPT)
        actual = opened.feed(ANSWER)
    rows = [states_at(expected, (0, 3), len(PROMPT) + step) for step in range(len(ANSWER))]
    np.testing.assert_allclose(actual, np.stack(rows), rtol=0, atol=F32_TOLERANCE)


def test_a_recurrent_model_is_read_by_callback(tiny_mamba_path: Path) -> None:
    with open_engine(tiny_mamba_path, layers=(0, 2, 3)) as opened:
        actual = read_everywhere(opened)
    sequences = [(PROMPT + ANSWER)[: len(PROMPT) + step] for step in range(len(ANSWER) + 1)]
    sequences += [[*PROMPT, *ANSWER, token_id] for token_id in CANDIDATES]
    expected = [states_at(native_forward(tiny_mamba_path, s), (0, 2, 3), -1) for s in sequences]
    # States grow from block to block here, to the thousands: seen, 1e-6 of the largest.
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(actual, np.stack(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("architecture", "layers", "route_name"),
    [
        ("llama", (0, 2), "layer_input"),
        ("llama", (3,), "eval_callback"),  # no block behind it has it as its input
        ("llama", (0, 3), "eval_callback"),
        ("llama", (4,), "final_norm"),
        ("mamba", (0,), "eval_callback"),
        ("mamba", (4,), "final_norm"),
        ("lfm2", (0,), "layer_input"),
        ("lfm2", (4,), "eval_callback"),
    ],
)
def test_the_cheapest_route_that_serves_is_chosen(
    architecture: str, layers: tuple[int, ...], route_name: RouteName
) -> None:
    assert choose_route(architecture, N_LAYER, layers).name == route_name


@pytest.mark.parametrize(
    ("architecture", "layers", "wanted"),
    [
        ("llama", (), None),
        ("llama", (0, 4), None),
        ("llama", (5,), None),
        ("llama", (-1,), None),
        ("llama", (3,), "layer_input"),
        ("llama", (0,), "final_norm"),
        ("llama", (4,), "layer_input"),
        ("lfm2", (4,), "final_norm"),  # its graph would give no logits
        ("mamba", (0,), "layer_input"),  # asking its graph would abort the process
    ],
)
def test_a_route_that_cannot_serve_is_refused(
    architecture: str, layers: tuple[int, ...], wanted: RouteName | None
) -> None:
    with pytest.raises(EngineError):
        choose_route(architecture, N_LAYER, layers, wanted=wanted)


def test_this_llama_cpp_exports_the_layer_inputs() -> None:
    assert choose_route("llama", N_LAYER, (0,)).name == "layer_input"
    assert "llama" in LAYER_INPUT_ARCHITECTURES


@pytest.fixture(params=["C", "Python"])
def callback_language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The callback that is used is in this language."""
    if request.param == "Python":
        monkeypatch.setattr(node_catcher, "c_callback", lambda: None)
    elif c_callback() is None:
        pytest.skip("it was not built")
    return request.param


@pytest.mark.usefixtures("callback_language")
def test_a_failure_inside_the_native_callback_is_raised_and_leaves_no_trace(
    tiny_llama_path: Path,
) -> None:
    with open_engine(tiny_llama_path, layers=(0, 3)) as opened:
        expected = read_everywhere(opened)
    with open_engine(tiny_llama_path, layers=(0, 3)) as opened:
        catcher = catcher_of(opened)
        catcher.make_room(9, N_EMBD + 1)
        with pytest.raises(EngineError, match="not rows of 65 floats"):
            opened.prefill(PROMPT[:-2])  # the graph stops at its last token
        catcher.make_room(9, N_EMBD)
        actual = read_everywhere(opened)
        catcher.make_room(9, N_EMBD + 1)
        with pytest.raises(EngineError, match="not rows of 65 floats"):
            opened.engine.evaluate(55)
        catcher.make_room(9, N_EMBD)
        opened.engine.take_back(0)
        again = opened.engine.evaluate_candidates(CANDIDATES)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=F32_TOLERANCE)
    np.testing.assert_allclose(again, expected[-len(CANDIDATES) :], rtol=0, atol=F32_TOLERANCE)


@pytest.mark.usefixtures("callback_language")
def test_states_that_were_not_caught_are_never_given(tiny_llama_path: Path) -> None:
    with open_engine(tiny_llama_path, layers=(0, 3), n_candidates=4) as opened:
        opened.prefill(PROMPT)
        catcher = catcher_of(opened)
        with pytest.raises(EngineError, match="0 rows"):  # they were read
            catcher.take(1)
        opened.engine.append(ANSWER)
        with pytest.raises(EngineError, match="'l_out-0' gave 3 rows"):
            catcher.take(1)
        opened.engine.append([7] * (MAX_ROWS_READ + 1))
        with pytest.raises(EngineError, match="'l_out-0' gave 0 rows"):
            catcher.take(MAX_ROWS_READ + 1)
        opened.engine.append(ANSWER)
        opened.prefill([*PROMPT, *ANSWER, 50, 51])
        with pytest.raises(EngineError, match="0 rows"):
            catcher.take(1)


def catcher_of(opened: OpenEngine) -> NodeCatcher:
    route = opened.engine._route
    assert isinstance(route, EvalCallbackRoute)
    return route.callback


def test_a_callback_in_c_that_was_built_for_other_fields_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if c_callback() is None:
        pytest.skip("it was not built")
    monkeypatch.setattr(sys.modules["safesteer_edge.engine._node_callback"], "SHARED_BYTES", 8)
    assert c_callback() is None
