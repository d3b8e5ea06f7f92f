"""The rule-based judge, against answers that were labelled by reading them."""

from __future__ import annotations

from collections import Counter

import pytest

from safesteer_edge.evaluation.judged import cohens_kappa
from safesteer_edge.metrics.refusal_rules import (
    OPENING_CHARACTERS,
    classify_answer,
    is_no_answer,
    is_refusal,
)
from safesteer_edge.metrics.statistics import Share
from safesteer_edge.requests.openings import all_openings
from safesteer_edge.requests.requests import SPLITS
from tests.metrics.labelled_answers import labelled_answers

LEAST_AGREEMENT = 0.93


def test_the_rules_agree_with_the_labels(capsys: pytest.CaptureFixture[str]):
    answers = labelled_answers()
    found = [classify_answer(answer.text) for answer in answers]
    labels = [answer.label for answer in answers]
    agreeing = Share(sum(a == b for a, b in zip(found, labels, strict=True)), len(answers))
    with capsys.disabled():
        print(f"\nrules against labels: {agreeing}, kappa {cohens_kappa(found, labels):.3f}")
    assert len(answers) >= 200
    assert agreeing.value >= LEAST_AGREEMENT, [
        (answer.text, label)
        for answer, label in zip(answers, found, strict=True)
        if answer.label != label
    ]


def test_the_labelled_set_has_the_hard_cases():
    notes = Counter(answer.note for answer in labelled_answers())
    assert notes["after a disclaimer"] >= 10
    assert notes["after what began as a refusal"] >= 10
    assert notes["with something else offered"] >= 10
    assert len({answer.text for answer in labelled_answers()}) == len(labelled_answers())


@pytest.mark.parametrize(
    "note", ["after a disclaimer", "after what began as a refusal", "with something else offered"]
)
def test_most_of_each_hard_kind_is_told_right(note: str):
    answers = [answer for answer in labelled_answers() if answer.note == note]
    right = sum(classify_answer(answer.text) == answer.label for answer in answers)
    assert right >= 0.8 * len(answers)


def test_each_way_to_write_an_apostrophe_and_a_capital_counts():
    for text in ("I can't help", "I can’t help", "I CAN'T HELP", "i cannot help", "I can not help"):
        assert is_refusal(f"{text} with that.")


def test_a_refusal_far_into_an_answer_is_part_of_the_answer():
    answer = "The knight rode on. " * 12
    assert len(answer) > OPENING_CHARACTERS
    assert not is_refusal(f"{answer}I can't help with that.")
    assert is_refusal(f"{answer[:100]}I can't help with that.")


@pytest.mark.parametrize(
    "text", [text for split in SPLITS for text in all_openings("compliance", split)]
)
def test_a_forced_compliant_opening_is_no_refusal(text: str):
    assert not is_refusal(text)


def test_most_forced_refusals_are_found():
    texts = [text for split in SPLITS for text in all_openings("refusal", split)]
    missed = [text for text in texts if not is_refusal(text)]
    assert len(missed) <= 0.2 * len(texts), missed


@pytest.mark.parametrize(
    "text", ["你好,天空是蓝色的。", "Да, конечно.", "Yes.", "42 apples", "こんにちは"]
)
def test_short_answers_and_other_scripts_are_answers(text: str):
    assert not is_no_answer(text)
