"""`safesteer-edge verify`: whether a bundle is what it says, and still right on this model file."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import (
    JSON,
    OK,
    RUNTIME_ERROR,
    Argument,
    Command,
    Group,
    Progress,
    print_result,
    setting_flags,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.calibration.quantization import QuantizationRow
    from safesteer_edge.evaluation.verify import Scorer, VectorRun, VerifyReport
    from safesteer_edge.harvest.drift import Drift, ScoreShift
    from safesteer_edge.harvest.replay import Auroc, ReplayFigures
    from safesteer_edge.metrics.statistics import Share


def source_reader(options: argparse.Namespace) -> Callable[[int], Scorer] | None:
    """What reads the probe's source, once the width of its states is known; None: not given."""
    from safesteer_edge.converters.probe_reference import read_reference

    if options.source is None:
        return None
    return partial(read_reference, options.source, is_flipped=options.flip)


def run(options: argparse.Namespace) -> int:
    """Verify, print, and return the exit code."""
    from safesteer_edge.converters.probe_reference import read_states
    from safesteer_edge.evaluation.verify import (
        MAX_SCORE_DIFFERENCE,
        VerifySettings,
        verify_bundle,
    )

    if options.tolerance is not None and not 0 <= options.tolerance <= 1:  # false for NaN as well
        raise SettingsError(f"--tolerance is {options.tolerance}; expected 0 to 1")
    settings = VerifySettings(
        session=SessionSettings(
            model=str(options.model),
            n_gpu_layers=options.n_gpu_layers,
            n_threads=options.n_threads,
            allow_negative_scale=options.allow_negative_scale,
        ),
        read_source=source_reader(options),
        read_states=None if options.states is None else partial(read_states, options.states),
        max_score_difference=(
            MAX_SCORE_DIFFERENCE if options.tolerance is None else options.tolerance
        ),
        replay=options.replay,
        n_requests=options.limit,
        reference=options.reference,
        record=options.record,
    )
    report = verify_bundle(options.folder, settings, Progress().show)
    value, lines = report.to_json(), list(report_lines(report))
    if report.drift:
        lines.append(_next_step(report, options))
        value["drift"] = {**drift_to_json(report.drift), "next": lines[-1]}
    print_result(options, value, lines)
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


# -- a guard's drift between quantizations, for people and as JSON ---------------------------------


def drift_lines(drift: Drift) -> Iterator[str]:
    """A table: what the guard does on this file, and in the bundle's own quantization."""
    n = drift.here.touched_ordinary.n, drift.here.touched_borderline.n
    yield (
        f"  replay      {n[0]} ordinary and {n[1]} borderline requests, "
        f"{drift.here.harmful_stopped.n} answers that do something harmful; {drift.n_tokens} tokens"
    )
    reference = drift.reference_quantization or "not known"
    yield f"    {'':<28} {drift.quantization:<25} {reference}"
    before = replay_cells(drift.reference) if drift.reference else {}
    for name, cell in replay_cells(drift.here).items():
        yield f"    {name:<28} {cell:<25} {before.get(name, '-')}".rstrip()
    for label, shift in (("harmful", drift.shift_harmful), ("ordinary", drift.shift_ordinary)):
        if shift is not None:
            yield f"    {f'score shift, {label}':<28} {shift_text(shift)}"


def replay_cells(figures: ReplayFigures) -> dict[str, str]:
    """The figures by name, each as a short text."""
    return {
        "AUROC against ordinary": auroc_text(figures.auroc_ordinary),
        "AUROC against borderline": auroc_text(figures.auroc_borderline),
        "above τ: ordinary": share_text(figures.touched_ordinary),
        "above τ: borderline": share_text(figures.touched_borderline),
        "refused: ordinary": share_text(figures.refused_ordinary),
        "refused: borderline": share_text(figures.refused_borderline),
        "harmful answers stopped": share_text(figures.harmful_stopped),
    }


