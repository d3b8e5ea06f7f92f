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
        say("\nstopped; run the same command again to continue")
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
    "false_alarms": "keeps the rate of false alarms that the guard was made for",
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
        raise SettingsError("--from adapts a guard with text alone; leave out --audio and --mmproj")
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
            "warning: this probe works poorly on this file; make a new guard with "
            "'safesteer-edge calibrate', without --from"
        )
    say("\n".join(lines))
    print(result.folder)


# -- the command -----------------------------------------------------------------------------------

CALIBRATE = Command(
    "calibrate",
    "make a guard for a model",
    run,
    (
        Argument("model", "the model to make it for", metavar="NAME|F.gguf"),
        Argument("-o --output", "bundle", Path, required=True, metavar="DIR"),
        *setting_flags("model.mmproj"),
        Argument("--data", "your own requests (default: built-in ones)", Path, metavar="F.jsonl"),
        Argument("--audio", "also use the recordings named in --data", action="store_true"),
        Argument("--name", "name of the guard (default: from the model's file)"),
        Argument(
            "--cache-limit",
            f"disk space for hidden states that the next run can reuse (default: "
            f"{_CACHE_LIMIT_GIB:g} GiB)",
            float,
            metavar="GIB",
        ),
        Argument(
            "--workers",
            "processes at once (default: one per core for small models, else one)",
            int,
            metavar="N",
        ),
        Argument(
            "--false-alarms",
            "share of ordinary answers that the guard may interfere with (default: 0.01, which "
            "needs 199 ordinary requests; 0.05 needs 39)",
            float,
            metavar="SHARE",
        ),
        Argument(
            "--from",
            "adapt this guard, made for another quantization of the same model: keeps its probe "
            "and sets its scores, threshold and limits again (takes minutes)",
            Path,
            metavar="BUNDLE",
            dest="source_bundle",
        ),
        *MACHINE,
    ),
    """\
Make a guard for a model: let the model answer requests, train a probe on its hidden states, derive
the alignment vector if it takes pictures, and choose the guard's limits. If it is stopped, run the
same command to continue. Measure the result with 'measure' and 'eval'.""",
)
