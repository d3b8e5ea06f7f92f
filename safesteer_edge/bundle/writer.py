"""Writing a guard bundle, so that a half-written one is never seen."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from safesteer_edge.bundle.bundle import CONFIG_NAME, open_bundle
from safesteer_edge.bundle.canaries import Canaries
from safesteer_edge.bundle.fingerprint import ModelFingerprint
from safesteer_edge.bundle.schema import (
    GuardConfig,
    ModalityScales,
    ProbeEntry,
    VectorEntry,
    format_guard_json,
)
from safesteer_edge.errors import BundleError
from safesteer_edge.formats.atomic_write import write_whole
from safesteer_edge.formats.control_vector_file import ControlVector, write_control_vector
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.readings import ReadingCurves

PROBE_NAME = "probe.onnx"
PROMPT_PROBE_NAME = "prompt_probe.onnx"
VECTOR_NAME = "vector.gguf"

REPORT_NAMES = ("report.html", "report.json")  # for people: nothing reads them back

_OWN_FILES = frozenset({CONFIG_NAME, PROBE_NAME, PROMPT_PROBE_NAME, VECTOR_NAME, *REPORT_NAMES})


@dataclass(frozen=True, slots=True)
class VectorParts:
    """An alignment vector and how it is to be applied; the fields are those of VectorEntry."""

    vector: ControlVector
    scale: float
    max_scale: float
    layers: tuple[int, int]
    modalities: ModalityScales
    sign: Literal[1, -1] = 1
    gate: float | None = None


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a bundle is made of; hashes, file names and the number of features are worked out."""

    name: str
    created_by: str
    model: ModelFingerprint
    probe_onnx: bytes
    probe_layers: tuple[int, ...]
    policy: GuardPolicy
    residual_norms: tuple[float, ...]
    canaries: Canaries
    refusal_text: str
    vector: VectorParts | None = None
    route_hint: Literal["layer_input", "final_norm", "eval_callback"] | None = None
    figures: Mapping[str, object] = field(default_factory=dict[str, object])
    created: str = ""  # an ISO date; '' is today
    reports: Mapping[str, str] = field(default_factory=dict[str, str])  # of REPORT_NAMES
    openings: tuple[str, ...] = ()
    opening_tokens: int = 0
    prompt_probe_onnx: bytes | None = None
    prompt_reads_message: bool = False
    readings: ReadingCurves | None = None


def write_bundle(folder: Path, parts: BundleParts, *, allow_negative_scale: bool = False) -> Path:
    """Write a guard bundle and return its folder.

    It is written beside its place, loaded once as a user would, and only then moved there: a
    bundle that would be refused is not written, and one that stood there is replaced whole.
    Raises BundleError (ProbeFileError, VectorFileError) if the parts do not make a loadable
    bundle, or if the folder holds something that is not a bundle's; OSError where the disk fails.
    """
    folder = folder.absolute()
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new.chmod(0o755)  # mkdtemp's is private; a bundle is as public as its parent folder
        _write_files(new, parts)
        open_bundle(
            new, parts.model, device="cpu", allow_negative_scale=allow_negative_scale
        ).close()
        _replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def check_replaceable(folder: Path) -> None:
    """Refuse a place that holds anything but a guard bundle: replacing it would lose that.

    Raises BundleError. Call it before long work whose result goes there.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise BundleError(f"cannot write a guard bundle to {str(folder)!r}: it is not a folder")
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in _OWN_FILES)
    if foreign:
        raise BundleError(
            f"cannot replace {str(folder)!r}: it holds {foreign[0]!r}, which is no part of a guard "
            "bundle; choose another folder, or move that file away"
        )


def _write_files(folder: Path, parts: BundleParts) -> None:
    """Write the probe, the vector and, last, the configuration that names their hashes."""
    write_whole(folder / PROBE_NAME, parts.probe_onnx)
    if parts.prompt_probe_onnx is not None:
        write_whole(folder / PROMPT_PROBE_NAME, parts.prompt_probe_onnx)
    if parts.vector is not None:
        write_control_vector(folder / VECTOR_NAME, parts.vector.vector)
    for name in REPORT_NAMES:
        if name in parts.reports:
            write_whole(folder / name, parts.reports[name])
    write_whole(folder / CONFIG_NAME, format_guard_json(_config(folder, parts)))


def _config(folder: Path, parts: BundleParts) -> GuardConfig:
    def entry(name: str, onnx: bytes, n_states: int = 1) -> ProbeEntry:
        return ProbeEntry(
            file=name,
            sha256=hashlib.sha256(onnx).hexdigest(),
            layers=parts.probe_layers,
            n_features=parts.model.n_embd * len(parts.probe_layers) * n_states,
            route_hint=parts.route_hint,
        )

    prompt_onnx = parts.prompt_probe_onnx
    return GuardConfig(
        name=parts.name,
        created=parts.created or date.today().isoformat(),
        created_by=parts.created_by,
        model=parts.model,
        probe=entry(PROBE_NAME, parts.probe_onnx),
        policy=parts.policy,
        residual_norms=parts.residual_norms,
        canaries=parts.canaries,
        refusal_text=parts.refusal_text,
        vector=None if parts.vector is None else _vector_entry(folder, parts.vector),
        figures=parts.figures,
        openings=parts.openings,
        opening_tokens=parts.opening_tokens,
        readings=parts.readings,
        prompt_probe=None
        if prompt_onnx is None
        else entry(PROMPT_PROBE_NAME, prompt_onnx, 1 + parts.prompt_reads_message),
    )


def _vector_entry(folder: Path, parts: VectorParts) -> VectorEntry:
    return VectorEntry(
        file=VECTOR_NAME,
        sha256=hashlib.sha256((folder / VECTOR_NAME).read_bytes()).hexdigest(),
        layer_convention="block_output_0based",
        sign=parts.sign,
        scale=parts.scale,
        max_scale=parts.max_scale,
        layers=parts.layers,
        modalities=parts.modalities,
        gate=parts.gate,
    )


def _replace_folder(new: Path, folder: Path) -> None:
    """Move a complete folder to its place; what stood there comes back if that fails.

    Two renames, since no portable call exchanges two folders: between them the place is empty,
    and a reader is told that there is no bundle, never given half of one.
    """
    if not folder.exists():
        new.rename(folder)
        return
    shelter = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    old = shelter / folder.name
    try:
        folder.rename(old)
        new.rename(folder)
    except BaseException:  # an interrupt must not lose the old bundle either
        if old.exists() and not folder.exists():
            old.rename(folder)
        shelter.rmdir()  # fails, and so keeps it, if the old bundle is still in there
        raise
    shutil.rmtree(shelter, ignore_errors=True)
