"""Several worker processes, whose rows come back as they are made."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

from safesteer_edge.errors import EngineError, InputError, SafeSteerError
from safesteer_edge.evaluation.answering import AnswerSettings, DefenceRunner
from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.defences import Defence
from safesteer_edge.evaluation.rows import EvalRow, unanswered

# -- A worker process: answers its share of a run and sends each row as it is made -----------------
# Native code may abort; then this process dies alone, and the run goes on without the case.

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


@dataclass(slots=True)
class _Share:
    """A worker and what it still has to answer."""

    process: SpawnProcess
    connection: Connection
    items: Sequence[Item]
    n_done: int = 0

    @property
    def remaining(self) -> Sequence[Item]:
        return self.items[self.n_done :]


Work = Callable[[Connection, AnswerSettings, Sequence[Item]], None]


def answer_all(
    items: Sequence[Item], settings: AnswerSettings, *, n_workers: int, work: Work = work
) -> Iterator[EvalRow]:
    """One row an item, in any order. A case at which a worker dies is a row that says so.

    Items of one defence should follow each other: a worker loads the model anew for the next.
    work: what a worker process does.
    Raises InputError or EngineError if a model or guard cannot be opened.
    """
    shares: dict[Connection, _Share] = {}
    try:
        for i in range(min(n_workers, len(items))):
            share = _start(items[i::n_workers], settings, work)
            shares[share.connection] = share
        while shares:
            for ready in wait(list(shares)):
                share = shares[cast("Connection", ready)]
                row = _receive(share)
                if row is None:  # it died at the next case, or it had none
                    row = _crash_row(share)
                    _leave_inplace(shares, share)
                    if len(share.remaining) > 1:
                        new = _start(share.remaining[1:], settings, work)
                        shares[new.connection] = new
                else:
                    share.n_done += 1
                    if not share.remaining:
                        _leave_inplace(shares, share)
                if row is not None:
                    yield row
    finally:
        for share in shares.values():
            _end(share)


def _start(items: Sequence[Item], settings: AnswerSettings, work: Work) -> _Share:
    context = multiprocessing.get_context("spawn")  # llama.cpp and its threads do not survive fork
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, settings, items), daemon=True)
    process.start()
    theirs.close()  # so that its end is the end of file
    return _Share(process, ours, items)


def _receive(share: _Share) -> EvalRow | None:
    """The next row; None: the process has ended."""
    try:
        sent = share.connection.recv()
    except (EOFError, ConnectionResetError):
        share.process.join(timeout=10)
        return None
    if isinstance(sent, CannotStart):
        raise (InputError if sent.is_input else EngineError)(sent.message)
    return sent


def _crash_row(share: _Share) -> EvalRow | None:
    if not share.remaining:
        return None
    defence, case = share.remaining[0]
    code = share.process.exitcode
    return unanswered(case, defence, "crashed", f"the model's process died (exit code {code})")


def _leave_inplace(shares: dict[Connection, _Share], share: _Share) -> None:
    del shares[share.connection]
    _end(share)


def _end(share: _Share) -> None:
    share.connection.close()
    if share.remaining:
        share.process.terminate()
    share.process.join(timeout=10)
