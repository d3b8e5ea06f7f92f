"""Fitting a probe: it finds what is there, and its out-of-fold scores do not flatter it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from safesteer_edge.calibration.probe_fit import (
    N_FOLDS,
    FitSettings,
    FittedProbe,
    ProbeForm,
    fit_probe,
    fit_uncalibrated,
    request_folds,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.probe_graph import DenseLayer
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.requests.requests import Label
from tests.made_up_answers import (
    N_POSITIONS,
    made_up_answer,
    made_up_request,
    plant,
    with_flipped_labels,
)

LINEAR = ProbeForm("linear", 0.01)
SETTINGS = FitSettings(LINEAR, n_positions=N_POSITIONS, calibration="platt")


def separation(answers: Sequence[HarvestedAnswer], scores: Sequence[NDArray[np.float64]]) -> float:
    """AUROC of the answers' mean scores; the prompt's comes first and is left out."""
    means = np.array([row[1:].mean() for row in scores])
    labels = np.array([answer.label for answer in answers])
    return auroc(means[labels == 1], means[labels == 0])


def raw_direction(probe: FittedProbe) -> NDArray[np.float64]:
    """The probe's weights on raw states, of length 1."""
    (layer,) = probe.graph.layers
    assert isinstance(layer, DenseLayer)
    direction = layer.weights[:, 0] / probe.graph.scale
    return direction / np.linalg.norm(direction)


def test_a_planted_direction_is_recovered():
    planted = plant(size=3.0, n_pairs=100)
    probe, scores = fit_probe(planted.answers, SETTINGS)
    assert raw_direction(probe) @ planted.direction > 0.95
    assert separation(planted.answers, scores) > 0.95


def test_a_flipped_direction_is_recovered_with_its_sign():
    planted = plant(size=-3.0, n_pairs=100)
    probe, _ = fit_probe(planted.answers, SETTINGS)
    assert raw_direction(probe) @ planted.direction < -0.95


def test_out_of_fold_scores_of_pure_noise_are_those_of_a_coin():
    # 120 features and 60 pairs: a fit that saw the answers would tell them apart.
    found = [
        separation(planted.answers, fit_probe(planted.answers, SETTINGS)[1])
        for planted in (plant(size=0.0, n_features=120, seed=seed) for seed in range(4))
    ]
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)
    planted = plant(size=0.0, n_features=120)
    probe, _ = fit_probe(planted.answers, SETTINGS)
    remembered = [probe.margins(answer.states.astype(float)) for answer in planted.answers]
    assert separation(planted.answers, remembered) > 0.55


def test_a_twentieth_of_wrong_labels_costs_little():
    planted = plant(size=2.0, n_pairs=100)
    _, clean_scores = fit_probe(planted.answers, SETTINGS)
    noisy, noisy_scores = fit_probe(with_flipped_labels(planted.answers, share=0.05), SETTINGS)
    assert raw_direction(noisy) @ planted.direction > 0.85
    # Measured against the true labels.
    clean_separation = separation(planted.answers, clean_scores)
    noisy_separation = separation(planted.answers, noisy_scores)
    assert noisy_separation > clean_separation - 0.01


def test_scores_are_calibrated_chances():
    planted = plant(size=1.5, n_pairs=200)
    _, scores = fit_probe(planted.answers, SETTINGS)
    values = np.concatenate(scores)
    labels = np.repeat([answer.label for answer in planted.answers], N_POSITIONS + 1)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        inside = (values >= low) & (values < high)
        assert labels[inside].mean() == pytest.approx(values[inside].mean(), abs=0.1)


def test_a_fit_is_scikit_learns_on_standardised_states():
    planted = plant(size=2.0, n_pairs=20)
    probe, _ = fit_probe(planted.answers, SETTINGS)
    states = np.concatenate([answer.states.astype(float) for answer in planted.answers])
    labels = np.repeat([answer.label for answer in planted.answers], N_POSITIONS + 1)
    # The prompt's position counts more.
    weights = np.tile([16.0] + N_POSITIONS * [1.0], len(planted.answers))
    standard = (states - states.mean(axis=0)) / states.std(axis=0)
    oracle = LogisticRegression(C=0.01, class_weight="balanced", tol=1e-6, max_iter=2000)
    oracle.fit(standard, labels, sample_weight=weights / weights.mean())
    expected = oracle.decision_function(standard)
    np.testing.assert_allclose(probe.margins(states), expected, rtol=0, atol=0.02)


