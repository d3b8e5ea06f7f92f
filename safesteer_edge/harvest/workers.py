"""Several processes that harvest side by side.

A small model's decoding steps are so short that its threads mostly wait for each other: two
processes of one thread harvest the embedded default half as fast again as one of two threads. The
states are the same bits, however many threads compute them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from safesteer_edge.bundle.bundle import read_config
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.errors import EngineError, SafeSteerError
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.library.memory_plan import free_memory
from safesteer_edge.processes.cores import n_usable_cores
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.settings import SessionSettings

# -- what an evaluation is of: the model file, its projector and its guard, named by their hashes --

# Measured with the default model: 310 MiB in use by a guarded process, 94 of them mapped weights.
_BESIDES_WEIGHTS_BYTES: Final = 320 << 20


@dataclass(frozen=True, slots=True)
class Subject:
    """facts: for the report. sees: it is loaded with a projector."""

    facts: dict[str, Any]
    sees: bool
    has_vector: bool


def inspect_subject(session: SessionSettings) -> Subject:
    """Read the files' headers; nothing native. Raises ModelFileError, BundleError."""
    choice = choose_model(session.model)
    info = check_language_model(choice.path)
    fingerprint = fingerprint_model(info)
    folder = session.bundle or choice.bundle
    config = read_config(folder) if folder is not None else None
    mmproj = session.mmproj or choice.mmproj
    facts = {
        "model": choice.name,
        "architecture": info.architecture,
        "quantization": info.quantization,
        "size_bytes": info.size_bytes,
        "tensor_table_sha256": fingerprint.tensor_table_sha256,
        "mmproj": mmproj.name if mmproj else None,
        "bundle": config.name if config else None,
        "probe_sha256": config.probe.sha256 if config else None,
        "policy": asdict(config.policy) if config else None,
        "vector_sha256": config.vector.sha256 if config and config.vector else None,
    }
    has_vector = config is not None and config.vector is not None
    return Subject(facts, sees=mmproj is not None, has_vector=has_vector)


def workers_that_fit(n_wanted: int, model_bytes: int, *, free_bytes: int | None = None) -> int:
    """As many processes as free memory has room for, at least one; all where it is not known.

    free_bytes: None asks the system. The mapped weights are shared, but llama.cpp may hold a
    second, repacked copy of its own in each process.
    """
    free = free_memory()[0] if free_bytes is None else free_bytes
    if free is None:
        return n_wanted
    return max(1, min(n_wanted, free // (model_bytes + _BESIDES_WEIGHTS_BYTES)))


_SMALL_MODEL_BYTES: Final = 512 << 20  # above, threads have enough to do for each step
_MAX_WORKERS: Final = 8

# Yields after each piece of work. Sent to another process: a function of a module, or its partial.
Share = Callable[[], Iterator[None]]


def default_workers(session: SessionSettings, model_bytes: int) -> int:
    """How many processes harvest a model best here: one a core where it is small, else one."""
    if model_bytes > _SMALL_MODEL_BYTES or session.n_gpu_layers:
        return 1
    n_threads = session.n_threads or n_usable_cores()
    return workers_that_fit(min(n_threads, _MAX_WORKERS), model_bytes)


def run_side_by_side(shares: Sequence[Share]) -> Iterator[None]:
    """Run each share in a process of its own; yield whenever one of them does.

    Raises what a share raised, and EngineError where a process died.
    """
    context = multiprocessing.get_context("spawn")  # llama.cpp's threads do not survive a fork
    processes: dict[Connection, SpawnProcess] = {}
    try:
        for share in shares:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(theirs, share), daemon=True)
            process.start()
            theirs.close()  # so that its end is the end of file
            processes[ours] = process
        while processes:
            for ready in wait(list(processes)):
                assert isinstance(ready, Connection)
                yield from _received(ready, processes)
    finally:
        for connection, process in processes.items():
            connection.close()
            process.terminate()
            process.join(timeout=10)


def _received(ready: Connection, processes: dict[Connection, SpawnProcess]) -> Iterator[None]:
    """What one process has to say; it leaves `processes` when it has done its share."""
    try:
        sent: SafeSteerError | bool | None = ready.recv()
    except (EOFError, ConnectionResetError):
        process = processes[ready]
        process.join(timeout=10)
        raise EngineError(
            f"the process that ran the model died (exit code {process.exitcode}); the same command "
            "goes on where it was, with --workers 1 in less memory"
        ) from None
    if isinstance(sent, SafeSteerError):
        raise sent
    if sent:
        ready.close()
        processes.pop(ready).join(timeout=10)
    else:
        yield


def _run(connection: Connection, share: Share) -> None:
    """Send None for each piece of work, then True; or the error that ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent was killed
        try:
            for _ in share():
                connection.send(None)
            connection.send(True)
        except SafeSteerError as error:
            connection.send(error)
    connection.close()
