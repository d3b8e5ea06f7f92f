"""`safesteer-edge calibrate --from BUNDLE`: the same probe, set right for another quantization."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.cli.options import OK
from safesteer_edge.cli.verify_command import replay_cells
from safesteer_edge.errors import SettingsError

if TYPE_CHECKING:
    from safesteer_edge.calibration.recalibrate import Recalibrated


def add_option(parser: argparse.ArgumentParser) -> None:
    """Register --from."""
    parser.add_argument(
        "--from",
        dest="source_bundle",
        type=Path,
        metavar="BUNDLE",
        help="recalibrate this bundle, made for another quantization of the same model: its probe "
        "is kept, scores, threshold and limits are set anew; minutes",
    )


def run(options: argparse.Namespace, show_progress: Callable[[str, int, int], None]) -> int:
    """Recalibrate, print what changed on held-out requests, and return the exit code."""
    from safesteer_edge.calibration.recalibrate import RecalibrationSettings, recalibrate
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.requests.requests import (
        RECALIBRATION_COUNTS,
        read_requests,
        recalibration_requests,
        replay_requests,
        spread,
    )
    from safesteer_edge.session.choice import choose_model
    from safesteer_edge.session.settings import SessionSettings

    if options.audio or options.mmproj is not None:
        raise SettingsError("--from sets a guard by text alone; leave out --audio and --mmproj")
    if options.false_alarms is not None:
        raise SettingsError(
            "--from keeps to the false alarms that the bundle was made for; leave out "
            "--false-alarms"
        )
    path = choose_model(options.model).path
    requests = recalibration_requests()
    if options.data is not None:
        own = [request for request in read_requests(options.data) if request.split != "test"]
        requests = spread(own, RECALIBRATION_COUNTS)
    settings = RecalibrationSettings(
        bundle=options.source_bundle,
        session=SessionSettings(
            model=str(path),
            guard="off",
            n_ctx=options.ctx,
            n_gpu_layers=options.gpu_layers,
            n_threads=options.threads,
        ),
        info=check_language_model(path),
        requests=requests,
        replayed=replay_requests(),
        name=options.name or path.stem,
    )
    _print_result(recalibrate(options.output, settings, show_progress))
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
    print("\n".join(lines), file=sys.stderr)
    print(result.folder)