def test_only_the_positions_asked_for_are_fitted():
    planted = plant(size=3.0)
    spoiled = []
    for answer in planted.answers:
        states = answer.states.copy()
        states[4:] = -states[4:]  # from answer token 4 on, the classes change sides
        spoiled.append(made_up_answer(states, answer.request))
    probe, scores = fit_probe(spoiled, FitSettings(LINEAR, n_positions=3))
    assert raw_direction(probe) @ planted.direction > 0.9
    assert [len(row) for row in scores] == [N_POSITIONS + 1] * len(spoiled)  # all are scored


def test_the_prompt_of_a_harmful_request_is_harmful_whatever_is_answered():
    # One direction says what is asked, at the prompt's end; the other what is answered.
    rng = np.random.default_rng(0)
    answers = []
    for number in range(60):
        for label in ("harmful", "harmless"):
            asked = np.array([3.0 if label == "harmful" else -3.0, 0.0])
            for complies in (0, 1):
                said = np.array([0.0, 3.0 if complies and label == "harmful" else -3.0])
                states = rng.standard_normal((N_POSITIONS + 1, 2)) + said
                states[0] = asked + rng.standard_normal(2)
                is_harmful = 1 if complies and label == "harmful" else 0
                request = made_up_request(label, number)
                answers.append(made_up_answer(states, request, label=is_harmful))
    _, scores = fit_probe(answers, SETTINGS)
    refused = [
        row
        for answer, row in zip(answers, scores, strict=True)
        if answer.request.label == "harmful" and answer.label == 0
    ]
    assert np.mean([row[0] for row in refused]) > 0.7
    assert np.mean([row[1:].mean() for row in refused]) < 0.3


def test_answers_that_tell_of_false_alarms_count_more_than_twins():
    # The same state as harmful, as a twin's and as a benign one's: the scores say who counts more.
    states = np.ones((N_POSITIONS + 1, 2))
    found = {}
    labels: tuple[Label, ...] = ("harmless", "ordinary", "borderline")
    for label in labels:
        answers = [
            made_up_answer(states, made_up_request("harmful", number)) for number in range(10)
        ]
        answers += [made_up_answer(-states, made_up_request("harmless", n)) for n in range(30)]
        answers += [made_up_answer(states, made_up_request(label, 50 + n)) for n in range(5)]
        found[label] = fit_uncalibrated(answers, SETTINGS).scores(states[:1])[0]
    assert found["borderline"] == found["ordinary"] < found["harmless"]


def test_both_kinds_of_answer_are_needed():
    planted = plant(size=1.0)
    harmful = [answer for answer in planted.answers if answer.label == 1]
    with pytest.raises(SettingsError, match="all of one kind"):
        fit_probe(harmful, SETTINGS)


@settings(deadline=None, max_examples=30)
@given(
    n_pairs=st.integers(1, 30),
    n_ordinary=st.integers(0, 30),
    n_answers_each=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_answers_of_one_request_or_pair_share_a_fold(
    n_pairs: int, n_ordinary: int, n_answers_each: int, seed: int
):
    states = np.zeros((2, 1))
    requests = [
        *(made_up_request(label, n) for n in range(n_pairs) for label in ("harmful", "harmless")),
        *(made_up_request("ordinary", n) for n in range(n_ordinary)),
    ]
    answers = [made_up_answer(states, request) for request in requests] * n_answers_each
    folds = request_folds(answers, seed)
    fold_by_group: dict[str, set[int]] = {}
    for answer, fold in zip(answers, folds, strict=True):
        group = answer.request.pair_id or answer.request.id
        fold_by_group.setdefault(group, set()).add(fold)
    assert all(len(found) == 1 for found in fold_by_group.values())
    assert set(folds) <= set(range(N_FOLDS))
    sizes = np.bincount([min(found) for found in fold_by_group.values()], minlength=N_FOLDS)
    assert sizes.max() - sizes.min() <= 1


def test_prompts_without_answers_teach_the_prompt_s_position():
    """Harmful prompts alone, along a direction that no answer shows."""
    planted = plant(size=3.0, n_pairs=40, n_features=24)
    rng = np.random.default_rng(7)
    other = np.linalg.qr(np.column_stack([planted.direction, rng.standard_normal(24)]))[0][:, 1]
    labels: tuple[Label, ...] = ("harmful", "harmless")
    prompts = [
        made_up_answer(
            (rng.standard_normal(24) + (3 if label == "harmful" else -3) * other)[np.newaxis],
            made_up_request(label, 1000 + number),
            "prompt",
        )
        for number in range(100)
        for label in labels
    ]
    probe, scores = fit_probe([*planted.answers, *prompts], SETTINGS)
    assert abs(raw_direction(probe) @ other) > 0.3
    assert [len(row) for row in scores[-200:]] == [1] * 200
    found = auroc(
        np.array([row[0] for row in scores[-200::2]]), np.array([row[0] for row in scores[-199::2]])
    )
    assert found > 0.95
