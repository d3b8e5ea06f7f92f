"""`safesteer-edge convert bundle`: a probe and a vector, put together for one model."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import OK, RUNTIME_ERROR
from safesteer_edge.cli.verify_command import add_source_options, report_lines, source_reader

if TYPE_CHECKING:
    from safesteer_edge.calibration.assemble_bundle import AssembledBundle, AssemblySettings


_DESCRIPTION = """\
Put a probe (and an alignment vector) together with what the guard must know about the model, and
check the result as 'verify' does. Thresholds and strengths are cautious defaults until
'safesteer-edge calibrate' has chosen them."""
_N_CTX = 2048


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bundle", help="probe and vector → guard bundle", description=_DESCRIPTION
    )
    parser.add_argument("--probe", type=Path, required=True, metavar="probe.onnx")
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=(),
        metavar="L",
        help="what the probe reads, in its order: block outputs counted from 0 (Hugging Face's "
        "hidden_states[k] is block k - 1), or n_layer for the state after the final norm "
        "(default: what the probe's file says)",
    )
    parser.add_argument("--vector", type=Path, metavar="vector.gguf")
    parser.add_argument("--scale", type=float, metavar="X", help="of the vector, for images")
    parser.add_argument("--model", type=Path, required=True, metavar="M.gguf")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", help="the bundle's name (default: the folder's)")
    add_source_options(parser)
    parser.add_argument("--gpu-layers", type=int, metavar="N", help="layers on the GPU")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--allow-negative-scale",
        action="store_true",
        help="accept a --scale below 0, which weakens what the vector strengthens",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, check, write, and return the exit code. What fails its checks is not written."""
    from safesteer_edge.bundle.writer import write_bundle
    from safesteer_edge.calibration.assemble_bundle import assemble_bundle
    from safesteer_edge.evaluation.verify import VerifySettings, verify_bundle

    settings = _assembly_settings(options)
    assembled = assemble_bundle(settings)
    negative = options.allow_negative_scale
    session = replace(settings.session, allow_negative_scale=negative)
    checks = VerifySettings(session, read_source=source_reader(options))
    with tempfile.TemporaryDirectory() as folder:
        trial = write_bundle(Path(folder) / "trial", assembled.parts, allow_negative_scale=negative)
        report = verify_bundle(trial, checks)
    print("\n".join(report_lines(report)))
    if not report.passed:
        print("safesteer-edge: nothing was written", file=sys.stderr)
        return RUNTIME_ERROR
    folder = write_bundle(options.output, assembled.parts, allow_negative_scale=negative)
    print(f"wrote {str(folder)!r}")
    print("\n".join(_not_calibrated(assembled, settings, folder)))
    return OK


def _assembly_settings(options: argparse.Namespace) -> AssemblySettings:
    from safesteer_edge.calibration.assemble_bundle import AssemblySettings
    from safesteer_edge.converters.probe_files import read_onnx_bytes
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.session.settings import SessionSettings

    return AssemblySettings(
        name=options.name or options.output.absolute().name,
        model=check_language_model(options.model),
        session=SessionSettings(
            model=str(options.model),
            guard="off",
            n_ctx=_N_CTX,
            n_gpu_layers=options.gpu_layers,
            n_threads=options.threads,
        ),
        probe=options.probe,
        probe_onnx=read_onnx_bytes(options.probe),
        layers=tuple(options.layers),
        vector=options.vector,
        scale=options.scale,
    )


def _not_calibrated(
    assembled: AssembledBundle, settings: AssemblySettings, folder: Path
) -> Iterator[str]:
    """Say what nobody has measured yet, and the commands that do it."""
    policy, means = assembled.parts.policy, assembled.mean_scores
    yield "NOT calibrated:"
    yield (
        f"  threshold {policy.threshold:g}, strength {policy.strength:g}, refusal limits: cautious "
        "defaults"
    )
    if settings.vector is not None:
        yield f"  vector scale {settings.scale:g} on images: as you gave it"
    yield (
        f"  mean score of harmful prompts {means['harmful']:.3f}, of ordinary ones "
        f"{means['ordinary']:.3f}"
    )
    if assembled.looks_reversed:
        yield "  the probe scores harmful prompts BELOW ordinary ones: is its sign right?"
    model = settings.model.path
    yield f"measure it:   safesteer-edge measure guard --model {model} --bundle {folder}"
    yield f"calibrate it: safesteer-edge calibrate {model}"
