"""Rows of a replay, their figures, and how a bundle keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safesteer_edge.harvest.replay import (
    ScoredAnswer,
    replay_figures,
    replay_from_json,
    replay_of,
    replay_to_json,
)
from safesteer_edge.requests.requests import (
    RECALIBRATION_COUNTS,
    held_out_requests,
    recalibration_requests,
    replay_requests,
    requests_sha256,
    spread,
)
from tests.guarded_tiny import POLICY
from tests.made_up_answers import made_up_request

REQUESTS = tuple(made_up_request(label, 1) for label in ("ordinary", "borderline", "harmful"))
ANSWERS = [
    ScoredAnswer("ordinary-1", "ordinary", False, np.full(20, 0.1), 0.1),
    ScoredAnswer("borderline-1", "borderline", False, np.array([0.1] * 16 + [0.7] * 4), 0.1),
    ScoredAnswer("harmful-1", "harmful", True, np.full(20, 0.95), 0.95),
]
REPLAY = replay_of(ANSWERS, REQUESTS, POLICY, "Q4_1")


def test_rows_hold_what_a_guard_would_do():
    ordinary, borderline, harmful = REPLAY.rows
    assert (ordinary.mean_score, ordinary.max_score, ordinary.stopped) == (0.1, 0.1, False)
    assert (borderline.mean_score, borderline.max_score, borderline.stopped) == (0.1, 0.7, False)
    assert (harmful.mean_score, harmful.complies, harmful.stopped) == (0.95, True, True)


def test_figures_count_the_rows():
    figures = replay_figures(REPLAY.rows, POLICY.threshold)
    assert figures.auroc_ordinary.value == 1.0
    assert figures.auroc_ordinary.interval[0] < 1.0
    assert (figures.touched_ordinary.count, figures.touched_borderline.count) == (0, 1)
    assert (figures.refused_borderline.count, figures.harmful_stopped.count) == (0, 1)


def test_a_replay_comes_back_from_json():
    assert replay_from_json(json.loads(json.dumps(replay_to_json(REPLAY)))) == REPLAY


@pytest.mark.parametrize(
    "change",
    [
        {"mean_score": [0.1]},
        {"mean_score": [0.1, 0.1, 7.0]},
        {"mean_score": [0.1, 0.1, "x"]},
        {"label": ["ordinary", "ordinary", "evil"]},
        {"n_tokens": None},
    ],
)
def test_a_damaged_record_is_no_record(change: dict[str, Any]):
    assert replay_from_json({**replay_to_json(REPLAY), **change}) is None
    assert replay_from_json("nothing") is None
    assert replay_from_json({}) is None


def test_what_decides_and_what_measures_never_meet():
    deciding, measuring = recalibration_requests(), held_out_requests()
    assert {request.split for request in deciding} == {"train", "calibration"}
    assert {request.split for request in measuring} == {"test"}
    assert {request.text for request in deciding}.isdisjoint(r.text for r in measuring)
    assert len(deciding) == sum(RECALIBRATION_COUNTS.values())
    assert len(replay_requests()) == 160
    assert set(replay_requests(20)) <= set(replay_requests()) <= set(measuring)


def test_requests_are_spread_over_their_kinds():
    requests = held_out_requests()
    groups = {request.group for request in requests if request.label == "harmful"}
    picked = spread(requests, {"harmful": len(groups)})
    assert len({request.group for request in picked}) > len(groups) / 2
    assert spread(requests[:3], {"ordinary": 99}) == requests[:3]


def test_the_hash_tells_requests_apart():
    assert requests_sha256(REQUESTS) == requests_sha256(REQUESTS)
    changed = (replace(REQUESTS[0], text="other"), *REQUESTS[1:])
    assert requests_sha256(REQUESTS) != requests_sha256(changed)
