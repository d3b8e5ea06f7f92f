"""`safesteer-edge convert probe`: a probe made anywhere becomes probe.onnx, and back."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import OK
from safesteer_edge.errors import InputError

if TYPE_CHECKING:
    from safesteer_edge.converters.probe_conversion import ConversionReport


_KINDS = ("auto", "state-dict", "numpy", "rds", "autosteer", "scikit-learn", "onnx")
_BACK = (".safetensors", ".npz")
_GOOD_DIFFERENCE = 1e-5


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "probe",
        help="a probe to ONNX, or back",
        description="Convert a probe (.safetensors, .pt, .npz, .skops, .onnx, or RDS's folder) to "
        "probe.onnx and compare their scores; or a probe.onnx back to .safetensors or .npz.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the probe's file or folder")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="F", help="probe.onnx; back: see above"
    )
    parser.add_argument(
        "--layer",
        type=int,
        action="append",
        default=[],
        dest="layers",
        metavar="N",
        help="layer whose states it takes, 0 is the first block's output; repeat to join several",
    )
    parser.add_argument("--model", type=Path, metavar="M.gguf", help="the model that it must fit")
    parser.add_argument(
        "--check-states",
        type=Path,
        metavar="F.npz",
        help="'states' (n, n_features) and 'labels' (n,), 1 for harmful, to compare on",
    )
    _add_direction(parser)
    parser.add_argument(
        "--quantize", choices=("int8", "fp16"), default="none", help="store matrices smaller"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_source_options(parser)
    parser.set_defaults(run=run)


def _add_direction(parser: argparse.ArgumentParser) -> None:
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument(
        "--harmful-class", type=int, choices=(0, 1), help="which of its classes is the harmful one"
    )
    direction.add_argument(
        "--flip",
        action="store_const",
        const=0,
        dest="harmful_class",
        help="its score falls with harm: the same as --harmful-class 0",
    )


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the source does not say about itself")
    group.add_argument("--kind", choices=_KINDS, default="auto", help="default: by its name")
    group.add_argument(
        "--activations",
        metavar="A,B",
        help="after each Linear and LayerNorm of a state dictionary: relu,none",
    )
    group.add_argument("--modules", metavar="M,N", help="their names, in the order they run in")
    group.add_argument("--layer-norm-epsilon", type=float, metavar="X", help="default: 1e-5")
    group.add_argument("--harmfulness", type=Path, metavar="F", help="RDS: harmfulness.safetensors")
    group.add_argument("--onnx-output", metavar="NAME", help="ONNX: which output is the score")
    group.add_argument(
        "--output-kind",
        choices=("auto", "logit", "probability"),
        default="auto",
        help="ONNX: what that output is",
    )
    group.add_argument("--n-features", type=int, metavar="N", help="ONNX: the width of a state")


def run(options: argparse.Namespace) -> int:
    """Convert, print the report and return the exit code. Raises InputError."""
    suffix = options.output.suffix.lower()
    try:
        if suffix in _BACK:
            return _run_back(options)
        if suffix != ".onnx":
            raise InputError(
                f"cannot write {str(options.output)!r}; name a .onnx file, or .safetensors or "
                ".npz to go back from one"
            )
        return _run(options)
    except OSError as error:
        raise InputError(
            f"cannot write {str(options.output)!r}: {error.strerror or error}; name another file"
        ) from error


def _run(options: argparse.Namespace) -> int:
    from safesteer_edge.converters.probe_conversion import (
        ConversionSettings,
        convert_probe,
    )
    from safesteer_edge.formats.probe_onnx import SourceOptions

    settings = ConversionSettings(
        output=options.output,
        layers=tuple(options.layers),
        model=options.model,
        check_states=options.check_states,
        harmful_class=options.harmful_class,
        quantization=options.quantize,
    )
    source_options = SourceOptions(
        kind=options.kind,
        activations=_listed(options.activations),
        modules=_listed(options.modules),
        layer_norm_epsilon=options.layer_norm_epsilon,
        harmfulness=options.harmfulness,
        output=options.onnx_output,
        output_kind=options.output_kind,
        n_features=options.n_features,
    )
    report = convert_probe(options.source, settings, source_options)
    if options.json:
        print(json.dumps({"output": str(options.output), **asdict(report)}))
    else:
        print("\n".join(_lines(report, options)))
    return OK


def _run_back(options: argparse.Namespace) -> int:
    from safesteer_edge.converters.probe_export import export_probe

    if options.source.suffix.lower() != ".onnx":
        raise InputError(
            f"cannot write {str(options.output)!r} from {str(options.source)!r}; only a .onnx "
            "probe goes back to arrays: convert to .onnx first"
        )
    report = export_probe(options.source, options.output)
    if options.json:
        print(json.dumps({"output": str(options.output), **asdict(report)}))
        return OK
    print(f"wrote {options.output}: {report.n_layers} layer(s) of {report.n_features} numbers")
    print(
        f"parity with {options.source} on {report.n_states} states: "
        f"max difference {report.max_difference:.2g}"
    )
    return OK


def _listed(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",")) if text else None


def _lines(report: ConversionReport, options: argparse.Namespace) -> list[str]:
    lines = [
        f"wrote {options.output} ({report.size_bytes} bytes) from a {report.kind}",
        f"states: {report.n_features} numbers; harmful is class {report.harmful_class}",
        f"parity with the source on {report.n_states} states: "
        f"max difference {report.max_difference:.2g}",
    ]
    if report.max_difference > _GOOD_DIFFERENCE:
        lines.append(f"  more than {_GOOD_DIFFERENCE:g}: standardise the states first to lower it")
    if report.quantization_difference is not None:
        difference = f"{report.quantization_difference:.2g}"
        lines.append(f"{options.quantize} moves scores by up to {difference}")
    if report.auroc is None:
        lines.append("which way it points was not checked: give --check-states F.npz")
    else:
        lines.append(f"AUROC {report.auroc:.3f} on {options.check_states}")
    return lines
