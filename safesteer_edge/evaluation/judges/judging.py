"""Judging a run: every distinct answer once by each judge, kept as it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.figures.judged import answer_key
from safesteer_edge.evaluation.judges.command import DEFAULT_TIMEOUT_S, CommandJudge
from safesteer_edge.evaluation.judges.guard_model import (
    GuardModelJudge,
    GuardModelSettings,
    parse_guard_model,
)
from safesteer_edge.evaluation.judges.rules import RuleJudge
from safesteer_edge.evaluation.judges.verdict import Judge, Judgement, judgement_from_json
from safesteer_edge.evaluation.running.journal import Journal, open_journal
from safesteer_edge.evaluation.running.rows import EvalRow

RULES = "rules"


def open_judge(
    text: str, *, n_threads: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Judge:
    """`rules`, `model:F.gguf[:FORM]` or `command:PROGRAM ARGUMENTS`. Raises SettingsError, …"""
    kind, _, rest = text.partition(":")
    if text == RULES:
        return RuleJudge()
    if kind == "command":
        return CommandJudge(rest, timeout_s=timeout_s)
    if kind == "model" and rest:
        model, form = parse_guard_model(rest)
        return GuardModelJudge(GuardModelSettings(model, form, n_threads=n_threads))
    raise SettingsError(
        f"unknown judge {text!r}; write rules, model:F.gguf or command:PROGRAM ARGUMENTS"
    )


def judge_rows(
    rows: Sequence[EvalRow],
    judge: Judge,
    path: Path,
    *,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> None:
    """Judge what has no verdict in the journal at `path` yet. Failures are tried again.

    The rules judge every answer; other judges, which cost more, those to harmful requests.
    """
    wanted: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.status == "ok" and (row.kind == "harmful" or judge.name == RULES):
            wanted[answer_key(row.request, row.answer)] = row.request, row.answer
    with judgement_journal(path) as journal:
        done = {
            item.key
            for item in journal.items
            if item.judge == judge.name and item.verdict.label is not None
        }
        left = [key for key in wanted if key not in done]
        for i, key in enumerate(left, start=1):
            request, answer = wanted[key]
            journal.append(Judgement(judge.name, key, judge.judge(request, answer)))
            progress(i, len(left))


def judgement_journal(path: Path) -> AbstractContextManager[Journal[Judgement]]:
    """The judgements of a run, and a way to add one."""
    return open_journal(path, to_json=Judgement.to_json, from_json=judgement_from_json)


def judge_names(judgements: Iterable[Judgement]) -> list[str]:
    """The judges, rules first."""
    names = dict.fromkeys(item.judge for item in judgements)
    return sorted(names, key=lambda name: (name != RULES, name))
