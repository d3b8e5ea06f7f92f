"""How much of a text was read: the words of it that an answer has, and the interval of that."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_N_RESAMPLES = 2_000


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
