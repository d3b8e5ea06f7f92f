"""A worker process: answers its share of a run and sends each row as it is made.

Native code may abort; then this process dies alone, and the run goes on without the case.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from safesteer_edge.errors import InputError, SafeSteerError
from safesteer_edge.evaluation.defences import Defence
from safesteer_edge.evaluation.running.answering import AnswerSettings, DefenceRunner
from safesteer_edge.evaluation.running.rows import EvalRow
from safesteer_edge.evaluation.suites.case import Case

Item = tuple[Defence, Case]


@dataclass(frozen=True, slots=True)
class CannotStart:
    """A model or guard that cannot be opened: the run ends. is_input: the user's to mend."""

    message: str
    is_input: bool


Sent = EvalRow | CannotStart


def work(connection: Connection, settings: AnswerSettings, items: Sequence[Item]) -> None:
    """Send one row an item, in order. Ends quietly when the other side has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    runner: DefenceRunner | None = None
    try:
        for defence, case in items:
            if runner is None or runner.defence != defence:
                if runner is not None:
                    runner.close()
                    runner = None
                runner = DefenceRunner(settings, defence)
            connection.send(runner.answer(case))
    except SafeSteerError as error:
        connection.send(CannotStart(str(error), isinstance(error, InputError)))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent was killed: what is done is in its journal
    finally:
        if runner is not None:
            runner.close()
        connection.close()
