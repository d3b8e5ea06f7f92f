"""`safesteer-edge verify`: whether a bundle is what it says, and still right on this model file."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.drift_lines import drift_lines, drift_to_json
from safesteer_edge.cli.exit_codes import OK, RUNTIME_ERROR
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.finite_json import without_nan

if TYPE_CHECKING:
    from safesteer_edge.evaluation.verify_bundle import VectorRun, VerifyReport

_DESCRIPTION = """\
Load a guard bundle with all its checks; compare its probe in ONNX Runtime with what it was
converted from; switch on its directions one by one in llama.cpp and read back what they change in
the residual stream. If the model is in another quantization than the bundle's, replay 160 fixed
requests and compare the guard's scores and decisions. Exit code 0: all is as it should be; 1:
something is not; 2: another model."""


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
    add_replay_options(parser)
    parser.add_argument("--gpu-layers", type=int, metavar="N", help="layers in the run on the GPU")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--allow-negative-scale",
        action="store_true",
        help="check a vector that is applied against its direction as well",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def add_replay_options(parser: argparse.ArgumentParser) -> None:
    """How the guard's drift between quantizations is measured."""
    group = parser.add_argument_group("replay")
    group.add_argument(
        "--replay",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="replay the fixed requests (default: if the model is in another quantization)",
    )
    group.add_argument(
        "--limit", type=int, metavar="N", help="replay N requests of each label at most"
    )
    group.add_argument(
        "--reference",
        type=Path,
        metavar="F.gguf",
        help="the file that the bundle was calibrated on, if the bundle records no replay",
    )
    group.add_argument(
        "--record",
        action="store_true",
        help="keep this replay in the bundle, as what later ones are compared with",
    )


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

    if options.tolerance is not None and not 0 <= options.tolerance <= 1:  # false for NaN as well
        raise SettingsError(f"--tolerance is {options.tolerance}; expected 0 to 1")
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
        replay=options.replay,
        n_requests=options.limit,
        reference=options.reference,
        record=options.record,
    )
    report = verify_bundle(options.folder, settings, _show_progress)
    if options.json:
        value = report.to_json()
        if report.drift:
            value["drift"] = {**drift_to_json(report.drift), "next": _next_step(report, options)}
        print(json.dumps(without_nan(value)))
    else:
        print("\n".join(report_lines(report)))
        if report.drift:
            print(_next_step(report, options))
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
    if report.drift:
        yield from drift_lines(report.drift)
    for note in report.notes:
        yield f"  note        {note}"
    for failure in report.failures:
        yield f"  FAILED      {failure}"
    verdict = "verified" if report.passed else "NOT verified"
    yield f"{verdict}, UNCALIBRATED" if report.is_calibrated is False else verdict


def _vector_lines(run_: VectorRun) -> Iterator[str]:
    yield f"  vector      {run_.device}: the residual stream's shift against the direction"
    yield f"    {'block':>5} {'length':>9} {'rel. error':>11} {'below':>9} {'lands on':>9}"
    for shift in run_.layers:
        landed_on = "-" if shift.landed_on is None else str(shift.landed_on)
        yield (
            f"    {shift.layer_index:>5} {shift.direction_norm:>9.4g} "
            f"{shift.relative_error:>11.2g} {shift.shift_below:>9.2g} {landed_on:>9}"
        )


def _next_step(report: VerifyReport, options: argparse.Namespace) -> str:
    """What to do about the drift."""
    assert report.drift is not None  # the caller looked
    folder, model = shlex.quote(str(options.folder)), shlex.quote(str(options.model))
    target = shlex.quote(f"guard-{options.model.stem}")
    if report.drift.verdict == "steady":
        return "the guard does on this file what it was calibrated to do"
    if report.drift.verdict == "recalibrate":
        return (
            "recalibrate it, in minutes: "
            f"safesteer-edge calibrate --from {folder} {model} -o {target}"
        )
    return f"calibrate one for this file: safesteer-edge calibrate {model} -o {target}"


def _show_progress(what: str, n_done: int, n_total: int) -> None:
    end = "\n" if n_done == n_total else ""
    print(f"\r{what}: {n_done}/{n_total}", end=end, file=sys.stderr, flush=True)
