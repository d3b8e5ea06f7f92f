"""`safesteer-edge calibrate`: a guard bundle for a model that has none, made on this machine."""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.cli.convert_command import separation_lines
from safesteer_edge.cli.options import (
    MACHINE,
    OK,
    Argument,
    Command,
    Progress,
    in_words,
    say,
    session_settings,
    setting_flags,
)
from safesteer_edge.cli.verify_command import replay_cells
from safesteer_edge.errors import SettingsError
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
    if options.probe is not None:
        return _calibrate_probe(options)
    if options.keep_limits and options.source_bundle is None:
        raise SettingsError("--keep-limits keeps those of a bundle; name it with --from")
    if options.minutes is not None:
        if options.effort not in (None, "quick"):
            raise SettingsError(
                f"--minutes cuts a quick calibration; leave out --effort {options.effort}"
            )
        if not 0 < options.minutes < math.inf:
            raise SettingsError(f"--minutes is {options.minutes:g}; expected more than 0")
    if options.layers:
        raise SettingsError("--layers belongs to --probe; leave it out, or add --probe")
    if options.source_bundle is not None:
        return _recalibrate(options, options.source_bundle)
    # Deferred: these import llama.cpp, which --help does not need.
    from safesteer_edge.bundle.writer import check_replaceable
    from safesteer_edge.calibration.make_bundle import estimated_s, make_bundle, within_minutes
    from safesteer_edge.calibration.settings import check_media, check_requests, with_pictures

    # 1. Whatever cannot work is said before minutes of work, not after.
    settings = _settings(options)
    requests, source = _requests(options.data)
    warnings = check_requests(requests, source, settings.targets)
    check_media(settings.harvest.session, requests, hears=options.audio)
    if options.output is not None:
        check_replaceable(options.output)
    for warning in warnings:
        say(f"warning: {warning}")
    # 2. The work.
    try:
        if settings.harvest.plan.draws:
            requests = with_pictures(settings.harvest.session, requests)
        if options.minutes is not None:
            settings = within_minutes(settings, requests, options.minutes)
        left = in_words(estimated_s(settings, requests))
        say(f"a {settings.effort.name} calibration takes about {left} on this machine")
        folder = _made(
            options,
            lambda folder: make_bundle(folder, settings, requests, Progress().show),
        )
    except KeyboardInterrupt:
        say("\nstopped; run the same command again to continue")
        raise
    print(folder)
    return OK


def calibrate(model: Path, mmproj: str | None) -> None:
    """Make a guard from the package's own requests, as the command does without options."""
    given = {"model": str(model), "mmproj": mmproj, "audio": False, "layers": ()}
    names = ("output", "effort", "source_bundle", "probe", "data", "name", "cache_limit")
    names += ("workers", "false_alarms", "minutes")
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
        effort=options.effort or "quick",
    )


def _requests(data: Path | None) -> tuple[tuple[Request, ...], str]:
    """What may be calibrated on, never the test split; and what to call it."""
    from safesteer_edge.calibration.settings import package_requests
    from safesteer_edge.requests.requests import read_requests

    if data is None:
        return package_requests(), "the package's requests"
    requests = tuple(request for request in read_requests(data) if request.split != "test")
    return requests, f"requests {str(data)!r}"


# -- calibrate --from ------------------------------------------------------------------------------

_NOT_WITH_FROM = {
    "false_alarms": "keeps the rate of false alarms that the guard was made for",
    "workers": "works in one process",
    "cache_limit": "keeps no hidden states",
    "effort": "has no efforts",
    "minutes": "takes the minutes that it takes",
}


def _calibrate_probe(options: argparse.Namespace) -> int:
    """Set a guard's numbers for a probe made elsewhere, and return the exit code."""
    from safesteer_edge.bundle.writer import check_replaceable, write_bundle
    from safesteer_edge.calibration.assemble_bundle import AssemblySettings, assemble_bundle
    from safesteer_edge.converters.probe_files import read_onnx_bytes
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.session.choice import choose_model

    if options.source_bundle is not None:
        raise SettingsError("--probe and --from both bring a probe; give only one")
    if options.output is not None:
        check_replaceable(options.output)
    info = check_language_model(choose_model(options.model).path)
    session = session_settings(options, SessionSettings(guard="off", n_ctx=2048))
    settings = AssemblySettings(
        name=options.probe.name,
        model=info,
        session=replace(session, model=str(info.path)),
        probe=options.probe,
        probe_onnx=read_onnx_bytes(options.probe),
        layers=tuple(options.layers),
    )
    with tempfile.TemporaryDirectory() as folder:
        assembled = assemble_bundle(settings, Progress().show)
        say("\n".join(separation_lines(assembled.separation)))
        source = write_bundle(Path(folder) / "probe", assembled.parts)
        return _recalibrate(options, source, keeps_scores=True)


