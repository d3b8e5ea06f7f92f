"""AUROC, shares with their intervals, and true positives at a false positive rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from safesteer_edge.metrics.statistics import (
    Share,
    auroc,
    auroc_interval,
    repeated_share,
    true_positive_rate,
)

# Few values, so that ties are common.
SCORES = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([0.9, 0.8], [0.1, 0.2], 1.0),
        ([0.1], [0.9], 0.0),
        ([0.5], [0.5], 0.5),
        ([0.4, 0.8], [0.2, 0.6], 0.75),  # of four pairs, 0.4 < 0.6 alone is lost
        ([0.5, 0.9], [0.5, 0.1], 0.875),  # one of four pairs is a tie
    ],
)
def test_auroc_by_hand(positive: list[float], negative: list[float], expected: float):
    assert auroc(np.array(positive), np.array(negative)) == expected


@given(SCORES, SCORES)
def test_auroc_is_scikit_learns(positive: list[float], negative: list[float]):
    labels = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(labels, positive + negative)
    assert auroc(np.array(positive), np.array(negative)) == pytest.approx(expected)


@given(SCORES, SCORES)
def test_auroc_of_the_sides_exchanged_is_the_rest(positive: list[float], negative: list[float]):
    there = auroc(np.array(positive), np.array(negative))
    back = auroc(np.array(negative), np.array(positive))
    assert there + back == pytest.approx(1.0)


def test_auroc_with_an_empty_side_is_no_number():
    some, none = np.array([0.5]), np.array([])
    assert math.isnan(auroc(none, some))
    assert math.isnan(auroc(some, none))


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        # Wilson (1927), worked out with z = 1.959964 on paper.
        (0, 10, 0.0, 0.277533),
        (5, 10, 0.236593, 0.763407),
        (10, 10, 0.722467, 1.0),
        (1, 100, 0.001767, 0.054486),
        (95, 100, 0.888249, 0.978457),
    ],
)
def test_wilsons_interval_by_hand(count: int, n: int, low: float, high: float):
    assert Share(count, n).interval == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_solves_its_equation(count_of_n: tuple[int, int]):
    count, n = count_of_n
    share = Share(count, n)
    low, high = share.interval
    assert 0 <= low <= share.value + 1e-12
    assert share.value - 1e-12 <= high <= 1
    for bound in (low, high):  # |p − bound| = z · the deviation that the bound itself implies
        variance = bound * (1 - bound) / n
        assert (share.value - bound) ** 2 == pytest.approx(
            1.959963984540054**2 * variance, abs=1e-12
        )


def test_a_share_of_nothing_says_nothing():
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0.0, 1.0)


def test_a_share_is_shown_with_its_interval():
    assert str(Share(95, 100)) == "95/100 (95.0 %, 95 % 89–98)"


def test_true_positives_are_counted_above_the_limit_that_few_negatives_exceed():
    negative = np.arange(100) / 100
    positive = np.array([0.5, 0.97, 0.98, 0.985, 0.999])
    assert true_positive_rate(positive, negative, false_positive_rate=0.0) == 0.2  # above 0.99
    assert true_positive_rate(positive, negative, false_positive_rate=0.025) == 0.6  # above 0.97
    assert true_positive_rate(positive, negative, false_positive_rate=0.5) == 0.8


@given(SCORES, SCORES, st.floats(0.0, 1.0))
def test_no_more_negatives_than_allowed_exceed_the_limit(
    positive: list[float], negative: list[float], rate: float
):
    values = np.array(negative)
    share = true_positive_rate(np.array(positive), values, false_positive_rate=rate)
    own_share = true_positive_rate(values, values, false_positive_rate=rate)
    assert 0 <= share <= 1
    assert own_share <= rate + 1e-9


def test_an_aurocs_interval_is_newcombes():
    # Newcombe 2006 gives no worked table to copy: the bounds solve |A − θ| = z·se(θ).
    low, high = auroc_interval(0.8, 40, 60)
    assert low < 0.8 < high
    for theta in (low, high):
        half = (40 + 60) / 2 - 1
        shape = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        error = math.sqrt(theta * (1 - theta) * shape / (40 * 60))
        assert abs(0.8 - theta) == pytest.approx(1.959963984540054 * error, rel=1e-6)


def test_an_aurocs_interval_covers_what_it_should():
    rng = np.random.default_rng(3)
    true = 0.9214  # of two unit normals 2 apart
    n_covered = 0
    for _ in range(300):
        value = auroc(rng.normal(2, 1, 40), rng.normal(0, 1, 60))
        low, high = auroc_interval(value, 40, 60)
        n_covered += low <= true <= high
    assert n_covered >= 0.92 * 300


def test_an_aurocs_interval_holds_at_the_ends():
    low, high = auroc_interval(1.0, 20, 20)
    assert 0.8 < low < 0.95
    assert high == 1.0
    assert auroc_interval(math.nan, 0, 3) == (0.0, 1.0)


@given(SCORES, SCORES, st.booleans(), st.data())
def test_a_missing_score_makes_the_figure_no_number(
    positive: list[float], negative: list[float], is_positive: bool, data: st.DataObject
):
    side = positive if is_positive else negative
    side[data.draw(st.integers(0, len(side) - 1))] = math.nan
    sides = np.array(positive), np.array(negative)
    assert math.isnan(auroc(*sides))
    assert math.isnan(true_positive_rate(*sides, false_positive_rate=0.1))


def test_the_repeated_share_counts_runs_of_four_words_that_were_there_before():
    assert repeated_share("a b c d " * 4) == pytest.approx(1 - 4 / 13)
    assert repeated_share(" ".join(f"w{i}" for i in range(20))) == 0
    assert repeated_share("too few words to tell") is None
