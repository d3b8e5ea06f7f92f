"""`safesteer-edge calibrate`: a guard bundle for a model that has none, made on this machine."""

from __future__ import annotations

import argparse
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli import calibrate_from
from safesteer_edge.cli.options import OK, add_machine_options
from safesteer_edge.errors import SettingsError

if TYPE_CHECKING:
    from safesteer_edge.calibration.settings import CalibrationSettings
    from safesteer_edge.requests.requests import Request


_DESCRIPTION = """\
Make a guard bundle: let the model answer requests, read its hidden states while it decodes, fit a
probe to them, derive the alignment vector where the model sees, and choose the guard's numbers.
A run that was stopped goes on where it was; measure the result with `measure` and `eval`."""
_PROGRESS_EVERY_S = 0.5


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "calibrate", help="make a guard bundle for a model", description=_DESCRIPTION
    )
    parser.add_argument("model", metavar="NAME|F.gguf", help="the model, in its quantization")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="bundle")
    parser.add_argument(
        "--mmproj", type=Path, metavar="F", help="its projector: requests come in pictures as well"
    )
    parser.add_argument(
        "--data", type=Path, metavar="F.jsonl", help="requests (default: the project's own)"
    )
    parser.add_argument(
        "--audio", action="store_true", help="play the recordings that rows of --data name"
    )
    parser.add_argument("--name", help="the bundle's name (default: from the file)")
    parser.add_argument(
        "--cache-limit",
        type=float,
        default=8.0,
        metavar="GIB",
        help="hidden states kept on disk for the next run (default: 8 GiB)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that harvest at once (default: one a core for small models, else one)",
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="SHARE",
        help="of ordinary answers, that the guard may act on (default: 0.01, told from 199 "
        "ordinary requests; 0.05 from 39)",
    )
    calibrate_from.add_option(parser)
    add_machine_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Calibrate, and return the exit code."""
    for package in ("onnx", "sklearn"):
        if find_spec(package) is None:
            raise SettingsError(
                f"cannot calibrate without {package}; pip install 'safesteer-edge[calibration]'"
            )
    if options.source_bundle is not None:
        return calibrate_from.run(options, _Progress().show)
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
        print(f"warning: {warning}", file=sys.stderr)
    # 2. The work.
    progress = _Progress()
    try:
        requests = with_pictures(settings.harvest.session, requests)
        folder = make_bundle(options.output, settings, requests, progress.show)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        raise
    print(folder)
    return OK


def _settings(options: argparse.Namespace) -> CalibrationSettings:
    from safesteer_edge.calibration.settings import default_settings, targets_for
    from safesteer_edge.session.settings import SessionSettings

    if not 0 < options.cache_limit < math.inf:
        raise SettingsError(f"--cache-limit is {options.cache_limit}; expected GiB, more than 0")
    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers is {options.workers}; expected at least 1")
    session = SessionSettings(
        model=options.model,
        mmproj=options.mmproj,
        guard="off",
        n_ctx=options.ctx,
        n_gpu_layers=options.gpu_layers,
        n_threads=options.threads,
    )
    return default_settings(
        session,
        name=options.name,
        hears=options.audio,
        cache_limit_bytes=int(options.cache_limit * (1 << 30)),
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


class _Progress:
    """One line on stderr that says what is done, and how long the rest of it takes."""

    def __init__(self) -> None:
        self._what = ""
        self._started_s = 0.0
        self._n_at_start = 0
        self._shown_s = 0.0

    def show(self, what: str, n_done: int, n_total: int) -> None:
        """Called after each step; the first call of a phase may already have some done."""
        now_s = time.monotonic()
        if what != self._what:
            self._what, self._started_s, self._n_at_start = what, now_s, n_done
            self._shown_s = 0.0
        is_over = n_done == n_total
        if not is_over and now_s - self._shown_s < _PROGRESS_EVERY_S:
            return
        self._shown_s = now_s
        n_new = n_done - self._n_at_start
        left = ""
        if n_new and not is_over:
            left = f", {_in_words((now_s - self._started_s) / n_new * (n_total - n_done))} left"
        line = f"{what}: {n_done}/{n_total}{left}"
        print(f"\r{line:<60}", end="\n" if is_over else "", file=sys.stderr, flush=True)


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
