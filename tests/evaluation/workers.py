"""What worker processes do in tests of the pool: answer without a model, or die."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

from safesteer_edge.evaluation.answering import AnswerSettings
from safesteer_edge.evaluation.pool import CannotStart, Item
from safesteer_edge.evaluation.rows import unanswered


def dies_at_bad_cases(
    connection: Connection, _settings: AnswerSettings, items: Sequence[Item]
) -> None:
    """Answers with the process's id; a case named `bad…` kills the process."""
    for defence, case in items:
        if case.id.startswith("bad"):
            os._exit(9)
        row = unanswered(case, defence, "ok", "")
        connection.send(replace(row, answer=str(os.getpid())))


def cannot_start(connection: Connection, _settings: AnswerSettings, _items: Sequence[Item]) -> None:
    """As if the model were missing."""
    connection.send(CannotStart("cannot load 'x.gguf'", is_input=True))