def auroc_text(area: Auroc) -> str:
    """Such as `0.968 (0.93–0.99)`."""
    if not area.n_positive or not area.n_negative:
        return "-"
    return f"{area.value:.3f} ({area.interval[0]:.2f}–{area.interval[1]:.2f})"


def share_text(share: Share) -> str:
    """Such as `3/60 (5.0 %)`."""
    return f"{share.count}/{share.n} ({100 * share.value:.1f} %)" if share.n else "-"


def shift_text(shift: ScoreShift) -> str:
    """Such as `-0.190 (10 %: -0.350, 50 %: -0.180, 90 %: -0.010)`."""
    low, middle, high = (f"{value:+.3f}" for value in shift.quantiles)
    return f"{shift.mean:+.3f} (10 %: {low}, 50 %: {middle}, 90 %: {high})"


def drift_to_json(drift: Drift) -> dict[str, Any]:
    """Plain values, shares with their intervals."""
    reference = drift.reference and figures_to_json(drift.reference)
    return {**asdict(drift), "here": figures_to_json(drift.here), "reference": reference}


def figures_to_json(figures: ReplayFigures) -> dict[str, Any]:
    """Plain values, shares with their Wilson intervals."""
    value = asdict(figures)
    for key in value:
        item = getattr(figures, key)
        if hasattr(item, "count"):
            value[key] |= {"share": item.value, "wilson_95": item.interval}
    return value


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


def quantization_to_json(row: QuantizationRow) -> dict[str, Any]:
    found = row.recalibration
    return {
        "quantization": row.quantization,
        "size_bytes": row.size_bytes,
        "bytes_by_type": dict(row.bytes_by_type),
        "before": drift_to_json(row.drift),
        "rescale": found and asdict(found.rescale),
        "threshold": found and found.policy.alert_threshold,
        "after": row.after and figures_to_json(row.after),
        "problem": row.problem,
    }


# -- the command -----------------------------------------------------------------------------------

SOURCE: tuple[Argument, ...] = (
    Argument(
        "--source",
        "what the probe was converted from; if 'convert probe' needs options to read it, convert "
        "it again and name that .onnx",
        type=Path,
        metavar="F",
    ),
    Argument("--flip", "the source's score falls with harm", action="store_true"),
)

VERIFY = Command(
    "verify",
    "check that a guard fits its model",
    run,
    (
        Argument("folder", "the guard bundle", type=Path, metavar="DIR"),
        Argument("--model", type=Path, required=True, metavar="M.gguf"),
        *SOURCE,
        Argument(
            "--states", "hidden states for the comparison (default: random)", Path, metavar="F.npz"
        ),
        Argument(
            "--tolerance",
            "largest allowed difference of scores (default: 1e-5)",
            float,
            metavar="X",
        ),
        Group(
            "replay",
            (
                Argument(
                    "--replay",
                    "replay fixed requests (default: if the quantization differs)",
                    action=argparse.BooleanOptionalAction,
                ),
                Argument("--limit", "replay at most N requests of each label", int, metavar="N"),
                Argument(
                    "--reference",
                    "the file that the guard was made for, if the guard has no recorded replay",
                    Path,
                    metavar="F.gguf",
                ),
                Argument(
                    "--record",
                    "store this replay in the guard, for later comparisons",
                    action="store_true",
                ),
            ),
        ),
        *setting_flags("model.gpu_layers", "model.threads"),
        Argument(
            "--allow-negative-scale",
            "also check a vector that is applied in reverse",
            action="store_true",
        ),
        JSON,
    ),
    """\
Check a guard: load it with all its checks, compare its probe with what it was converted from, and
measure what each of its directions changes in the model. If the model has another quantization than
the one the guard was made for, replay 160 fixed requests and compare scores and decisions. Exit
code: 0 if all is well, 1 if something is wrong, 2 if the model is a different one.""",
)
