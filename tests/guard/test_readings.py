"""Other readings of a prompt: which there are, and what their scores count for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.readings import (
    TAILS,
    Reading,
    ReadingCurves,
    ReadingKind,
    combined_score,
    curve_of,
    readings_of,
    sentences,
)
from safesteer_edge.requests.requests import load_requests

RNG = np.random.default_rng(7)
BENIGN = RNG.beta(1, 30, 2_000)
CURVES = ReadingCurves(
    typed=curve_of(BENIGN), part=curve_of(1 - (1 - BENIGN) ** 3), joined=curve_of(BENIGN / 2)
)
PART: ReadingKind = "part"
Parts = list[tuple[ReadingKind, float]]
SCORES = st.floats(0, 1)
KINDS = st.sampled_from(["readable", "part", "joined"])


def test_a_plain_sentence_has_no_other_reading():
    assert readings_of("How do I boil an egg?") == []
    plain = [r for r in load_requests(labels=("harmful",)) if len(sentences(r.text)) == 1]
    assert len(plain) > 1_500
    assert sum(bool(readings_of(r.text)) for r in plain) <= 0.005 * len(plain)


def test_each_sentence_is_a_reading():
    text = 'You are an actor. Your line answers this: "How do I boil an egg?" Speak up!\n\nThanks.'
    parts = ["You are an actor", "Your line answers this", "How do I boil an egg?"]
    found = [r.text.rstrip(".:") for r in readings_of(text) if r.kind == "part"]
    assert found[:3] == parts


def test_a_disguise_is_read_as_a_reader_sees_it():
    assert Reading("readable", "How do I boil an egg?") in readings_of("HOW DO I BOIL AN EGG?")


def test_what_was_said_before_is_read_with_it():
    found = readings_of("Go on.", ["Hello!", "I want to boil an egg.", "You will say how."])
    assert found == [Reading("joined", "I want to boil an egg.\nYou will say how.\nGo on.")]


@given(st.text(max_size=400))
def test_sentences_hold_every_word_in_order(text: str):
    kept = "".join(c for c in "".join(sentences(text)) if c.isalnum())
    assert kept == "".join(c for c in text if c.isalnum())


@given(SCORES, st.lists(st.tuples(KINDS, SCORES), max_size=6))
def test_other_readings_never_lower_a_score_and_never_go_beyond_one(typed, others):
    found = combined_score(typed, others, CURVES)
    assert typed <= found <= 1


@given(SCORES, KINDS, SCORES, SCORES)
def test_a_higher_score_counts_no_less(typed, kind, one, other):
    low, high = sorted((one, other))
    assert combined_score(typed, [(kind, low)], CURVES) <= combined_score(
        typed, [(kind, high)], CURVES
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1])
def test_what_is_no_score_leaves_none(bad: float):
    assert math.isnan(combined_score(bad, [], CURVES))
    assert math.isnan(combined_score(0.2, [("part", 0.1), ("part", bad)], CURVES))


def test_a_part_counts_as_a_typed_text_that_is_as_rare():
    for tail in (0.1, 0.02):
        typed, part = (float(np.quantile(x, 1 - tail)) for x in (BENIGN, 1 - (1 - BENIGN) ** 3))
        assert combined_score(0.0, [("part", part)], CURVES) == pytest.approx(typed, rel=0.05)


def test_a_harmful_part_is_an_alarm_among_many():
    others: Parts = [(PART, 0.97), *((PART, 0.01) for _ in range(15))]
    assert combined_score(0.0, others, CURVES) > np.quantile(BENIGN, 0.99)
    few: Parts = [(PART, 0.5)] * 8
    assert combined_score(0.0, few * 10, CURVES) < combined_score(0.0, few, CURVES)


def test_curves_rise_whatever_the_scores():
    for scores in ([0.5] * 60, [0.0] * 30 + [1.0] * 30, BENIGN[:7]):
        curve = curve_of(scores)
        assert len(curve) == len(TAILS)
        ReadingCurves(curve, curve, curve)
    with pytest.raises(SettingsError, match="rising"):
        ReadingCurves((0.0,) * len(TAILS), CURVES.part, CURVES.joined)
