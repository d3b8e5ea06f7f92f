"""How rare scores of other readings are among benign prompts, so that many cost no false alarms.

What `guard.readings` would read of harvested prompts is harvested too: of those that are answered,
and of some benign ones among other words. Scores are out of fold, by the request.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.prompt_fit import PromptProbe
from safesteer_edge.guard.readings import (
    Reading,
    ReadingCurves,
    ReadingKind,
    combined_score,
    curve_of,
    readings_of,
)
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.cache import HarvestSettings
from safesteer_edge.harvest.carriers import TEXT_CARRIERS, Carrier, written_words
from safesteer_edge.harvest.units import PlannedRequest, turn_of
from safesteer_edge.requests.requests import Request

_BENIGN: Final = ("borderline", "ordinary")
_N_AMONG_WORDS: Final = 160  # benign prompts whose parts are read
_N_JOINED: Final = 100  # benign prompts that are read behind another one
_N_READINGS: Final = (0, 1, 3, 5, 9, 1_000)  # beside the typed one: where its table is cut
_LEAST: Final = 50  # readings of a kind that a curve is drawn from


@dataclass(frozen=True, slots=True)
class PlannedReading:
    """What is read beside a prompt. is_rate: it tells how often benign ones score high."""

    request: Request
    carrier: Carrier
    kind: ReadingKind
    text: str
    is_rate: bool

    @property
    def id(self) -> str:
        """Of the text: the same words are read once."""
        return f"reading/{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, eq=False)
class FittedReadings:
    """scores: of each answer's prompt, out of fold. n_readings: beside it, as it was typed."""

    curves: ReadingCurves | None
    scores: NDArray[np.float64]
    n_readings: NDArray[np.int64]

    def false_alarms(
        self, answers: Sequence[HarvestedAnswer], limit: float
    ) -> list[dict[str, int | float]]:
        """By how often they were read: benign prompts, and how many are above the limit."""
        is_benign = np.array(
            [a.request.label in _BENIGN and a.kind in ("own", "prompt") for a in answers]
        )
        found: list[dict[str, int | float]] = []
        for least, most in itertools.pairwise(_N_READINGS):
            ours = is_benign & (self.n_readings >= least) & (self.n_readings < most)
            if ours.any():
                n_above = int(np.sum(self.scores[ours] > limit))
                found.append({"n_readings": least, "n": int(ours.sum()), "n_above": n_above})
        return found


def planned_readings(units: Iterable[PlannedRequest]) -> list[PlannedReading]:
    """Of these prompts, those that are read besides."""
    units = list(units)
    prompts = {(u.request.id, u.carrier): u for u in units if u.carrier in ("text", "wrapped")}
    answered = {u.request.id for u in units if u.piece == "own" or _is_whole(u)}
    benign = [u for u in prompts.values() if u.request.label in _BENIGN]
    # The first of those that are drawn: where more requests are harvested, the same ones.
    benign.sort(key=lambda unit: (turn_of(unit.request), unit.carrier))
    in_parts = [
        [u for u in benign if u.request.label == each and len(_parts(u)) > 1] for each in _BENIGN
    ]
    n_each = _N_AMONG_WORDS // max(1, sum(map(bool, in_parts)))
    counted = {(u.request.id, u.carrier) for ours in in_parts for u in ours[:n_each]}
    found = [
        PlannedReading(unit.request, unit.carrier, reading.kind, reading.text, key in counted)
        for key, unit in prompts.items()
        if key in counted or (unit.carrier == "text" and unit.request.id in answered)
        for reading in _parts(unit)
    ]
    # Behind other messages a message is read by itself too.
    found += [
        PlannedReading(u.request, u.carrier, "readable", u.request.text, False)
        for u in units
        if u.carrier == "later" and u.request.label in _BENIGN
    ]
    plain = [u.request for u in benign if u.carrier == "text"][:_N_JOINED]
    for before, request in zip(plain[-1:] + plain[:-1], plain, strict=True):
        joined = readings_of(request.text, (before.text,))[-1]
        found.append(PlannedReading(request, "text", joined.kind, joined.text, True))
    return found


def reading_requests(readings: Iterable[PlannedReading]) -> list[Request]:
    """As requests to harvest, each text once; their label says nothing of them."""
    return list(
        {
            each.id: Request(each.id, each.text, "ordinary", "reading", "train", "und")
            for each in readings
        }.values()
    )


def reading_settings(settings: HarvestSettings) -> HarvestSettings:
    """Of a harvest that keeps each prompt's state and nothing else."""
    plan = replace(
        settings.plan,
        n_answered=0,
        n_answered_benign=0,
        n_answered_borderline=0,
        n_read=None,
        n_read_borderline=None,
        n_read_ordinary=None,
        draws=False,
        wraps=False,
    )
    return replace(settings, plan=plan)


def fit_readings(
    prompt: PromptProbe,
    answers: Sequence[HarvestedAnswer],
    readings: Sequence[PlannedReading],
    read: Sequence[HarvestedAnswer],
) -> FittedReadings:
    """The curves, and each answer's prompt's score with what its other readings say.

    prompt.scores: of these answers. read: of `reading_requests`. Without enough readings: no
    curves, and the scores as they were.
    """
    states = {answer.request.id: answer.prompt for answer in read}
    prompts = {(answer.request.id, answer.carrier) for answer in answers}
    known = [r for r in readings if r.id in states and (r.request.id, r.carrier) in prompts]
    rates = {
        kind: [each for each in known if each.is_rate and each.kind == kind]
        for kind in ("part", "joined")
    }
    if min(map(len, rates.values())) < _LEAST:
        return FittedReadings(None, prompt.scores, np.zeros(len(answers), dtype=np.int64))
    found = prompt.out_of_fold(
        np.array([states[each.id] for each in known]), [each.request for each in known]
    )
    score_of = {id(each): float(score) for each, score in zip(known, found, strict=True)}
    curves = ReadingCurves(
        typed=curve_of(
            [
                score
                for answer, score in zip(answers, prompt.scores, strict=True)
                if answer.kind in ("own", "prompt")
                and answer.request.label in _BENIGN
                and answer.carrier in TEXT_CARRIERS
            ]
        ),
        part=curve_of(_highest_of_each(rates["part"], score_of)),
        joined=curve_of([score_of[id(each)] for each in rates["joined"]]),
    )
    others: dict[tuple[str, Carrier], list[tuple[ReadingKind, float]]] = {}
    for each in known:
        if each.kind != "joined":
            place = others.setdefault((each.request.id, each.carrier), [])
            place.append((each.kind, score_of[id(each)]))
    beside = [others.get((answer.request.id, answer.carrier), []) for answer in answers]
    combined = [
        combined_score(float(score), found, curves)
        for score, found in zip(prompt.scores, beside, strict=True)
    ]
    return FittedReadings(curves, np.array(combined), np.array([len(found) for found in beside]))


def _highest_of_each(
    readings: Iterable[PlannedReading], score_of: Mapping[int, float]
) -> list[float]:
    """Of each prompt the highest score of its parts: of several some one is high by chance."""
    highest: dict[tuple[str, Carrier], float] = {}
    for each in readings:
        place = each.request.id, each.carrier
        highest[place] = max(highest.get(place, 0.0), score_of[id(each)])
    return list(highest.values())


def _is_whole(unit: PlannedRequest) -> bool:
    return unit.piece == "whole" and unit.is_answered


def _parts(unit: PlannedRequest) -> list[Reading]:
    return readings_of(written_words(unit.request, unit.carrier))
