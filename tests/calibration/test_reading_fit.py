"""What is read beside prompts at a calibration, and the curves that come of it."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safesteer_edge.calibration.prompt_fit import (
    fit_prompt_probe,
    fit_readings,
    planned_readings,
    reading_requests,
)
from safesteer_edge.calibration.settings import default_settings, package_requests, scaled
from safesteer_edge.guard.readings import combined_score
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.carriers import Carrier
from safesteer_edge.harvest.units import PlannedRequest, planned_requests
from safesteer_edge.requests.requests import Request, load_requests, spread
from safesteer_edge.session.settings import SessionSettings

N = 120
REQUESTS = spread(
    load_requests(splits=("train",)),
    {"harmful": N, "harmless": N, "borderline": N, "ordinary": N},
)
CARRIERS: tuple[Carrier, ...] = ("text", "wrapped")
UNITS = [
    PlannedRequest(request, carrier, is_answered=False)
    for request in REQUESTS
    for carrier in CARRIERS
]


def answer(request: Request, harm: float, carrier: Carrier = "text") -> HarvestedAnswer:
    """One whose state says how harmful it is, among noise."""
    rng = np.random.default_rng(zlib.crc32(f"{request.id} {carrier}".encode()))
    state = rng.standard_normal(8)
    state[0] += harm
    label = 1 if request.label == "harmful" else 0
    states = state[np.newaxis].astype(np.float16)
    return HarvestedAnswer(request, "prompt", label, "", (), states, states[0], carrier)


@pytest.fixture(scope="module")
def answers() -> list[HarvestedAnswer]:
    """Among other words harm is half hidden."""
    strength = {"text": 4.0, "wrapped": 1.0}
    return [
        answer(u.request, strength[u.carrier] * (u.request.label == "harmful"), u.carrier)
        for u in UNITS
    ]


def test_parts_of_benign_prompts_are_read_and_benign_ones_behind_each_other():
    readings = planned_readings(UNITS)
    assert {each.request.label for each in readings} == {"borderline", "ordinary"}
    kinds = {each.kind for each in readings}
    assert {"part", "joined"} <= kinds
    texts = [request.text for request in reading_requests(readings)]
    assert len(texts) == len(set(texts)) < len(readings)


def test_what_is_answered_is_read_whatever_was_asked():
    units = [
        replace(unit, is_answered=True, piece="own") for unit in UNITS if unit.carrier == "text"
    ]
    found = {each.request.label for each in planned_readings(units) if each.kind == "part"}
    assert "harmful" in found


def test_parts_find_what_other_words_hide_at_no_more_false_alarms(answers):
    prompt = fit_prompt_probe(answers)
    readings = planned_readings(UNITS)
    # A part of a benign prompt is as harmless as the prompt.
    read = [answer(request, 0.0) for request in reading_requests(readings)]
    fitted = fit_readings(prompt, answers, readings, read)
    curves, scores = fitted.curves, fitted.scores
    assert curves is not None
    assert (scores >= prompt.scores).all()
    benign = np.array([a.request.label in ("borderline", "ordinary") for a in answers])
    limit = float(np.quantile(scores[benign], 0.98))  # of whole prompts, as a policy's is
    counted = fitted.false_alarms(answers, limit)
    assert sum(row["n"] for row in counted) == benign.sum()
    assert sum(row["n_above"] for row in counted) == np.sum(scores[benign] > limit)
    harmful = [a for a in answers if a.request.label == "harmful"]
    typed = {(a.request.id, a.carrier): s for a, s in zip(answers, prompt.scores, strict=True)}
    hidden = [typed[a.request.id, "wrapped"] for a in harmful if a.carrier == "wrapped"]
    found = [
        combined_score(
            typed[a.request.id, "wrapped"],
            [("part", 0.01), ("part", typed[a.request.id, "text"])],
            curves,
        )
        for a in harmful
        if a.carrier == "wrapped"
    ]
    assert np.mean(np.array(found) > limit) > np.mean(np.array(hidden) > limit) + 0.3


def test_few_readings_make_no_curves(answers):
    prompt = fit_prompt_probe(answers)
    fitted = fit_readings(prompt, answers, (), ())
    assert fitted.curves is None
    np.testing.assert_array_equal(fitted.scores, prompt.scores)


def test_what_fewer_minutes_pay_for_is_part_of_what_more_do():
    requests = package_requests()
    session = SessionSettings(guard="off")
    quick, standard = (default_settings(session, effort=each) for each in ("quick", "standard"))
    before: set[Any] = set()
    for settings in (*(scaled(quick, share) for share in (0.4, 0.5, 0.7, 1, 1.4, 2)), standard):
        plan = settings.harvest.plan
        _, units = planned_requests(settings.harvest, requests)
        read = {(u.request.id, u.carrier, u.piece, u.texts(plan)) for u in units}
        read |= {each.id for each in reading_requests(planned_readings(units))}
        assert before < read
        before = read
        own = Counter(u.request.label for u in units if u.piece == "own")
        assert own["ordinary"] >= 199
    assert scaled(quick, 1) == quick
