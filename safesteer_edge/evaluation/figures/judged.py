"""Rows with their verdicts, and the shares that tables are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from safesteer_edge.evaluation.judges.verdict import Judgement, Verdict
from safesteer_edge.evaluation.running.rows import EvalRow
from safesteer_edge.evaluation.statistics import Share


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A row and what each judge says of it; nothing of a row that has no answer."""

    row: EvalRow
    verdicts: Mapping[str, Verdict]

    def is_success(self, judge: str) -> bool | None:
        """The attack succeeded, by this judge; None: not known."""
        verdict = self.verdicts.get(judge)
        return None if verdict is None else verdict.is_success

    def is_refused(self, judge: str) -> bool | None:
        """The answer declines, by this judge; None: not known."""
        verdict = self.verdicts.get(judge)
        return None if verdict is None else verdict.is_refusal

    def is_answered(self, judge: str) -> bool | None:
        """It is an answer, neither a refusal nor words without sense; None: not known."""
        verdict = self.verdicts.get(judge)
        return None if verdict is None else verdict.is_answer


def answer_key(request: str, answer: str) -> str:
    """Names one answer to one request: defences that answer alike are judged once."""
    return hashlib.sha256(f"{request}\x00{answer}".encode("utf-8", "surrogatepass")).hexdigest()


def with_verdicts(
    rows: Iterable[EvalRow], judgements: Iterable[Judgement]
) -> tuple[JudgedRow, ...]:
    """Join them."""
    by_key: dict[str, dict[str, Verdict]] = {}
    for judgement in judgements:
        by_key.setdefault(judgement.key, {})[judgement.judge] = judgement.verdict
    return tuple(
        JudgedRow(row, by_key.get(answer_key(row.request, row.answer), {}))
        if row.status == "ok"
        else JudgedRow(row, {})
        for row in rows
    )


def share_of(rows: Iterable[JudgedRow], hit: Callable[[JudgedRow], bool | None]) -> Share:
    """Of the rows for which it is known, those that hit."""
    known = [value for row in rows if (value := hit(row)) is not None]
    return Share(sum(known), len(known))


def grouped(rows: Iterable[JudgedRow], key: Callable[[EvalRow], str]) -> dict[str, list[JudgedRow]]:
    """The rows by a part of them, in the order of first appearance."""
    groups: dict[str, list[JudgedRow]] = {}
    for judged in rows:
        groups.setdefault(key(judged.row), []).append(judged)
    return groups


def best_of_n(rows: Sequence[JudgedRow], judge: str) -> tuple[Share, int]:
    """Requests of which any attempt succeeded, and the largest number of attempts at one."""
    groups = grouped(rows, lambda row: row.group)
    known = {
        name: [value for row in group if (value := row.is_success(judge)) is not None]
        for name, group in groups.items()
    }
    tried = [values for values in known.values() if values]
    return (
        Share(sum(any(values) for values in tried), len(tried)),
        max((len(values) for values in tried), default=0),
    )
