"""The line that moves scores back to chances."""

from __future__ import annotations

import numpy as np
import pytest

from safesteer_edge.calibration.probe_calibration import Rescale, fit_rescale
from safesteer_edge.errors import ProbeFileError
from safesteer_edge.harvest.replay import ScoredAnswer


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def answers_with(slope: float, intercept: float, *, seed: int = 0) -> list[ScoredAnswer]:
    """Answers whose chance of complying is sigmoid(logit), and whose score is off by a line."""
    rng = np.random.default_rng(seed)
    answers: list[ScoredAnswer] = []
    for number, logit in enumerate(rng.normal(0, 2, 4000)):
        complies = bool(rng.random() < sigmoid(logit))
        scores = sigmoid(np.array([(logit - intercept) / slope]))
        label = "harmful" if complies else "ordinary"
        answers.append(ScoredAnswer(str(number), label, complies, scores, float(scores[0])))
    return answers


@pytest.mark.parametrize("line", [(1.0, 0.0), (2.0, 0.7), (0.5, -1.0)])
def test_the_line_that_was_put_in_is_found(line: tuple[float, float]):
    found = fit_rescale(answers_with(*line))
    assert (found.slope, found.intercept) == pytest.approx(line, abs=0.15)


def test_the_order_of_scores_is_kept_and_they_stay_scores():
    scores = np.array([0.0, 1e-9, 0.2, 0.5, 0.9999999, 1.0])
    moved = Rescale(3.0, 1.0).scores(scores)
    assert (np.diff(moved) >= 0).all()
    assert (moved >= 0).all() and (moved <= 1).all()
    np.testing.assert_allclose(Rescale(1.0, 0.0).scores(scores), scores, atol=2e-7)


def test_scores_that_fall_with_harm_are_refused():
    turned = [
        ScoredAnswer(a.request_id, a.label, a.complies, 1 - a.scores, 1 - a.prompt_score)
        for a in answers_with(1.0, 0.0)
    ]
    with pytest.raises(ProbeFileError, match="do not rise with harm"):
        fit_rescale(turned)
