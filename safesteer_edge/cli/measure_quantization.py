"""`safesteer-edge measure quantization`: a guard on other quantizations of its model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import OK
from safesteer_edge.cli.verify_command import auroc_text, drift_to_json, figures_to_json
from safesteer_edge.errors import BundleError, SettingsError
from safesteer_edge.formats.json_values import without_nan

if TYPE_CHECKING:
    from safesteer_edge.calibration.quantization import QuantizationRow
    from safesteer_edge.metrics.statistics import Share
    from safesteer_edge.session.settings import SessionSettings


# As `engine.requantize` knows them; that loads llama.cpp, which --help does not need.
TYPES = ("Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What only `measure quantization` takes."""
    group = parser.add_argument_group("quantization")
    group.add_argument(
        "--types",
        default=",".join(TYPES),
        metavar="T,T",
        help=f"what the model is requantized to (default: {','.join(TYPES)})",
    )
    group.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="requantized files and scores are kept here, and a stopped run goes on with them "
        "(default: in the user's cache folder)",
    )


def measure_quantization(
    settings: SessionSettings,
    options: argparse.Namespace,
    progress: Callable[[str, int, int], None],
) -> int:
    """Requantize, measure, print a Markdown table, and return the exit code."""
    from safesteer_edge.calibration.quantization import (
        QuantizationSettings,
        measure_quantizations,
    )
    from safesteer_edge.evaluation.machine import read_machine
    from safesteer_edge.formats.user_folders import user_cache_folder
    from safesteer_edge.requests.fixed_requests import held_out_requests, recalibration_requests
    from safesteer_edge.session.choice import choose_model

    kinds = _types(options.types)
    choice = choose_model(settings.model)
    bundle = settings.bundle or choice.bundle
    if bundle is None:
        raise BundleError(f"there is no guard to measure for {choice.name!r}; pass --bundle")
    measured = QuantizationSettings(
        session=settings,
        source=choice.path,
        bundle=bundle,
        folder=options.folder or user_cache_folder(create=True) / "quantization",
        deciding=recalibration_requests(),
        held_out=held_out_requests(options.limit),
    )
    rows = measure_quantizations(measured, kinds, progress)
    machine = read_machine()
    if options.json:
        value = {
            "cpu": machine.cpu,
            "n_cores": machine.n_cores,
            "rows": [_to_json(r) for r in rows],
        }
        print(json.dumps(without_nan(value)))
    else:
        print("\n".join(table_lines(rows)))
        print(
            f"\nMachine: {machine.cpu}, {machine.n_cores} cores; {rows[0].drift.n_tokens} tokens."
        )
    return OK


def table_lines(rows: Sequence[QuantizationRow]) -> Iterator[str]:
    """A Markdown table, the source file first; → is what a recalibration changes."""
    n = rows[0].drift.here
    yield (
        f"{n.touched_ordinary.n} ordinary and {n.touched_borderline.n} borderline requests, and "
        "the answers that do what a harmful request asks; none of them decided anything."
    )
    yield ""
    yield (
        "| file | MiB | stored as | AUROC, ordinary | AUROC, borderline | score shift, harmful | "
        "ordinary | above τ, ordinary | above τ, borderline | refused, ordinary | refused, "
        "borderline | harmful stopped |"
    )
    yield "|" + " --- |" * 12
    for row in rows:
        here, after, drift = row.drift.here, row.after, row.drift
        cells = (
            row.quantization,
            f"{row.size_bytes / (1 << 20):.0f}",
            _stored_as(row),
            auroc_text(here.auroc_ordinary),
            auroc_text(here.auroc_borderline),
            "-" if drift.shift_harmful is None else f"{drift.shift_harmful.mean:+.3f}",
            "-" if drift.shift_ordinary is None else f"{drift.shift_ordinary.mean:+.3f}",
            _change(here.touched_ordinary, after and after.touched_ordinary),
            _change(here.touched_borderline, after and after.touched_borderline),
            _change(here.refused_ordinary, after and after.refused_ordinary),
            _change(here.refused_borderline, after and after.refused_borderline),
            _change(here.harmful_stopped, after and after.harmful_stopped),
        )
        yield "| " + " | ".join(cells) + " |"
    for row in rows:
        if row.problem:
            yield f"\n{row.quantization} cannot be recalibrated: {row.problem}"


def _stored_as(row: QuantizationRow) -> str:
    total = sum(row.bytes_by_type.values())
    shares = {kind: round(100 * size / total) for kind, size in row.bytes_by_type.items()}
    return ", ".join(f"{kind} {share} %" for kind, share in shares.items() if share)


def _change(before: Share, after: Share | None) -> str:
    if not before.n:
        return "-"
    now = "-" if after is None else f"{100 * after.value:.1f}"
    return f"{100 * before.value:.1f} → {now} % of {before.n}"


def _to_json(row: QuantizationRow) -> dict[str, Any]:
    found = row.recalibration
    return {
        "quantization": row.quantization,
        "size_bytes": row.size_bytes,
        "bytes_by_type": dict(row.bytes_by_type),
        "before": drift_to_json(row.drift),
        "rescale": found and asdict(found.rescale),
        "threshold": found and found.policy.threshold,
        "after": row.after and figures_to_json(row.after),
        "problem": row.problem,
    }


def _types(text: str) -> list[Any]:
    kinds = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [kind for kind in kinds if kind not in TYPES]
    if unknown or not kinds:
        raise SettingsError(f"--types is {text!r}; expected some of {','.join(TYPES)}")
    return kinds
