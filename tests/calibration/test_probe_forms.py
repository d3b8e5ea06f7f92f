"""Each form of probe: what scikit-learn computes is what the exported file computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.calibration.probe_fit import (
    FitSettings,
    FittedProbe,
    ProbeForm,
    fit_estimator,
    fit_probe,
    geometric_median,
    typical_rows,
)
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.probe.probe import OnnxProbe
from tests.made_up_answers import N_POSITIONS, made_up_answer, plant, with_flipped_labels

FORMS = (
    ProbeForm("linear", 0.01),
    ProbeForm("pca-linear", 0.01, n_components=20),
    ProbeForm("mlp", 1.0, n_components=20, n_hidden=8),
)


def states_and_labels() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Raw states of very different sizes, as a residual stream's features are."""
    planted = plant(size=4.0, n_pairs=40)
    sizes = np.logspace(-2, 2, 24)
    states = np.concatenate([answer.states[1:] for answer in planted.answers]) * sizes + 10 * sizes
    return states.astype(np.float32), np.repeat([a.label for a in planted.answers], N_POSITIONS)


def onnx_scores(probe: FittedProbe, states: NDArray[np.float32]) -> NDArray[np.float32]:
    with OnnxProbe.from_bytes(probe.to_onnx(), name="probe", device="cpu") as loaded:
        return loaded.score(states)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_exported_file_scores_raw_states_as_scikit_learn_does(form: ProbeForm, method: str):
    from sklearn.isotonic import IsotonicRegression

    states, _ = states_and_labels()
    planted = plant(size=4.0, n_pairs=40)
    parts = np.split(states, len(planted.answers))
    answers = [
        replace(made_up_answer(np.vstack([rows[:1], rows]), answer.request), label=answer.label)
        for rows, answer in zip(parts, planted.answers, strict=True)
    ]
    settings = FitSettings(form, n_positions=N_POSITIONS, calibration=method)  # type: ignore[arg-type]  # parametrised
    probe, _ = fit_probe(answers, settings)
    assert probe.n_set_aside == 0
    kept = np.concatenate([answer.states for answer in answers]).astype(np.float32)
    labels = np.repeat([answer.label for answer in answers], N_POSITIONS + 1)
    repeats = np.tile([16] + N_POSITIONS * [1], len(answers))  # the prompt's counts more
    estimator = fit_estimator(form, kept.copy(), labels, 0, repeats)
    chances = np.clip(estimator.predict_proba(kept.astype(np.float64))[:, 1], 1e-12, 1 - 1e-12)
    margins = np.log(chances / (1.0 - chances))
    if method == "platt":
        slope, intercept = probe.calibration.platt
        expected = 1.0 / (1.0 + np.exp(-(slope * margins + intercept)))
    else:
        (points,) = probe.graph.head.points  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]  # isotonic was asked for
        line = IsotonicRegression(out_of_bounds="clip").fit(*points)
        expected = line.predict(margins)
    np.testing.assert_allclose(onnx_scores(probe, kept), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_finds_what_is_there(form: ProbeForm):
    states, labels = states_and_labels()
    estimator = fit_estimator(form, states.copy(), labels, seed=0)
    scores = estimator.predict_proba(states)[:, 1]
    assert auroc(scores[labels == 1], scores[labels == 0]) > 0.9


def test_a_network_finds_what_no_line_does():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((1600, 6)).astype(np.float32)
    labels = (states[:, 0] * states[:, 1] > 0).astype(np.int64)
    found = {}
    for form in (ProbeForm("linear", 1.0), ProbeForm("mlp", 100.0, n_components=6, n_hidden=32)):
        scores = fit_estimator(form, states.copy(), labels, seed=0).predict_proba(states)[:, 1]
        found[form.kind] = auroc(scores[labels == 1], scores[labels == 0])
    assert found["linear"] < 0.65
    assert found["mlp"] > 0.9


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_same_seed_gives_the_same_probe(form: ProbeForm):
    planted = plant(size=2.0, n_pairs=20)
    settings = FitSettings(form, n_positions=N_POSITIONS)
    first, second = (fit_probe(planted.answers, settings)[0].to_onnx() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_twentieth_of_wrong_labels_costs_at_most_a_hundredth(form: ProbeForm):
    planted = plant(size=3.0, n_pairs=200)
    train, held = planted.answers[:240], planted.answers[240:]
    labels = np.array([answer.label for answer in held])

    def separation(answers: list[HarvestedAnswer]) -> float:
        probe, _ = fit_probe(answers, FitSettings(form, n_positions=N_POSITIONS))
        means = np.array([probe.scores(answer.states[1:]).mean() for answer in held])
        return auroc(means[labels == 1], means[labels == 0])

    clean = separation(train)
    noisy = separation(with_flipped_labels(train, share=0.05))
    assert clean > 0.9
    assert noisy >= clean - 0.01


def test_states_that_went_wrong_have_no_say_in_the_standardisation():
    states, labels = states_and_labels()
    broken = states.copy()
    broken[::50] = 6e4  # what an overflow of float16 looks like, nearly
    form = ProbeForm("linear", 0.01)
    good = fit_estimator(form, states.copy(), labels, seed=0).steps[0][1]
    robust = fit_estimator(form, broken.copy(), labels, seed=0).steps[0][1]
    np.testing.assert_allclose(robust.mean_, good.mean_, rtol=0.1)
    np.testing.assert_allclose(robust.scale_, good.scale_, rtol=0.1)


def test_the_geometric_median_stays_where_most_points_are():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((100, 5))
    moved = points.copy()
    moved[:20] += 1e3
    assert np.linalg.norm(geometric_median(moved)) < 1.0
    assert np.linalg.norm(moved.mean(axis=0)) > 100
    assert not typical_rows(moved)[:20].any()
    assert typical_rows(moved)[20:].all()


def test_the_geometric_median_of_three_points_in_line_is_the_middle_one():
    median = geometric_median(np.array([[0.0], [1.0], [10.0]]))
    assert median[0] == pytest.approx(1.0, abs=0.05)
