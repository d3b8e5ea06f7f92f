"""`safesteer-edge verify`: whether a bundle's probe is its source's, and its vector lands right."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.exit_codes import OK, RUNTIME_ERROR

if TYPE_CHECKING:
    from safesteer_edge.evaluation.verify_bundle import VectorRun, VerifyReport

_DESCRIPTION = """\
Load a guard bundle with all its checks; compare its probe in ONNX Runtime with what it was
converted from; switch on its directions one by one in llama.cpp and read back what they change in
the residual stream. Exit code 0: all is as it should be; 1: something is not."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify", help="check a guard bundle against its model", description=_DESCRIPTION
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the guard bundle")
    parser.add_argument("--model", type=Path, required=True, metavar="M.gguf")
    add_source_options(parser)
    parser.add_argument(
        "--states",
        type=Path,
        metavar="F.npz",
        help="hidden states to compare on (default: random ones)",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="largest difference of scores (default: 1e-5)"
    )
    parser.add_argument("--gpu-layers", type=int, metavar="N", help="layers in the run on the GPU")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--allow-negative-scale",
        action="store_true",
        help="check a vector that is applied against its direction as well",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """What the probe was made from, to compare it with."""
    parser.add_argument(
        "--source",
        type=Path,
        metavar="F",
        help="what the probe was converted from; if 'convert probe' needs options to read it, "
        "convert it again and name that .onnx",
    )
    parser.add_argument("--flip", action="store_true", help="the source's score falls with harm")


def run(options: argparse.Namespace) -> int:
    """Verify, print, and return the exit code."""
    from safesteer_edge.evaluation.verify_bundle import VerifySettings, verify_bundle
    from safesteer_edge.evaluation.verify_probe import MAX_SCORE_DIFFERENCE

    settings = VerifySettings(
        model=options.model,
        source=options.source,
        is_flipped=options.flip,
        states=options.states,
        max_score_difference=(
            MAX_SCORE_DIFFERENCE if options.tolerance is None else options.tolerance
        ),
        n_gpu_layers=options.gpu_layers,
        n_threads=options.threads,
        allow_negative_scale=options.allow_negative_scale,
    )
    report = verify_bundle(options.folder, settings)
    print(json.dumps(report.to_json()) if options.json else "\n".join(report_lines(report)))
    return OK if report.passed else RUNTIME_ERROR


def report_lines(report: VerifyReport) -> Iterator[str]:
    """Return the report for people to read."""
    yield f"bundle {report.bundle!r} on {report.model!r} ({report.quantization})"
    if report.match:
        yield (
            f"  model       {report.match.replace('_', ' ')}; "
            f"{report.n_engine_canaries} self-tests on the engine passed"
        )
    for parity in report.probe:
        yield (
            f"  probe       {parity.provider}: largest difference from the source "
            f"{parity.max_difference:.2g} over {parity.n_states} states "
            f"(scores {parity.least_score:.3f} to {parity.largest_score:.3f})"
        )
    for run_ in report.vector:
        yield from _vector_lines(run_)
    for note in report.notes:
        yield f"  note        {note}"
    for failure in report.failures:
        yield f"  FAILED      {failure}"
    yield "verified" if report.passed else "NOT verified"


def _vector_lines(run_: VectorRun) -> Iterator[str]:
    yield f"  vector      {run_.device}: the residual stream's shift against the direction"
    yield f"    {'block':>5} {'length':>9} {'rel. error':>11} {'below':>9} {'lands on':>9}"
    for shift in run_.layers:
        landed_on = "-" if shift.landed_on is None else str(shift.landed_on)
        yield (
            f"    {shift.layer_index:>5} {shift.direction_norm:>9.4g} "
            f"{shift.relative_error:>11.2g} {shift.shift_below:>9.2g} {landed_on:>9}"
        )
