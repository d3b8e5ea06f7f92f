"""Words read, counted as sets with repetition, and the interval over whole texts."""

from __future__ import annotations

import pytest

from safesteer_edge.metrics.statistics import n_words_found, word_recall, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't PANIC!", ["don't", "panic"]),
        ("Don’t stop—go.", ["don't", "stop", "go"]),
        ("1. 2. über_all", ["1", "2", "über", "all"]),
        ("  ", []),
    ],
)
def test_words_know_no_case_and_no_punctuation(text: str, expected: list[str]):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("expected", "answer", "n_found"),
    [
        ("the cat the hat", "The text says: the hat, the cat.", 4),
        ("the cat the hat", "the cat", 2),  # one "the" counts once
        ("cat", "cats concatenate", 0),
        ("a b", "", 0),
    ],
)
def test_each_word_of_an_answer_counts_once(expected: str, answer: str, n_found: int):
    assert n_words_found(expected, answer) == n_found


def test_recall_is_over_the_words_of_all_texts():
    recall = word_recall([("one two three", "three two one"), ("four", "nothing")])
    assert (recall.n_texts, recall.n_words, recall.n_found) == (2, 4, 3)
    assert recall.value == 0.75
    assert str(recall).startswith("75.0 % of 4 words in 2 texts (95 % ")


def test_the_interval_is_as_wide_as_texts_differ():
    alike = word_recall([("a b", "a")] * 40)
    mixed = word_recall([("a b", "a b"), ("a b", "")] * 20)
    assert (alike.low, alike.high) == (0.5, 0.5)
    assert mixed.value == 0.5
    # 40 texts, all or nothing: 1.96 · √(0.25 / 40) = 0.155
    assert mixed.low == pytest.approx(0.5 - 0.155, abs=0.03)
    assert mixed.high == pytest.approx(0.5 + 0.155, abs=0.03)
    assert word_recall([("a b", "a b"), ("a b", "")] * 20) == mixed  # the same draws each time


def test_nothing_to_read_is_no_skill():
    recall = word_recall([])
    assert (recall.value, recall.low, recall.high) == (0.0, 0.0, 1.0)
