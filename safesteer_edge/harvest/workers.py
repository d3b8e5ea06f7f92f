"""What is harvested or evaluated, and how many processes do it side by side.

A small model's decoding steps are so short that its threads mostly wait for each other: two
processes of one thread harvest the embedded default half as fast again as one of two threads. The
states are the same bits, however many threads compute them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from safesteer_edge.bundle.bundle import read_config
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.errors import EngineError
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.library.memory_plan import free_memory
from safesteer_edge.processes.cores import n_usable_cores
from safesteer_edge.processes.pool import Work, share_out
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.settings import SessionSettings

Item = TypeVar("Item")

# Measured with the default model: 310 MiB in use by a guarded process, 94 of them mapped weights.
_BESIDES_WEIGHTS_BYTES: Final = 320 << 20
_SMALL_MODEL_BYTES: Final = 512 << 20  # above, threads have enough to do for each step
_MAX_WORKERS: Final = 8


@dataclass(frozen=True, slots=True)
class Subject:
    """What an evaluation is of. facts: for the report. sees: it is loaded with a projector."""

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


def default_workers(session: SessionSettings, model_bytes: int) -> int:
    """How many processes harvest a model best here: one a core where it is small, else one."""
    if model_bytes > _SMALL_MODEL_BYTES or session.n_gpu_layers:
        return 1
    n_threads = session.n_threads or n_usable_cores()
    return workers_that_fit(min(n_threads, _MAX_WORKERS), model_bytes)


def run_side_by_side(
    work: Work[Item, None], items: Sequence[Item], *, n_workers: int
) -> Iterator[None]:
    """Do the items in so many processes; yield whenever one is done.

    Raises what the work raised, and EngineError where a process died.
    """
    for done in share_out(work, items, n_workers=n_workers):
        if done is not None:
            raise EngineError(
                f"the process that ran the model died (exit code {done.exit_code}); run the "
                "same command again to continue, with --workers 1 if memory is short"
            )
        yield
