"""The rule-based judge of refusals, against answers that were labelled by reading them."""

from __future__ import annotations

import pytest

from safesteer_edge.calibration.forced_openings import (
    COMPLIANCE_OPENINGS,
    HELD_OUT_COMPLIANCE_OPENINGS,
    HELD_OUT_REFUSAL_OPENINGS,
    REFUSAL_OPENINGS,
)
from safesteer_edge.evaluation.refusal_rules import OPENING_CHARACTERS, is_refusal
from tests.evaluation.labelled_answers import ANSWERS, REFUSALS

# Measured on the 66 answers of labelled_answers.py: 30 of 33 refusals are found, and none of the
# 33 other answers is called one.
N_FOUND = 30


def test_the_judges_accuracy_on_labelled_answers_is_as_stated():
    missed = [answer for answer in REFUSALS if not is_refusal(answer)]
    mistaken = [answer for answer in ANSWERS if is_refusal(answer)]
    assert mistaken == []
    assert len(REFUSALS) - len(missed) >= N_FOUND, missed


def test_each_way_to_write_an_apostrophe_and_a_capital_counts():
    for text in ("I can't help", "I can’t help", "I CAN'T HELP", "i cannot help", "I can not help"):
        assert is_refusal(f"{text} with that.")


def test_a_refusal_far_into_an_answer_is_part_of_the_answer():
    answer = "The knight rode on. " * 12
    assert len(answer) > OPENING_CHARACTERS
    assert not is_refusal(f"{answer}I can't help with that.")
    assert is_refusal(f"{answer[:100]}I can't help with that.")


@pytest.mark.parametrize("text", [*COMPLIANCE_OPENINGS, *HELD_OUT_COMPLIANCE_OPENINGS])
def test_a_forced_compliant_opening_is_no_refusal(text: str):
    assert not is_refusal(text)


def test_most_forced_refusals_are_found():
    texts = (*REFUSAL_OPENINGS, *HELD_OUT_REFUSAL_OPENINGS)
    missed = [text for text in texts if not is_refusal(text)]
    assert len(missed) <= 2, missed
