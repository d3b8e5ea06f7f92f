"""`safesteer-edge convert`: probes, vectors and guard bundles made elsewhere."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safesteer_edge.cli.options import (
    JSON,
    OK,
    RUNTIME_ERROR,
    Argument,
    Command,
    Group,
    Progress,
    cannot_write,
    print_result,
    say,
    session_settings,
    setting_flags,
)
from safesteer_edge.cli.verify_command import SOURCE, report_lines, source_reader
from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.calibration.assemble_bundle import AssembledBundle, AssemblySettings
    from safesteer_edge.calibration.separation import ProbeSeparation
    from safesteer_edge.converters.probe_conversion import ConversionReport
    from safesteer_edge.formats.control_vector_file import ControlVector

_GOOD_DIFFERENCE = 1e-5
_Parsed = TypeVar("_Parsed")


# -- a probe made anywhere becomes probe.onnx, and back --------------------------------------------


def run_probe(options: argparse.Namespace) -> int:
    """Convert, print the report and return the exit code. Raises InputError."""
    suffix = options.output.suffix.lower()
    try:
        if suffix in (".safetensors", ".npz"):
            return _export_probe(options)
        if suffix != ".onnx":
            raise InputError(
                f"cannot write {str(options.output)!r}; name a .onnx file, or .safetensors or "
                ".npz to go back from one"
            )
        return _convert_probe(options)
    except OSError as error:
        raise cannot_write(options.output, error) from error


def _convert_probe(options: argparse.Namespace) -> int:
    from safesteer_edge.converters.probe_conversion import ConversionSettings, convert_probe
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
        activations=options.activations,
        modules=options.modules,
        layer_norm_epsilon=options.layer_norm_epsilon,
        harmfulness=options.harmfulness,
        output=options.onnx_output,
        output_kind=options.output_kind,
        n_features=options.n_features,
    )
    report = convert_probe(options.source, settings, source_options)
    value = {"output": str(options.output), **asdict(report)}
    return print_result(options, value, _probe_lines(report, options))


def _export_probe(options: argparse.Namespace) -> int:
    from safesteer_edge.converters.probe_export import export_probe

    if options.source.suffix.lower() != ".onnx":
        raise InputError(
            f"cannot write {str(options.output)!r} from {str(options.source)!r}; only a .onnx "
            "probe goes back to arrays: convert to .onnx first"
        )
    report = export_probe(options.source, options.output)
    lines = [
        f"wrote {options.output}: {report.n_layers} layer(s) of {report.n_features} numbers",
        f"parity with {options.source} on {report.n_states} states: "
        f"max difference {report.max_difference:.2g}",
    ]
    return print_result(options, {"output": str(options.output), **asdict(report)}, lines)


def _probe_lines(report: ConversionReport, options: argparse.Namespace) -> list[str]:
    lines = [
        f"wrote {options.output} ({report.size_bytes} bytes) from a {report.kind}",
        f"states: {report.n_features} numbers; harmful is class {report.harmful_class}",
        f"parity with the source on {report.n_states} states: "
        f"max difference {report.max_difference:.2g}",
    ]
    if min(options.layers, default=0) < 0:
        counted = ", ".join(map(str, report.layers))
        lines.append(f"layers counted from the first: {counted} (the norm behind the last is none)")
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


# -- steering directions become llama.cpp's control vectors, and back ------------------------------


def run_vector(options: argparse.Namespace) -> int:
    """Convert, write, say what was done, and return the exit code."""
    from safesteer_edge.converters.vector_conversion import VectorRequest, convert_vector
    from safesteer_edge.converters.vector_export import check_output_name, export_vector
    from safesteer_edge.formats.model_file import check_language_model

    check_output_name(options.output)
    request = VectorRequest(
        sources=tuple(options.sources),
        layer_base=options.layer_base,
        convention=options.source_convention,
        layers=_parsed(options, "layers", _block_range, "A-B, as in 8-20"),
        weights=_parsed(options, "weights", _numbers, "numbers, as in 1,0.5"),
        normalise=options.normalise,
        scale=options.scale,
        model=None if options.model is None else check_language_model(options.model),
        model_hint=options.hint,
    )
    converted = convert_vector(request)
    export_vector(options.output, converted.vector)
    for note in converted.notes:
        say(f"note: {note}")
    print(f"wrote {str(options.output)!r}: {_summary(converted.vector)}")
    return OK


def _summary(vector: ControlVector) -> str:
    """Say which blocks are steered, and how far."""
    import numpy as np

    norms = np.linalg.norm(vector.directions.astype(np.float64), axis=1)
    steered = np.flatnonzero(norms)
    span = f"block {steered[0]}" if len(steered) == 1 else f"blocks {steered[0]}-{steered[-1]}"
    return (
        f"{len(steered)} directions of {vector.n_embd} numbers on {span} of {vector.n_layer} "
        f"({vector.model_hint}), lengths {norms[steered].min():.4g} to {norms[steered].max():.4g}"
    )


def _parsed(
    options: argparse.Namespace, name: str, parse: Callable[[str], _Parsed], expected: str
) -> _Parsed | None:
    text = getattr(options, name)
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise SettingsError(f"--{name} {text!r}; expected {expected}") from error


def _block_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


# -- a probe and a vector, put together for one model ----------------------------------------------


def run_bundle(options: argparse.Namespace) -> int:
    """Measure, check, write, and return the exit code. What fails its checks is not written."""
    from safesteer_edge.bundle.writer import check_replaceable, write_bundle
    from safesteer_edge.calibration.assemble_bundle import assemble_bundle
    from safesteer_edge.evaluation.verify import VerifySettings, verify_bundle

    if options.output.exists() and not options.force:
        raise SettingsError(f"{str(options.output)!r} already exists; replace it with --force")
    check_replaceable(options.output)
    settings = _assembly_settings(options)
    assembled = assemble_bundle(settings, Progress().show)
    negative = options.allow_negative_scale
    session = replace(settings.session, allow_negative_scale=negative)
    checks = VerifySettings(session, read_source=source_reader(options))
    with tempfile.TemporaryDirectory() as folder:
        trial = write_bundle(Path(folder) / "trial", assembled.parts, allow_negative_scale=negative)
        report = verify_bundle(trial, checks)
    print("\n".join(report_lines(report)))
    if not report.passed:
        say("safesteer-edge: nothing was written")
        return RUNTIME_ERROR
    folder = write_bundle(options.output, assembled.parts, allow_negative_scale=negative)
    print(f"wrote {str(folder)!r}")
    print("\n".join(_not_calibrated(assembled, settings, folder)))
    return OK


def _assembly_settings(options: argparse.Namespace) -> AssemblySettings:
    from safesteer_edge.calibration.assemble_bundle import AssemblySettings
    from safesteer_edge.converters.probe_files import read_onnx_bytes
    from safesteer_edge.formats.model_file import check_language_model

    return AssemblySettings(
        name=options.name or options.output.absolute().name,
        model=check_language_model(options.model),
        session=session_settings(options, SessionSettings(guard="off", n_ctx=2048)),
        probe=options.probe,
        probe_onnx=read_onnx_bytes(options.probe),
        layers=tuple(options.layers),
        vector=options.vector,
        scale=options.scale,
    )


def separation_lines(found: ProbeSeparation) -> Iterator[str]:
    """How well a probe separates, and a warning where it does better elsewhere."""
    for place in found.places:
        yield f"separation: {place}"
    if found.better is not None:
        layers, value = found.better
        yield (
            f"warning: on layers {list(layers)} the same probe gives {value:.3f}: were the layers "
            f"{list(found.layers)} counted from another base?"
        )


def _not_calibrated(
    assembled: AssembledBundle, settings: AssemblySettings, folder: Path
) -> Iterator[str]:
    """Say what was measured, what nobody has measured yet, and the command that does it."""
    policy = assembled.parts.policy
    yield from separation_lines(assembled.separation)
    yield "NOT calibrated, so it gives no answers without --guard monitor:"
    yield (
        f"  threshold {policy.threshold:g}, strength {policy.strength:g}, refusal limits: cautious "
        "defaults"
    )
    if settings.vector is not None:
        yield f"  vector scale {settings.scale:g} for pictures (your value)"
    model, source, target = (
        shlex.quote(str(path))
        for path in (settings.model.path, folder, folder.with_name(f"{folder.name}-calibrated"))
    )
    yield f"calibrate it: safesteer-edge calibrate {model} --from {source} -o {target}"


# -- the commands ----------------------------------------------------------------------------------


def _listed(text: str) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",")) if text else None


_PROBE = Command(
    "probe",
    "convert a probe to ONNX, or back",
    run_probe,
    (
        Argument("source", "the probe's file or folder", Path, metavar="SOURCE"),
        Argument(
            "-o --output",
            "probe.onnx, or .safetensors or .npz to convert back",
            Path,
            required=True,
            metavar="F",
        ),
        Argument(
            "--layer",
            "layer whose states it reads (0: output of the first block, -1: of the last one); "
            "repeat for several",
            int,
            action="append",
            default=[],
            dest="layers",
            metavar="N",
        ),
        Argument("--model", "the model it must fit", Path, metavar="M.gguf"),
        Argument(
            "--check-states",
            "'states' (n, n_features) and 'labels' (n,), 1 for harmful, for the comparison",
            Path,
            metavar="F.npz",
        ),
        Group(
            None,
            (
                Argument(
                    "--harmful-class",
                    "which class means harmful",
                    int,
                    choices=(0, 1),
                ),
                Argument(
                    "--flip",
                    "its score falls with harm (same as --harmful-class 0)",
                    action="store_const",
                    const=0,
                    dest="harmful_class",
                ),
            ),
        ),
        Argument("--quantize", "store smaller matrices", choices=("int8", "fp16"), default="none"),
        JSON,
        Group(
            "if the source does not say",
            (
                Argument(
                    "--kind",
                    "default: by its name",
                    choices=(
                        "auto",
                        "state-dict",
                        "numpy",
                        "rds",
                        "autosteer",
                        "scikit-learn",
                        "onnx",
                    ),
                    default="auto",
                ),
                Argument(
                    "--activations",
                    "activations after each Linear and LayerNorm of a state dictionary",
                    _listed,
                    metavar="A,B",
                ),
                Argument(
                    "--modules",
                    "names of these modules, in the order in which they run",
                    _listed,
                    metavar="M,N",
                ),
                Argument("--layer-norm-epsilon", "default: 1e-5", float, metavar="X"),
                Argument("--harmfulness", "RDS: harmfulness.safetensors", Path, metavar="F"),
                Argument("--onnx-output", "ONNX: which output is the score", metavar="NAME"),
                Argument(
                    "--output-kind",
                    "ONNX: what that output is",
                    choices=("auto", "logit", "probability"),
                    default="auto",
                ),
                Argument("--n-features", "ONNX: the width of a state", int, metavar="N"),
            ),
        ),
    ),
    "Convert a probe (.safetensors, .pt, .npz, .skops, .onnx, or RDS's folder) to probe.onnx and "
    "compare their scores; or a probe.onnx back to .safetensors or .npz.",
)

_VECTOR = Command(
    "vector",
    "convert steering directions to a control vector, or back",
    run_vector,
    (
        Argument("sources", nargs="+", type=Path, metavar="SOURCE"),
        Argument(
            "-o --output", "vector.gguf, or .npz or .safetensors", Path, required=True, metavar="F"
        ),
        Argument(
            "--layer-base",
            "number of the first block's output in the source: 0, 1, or (embedding) 1 because 0 is "
            "the embedding, as in Hugging Face's hidden_states; needed if the file does not say",
            choices=("0", "1", "embedding"),
        ),
        Argument(
            "--source-convention",
            "program that made the .gguf, if it does not say: repeng stores block N as "
            "direction.N, llama.cpp's generator as direction.(N+1)",
            choices=("repeng", "cvector-generator"),
        ),
        Argument("--layers", "keep only blocks A to B, counted from 0", metavar="A-B"),
        Argument("--scale", "default: 1", float, 1.0, "X"),
        Argument("--weights", "one number per source (default: 1 each)", metavar="W1,W2"),
        Argument("--normalise", "scale each direction to length 1 first", action="store_true"),
        Argument("--model", "check that the vector fits this model", Path, metavar="M.gguf"),
        Argument("--hint", "architecture, if there is no --model", metavar="ARCH"),
    ),
    """\
