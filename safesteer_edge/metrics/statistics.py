"""The few statistics that reports need: AUROC and shares, with their intervals."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Share:
    """count of n, with Wilson's 95 % interval."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.count / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 %; (0, 1) of nothing."""
        if not self.n:
            return 0.0, 1.0
        z2 = _Z_95**2
        centre = (self.value + z2 / (2 * self.n)) / (1 + z2 / self.n)
        spread = self.value * (1 - self.value) / self.n + z2 / (4 * self.n**2)
        half = _Z_95 * math.sqrt(spread) / (1 + z2 / self.n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = (f"{100 * bound:.0f}" for bound in self.interval)
        return f"{self.count}/{self.n} ({100 * self.value:.1f} %, 95 % {low}–{high})"


def auroc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """The chance that a positive scores above a negative; ties count half.

    NaN if one is empty or has a NaN, which sorting would put above all.
    """
    if not _are_known(positive) or not _are_known(negative):
        return math.nan
    ordered = np.sort(np.asarray(negative, dtype=np.float64))
    values = np.asarray(positive, dtype=np.float64)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def auroc_interval(value: float, n_positive: int, n_negative: int) -> tuple[float, float]:
    """95 % interval of an AUROC of so many independent scores; (0, 1) of nothing.

    Newcombe's score method, which holds near 1 too: the values θ that lie within z standard errors
    of the measured one, by Hanley and McNeil's variance at θ (Stat. Med. 25, 2006, method 5).
    """
    if not n_positive or not n_negative or math.isnan(value):
        return 0.0, 1.0

    def is_within(theta: float) -> bool:
        half = (n_positive + n_negative) / 2 - 1
        shape = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        variance = theta * (1 - theta) * shape / (n_positive * n_negative)
        return (value - theta) ** 2 <= _Z_95**2 * variance

    return _edge(value, 0.0, is_within), _edge(value, 1.0, is_within)


def true_positive_rate(
    positive: NDArray[np.floating], negative: NDArray[np.floating], *, false_positive_rate: float
) -> float:
    """Share of positives above a limit that at most this share of negatives exceeds.

    NaN if one is empty or has a NaN.
    """
    if not _are_known(positive) or not _are_known(negative):
        return math.nan
    limit = np.quantile(negative, 1.0 - false_positive_rate, method="higher")
    return float(np.mean(np.asarray(positive) > limit))


def sign_test(n_one: int, n_other: int) -> float:
    """The two-sided chance of a split as uneven as this, if both sides were as likely; exact.

    Of pairs that differ, this is McNemar's test.
    """
    n, fewer = n_one + n_other, min(n_one, n_other)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def _are_known(scores: NDArray[np.floating]) -> bool:
    """Whether there are any, and no NaN among them."""
    return bool(len(scores)) and not np.isnan(scores).any()


def _edge(inside: float, outside: float, is_within: Callable[[float], bool]) -> float:
    """Where `is_within` changes between the two, by halving."""
    for _ in range(40):
        middle = (inside + outside) / 2
        if is_within(middle):
            inside = middle
        else:
            outside = middle
    return inside


# -- log-probabilities of a vocabulary, and how far one distribution is from another ---------------

LogProbs = NDArray[np.float64]  # (n_vocab,)


def divergence(p: LogProbs, q: LogProbs) -> float:
    """KL(p ‖ q) in nats of two log-distributions; never below 0 but for rounding, which is cut."""
    probabilities = np.exp(p)
    terms = np.where(probabilities > 0, probabilities * (p - q), 0.0)
    return float(np.maximum(0.0, terms.sum()))  # not max(), which takes a NaN for 0


def log_softmax(logits: NDArray[np.floating]) -> LogProbs:
    """float64 (n_vocab,)."""
    values = np.asarray(logits, dtype=np.float64)
    values = values - values.max()
    return values - math.log(float(np.exp(values).sum()))


# -- how much of a text was read: the words of it that an answer has, and the interval of that -----

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_N_RESAMPLES = 2_000
_FEWEST_RUNS = 8  # of a share of them that means something


@dataclass(frozen=True, slots=True)
class WordRecall:
    """n_found of n_words over n_texts. low, high: 95 %, by a bootstrap over the texts."""

    n_texts: int
    n_words: int
    n_found: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share of words; 0 of nothing."""
        return self.n_found / self.n_words if self.n_words else 0.0

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f} % of {self.n_words} words in {self.n_texts} texts "
            f"(95 % {100 * self.low:.0f}–{100 * self.high:.0f})"
        )


def words(text: str) -> list[str]:
    """Its words, without case and punctuation."""
    return _WORD.findall(text.casefold().replace("’", "'"))


def repeated_share(text: str) -> float | None:
    """The share of its runs of four words that were there before; None of fewer than eight runs."""
    said = words(text)
    runs = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return 1 - len(set(runs)) / len(runs) if len(runs) >= _FEWEST_RUNS else None


def n_words_found(expected: str, answer: str) -> int:
    """How many words of a text an answer has; each word of the answer counts for one."""
    return (Counter(words(expected)) & Counter(words(answer))).total()


def word_recall(texts: Sequence[tuple[str, str]]) -> WordRecall:
    """The recall over pairs of an expected text and an answer, words of all texts together.

    Words of one picture are read well or badly together, so that the interval comes from drawing
    whole texts again, and not words.
    """
    counts = np.array(
        [(n_words_found(expected, answer), len(words(expected))) for expected, answer in texts],
        dtype=np.float64,
    ).reshape(-1, 2)
    n_found, n_words = (int(total) for total in counts.sum(axis=0))
    if not n_words:
        return WordRecall(len(texts), 0, 0, 0.0, 1.0)
    rng = np.random.default_rng(0)
    drawn = counts[rng.integers(0, len(counts), (_N_RESAMPLES, len(counts)))].sum(axis=1)
    shares = drawn[:, 0] / np.maximum(drawn[:, 1], 1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return WordRecall(len(texts), n_words, n_found, float(low), float(high))
