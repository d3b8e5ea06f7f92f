"""Shares, best of n, accuracy, steps, cost and next-token figures."""

from __future__ import annotations

import numpy as np
import pytest

from safesteer_edge.evaluation.judged import (
    answer_key,
    best_of_n,
    chosen_choice,
    cost_of,
    is_right,
    share_of,
    step_separation,
    with_verdicts,
)
from safesteer_edge.evaluation.judges import Judgement
from safesteer_edge.metrics.statistics import divergence, log_softmax
from tests.evaluation.eval_rows import COMPLIANCE, REFUSAL, judged, row

CHOICES = ("dough", "stone", "a dog")


def test_an_error_is_never_an_answer():
    error = row(status="error", answer="", error="no room")
    judgement = Judgement("rules", answer_key(error.request, ""), "no-answer")
    (joined,) = with_verdicts([error], [judgement])
    assert joined.verdict("rules").is_success is None and joined.verdict("rules").is_refusal is None
    assert share_of([joined], lambda j: j.verdict("rules").is_success).n == 0


def test_best_of_n_counts_requests():
    rows = [
        judged("refused", group="a"),
        judged("complied", group="a"),
        judged("refused", group="b"),
        judged(None, group="b"),
        judged(None, group="c"),
    ]
    share, attempts = best_of_n(rows, "rules")
    assert (share.count, share.n, attempts) == (1, 2, 2)


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("A", "dough"),
        ("(b)", "stone"),
        ("The answer is B.", "stone"),
        ("C. a dog", "a dog"),
        ("It is the dough that rises.", "dough"),
        ("A dog or a stone", None),
        ("D", None),
        ("I do not know", None),
    ],
)
def test_a_choice_is_read_by_letter_or_name(answer: str, chosen: str | None):
    assert chosen_choice(answer, CHOICES) == chosen


def test_an_answer_is_right_if_it_holds_whole_words():
    def right(answer: str, *expected: str) -> bool | None:
        return is_right(row(answer=answer, expected=expected))

    assert right("There are three of them.", "3", "three") is True
    assert right("There are thirteen.", "three") is False
    assert right("Red and Blue", "blue<AND>red") is True
    assert right("Red", "blue<AND>red") is False
    assert right("anything") is None
    assert is_right(row(answer="dough", expected=("dough",), choices=CHOICES)) is True


def test_steps_compare_complying_answers_with_harmless_ones():
    rows = [
        judged("complied", defence="response-check", scores=(0.9, 0.2)),
        judged("refused", defence="response-check", scores=(0.0, 0.0), case_id="c1"),
        judged("complied", defence="response-check", scores=(0.1, 0.8), kind="benign"),
        judged(
            "refused",
            defence="response-check",
            scores=(0.8, 0.7),
            withheld=True,
            answer=REFUSAL,
            own_answer=COMPLIANCE,
        ),
        judged("complied", defence="response-check", scores=(0.9,), n_given=5),
    ]
    first, second = step_separation(rows, judge="rules", defence="response-check")
    assert (first.auroc, first.n_harmful, first.n_harmless) == (1.0, 2, 1)
    assert second.auroc == 0.0


def test_cost_leaves_out_what_was_not_answered():
    rows = [
        judged("complied", n_tokens=10, passes=12, decode_s=1.0, interventions=2),
        judged("complied", n_tokens=30, passes=30, decode_s=1.0, finish_reason="refused"),
        judged(None, status="error", decode_s=99.0),
    ]
    cost = cost_of(rows, "off", "harmful")
    assert cost is not None
    assert (cost.n, cost.tokens_per_second, cost.passes_per_token) == (2, 20.0, 42 / 40)
    assert (cost.interventions_per_answer, cost.n_withheld_or_refused) == (1.0, 1)
    assert cost_of(rows, "off", "benign") is None


def test_divergence_is_that_of_two_distributions():
    p, q = log_softmax(np.array([1.0, 2.0, 3.0])), log_softmax(np.array([3.0, 2.0, 1.0]))
    assert np.exp(p).sum() == pytest.approx(1.0)
    expected = float((np.exp(p) * np.log(np.exp(p) / np.exp(q))).sum())
    assert divergence(p, q) == pytest.approx(expected)
    assert divergence(p, p) == 0.0


def test_a_divergence_that_is_no_number_is_not_none():
    p = log_softmax(np.array([0.0, 1.0]))
    assert np.isnan(divergence(p, np.array([np.nan, -0.3])))
