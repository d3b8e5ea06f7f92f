"""`safesteer-edge calibrate`: a guard bundle for a model that has none, made on this machine."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.exit_codes import OK
from safesteer_edge.cli.model_options import add_machine_options
from safesteer_edge.errors import RequestDataError, SettingsError

if TYPE_CHECKING:
    from safesteer_edge.calibration.requests_data import Request

_REFUSAL_TEXT = (
    "I can't help with that, because it could hurt someone. I'm glad to help another way."
)
_DESCRIPTION = """\
Make a guard bundle: let the model answer requests, read its hidden states while it decodes, fit a
probe to them, and choose the guard's numbers. Text only: no alignment vector is made. Takes about
90,000 decoding steps with the project's own requests; measure the result with `measure`."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "calibrate", help="make a guard bundle for a model", description=_DESCRIPTION
    )
    parser.add_argument("model", metavar="NAME|F.gguf", help="the model, in its quantization")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="bundle")
    parser.add_argument(
        "--data", type=Path, metavar="F.jsonl", help="requests (default: the project's own)"
    )
    parser.add_argument("--name", help="the bundle's name (default: from the file)")
    add_machine_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Calibrate, and return the exit code."""
    for package in ("onnx", "sklearn"):
        if find_spec(package) is None:
            raise SettingsError(
                f"cannot calibrate without {package}; pip install 'safesteer-edge[calibration]'"
            )
    # Deferred: these import llama.cpp, which --help does not need.
    from safesteer_edge.bundle.writer import check_replaceable
    from safesteer_edge.calibration.harvest import HarvestPlan
    from safesteer_edge.calibration.layer_sets import layer_sets_for
    from safesteer_edge.calibration.make_bundle import CalibrationSettings, make_bundle
    from safesteer_edge.calibration.policy_fit import FalseAlarmTargets
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.runtime import choose_model
    from safesteer_edge.settings import SessionSettings

    path = choose_model(options.model).path
    info = check_language_model(path)
    requests = _requests(options.data)
    check_replaceable(options.output)  # before minutes of work, not after
    settings = CalibrationSettings(
        session=SessionSettings(
            model=str(path),
            n_ctx=options.ctx,
            n_gpu_layers=options.gpu_layers,
            n_threads=options.threads,
        ),
        layer_sets=layer_sets_for(info.n_layer),
        regularisations=(1e-3, 3e-3),
        plan=HarvestPlan(),
        targets=FalseAlarmTargets(),
        refusal_text=_REFUSAL_TEXT,
        name=options.name or path.stem,
    )
    folder = make_bundle(options.output, settings, requests, _show_progress)
    print(folder)
    return OK


def _requests(data: Path | None) -> tuple[Request, ...]:
    """What may be calibrated on: never the test split. Raises RequestDataError."""
    from safesteer_edge.calibration.requests_data import load_requests, read_requests

    if data is None:
        return load_requests(splits=("train", "calibration"))
    requests = tuple(request for request in read_requests(data) if request.split != "test")
    labels = {request.label for request in requests}
    missing = [label for label in ("harmful", "ordinary") if label not in labels]
    if missing:
        raise RequestDataError(
            f"requests {str(data)!r} has no {' and no '.join(missing)} ones outside the test "
            "split; a probe needs both"
        )
    return requests


def _show_progress(what: str, n_done: int, n_total: int) -> None:
    end = "\n" if n_done == n_total else ""
    print(f"\r{what}: {n_done}/{n_total}", end=end, file=sys.stderr, flush=True)
