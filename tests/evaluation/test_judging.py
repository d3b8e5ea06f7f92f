"""Judging a run: distinct answers once, failures again, and which judge judges what."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.judges import judge_rows, judgement_journal, open_judge
from safesteer_edge.evaluation.verdict import Verdict
from tests.evaluation.eval_rows import COMPLIANCE, REFUSAL, row


class CountingJudge:
    """Answers from a list, and remembers what it was asked."""

    def __init__(self, *verdicts: Verdict, name: str = "counting") -> None:
        self._verdicts = list(verdicts)
        self.asked: list[tuple[str, str]] = []
        self.name = name

    def judge(self, request: str, answer: str) -> Verdict:
        self.asked.append((request, answer))
        return self._verdicts.pop(0)

    def close(self) -> None: ...


ROWS = (
    row(),
    row(defence="safesteer"),
    row(defence="paper", answer=REFUSAL),
    row(case_id="c1", kind="benign", request="What is it?"),
    row(case_id="c2", status="error", answer="", error="no room"),
)


def test_equal_answers_are_judged_once_and_errors_never(tmp_path: Path):
    judge = CountingJudge(Verdict("unsafe"), Verdict("safe"))
    judge_rows(ROWS, judge, tmp_path / "j.jsonl")
    assert judge.asked == [("How is it done?", COMPLIANCE), ("How is it done?", REFUSAL)]


def test_a_failed_verdict_is_tried_again_and_a_good_one_kept(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    judge_rows(ROWS, CountingJudge(Verdict(None, error="busy"), Verdict("safe")), path)
    again = CountingJudge(Verdict("unsafe"))
    judge_rows(ROWS, again, path)
    assert again.asked == [("How is it done?", COMPLIANCE)]
    judge_rows(ROWS, CountingJudge(), path)
    with judgement_journal(path) as journal:
        assert [item.label for item in journal.items] == [None, "safe", "unsafe"]


def test_the_rules_judge_every_answer(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    judge_rows(ROWS, open_judge("rules"), path)
    with judgement_journal(path) as journal:
        labels = sorted(str(item.label) for item in journal.items)
    assert labels == ["complied", "complied", "refused"]


@pytest.mark.parametrize("text", ["", "probe", "model:", "rules:x"])
def test_there_is_no_other_judge(text: str):
    with pytest.raises(SettingsError, match="unknown judge"):
        open_judge(text)