def _recalibrate(options: argparse.Namespace, source: Path, *, keeps_scores: bool = False) -> int:
    """Set a guard's numbers anew for a bundle's probe, and return the exit code."""
    from safesteer_edge.calibration.recalibrate import RecalibrationSettings, recalibrate
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.requests.requests import (
        RECALIBRATION_COUNTS,
        recalibration_requests,
        replay_requests,
        spread,
    )
    from safesteer_edge.session.choice import choose_model

    flag = "--probe" if keeps_scores else "--from"
    if keeps_scores and options.keep_limits:
        raise SettingsError("--probe brings a probe without limits; leave out --keep-limits")
    if options.audio or options.mmproj is not None:
        raise SettingsError(
            f"{flag} adapts a guard with text alone; leave out --audio and --mmproj"
        )
    for name, why in _NOT_WITH_FROM.items():
        if getattr(options, name) is not None:
            other = "--" + name.replace("_", "-")
            raise SettingsError(f"{flag} {why}; leave out {other}")
    path = choose_model(options.model).path
    if options.data is None:
        requests = recalibration_requests()
    else:
        requests = spread(_requests(options.data)[0], RECALIBRATION_COUNTS)
    settings = RecalibrationSettings(
        bundle=source,
        session=replace(session_settings(options, SessionSettings(guard="off")), model=str(path)),
        info=check_language_model(path),
        requests=requests,
        replayed=replay_requests(),
        name=options.name or path.stem,
        keeps_scores=keeps_scores,
        keeps_limits=options.keep_limits,
    )

    def make(folder: Path) -> Path:
        result = recalibrate(folder, settings, Progress().show)
        _say_result(result)
        return result.folder

    print(_made(options, make))
    return OK


def _made(options: argparse.Namespace, make: Callable[[Path], Path]) -> Path:
    """The folder of the bundle: where it is wanted, or where sessions of its model find it."""
    from safesteer_edge.bundle.exchange import install_bundle, read_bundle

    if options.output is not None:
        return make(options.output)
    with tempfile.TemporaryDirectory() as scratch:
        made = make(Path(scratch) / "guard")
        folder = install_bundle(read_bundle(made))
        for page in made.glob("*.html"):  # our own, which an import leaves behind
            shutil.copy(page, folder)
    say("chats with this model use this guard from now on")
    return folder


def _say_result(result: Recalibrated) -> None:
    """The figures, before and after."""
    from safesteer_edge.harvest.drift import MIN_AUROC
    from safesteer_edge.harvest.replay import replay_figures

    found = result.recalibration
    before = replay_cells(replay_figures(result.before.rows, result.old_threshold))
    figures = replay_figures(result.after.rows, found.policy.alert_threshold)
    after = replay_cells(figures)
    lines = [
        f"logit × {found.rescale.slope:.3f} {found.rescale.intercept:+.3f}; "
        f"τ {result.old_threshold:.3f} → {found.policy.alert_threshold:.3f}",
        f"{'on held-out requests':<28} {'before':<25} after",
        *(f"{name:<28} {cell:<25} {after[name]}" for name, cell in before.items()),
    ]
    if figures.auroc_ordinary.interval[1] < MIN_AUROC:
        lines.append(
            "warning: this probe works poorly on this file; make a new guard with "
            "'safesteer-edge calibrate', without --from"
        )
    say("\n".join(lines))


# -- the command -----------------------------------------------------------------------------------

CALIBRATE = Command(
    "calibrate",
    "make a guard for a model",
    run,
    (
        Argument("model", "the model to make it for", metavar="NAME|F.gguf"),
        Argument(
            "-o --output",
            "the bundle's folder (default: where chats with this model find it)",
            Path,
            metavar="DIR",
        ),
        Argument(
            "--effort",
            "quick (default): minutes; standard: all requests and pictures, after what a quick run "
            "has read already; thorough: hours",
            choices=("quick", "standard", "thorough"),
        ),
        Argument(
            "--minutes",
            "read as many requests as so many minutes pay for, where none was read before",
            float,
            metavar="N",
        ),
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
        Argument(
            "--keep-limits",
            "with --from: leave probe and limits as they are; decide how answers are steered",
            action="store_true",
        ),
        Argument(
            "--probe",
            "use this probe, made elsewhere, and set the guard's limits for it (takes minutes)",
            Path,
            metavar="P.onnx",
        ),
        Argument(
            "--layers",
            "layers that the probe of --probe reads, as in 'convert bundle'",
            int,
            (),
            "L",
            nargs="+",
        ),
        *MACHINE,
    ),
    """\
Make a guard for a model: let the model answer requests, train a probe on its hidden states, derive
the alignment vector if it takes pictures, and choose the guard's limits. If it is stopped, run the
same command to continue. Measure the result with 'measure' and 'eval'.""",
)
