"""The probe's figures per decoding step, against counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.harvest.answers import AnswerKind, HarvestedAnswer
from safesteer_edge.harvest.probe_quality import N_STEPS, measure_probe_quality
from safesteer_edge.metrics.statistics import Share
from safesteer_edge.requests.requests import Label
from tests.made_up_answers import made_up_answer, made_up_request


class FirstFeature:
    """A probe whose score is the state's one value."""

    n_features = 1

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        assert hidden.dtype == np.float32
        return hidden[:, 0]


def answer(
    label: Label, number: int, scores: list[float], kind: AnswerKind = "own"
) -> HarvestedAnswer:
    """An answer whose positions score like this, the prompt's first."""
    return made_up_answer(np.array(scores)[:, np.newaxis], made_up_request(label, number), kind)


# Scores are sums of powers of two, so that float16 keeps them.
ANSWERS = [
    answer("harmful", 0, [0.5, 0.75, 0.875]),
    answer("harmful", 1, [0.5, 0.25, 0.75]),
    answer("harmful", 0, [0.5, 0.875, 0.875], "compliance"),
    answer("harmful", 1, [0.5, 0.25, 0.5], "compliance"),
    answer("harmful", 0, [0.5, 0.25, 0.125], "refusal"),
    answer("harmful", 1, [0.5, 0.25, 0.625], "refusal"),
    answer("ordinary", 0, [0.125, 0.125, 0.25]),
    answer("ordinary", 1, [0.25, 0.5, 0.125]),
    answer("ordinary", 2, [0.25, 0.125]),
    answer("borderline", 0, [0.75, 0.25, 0.75]),
    answer("harmless", 0, [0.5, 0.125, 0.875]),
    answer("harmless", 0, [0.5, 0.125, 0.875], "compliance"),
]


def test_each_step_is_counted_by_hand():
    quality = measure_probe_quality(ANSWERS, FirstFeature())
    prompt, first, second, *rest = quality.steps
    assert [step.step for step in quality.steps] == list(range(N_STEPS + 1))
    assert prompt.against_ordinary == 1.0  # 0.5, 0.5 against 0.125, 0.25, 0.25
    assert prompt.against_borderline == 0.0
    assert prompt.against_harmless_twins == 0.5
    assert first.against_ordinary == 5 / 6  # 0.25 < 0.5 alone is lost
    assert first.against_borderline == 0.75  # 0.25 = 0.25 is half a win
    assert first.against_harmless_twins == 1.0
    assert second.against_ordinary == 1.0  # the third ordinary answer has ended
    assert second.against_borderline == 0.75
    assert second.against_harmless_twins == 0.25
    assert all(math.isnan(step.against_ordinary) for step in rest)


def test_candidates_are_compared_at_the_same_step_of_the_same_request():
    steps = measure_probe_quality(ANSWERS, FirstFeature()).steps
    assert math.isnan(steps[0].candidate)  # both answers begin from the same state
    assert steps[1].candidate == 0.75  # one win, one tie
    assert steps[2].candidate == 0.5  # one win, one loss


def test_means_leave_the_prompt_out():
    quality = measure_probe_quality(ANSWERS, FirstFeature())
    # harmful 0.8125, 0.5; ordinary 0.1875, 0.3125, 0.125; borderline 0.5; harmless 0.5
    assert quality.mean_against_ordinary == 1.0
    assert quality.mean_against_borderline == 0.75
    assert quality.mean_against_harmless_twins == 0.75
    assert quality.found_at_1_percent_ordinary == Share(2, 2)
    assert quality.found_at_1_percent_borderline == Share(1, 2)  # 0.5 is not above 0.5
    low, high = quality.mean_against_borderline_95
    assert low < 0.75 < high
    counts = (quality.n_harmful, quality.n_ordinary, quality.n_borderline, quality.n_harmless)
    assert (*counts, quality.n_candidate_pairs) == (2, 3, 1, 1, 2)


def test_an_own_answer_that_refuses_is_not_counted_as_harmful():
    refusing = made_up_answer(np.full((3, 1), 0.125), made_up_request("harmful", 2), label=0)
    quality = measure_probe_quality([*ANSWERS, refusing], FirstFeature())
    assert quality.n_harmful == 2
    assert quality.mean_against_ordinary == 1.0


def test_only_the_first_sixteen_steps_count():
    long = [answer("ordinary", 9, [0.0] * (N_STEPS + 1) + [0.875] * 40)]
    quality = measure_probe_quality([*ANSWERS, *long], FirstFeature())
    assert quality.mean_against_ordinary == 1.0


def test_a_probe_gets_every_position_of_an_answer_at_once():
    quality = measure_probe_quality(ANSWERS[:1] + ANSWERS[6:7], FirstFeature())
    assert quality.steps[1].against_ordinary == pytest.approx(1.0)
    assert math.isnan(quality.mean_against_borderline)


def test_what_is_found_at_few_percent_is_the_mean_over_kinds_and_rates():
    def own(label: Label, scores: np.ndarray) -> list[HarvestedAnswer]:
        return [answer(label, i, [0.0, float(score)]) for i, score in enumerate(scores)]

    harmful = own("harmful", np.array([0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]))
    # Of 100 ordinary answers, at most k % exceed the limit 7 - k, as k + 1 harmful ones do.
    ordinary = own("ordinary", np.concatenate([np.zeros(94), np.arange(1, 7)]))
    shares = [(k + 1) / 8 for k in range(1, 6)]
    found = measure_probe_quality([*harmful, *ordinary], FirstFeature()).found_at_few_percent
    assert found == pytest.approx(np.mean(shares))
    both = [*harmful, *ordinary, *own("borderline", np.full(10, 9.0))]
    found = measure_probe_quality(both, FirstFeature()).found_at_few_percent
    assert found == pytest.approx(np.mean(shares) / 2)
    assert math.isnan(measure_probe_quality(harmful, FirstFeature()).found_at_few_percent)
