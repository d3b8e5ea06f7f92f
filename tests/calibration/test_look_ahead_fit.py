"""Whether a model's own beginnings are to be trusted, and up to which score."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.calibration.steering_fit import (
    Beginning,
    LookAheadFit,
    choose_limit,
    fit_look_ahead,
)
from safesteer_edge.requests.requests import load_requests
from safesteer_edge.session.runtime import open_runtime
from tests.guard.scripted_answers import POLICY
from tests.guarded_tiny import GuardedTiny


def beginnings(*found: tuple[float, bool]) -> list[Beginning]:
    return [Beginning(score, declined) for score, declined in found]


def test_the_limit_is_the_largest_within_which_most_beginnings_decline():
    refusals = [(0.01 * n, True) for n in range(1, 9)]
    fit = choose_limit(4, beginnings((0.2, False), (0.005, False), *refusals, (0.3, False)))
    assert (fit.look_ahead, fit.look_ahead_limit) == (4, 0.08)  # behind it none declines
    assert (fit.n, fit.declined, fit.taken, fit.taken_declined) == (11, 8, 9, 8)
    policy = fit.applied_to(POLICY)
    assert (policy.look_ahead, policy.look_ahead_limit) == (4, 0.08)


@pytest.mark.parametrize(
    "found",
    [
        [],
        [(0.01, True)] * 5,  # too few to be more than chance
        [(0.01, False)] * 20 + [(0.02, True)] * 20,  # the safest do not decline
    ],
)
def test_a_model_that_finds_no_way_of_its_own_is_not_asked_for_one(found: list[tuple[float, bool]]):
    assert choose_limit(4, beginnings(*found)).look_ahead == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=40))
def test_most_of_what_is_taken_declines(found: list[tuple[float, bool]]):
    fit = choose_limit(4, beginnings(*found))
    if fit.look_ahead:
        taken = sorted(found)[: fit.taken]
        assert fit.taken_declined >= 0.75 * fit.taken
        assert all(score <= fit.look_ahead_limit for score, _ in taken)
    else:
        assert fit == LookAheadFit(0, 0.0, len(found), sum(d for _, d in found), 0, 0)


def test_it_is_tried_on_the_model_itself(guarded_tiny: GuardedTiny):
    requests = [r for r in load_requests(splits=("train",)) if r.pair_id is not None][:8]
    seen: list[tuple[int, int]] = []
    with closing(open_runtime(guarded_tiny.settings(guarded_tiny.bundle()))) as runtime:
        bundle = runtime.bundle
        assert bundle is not None
        fit = fit_look_ahead(
            runtime, bundle.probe, requests, lambda _, done, total: seen.append((done, total))
        )
        assert runtime.engine.n_free > 0
    n_harmful = sum(request.label == "harmful" for request in requests)
    assert fit.n == n_harmful and seen[-1] == (n_harmful, n_harmful)
    assert np.isfinite(fit.look_ahead_limit)
