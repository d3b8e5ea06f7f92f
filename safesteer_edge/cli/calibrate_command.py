"""`safesteer-edge calibrate`: a guard bundle for a model that has none, made on this machine."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.cli.options import (
    MACHINE,
    OK,
    Argument,
    Command,
    Progress,
    say,
    session_settings,
    setting_flags,
)
from safesteer_edge.cli.verify_command import replay_cells
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.user_folders import made_folder
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.calibration.recalibrate import Recalibrated
    from safesteer_edge.calibration.settings import CalibrationSettings
    from safesteer_edge.requests.requests import Request


_CACHE_LIMIT_GIB = 8.0


def run(options: argparse.Namespace) -> int:
    """Calibrate, and return the exit code."""
    for package in ("onnx", "sklearn"):
        if find_spec(package) is None:
            raise SettingsError(
                f"cannot calibrate without {package}; pip install 'safesteer-edge[calibration]'"
            )
    if options.source_bundle is not None:
        return _recalibrate(options)
    # Deferred: these import llama.cpp, which --help does not need.
    from safesteer_edge.bundle.writer import check_replaceable
    from safesteer_edge.calibration.make_bundle import make_bundle
    from safesteer_edge.calibration.settings import check_media, check_requests, with_pictures

    # 1. Whatever cannot work is said before minutes of work, not after.
    settings = _settings(options)
    requests, source = _requests(options.data)
    warnings = check_requests(requests, source, settings.targets)
    check_media(settings.harvest.session, requests, hears=options.audio)
    check_replaceable(options.output)
    for warning in warnings:
        say(f"warning: {warning}")
    # 2. The work.
    try:
        requests = with_pictures(settings.harvest.session, requests)
        folder = make_bundle(options.output, settings, requests, Progress().show)
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on where it was")
        raise
    print(folder)
    return OK


def calibrate(folder: Path, model: Path, mmproj: str | None) -> None:
    """Make a guard from the package's own requests, as the command does without options."""
    made_folder(folder.parent)
    given = {"model": str(model), "output": folder, "mmproj": mmproj, "audio": False}
    names = ("source_bundle", "data", "name", "cache_limit", "workers", "false_alarms")
    run(argparse.Namespace(**dict.fromkeys(names), **given))


def _settings(options: argparse.Namespace) -> CalibrationSettings:
    from safesteer_edge.calibration.settings import default_settings, targets_for

    cache_limit_gib = _CACHE_LIMIT_GIB if options.cache_limit is None else options.cache_limit
    if not 0 < cache_limit_gib < math.inf:
        raise SettingsError(f"--cache-limit is {cache_limit_gib}; expected GiB, more than 0")
    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers is {options.workers}; expected at least 1")
    return default_settings(
        session_settings(options, SessionSettings(guard="off")),
        name=options.name,
        hears=options.audio,
        cache_limit_bytes=int(cache_limit_gib * (1 << 30)),
        n_workers=options.workers,
        targets=targets_for(options.false_alarms),
    )


def _requests(data: Path | None) -> tuple[tuple[Request, ...], str]:
    """What may be calibrated on, never the test split; and what to call it."""
    from safesteer_edge.requests.requests import load_requests, read_requests

    if data is None:
        return load_requests(splits=("train", "calibration")), "the package's requests"
    requests = tuple(request for request in read_requests(data) if request.split != "test")
    return requests, f"requests {str(data)!r}"


# -- calibrate --from ------------------------------------------------------------------------------

_NOT_WITH_FROM = {
    "false_alarms": "keeps to the false alarms that the bundle was made for",
    "workers": "works in one process",
    "cache_limit": "keeps no hidden states",
}


def _recalibrate(options: argparse.Namespace) -> int:
    """Set the same probe right for another quantization, and return the exit code."""
    from safesteer_edge.calibration.recalibrate import RecalibrationSettings, recalibrate
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.requests.requests import (
        RECALIBRATION_COUNTS,
        recalibration_requests,
        replay_requests,
        spread,
    )
    from safesteer_edge.session.choice import choose_model

    if options.audio or options.mmproj is not None:
        raise SettingsError("--from sets a guard by text alone; leave out --audio and --mmproj")
    for name, why in _NOT_WITH_FROM.items():
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(f"--from {why}; leave out {flag}")
    path = choose_model(options.model).path
    if options.data is None:
        requests = recalibration_requests()
    else:
        requests = spread(_requests(options.data)[0], RECALIBRATION_COUNTS)
    settings = RecalibrationSettings(
        bundle=options.source_bundle,
        session=replace(session_settings(options, SessionSettings(guard="off")), model=str(path)),
        info=check_language_model(path),
        requests=requests,
        replayed=replay_requests(),
        name=options.name or path.stem,
    )
    _print_result(recalibrate(options.output, settings, Progress().show))
    return OK


def _print_result(result: Recalibrated) -> None:
    """The folder on stdout, as `calibrate` prints it; the figures beside it on stderr."""
    from safesteer_edge.harvest.drift import MIN_AUROC
    from safesteer_edge.harvest.replay import replay_figures

    found = result.recalibration
    before = replay_cells(replay_figures(result.before.rows, result.old_threshold))
    figures = replay_figures(result.after.rows, found.policy.threshold)
    after = replay_cells(figures)
    lines = [
        f"logit × {found.rescale.slope:.3f} {found.rescale.intercept:+.3f}; "
        f"τ {result.old_threshold:.3f} → {found.policy.threshold:.3f}",
        f"{'on held-out requests':<28} {'before':<25} after",
        *(f"{name:<28} {cell:<25} {after[name]}" for name, cell in before.items()),
    ]
    if figures.auroc_ordinary.interval[1] < MIN_AUROC:
        lines.append(
            "warning: the probe tells too little apart on this file; make one for it: "
            "'safesteer-edge calibrate', without --from"
        )
    say("\n".join(lines))
    print(result.folder)


# -- the command -----------------------------------------------------------------------------------

CALIBRATE = Command(
    "calibrate",
    "make a guard bundle for a model",
    run,
    (
        Argument("model", "the model, in its quantization", metavar="NAME|F.gguf"),
        Argument("-o --output", "bundle", Path, required=True, metavar="DIR"),
        *setting_flags("model.mmproj"),
        Argument("--data", "requests (default: the project's own)", Path, metavar="F.jsonl"),
        Argument("--audio", "play the recordings that rows of --data name", action="store_true"),
        Argument("--name", "the bundle's name (default: from the file)"),
        Argument(
            "--cache-limit",
            f"hidden states kept on disk for the next run (default: {_CACHE_LIMIT_GIB:g} GiB)",
            float,
            metavar="GIB",
        ),
        Argument(
            "--workers",
            "processes that harvest at once (default: one a core for small models, else one)",
            int,
            metavar="N",
        ),
        Argument(
            "--false-alarms",
            "of ordinary answers, that the guard may act on (default: 0.01, told from 199 ordinary "
            "requests; 0.05 from 39)",
            float,
            metavar="SHARE",
        ),
        Argument(
            "--from",
            "recalibrate this bundle, made for another quantization of the same model: its probe "
            "is kept, scores, threshold and limits are set anew; minutes",
            Path,
            metavar="BUNDLE",
            dest="source_bundle",
        ),
        *MACHINE,
    ),
    """\
Make a guard bundle: let the model answer requests, read its hidden states while it decodes, fit a
probe to them, derive the alignment vector where the model sees, and choose the guard's numbers.
A run that was stopped goes on where it was; measure the result with `measure` and `eval`.""",
)
