"""`models info`, `add`, `remove` and `verify`: the models that are here."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safesteer_edge.cli.models_list import ListedModel, listed_model, this_machine
from safesteer_edge.cli.models_pull import record_as_json
from safesteer_edge.cli.options import OK

_MIB = 1 << 20


def add_parsers(commands: Any) -> None:
    """Register the commands."""
    info = _command(commands, "info", run_info, "all about one model")
    info.add_argument("name", metavar="NAME")
    add = _command(
        commands,
        "add",
        run_add,
        "use files of your own by a name",
        "Record a model, and its projector, under a name: checked, with their hashes. The files "
        "stay where they are, and are used there.",
    )
    add.add_argument("name", metavar="NAME", help="what --model takes afterwards")
    add.add_argument("model", type=Path, metavar="F.gguf")
    add.add_argument("--mmproj", type=Path, metavar="F", help="the model's projector file")
    remove = _command(
        commands,
        "remove",
        run_remove,
        "forget a model, and delete what was pulled",
        "Forget a model. Files that were pulled are deleted; files of your own are left alone.",
    )
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.add_argument(
        "--delete-my-file", action="store_true", help="delete a file of your own as well"
    )
    verify = _command(commands, "verify", run_verify, "hash a model's files against their record")
    verify.add_argument("name", metavar="NAME", nargs="*", help="default: all that are installed")


def run_info(options: argparse.Namespace) -> int:
    """Print what is known of a model. Raises SettingsError for an unknown name."""
    from safesteer_edge.library.catalogue import default_model, find_model, installed_path
    from safesteer_edge.library.index import read_index

    entry = find_model(options.name)
    if entry.path is not None:
        installed_path(entry)  # a file that has changed is no news to be printed as a fact
    listed = listed_model(entry, this_machine(), is_default=entry.name == default_model().name)
    record = read_index().find(entry.name)
    files = record_as_json(record)["files"] if record else []
    route = _route(listed)
    if options.json:
        print(json.dumps({**asdict(listed), "hidden_states": route, "files": files}))
        return OK
    rows = [
        ("name", listed.name),
        ("title", listed.title),
        ("architecture", listed.architecture),
        ("licence", listed.licence),
        ("context", f"{listed.context} tokens" if listed.context else "see its file"),
        ("takes", ", ".join(("text", *listed.takes))),
        ("quantization", listed.quantization or "-"),
        ("repository", listed.repository or "-"),
        ("memory", _memory(listed)),
        ("hidden states", route),
        ("guard bundle", listed.bundle or "none: make one with 'safesteer-edge calibrate'"),
        ("file", listed.problem or listed.path or f"not installed; run: {listed.install}"),
        ("projector", listed.mmproj or "-"),
    ]
    rows += [
        ("sha256", f"{file.sha256}  {file.path.name}") for file in (record.files if record else ())
    ]
    for key, value in rows:
        print(f"{key + ':':<14} {value}")
    return OK


def _route(listed: ListedModel) -> str:
    """How the guard reads its hidden states, of any block but the last where it has no bundle."""
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.errors import SafeSteerError

    try:
        from safesteer_edge.engine.hidden_states import describe_route, usable_routes

        layers, n_layer = (0,), 2
        if listed.bundle:
            config = read_config(Path(listed.bundle))
            layers, n_layer = config.probe.layers, config.model.n_layer
        return describe_route(usable_routes(listed.architecture, n_layer, layers)[0])
    except SafeSteerError as error:  # of the bundle
        return f"unknown: {error}"
    except (ImportError, OSError, RuntimeError, AttributeError):  # of llama.cpp
        return "unknown: llama.cpp does not start; run 'safesteer-edge doctor'"


def _memory(listed: ListedModel) -> str:
    from safesteer_edge.library.memory_plan import in_mib

    if listed.needs_bytes is None:
        return "does not fit here" if listed.fits == "no" else "not known before it is here"
    about = "about " if listed.is_installed else "by a guess "
    return f"{about}{in_mib(listed.needs_bytes)}; fits here: {listed.fits}; see 'models fit'"


def run_add(options: argparse.Namespace) -> int:
    """Record the user's files. Raises SettingsError, ModelFileError."""
    from safesteer_edge.library.install import add_model

    record = add_model(options.name, options.model, options.mmproj)
    if options.json:
        print(json.dumps(record_as_json(record)))
    else:
        print(f"{record.name}: {record.model.path}, SHA-256 {record.model.sha256}")
    return OK


def run_remove(options: argparse.Namespace) -> int:
    """Remove after a confirmation. Raises SettingsError if nobody can be asked."""
    from safesteer_edge.library.install import installed_record, planned_removal, remove_model

    record = installed_record(options.name)
    plan = planned_removal(record, with_own_files=options.delete_my_file)
    if not options.yes and not _confirmed(record.name, plan.deleted):
        print("nothing was removed", file=sys.stderr)
        return OK
    done = remove_model(record, with_own_files=options.delete_my_file)
    if options.json:
        paths = {"deleted": done.deleted, "kept": done.kept}
        lists = {key: [str(path) for path in value] for key, value in paths.items()}
        print(json.dumps({"name": record.name, **lists}))
        return OK
    print(f"{record.name} is removed")
    for word, paths in (("deleted", done.deleted), ("left alone", done.kept)):
        for path in paths:
            print(f"  {word}: {path}")
    return OK


def run_verify(options: argparse.Namespace) -> int:
    """Hash what is installed. Raises ModelFileError at the first file that has changed."""
    from safesteer_edge.library.index import read_index
    from safesteer_edge.library.install import installed_record, verify_model

    named = [installed_record(name) for name in options.name]
    verified = [verify_model(record) for record in named or read_index().models]
    if options.json:
        print(json.dumps({"verified": [record_as_json(record) for record in verified]}))
        return OK
    for record in verified:
        n_bytes = sum(file.size_bytes for file in record.files)
        print(f"{record.name}: {len(record.files)} file(s), {n_bytes / _MIB:.1f} MiB, unchanged")
    if not verified:
        print("no model was pulled or added")
    return OK


def _confirmed(name: str, deleted: tuple[Path, ...]) -> bool:
    from safesteer_edge.errors import SettingsError

    if not sys.stdin.isatty():
        raise SettingsError(f"nobody is there to ask about removing {name!r}; pass --yes")
    for path in deleted:
        print(f"  deletes {path}", file=sys.stderr)
    print(f"Remove {name}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _command(commands: Any, name: str, run: Any, help_text: str, description: str = "") -> Any:
    parser = commands.add_parser(name, help=help_text, description=description or help_text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)
    return parser
