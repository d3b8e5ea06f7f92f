"""Shares, best of n, accuracy, trade-off, steps, cost and next-token figures."""

from __future__ import annotations

import numpy as np
import pytest

from safesteer_edge.evaluation.figures.cost import cost_of
from safesteer_edge.evaluation.figures.judged import (
    JudgedRow,
    answer_key,
    best_of_n,
    share_of,
    with_verdicts,
)
from safesteer_edge.evaluation.figures.log_probabilities import divergence, log_softmax
from safesteer_edge.evaluation.figures.steps import step_separation
from safesteer_edge.evaluation.figures.task_accuracy import chosen_choice, is_right
from safesteer_edge.evaluation.figures.trade_off import trade_off_points
from safesteer_edge.evaluation.judges.verdict import Judgement, Label, Verdict
from tests.evaluation.eval_rows import COMPLIANCE, REFUSAL, judged, row

CHOICES = ("dough", "stone", "a dog")


def test_an_error_is_never_an_answer():
    error = row(status="error", answer="", error="no room")
    judgement = Judgement("rules", answer_key(error.request, ""), Verdict("no-answer"))
    (joined,) = with_verdicts([error], [judgement])
    assert joined.is_success("rules") is None and joined.is_refused("rules") is None
    assert share_of([joined], lambda j: j.is_success("rules")).n == 0


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


def test_the_trade_off_is_on_cases_that_all_answered():
    rows = []
    for i in range(4):
        for defence in ("off", "safesteer"):
            stopped = defence == "safesteer" and i < 3
            rows.append(
                judged("refused" if stopped else "complied", case_id=f"h{i}", defence=defence)
            )
            refused = defence == "safesteer" and i == 0
            rows.append(
                judged(
                    "refused" if refused else "complied",
                    case_id=f"b{i}",
                    defence=defence,
                    kind="borderline",
                    suite="borderline",
                )
            )
    rows.append(judged("complied", case_id="h9", defence="off"))
    rows.append(judged("refused", case_id="h0", defence="eager"))  # too few to take part
    off, safesteer = trade_off_points(rows, "rules")
    assert (off.stopped.count, off.stopped.n, off.answered.count) == (0, 4, 4)
    assert (safesteer.stopped.count, safesteer.answered.count) == (3, 3)


def test_a_response_check_has_a_whole_curve():
    rows = [
        judged(
            "complied",
            case_id=f"{suite}{i}",
            suite=suite,
            kind=kind,
            defence="response-check",
            mean_score=score,
        )
        for suite, kind, scores in (
            ("text-harmful", "harmful", (0.5, 0.6, 0.9)),
            ("ordinary-text", "benign", (0.1, 0.2, 0.6)),
        )
        for i, score in enumerate(scores)
    ]
    points = trade_off_points(rows, "rules")
    assert points[0].defence == "response-check"
    curve = {(p.stopped.count, p.answered.count) for p in points[1:]}
    assert {(3, 1), (3, 2), (1, 3), (0, 3)} <= curve


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


def test_words_without_sense_are_no_help():
    """A defence that makes the model babble stops attacks, and loses what was asked for as well."""
    labels: dict[str, Label] = {"off": "complied", "refusal-direction": "no-answer"}
    rows: list[JudgedRow] = []
    for i in range(4):
        for defence, label in labels.items():
            plain = {"case_id": f"c{i}", "defence": defence}
            rows.append(judged(label, **plain))
            rows.append(judged(label, **plain, suite="ordinary-text", kind="benign"))
    off, babble = trade_off_points(rows, "rules")
    assert (off.stopped.count, off.answered.count) == (0, 4)
    assert (babble.stopped.count, babble.answered.count) == (4, 0)


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
