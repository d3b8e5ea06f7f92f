"""Answers by several processes. Native code may abort: that costs one case, told in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from safesteer_edge.evaluation.answering import AnswerSettings, DefenceRunner
from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.defences import Defence
from safesteer_edge.evaluation.rows import EvalRow, unanswered
from safesteer_edge.processes.pool import Died, share_out

Item = tuple[Defence, Case]
Answers = Callable[[AnswerSettings, Sequence[Item]], Iterator[EvalRow]]


def answers(settings: AnswerSettings, items: Sequence[Item]) -> Iterator[EvalRow]:
    """One row an item, in order: what a worker process does."""
    runner: DefenceRunner | None = None
    try:
        for defence, case in items:
            if runner is None or runner.defence != defence:
                if runner is not None:
                    runner.close()
                    runner = None
                runner = DefenceRunner(settings, defence)
            yield runner.answer(case)
    finally:
        if runner is not None:
            runner.close()


def answer_all(
    items: Sequence[Item], settings: AnswerSettings, *, n_workers: int, answers: Answers = answers
) -> Iterator[EvalRow]:
    """One row an item, in any order. A case at which a worker dies is a row that says so.

    Items of one defence should follow each other: a worker loads the model anew for the next.
    Raises what says why a model or guard cannot be opened.
    """
    for row in share_out(partial(answers, settings), items, n_workers=n_workers):
        if isinstance(row, Died):
            defence, case = row.item
            died = f"the model's process died (exit code {row.exit_code})"
            row = unanswered(case, defence, "crashed", died)
        yield row
