"""`safesteer-edge bundles`: guard bundles that are here; get them, check them, hand them on."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import (
    JSON,
    OK,
    YES,
    Argument,
    Command,
    Progress,
    cannot_write,
    confirmed,
    download_report,
    print_result,
    say,
)
from safesteer_edge.errors import SafeSteerError, SettingsError
from safesteer_edge.session.settings_file import user_settings

if TYPE_CHECKING:
    from safesteer_edge.bundle.exchange import KnownBundle
    from safesteer_edge.bundle.fingerprint import ModelFingerprint
    from safesteer_edge.bundle.schema import GuardConfig

_NONE = "there are no guard bundles on this computer"
_UNSIGNED = "unsigned: who made it, and what was measured, cannot be verified"
_UNKNOWN = (
    "signed by an unknown key, {key}; name it in the setting bundles.trusted_keys to trust it"
)
_MAX_SHOWN = 12  # differing figures


def run_list(options: argparse.Namespace) -> int:
    """Print a line a bundle, or JSON."""
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.bundle.exchange import known_bundles

    rows: list[dict[str, Any]] = []
    for each in known_bundles():
        row = {"name": each.name, "folder": str(each.folder), "is_installed": each.is_installed}
        try:
            config = read_config(each.folder)
            row |= {"model": asdict(config.model), "is_calibrated": _is_calibrated(config)}
        except SafeSteerError as error:
            row["problem"] = " ".join(str(error).split())
        rows.append(row)
    lines = [_row(row) for row in rows]
    return print_result(options, {"bundles": rows}, lines or [_NONE])


def run_info(options: argparse.Namespace) -> int:
    """Print who made a bundle, from what, and how it was measured."""
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.bundle.exchange import find_bundle

    bundle = find_bundle(options.bundle)
    config = read_config(bundle.folder)
    facts = bundle_facts(bundle, config)
    lines = [f"{key + ':':<14} {value}" for key, value in facts.items()]
    return print_result(options, {**facts, "policy": asdict(config.policy)}, lines)


def run_verify(options: argparse.Namespace) -> int:
    """Load bundles with all their checks. Raises BundleError at the first that fails."""
    from safesteer_edge.bundle.exchange import check_bundle, find_bundle, known_bundles, models_of

    model = _fingerprint(options.model)
    named = [find_bundle(name) for name in options.bundle] or known_bundles()
    verified: list[dict[str, Any]] = []
    for each in named:
        config = check_bundle(each.folder, model)
        models = {found.name: match for found, match in models_of(config)}
        row = {"name": each.name, "is_calibrated": _is_calibrated(config), "models": models}
        verified.append(row | {"signature": signature_words(each.folder)})
    lines = [
        f"{row['name']}: hashes and self-tests are correct"
        f"{'' if row['is_calibrated'] else UNCALIBRATED}"
        f"; for {', '.join(row['models']) or 'no model on this computer'}; {row['signature']}"
        for row in verified
    ]
    return print_result(options, {"verified": verified}, lines or [_NONE])


def run_pull(options: argparse.Namespace) -> int:
    """Pull a bundle and install it."""
    from safesteer_edge.bundle.exchange import pull_bundle

    model, progress = _fingerprint(options.model), Progress()
    try:
        folder = pull_bundle(options.source, download_report(progress), model=model)
    finally:
        progress.end()
    return _print_installed(options, folder)


def run_import(options: argparse.Namespace) -> int:
    """Install a bundle from an archive or a folder."""
    from safesteer_edge.bundle.exchange import install_bundle, read_bundle

    model = _fingerprint(options.model)
    return _print_installed(options, install_bundle(read_bundle(options.source), model))


def run_export(options: argparse.Namespace) -> int:
    """Pack a bundle. Raises SettingsError where a file is in the way."""
    from safesteer_edge.bundle.exchange import export_bundle, find_bundle
    from safesteer_edge.formats.atomic_write import hash_file

    bundle, path = find_bundle(options.bundle), options.output
    if path.exists() and not options.force:
        raise SettingsError(f"{str(path)!r} already exists; replace it with --force")
    try:
        export_bundle(bundle.folder, path)
        sha256 = hash_file(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    value = {"output": str(path), "sha256": sha256, "size_bytes": path.stat().st_size}
    return print_result(options, value, [f"wrote {path}, SHA-256 {sha256}"])


def run_keygen(options: argparse.Namespace) -> int:
    """Make a key that bundles are signed with."""
    from safesteer_edge.bundle.signature import new_key, public_key, read_key

    path = options.output
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(new_key())
    except FileExistsError:
        raise SettingsError(f"{str(path)!r} already exists; give the key another name") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    return _print_key(options, f"wrote {path}; keep it to yourself", public_key(read_key(path)))


def run_sign(options: argparse.Namespace) -> int:
    """Sign a bundle."""
    from safesteer_edge.bundle.exchange import find_bundle, sign_bundle

    bundle = find_bundle(options.bundle)
    try:
        key = sign_bundle(bundle.folder, options.key)
    except OSError as error:
        raise cannot_write(bundle.folder, error) from error
    return _print_key(options, f"signed {bundle.folder}", key)


def _print_key(options: argparse.Namespace, done: str, key: str) -> int:
    trust = f"Others trust it with: safesteer-edge settings set bundles.trusted_keys 'NAME {key}'"
    return print_result(options, {"key": key}, [done, trust])


def run_remove(options: argparse.Namespace) -> int:
    """Delete an installed bundle, after asking."""
    from safesteer_edge.bundle.exchange import find_bundle, remove_bundle

    bundle = find_bundle(options.bundle)
    if not options.yes:
        if not sys.stdin.isatty():
            raise SettingsError(f"{bundle.name!r} would be deleted for good; confirm with --yes")
        if not confirmed(f"Delete {bundle.folder}?"):
            say("nothing was deleted")
            return OK
    remove_bundle(bundle)
    print(f"deleted {bundle.name}")
    return OK


def run_diff(options: argparse.Namespace) -> int:
    """Print compare two bundles, value by value."""
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.bundle.exchange import find_bundle

    first, second = (
        flat(comparable(read_config(find_bundle(name).folder)))
        for name in (options.first, options.second)
    )
    keys = [*first, *(key for key in second if key not in first)]
    differing = {
        key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)
    }
    lines = [f"{key:<32} {_short(a)} → {_short(b)}" for key, (a, b) in differing.items()]
    return print_result(options, {"differs": differing}, lines or ["nothing differs"])


# -- what is said of a bundle ----------------------------------------------------------------------

UNCALIBRATED = ", UNCALIBRATED"


def bundle_facts(bundle: KnownBundle, config: GuardConfig) -> dict[str, str]:
    """A line for each thing that a bundle says of itself."""
    from safesteer_edge.bundle.bundle import CONFIG_NAME, listed_files
    from safesteer_edge.bundle.exchange import models_of
    from safesteer_edge.cli.verify_command import replay_cells
    from safesteer_edge.formats.atomic_write import hash_file
    from safesteer_edge.harvest.replay import FIGURES_KEY, replay_figures, replay_from_json

    model, figures = config.model, config.figures
    facts = {
        "name": config.name,
        "folder": str(bundle.folder),
        "made": f"{config.created} by {config.created_by}",
        "signature": signature_words(bundle.folder),
        "for": f"{model.architecture}, {model.n_layer} blocks of {model.n_embd}, "
        f"{model.n_vocab} tokens, {model.quantization}",
        "models here": ", ".join(
            found.name + ("" if match == "exact" else " (in another quantization)")
            for found, match in models_of(config)
        )
        or "none",
        "probe": f"reads layers {', '.join(map(str, config.probe.layers))}"
        + ("; another judges the prompt" if config.prompt_probe else ""),
        "openings": f"{len(config.openings)} safe beginnings of an answer" * bool(config.openings)
        or "none",
        "looks ahead": f"{config.policy.look_ahead} tokens, where an answer begins anew"
        * bool(config.policy.look_ahead)
        or "no",
        "requests": "; ".join(_requests(figures)) or "not recorded",
    }
    replay = replay_from_json(figures.get(FIGURES_KEY))
    if not _is_calibrated(config):
        facts["measured"] = "UNCALIBRATED: nobody has measured which answers it stops"
    elif replay is None:
        facts["measured"] = "calibrated; no replay of the test requests is recorded"
    else:
        cells = replay_cells(replay_figures(replay.rows, config.policy.alert_threshold))
        facts["measured"] = f"on {len(replay.rows)} test requests, which were not used to make it"
        facts |= {f"  {name}": cell for name, cell in cells.items()}
    facts[CONFIG_NAME] = f"SHA-256 {hash_file(bundle.folder / CONFIG_NAME)}"
    facts |= {name: f"SHA-256 {sha256}" for name, sha256 in listed_files(config).items()}
    return facts


def signature_words(folder: Path) -> str:
    """Who signed a bundle. Raises BundleError where the signature is wrong."""
    from safesteer_edge.bundle.exchange import signer_in

    key = signer_in(folder)
    name = None if key is None else user_settings().bundles.name_of(key)
    if name is not None:
        return f"signed by {name} (trusted)"
    return _UNSIGNED if key is None else _UNKNOWN.format(key=key)


def _requests(figures: Mapping[str, Any]) -> Iterator[str]:
    """From which requests it was made, as far as its figures say so."""
    if isinstance(splits := figures.get("splits"), list):
        yield f"splits {', '.join(map(str, splits))}"
    calibration = figures.get("calibration")
    harvested = calibration.get("harvested") if isinstance(calibration, Mapping) else None
    counts = harvested.get("text") if isinstance(harvested, Mapping) else figures.get("n_answers")
    if isinstance(counts, Mapping):
        yield ", ".join(f"{n} {label}" for label, n in counts.items())
    if isinstance(source := figures.get("recalibrated_from"), Mapping):
        yield f"recalibrated from {source.get('bundle')} ({source.get('quantization')})"


def comparable(config: GuardConfig) -> dict[str, Any]:
    """A configuration as JSON without what is too long to compare by eye."""
    from safesteer_edge.bundle.schema import format_guard_json
    from safesteer_edge.formats.json_values import load_json

    value = load_json(format_guard_json(config))
    for key in ("canaries", "residual_norms"):
        value[key] = f"{len(str(value[key]))} characters, {hash_text(value[key])}"
    return value


def hash_text(value: object) -> str:
    """A few digits that tell one value from another."""
    import hashlib

    return hashlib.sha256(str(value).encode()).hexdigest()[:12]


def flat(value: object, path: str = "") -> dict[str, Any]:
    """Values by their dotted paths; long lists by their length."""
    if isinstance(value, dict):
        parts = (flat(item, f"{path}.{key}".lstrip(".")) for key, item in value.items())
        return {key: item for part in parts for key, item in part.items()}
    if isinstance(value, list) and len(value) > _MAX_SHOWN:
        return {path: f"{len(value)} values, {hash_text(value)}"}
    return {path: value}


def _short(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _is_calibrated(config: GuardConfig) -> bool:
    from safesteer_edge.bundle.schema import recorded_effect

    return recorded_effect(config.policy, config.figures) == "acts"


def _row(row: Mapping[str, Any]) -> str:
    if "problem" in row:
        return f"{row['name']}: damaged: {row['problem']}"
    model = row["model"]
    note = "" if row["is_calibrated"] else UNCALIBRATED
    return (
        f"{row['name']}: {model['architecture']}, {model['n_layer']} blocks of {model['n_embd']}, "
        f"{model['quantization']}{note}\n  {row['folder']}"
    )


def _fingerprint(model: str | None) -> ModelFingerprint | None:
    """Of the model that a bundle must be for."""
    from safesteer_edge.bundle.fingerprint import fingerprint_model
    from safesteer_edge.session.choice import choose_model

    return None if model is None else fingerprint_model(choose_model(model).path)


def _print_installed(options: argparse.Namespace, folder: Path) -> int:
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.bundle.exchange import models_of

    config = read_config(folder)
    models = models_of(config)
    value = {
        "name": folder.name,
        "folder": str(folder),
        "is_calibrated": _is_calibrated(config),
        "signature": signature_words(folder),
        "models": {model.name: match for model, match in models},
    }
    return print_result(options, value, installed_lines(folder, config))


def installed_lines(folder: Path, config: GuardConfig) -> list[str]:
    """What to say of a bundle that was just installed, and what to do next."""
    from safesteer_edge.bundle.exchange import models_of

    lines = [f"{folder.name} is installed; see: safesteer-edge bundles info {folder.name}"]
    lines.append(f"It is {signature_words(folder)}")
    if not _is_calibrated(config):
        lines.append("It is UNCALIBRATED: nobody has measured which answers it stops")
    models = models_of(config)
    for model, match in models:
        if match != "exact":
            path, target = str(model.path), f"guard-{Path(str(model.path)).stem}"
            lines.append(
                f"It was made for {config.model.quantization}, and {model.name} is not. Adapt "
                f"it to that file (takes minutes): safesteer-edge calibrate {shlex.quote(path)} "
                f"--from {shlex.quote(str(folder))} -o {shlex.quote(target)}"
            )
        elif model.bundle != folder:
            lines.append(f"{model.name} keeps its own guard; choose this one with --bundle")
        else:
            lines.append(f"{model.name} is guarded by it now")
    if not models:
        lines.append("It is for none of the models in 'models list'")
    return lines


# -- the commands ----------------------------------------------------------------------------------

_BUNDLE = Argument("bundle", "a name of 'bundles list', or a folder", metavar="BUNDLE")
_MODEL = Argument("--model", "refuse a bundle of another model than this", metavar="NAME|F.gguf")
_FORCE = Argument("--force", "replace an existing file", action="store_true")

BUNDLES = Command(
    "bundles",
    "list, download, check and share guard bundles",
    lambda _options: run_list(argparse.Namespace(json=False)),
    description="List, download, check and share guard bundles.",
    commands=(
        Command("list", "list the guard bundles on this computer", run_list, (JSON,)),
        Command("info", "who made a bundle, and how it was measured", run_info, (_BUNDLE, JSON)),
        Command(
            "verify",
            "check hashes, self-tests and the model",
            run_verify,
            (
                Argument("bundle", "default: all on this computer", metavar="BUNDLE", nargs="*"),
                _MODEL,
                JSON,
            ),
        ),
        Command(
            "pull",
            "download a bundle from a hub",
            run_pull,
            (
                Argument("source", "on a hub", metavar="hf:OWNER/NAME[@REVISION][:FOLDER]"),
                _MODEL,
                JSON,
            ),
            "Download a guard bundle from a hub and install it, after its hashes are checked and "
            "it has been loaded once. If it is interrupted, run it again to continue.",
        ),
        Command(
            "export",
            "pack a bundle into one file",
            run_export,
            (_BUNDLE, Argument("output", type=Path, metavar="F.zip"), _FORCE, JSON),
        ),
        Command(
            "import",
            "install a bundle from a file or a folder",
            run_import,
            (Argument("source", type=Path, metavar="F.zip|DIR"), _MODEL, JSON),
            "Install a guard bundle, after its hashes are checked and it has been loaded once. "
            "Chats with the model file that it was calibrated on then use it.",
        ),
        Command(
            "sign",
            "sign a bundle, so that others can tell who made it",
            run_sign,
            (
                _BUNDLE,
                Argument("--key", "made by 'bundles keygen'", Path, metavar="FILE", required=True),
                JSON,
            ),
        ),
        Command(
            "keygen",
            "make a key to sign bundles with",
            run_keygen,
            (Argument("output", "the private key", Path, metavar="FILE"), JSON),
        ),
        Command(
            "diff",
            "compare two bundles",
            run_diff,
            (
                Argument("first", metavar="A"),
                Argument("second", metavar="B"),
                JSON,
            ),
        ),
        Command("remove", "delete an installed bundle", run_remove, (_BUNDLE, YES)),
    ),
)