Convert steering directions to a control vector for llama.cpp, or back to NumPy or safetensors; the
name of the output decides. SOURCE is .npy, .npz or .safetensors (a matrix (n_layer, n_embd), or one
direction per layer, named by its number), .pt (read weights-only), or a control vector .gguf of
this program, repeng or llama.cpp. Several sources are added up.""",
)

_BUNDLE = Command(
    "bundle",
    "make a guard bundle from a probe and a vector",
    run_bundle,
    (
        Argument("--probe", type=Path, required=True, metavar="probe.onnx"),
        Argument(
            "--layers",
            "layers that the probe reads, in order: block outputs counted from 0 (Hugging Face's "
            "hidden_states[k] is block k - 1), or n_layer for the state after the final norm "
            "(default: from the probe's file)",
            int,
            (),
            "L",
            nargs="+",
        ),
        Argument("--vector", type=Path, metavar="vector.gguf"),
        Argument("--scale", "strength of the vector for pictures", float, metavar="X"),
        Argument("--model", type=Path, required=True, metavar="M.gguf"),
        Argument("-o --output", type=Path, required=True, metavar="DIR"),
        Argument("--name", "the bundle's name (default: the folder's)"),
        Argument("--force", "replace an existing bundle", action="store_true"),
        *SOURCE,
        *setting_flags("model.gpu_layers", "model.threads"),
        Argument(
            "--allow-negative-scale",
            "allow a --scale below 0, which reverses the vector",
            action="store_true",
        ),
    ),
    """\
Make a guard bundle from a probe (and an alignment vector), measure how well the probe tells harmful
requests from others, and check the bundle as 'verify' does. Its thresholds and strengths are
cautious defaults; 'safesteer-edge calibrate --from' makes measured ones. Until then it gives no
answer without --guard monitor.""",
)

CONVERT = Command(
    "convert",
    "import probes and vectors made elsewhere",
    description="Import probes and vectors made elsewhere, and make a guard bundle of them.",
    commands=(_PROBE, _VECTOR, _BUNDLE),
)
