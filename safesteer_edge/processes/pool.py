"""Several processes that share out pieces of work. One that dies costs the piece that it was at.

For native code that may abort, and for small models, whose threads mostly wait for each other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Generic, TypeVar, cast

from safesteer_edge.errors import SafeSteerError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Yields one result an item, in order. Sent to another process: a module's function, or its partial.
Work = Callable[[Sequence[Item]], Iterator[Result]]


@dataclass(frozen=True, slots=True)
class Died(Generic[Item]):
    """What there is instead of the result of an item at which a process died."""

    item: Item
    exit_code: int | None


def share_out(
    work: Work[Item, Result], items: Sequence[Item], *, n_workers: int
) -> Iterator[Result | Died[Item]]:
    """One result an item, in any order, as they are made.

    After a death another process does the rest of its share. Raises the SafeSteerError that the
    work raises.
    """
    workers: dict[Connection, _Worker[Item]] = {}
    shares = [items[at::n_workers] for at in range(min(n_workers, len(items)))]
    try:
        while shares or workers:
            while shares:
                worker = _Worker.start(work, shares.pop(0))
                workers[worker.connection] = worker
            for ready in wait(list(workers)):
                worker = workers[cast("Connection", ready)]
                try:
                    sent = worker.connection.recv()
                except (EOFError, ConnectionResetError):  # it is done, or dead
                    del workers[worker.connection]
                    worker.end()
                    if worker.left:
                        yield Died(worker.left[0], worker.process.exitcode)
                        shares += filter(None, [worker.left[1:]])
                    continue
                if isinstance(sent, SafeSteerError):
                    raise sent
                worker.left = worker.left[1:]
                yield sent
    finally:
        for worker in workers.values():
            worker.process.terminate()
            worker.end()


@dataclass(slots=True)
class _Worker(Generic[Item]):
    """A process and what it has still to do."""

    process: SpawnProcess
    connection: Connection
    left: Sequence[Item]

    @classmethod
    def start(cls, work: Work[Item, Result], items: Sequence[Item]) -> _Worker[Item]:
        context = multiprocessing.get_context("spawn")  # llama.cpp's threads do not survive a fork
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(theirs, work, items), daemon=True)
        process.start()
        theirs.close()  # so that its end is the end of file
        return cls(process, ours, items)

    def end(self) -> None:
        self.process.join(timeout=10)
        self.connection.close()


def _run(connection: Connection, work: Work[Item, Result], items: Sequence[Item]) -> None:
    """Send each result, or the error that ended them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            for result in work(items):
                connection.send(result)
        except SafeSteerError as error:
            connection.send(error)


def _end_with_parent() -> None:
    """End this process once the parent is gone, killed perhaps: a piece may take many minutes.

    What is done is where the work has put it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
