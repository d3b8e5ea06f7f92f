"""Judging a run: distinct answers once, failures again, and which judge judges what."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.judges import Judge, Judgement, Verdict, judge_rows, open_judge
from safesteer_edge.evaluation.rows import open_journal
from tests.evaluation.eval_rows import COMPLIANCE, REFUSAL, row

Asked = list[tuple[str, str]]


def counting(*verdicts: Verdict) -> tuple[Judge, Asked]:
    """A judge that answers from a list, and what it was asked."""
    left, asked = list(verdicts), Asked()

    def judge(request: str, answer: str) -> Verdict:
        asked.append((request, answer))
        return left.pop(0)

    return Judge("counting", judge), asked


ROWS = (
    row(),
    row(defence="safesteer"),
    row(defence="paper", answer=REFUSAL),
    row(case_id="c1", kind="benign", request="What is it?"),
    row(case_id="c2", status="error", answer="", error="no room"),
)


def test_equal_answers_are_judged_once_and_errors_never(tmp_path: Path):
    judge, asked = counting(Verdict("unsafe"), Verdict("safe"))
    judge_rows(ROWS, judge, tmp_path / "j.jsonl")
    assert asked == [("How is it done?", COMPLIANCE), ("How is it done?", REFUSAL)]


def test_a_failed_verdict_is_tried_again_and_a_good_one_kept(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    judge_rows(ROWS, counting(Verdict(None, error="busy"), Verdict("safe"))[0], path)
    again, asked = counting(Verdict("unsafe"))
    judge_rows(ROWS, again, path)
    assert asked == [("How is it done?", COMPLIANCE)]
    judge_rows(ROWS, counting()[0], path)
    with open_journal(path, Judgement) as journal:
        assert [item.label for item in journal.items] == [None, "safe", "unsafe"]


def test_the_rules_judge_every_answer(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    judge_rows(ROWS, open_judge("rules"), path)
    with open_journal(path, Judgement) as journal:
        labels = sorted(str(item.label) for item in journal.items)
    assert labels == ["complied", "complied", "refused"]


@pytest.mark.parametrize("text", ["", "probe", "model:", "rules:x"])
def test_there_is_no_other_judge(text: str):
    with pytest.raises(SettingsError, match="unknown judge"):
        open_judge(text)
