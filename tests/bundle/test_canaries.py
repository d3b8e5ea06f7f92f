"""Engine canaries: the states that the running engine yields are those of the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle, check_engine_canaries, load_bundle
from safesteer_edge.errors import BundleError
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from tests.bundle.linear_probe import weights_for
from tests.bundle.sample_parts import CANARY_TOKENS, engine_state_of
from tests.tiny_models import write_tiny_llama


@pytest.fixture
def bundle(folder: Path, model: ModelInfo):
    with load_bundle(folder, model, device="cpu") as loaded:
        yield loaded


def good_states(token_ids: Sequence[int]) -> NDArray[np.float32]:
    return engine_state_of(tuple(token_ids), 128)


def rounded(token_ids: Sequence[int]) -> NDArray[np.float32]:
    """The good states with the rounding noise of another backend."""
    noise = np.random.default_rng(1).standard_normal(128).astype(np.float32)
    return good_states(token_ids) + np.float32(0.01) * noise


def test_the_right_states_pass_and_each_canary_is_asked_for(bundle: GuardBundle):
    asked: list[tuple[int, ...]] = []

    def states_of(token_ids: Sequence[int]) -> NDArray[np.float32]:
        asked.append(tuple(token_ids))
        return rounded(token_ids)

    check_engine_canaries(bundle, states_of)
    assert asked == [CANARY_TOKENS]


def other_first_layer(token_ids: Sequence[int]) -> NDArray[np.float32]:
    """A first layer that is wrong beside a second one that is right and much longer."""
    state = good_states(token_ids).copy()
    state[:64] = np.roll(state[:64], 1)
    return state


def turned_along_the_probe(token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Within the tolerances of direction and length, but with another score."""
    layers = good_states(token_ids).reshape(2, 64)
    weights = weights_for(128).reshape(2, 64)
    turned = layers + np.float32(0.3) * weights
    lengths = np.linalg.norm(layers, axis=1) / np.linalg.norm(turned, axis=1)
    return (turned * lengths[:, np.newaxis]).ravel()


@pytest.mark.parametrize(
    ("states_of", "problem"),
    [
        (lambda ids: good_states((9, 9)), "norm|cosine"),
        (other_first_layer, "layer 0"),
        (lambda ids: np.concatenate([good_states(ids)[64:], good_states(ids)[:64]]), "layer 0"),
        (lambda ids: -good_states(ids), "cosine"),
        (lambda ids: 2 * good_states(ids), "norm"),
        (lambda ids: 0 * good_states(ids), "norm"),
        (lambda ids: good_states(ids) * np.float32(np.nan), "norm"),
        (lambda ids: good_states(ids)[:64], "shape"),
        (lambda ids: good_states(ids)[np.newaxis], "shape"),
        (turned_along_the_probe, "score"),
        (lambda ids: good_states(ids).astype(np.float64), "float32"),
    ],
    ids=[
        "other prompt",
        "one wrong layer of two",
        "layers joined in the other order",
        "flipped",
        "scaled",
        "zero",
        "NaN",
        "one layer",
        "batched",
        "other score",
        "float64",
    ],
)
def test_wrong_states_are_refused(bundle: GuardBundle, states_of, problem: str):
    with pytest.raises(BundleError, match=problem) as caught:
        check_engine_canaries(bundle, states_of)
    assert "self-test 1 of 1" in str(caught.value)
    assert "calibrate" in str(caught.value)


def test_another_quantization_may_move_states_but_not_turn_them(tmp_path: Path, folder: Path):
    other = check_language_model(write_tiny_llama(tmp_path / "q.gguf", quantization="Q4_0"))
    with load_bundle(folder, other, device="cpu") as bundle:
        noise = np.random.default_rng(2).standard_normal(128).astype(np.float32)
        check_engine_canaries(bundle, lambda ids: good_states(ids) + np.float32(0.3) * noise)
        with pytest.raises(BundleError, match="cosine"):
            check_engine_canaries(bundle, lambda ids: -good_states(ids))
