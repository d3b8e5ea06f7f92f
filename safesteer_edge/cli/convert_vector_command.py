"""`safesteer-edge convert vector`: steering directions to llama.cpp's control vectors, and back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import OK
from safesteer_edge.errors import SettingsError

if TYPE_CHECKING:
    from safesteer_edge.formats.control_vector_file import ControlVector


_DESCRIPTION = """\
Make a control vector for llama.cpp from directions that were found elsewhere, or take one back to
NumPy or safetensors: the output's name decides. SOURCE is .npy, .npz or .safetensors (an
(n_layer, n_embd) matrix, or one direction per layer named by its number), .pt (read weights-only),
or a control vector .gguf of this program, repeng or llama.cpp. Several sources are added up."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "vector", help="steering directions ↔ control vector", description=_DESCRIPTION
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="F",
        help="vector.gguf, or .npz or .safetensors",
    )
    parser.add_argument(
        "--layer-base",
        choices=("0", "1", "embedding"),
        help="what the source calls the first block's output: 0, 1, or entry 1 of Hugging Face's "
        "hidden_states, whose entry 0 is the embedding; asked for where a file does not say",
    )
    parser.add_argument(
        "--source-convention",
        choices=("repeng", "cvector-generator"),
        help="who made a .gguf that does not say: repeng stores block N's direction as "
        "direction.N, llama.cpp's generator as direction.(N+1)",
    )
    parser.add_argument(
        "--layers", metavar="A-B", help="keep the directions of blocks A to B, counted from 0"
    )
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="default: 1")
    parser.add_argument(
        "--weights", metavar="W1,W2", help="one number per source (default: 1 each)"
    )
    parser.add_argument(
        "--normalise", action="store_true", help="give each direction the length 1 first"
    )
    parser.add_argument(
        "--model", type=Path, metavar="M.gguf", help="check width, layers and architecture"
    )
    parser.add_argument("--hint", metavar="ARCH", help="architecture, where there is no --model")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert, write, say what was done, and return the exit code."""
    from safesteer_edge.converters.vector_conversion import (
        VectorRequest,
        convert_vector,
    )
    from safesteer_edge.converters.vector_export import (
        check_output_name,
        export_vector,
    )
    from safesteer_edge.formats.model_file import check_language_model

    check_output_name(options.output)
    request = VectorRequest(
        sources=tuple(options.sources),
        layer_base=options.layer_base,
        convention=options.source_convention,
        layers=_parse_layers(options.layers),
        weights=_parse_weights(options.weights),
        normalise=options.normalise,
        scale=options.scale,
        model=None if options.model is None else check_language_model(options.model),
        model_hint=options.hint,
    )
    converted = convert_vector(request)
    export_vector(options.output, converted.vector)
    for note in converted.notes:
        print(f"note: {note}", file=sys.stderr)
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


def _parse_layers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError as error:
        raise SettingsError(f"--layers {text!r}; expected A-B, as in 8-20") from error


def _parse_weights(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"--weights {text!r}; expected numbers, as in 1,0.5") from error
