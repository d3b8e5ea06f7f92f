"""What an evaluation is of: the model file, its projector and its guard, named by their hashes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from safesteer_edge.bundle.bundle import read_config
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.memory.free_memory import free_memory
from safesteer_edge.model_choice import choose_model
from safesteer_edge.settings import SessionSettings

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
