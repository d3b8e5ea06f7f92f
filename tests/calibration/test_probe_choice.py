"""Choosing a probe: by the calibration split, and judged by requests that took no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from safesteer_edge.calibration.probe_choice import (
    N_OUTER_FOLDS,
    ProbeCandidate,
    choose_probe,
)
from safesteer_edge.calibration.probe_fit import ProbeForm
from safesteer_edge.errors import SettingsError
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.requests.requests import Label, Split
from tests.made_up_answers import made_up_answer, made_up_request

N_FEATURES = 8
LINEAR = ProbeForm("linear", 0.01)
GOOD, NOISE = ProbeCandidate((1,), LINEAR), ProbeCandidate((0,), LINEAR)


def answers_with(
    n_each: int = 24, *, size: float = 3.0, seed: int = 0
) -> dict[int, list[HarvestedAnswer]]:
    """By layer: pure noise at layer 0, the label written into the first feature at layer 1."""
    rng = np.random.default_rng(seed)
    found: dict[int, list[HarvestedAnswer]] = {0: [], 1: []}
    labels: tuple[Label, ...] = ("harmful", "harmless", "ordinary", "borderline")
    for number in range(n_each):
        split: Split = "calibration" if number % 3 == 0 else "train"
        for label in labels:
            request = replace(made_up_request(label, number), split=split)
            kinds = ("own", "refusal", "compliance") if label == "harmful" else ("own",)
            for kind in kinds:
                states = rng.standard_normal((2, 9, N_FEATURES))
                answer = made_up_answer(states[0], request, kind)
                states[1, :, 0] += size if answer.label == 1 else 0.0
                found[0].append(answer)
                found[1].append(made_up_answer(states[1], request, kind))
    return found


def choose(by_layer: dict[int, list[HarvestedAnswer]], *candidates: ProbeCandidate):
    def answers_at(layers: Sequence[int]) -> list[HarvestedAnswer]:
        return by_layer[layers[0]]

    return choose_probe(answers_at, candidates)


def test_the_layer_that_knows_is_chosen():
    choice = choose(answers_with(), NOISE, GOOD)
    assert choice.best == GOOD
    assert choice.nested_choices == (GOOD,) * N_OUTER_FOLDS
    assert choice.nested is not None
    assert choice.nested.mean_against_ordinary > 0.95
    assert choice.nested.early_candidate > 0.9


def test_the_nested_estimate_of_noise_is_a_coins():
    candidates = [ProbeCandidate((0,), ProbeForm("linear", c)) for c in (1e-3, 0.1, 10.0)]
    found = []
    for seed in range(8):
        choice = choose(answers_with(seed=seed), *candidates)
        assert choice.nested is not None
        found.append(choice.nested.mean_against_ordinary)
    assert np.mean(found) == pytest.approx(0.5, abs=0.12)


def test_what_is_judged_was_not_fitted():
    # Labels of the calibration split turned round: a fit that saw it would not be this wrong.
    by_layer = answers_with()
    turned = [
        replace(answer, states=-answer.states) if answer.request.split == "calibration" else answer
        for answer in by_layer[1]
    ]
    (judged,) = choose({1: turned}, GOOD).judged
    assert judged.quality.mean_against_ordinary < 0.05


def test_progress_counts_every_fit():
    counted: list[tuple[int, int]] = []
    by_layer = answers_with()
    choose_probe(
        lambda layers: by_layer[layers[0]],
        (NOISE, GOOD),
        lambda n_done, n_total: counted.append((n_done, n_total)),
    )
    n_fits = (N_OUTER_FOLDS + 1) * 2 + N_OUTER_FOLDS
    assert counted == [(n, n_fits) for n in range(1, n_fits + 1)]


def test_too_few_requests_for_another_cut_give_no_nested_estimate():
    choice = choose(answers_with(n_each=2), GOOD)
    assert (choice.best, choice.nested, choice.nested_choices) == (GOOD, None, ())


def test_a_split_without_harmful_answers_is_made_up_for_by_lot():
    kept = [
        answer
        for answer in answers_with()[1]
        if answer.request.split != "calibration" or answer.request.label != "harmful"
    ]
    (judged,) = choose({1: kept}, GOOD).judged
    assert judged.quality.n_harmful > 0
    assert judged.quality.mean_against_ordinary > 0.9


def test_one_harmful_request_is_too_few():
    kept = [
        answer
        for answer in answers_with()[1]
        if answer.request.label != "harmful" or answer.request.id == "harmful-1"
    ]
    with pytest.raises(SettingsError, match="too few"):
        choose({1: kept}, GOOD)
