"""What worker processes do in tests of the pool: answer without a model, or die."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from safesteer_edge.errors import ModelFileError
from safesteer_edge.evaluation.answering import AnswerSettings, Item
from safesteer_edge.evaluation.rows import EvalRow, unanswered


def dies_at_bad_cases(_settings: AnswerSettings, items: Sequence[Item]) -> Iterator[EvalRow]:
    """Answers with the process's id; a case named `bad…` kills the process."""
    for defence, case in items:
        if case.id.startswith("bad"):
            os._exit(9)
        row = unanswered(case, defence, "ok", "")
        yield replace(row, answer=str(os.getpid()))


def cannot_start(_settings: AnswerSettings, _items: Sequence[Item]) -> Iterator[EvalRow]:
    """As if the model were missing."""
    raise ModelFileError("cannot load 'x.gguf'")
