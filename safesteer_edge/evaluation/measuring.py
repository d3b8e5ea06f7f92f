"""What a run measures after its answers: distance from the undefended model, and overheads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from safesteer_edge.evaluation.baselines import FittedBaselines
from safesteer_edge.evaluation.bench import BenchSettings, run_bench
from safesteer_edge.evaluation.bench_machine import measure_in_child
from safesteer_edge.evaluation.bench_report import bench_to_json
from safesteer_edge.evaluation.case import NO_ATTACK, spread
from safesteer_edge.evaluation.defences import OFF, Defence
from safesteer_edge.evaluation.next_token import (
    QualityRow,
    QualityTask,
    measure_quality,
)
from safesteer_edge.evaluation.plan import BENCH, QUALITY, EvalSettings, Narrate
from safesteer_edge.evaluation.pool import Item
from safesteer_edge.evaluation.rows import EvalRow, Journal, open_journal
from safesteer_edge.formats.atomic_write import atomic_write

_N_BENCH_PROMPTS: Final = 8  # as many as `bench` takes


def measure_distance(
    settings: EvalSettings,
    items: Sequence[Item],
    defences: Sequence[Defence],
    fitted: FittedBaselines,
    rows: Sequence[EvalRow],
    narrate: Narrate,
) -> None:
    """KL and perplexity on some harmless cases of text that each take one turn."""
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row.status == "ok":
            answers.setdefault((row.suite, row.case_id), {})[row.defence] = row.answer
    plain = {
        (case.suite, case.id): case
        for _, case in items
        if case.kind == "benign" and case.attack == NO_ATTACK and not case.image
    }
    cases = [
        case
        for key, case in plain.items()
        if len(case.turns) == 1 and OFF.name in answers.get(key, {})
    ]
    tasks = [
        QualityTask(replace(case, id=f"{case.suite}/{case.id}"), answers[case.suite, case.id])
        for case in spread(cases, settings.n_quality)
    ]
    path = settings.folder / QUALITY
    with open_journal(path, QualityRow) as journal:
        _measure_left(settings, defences, fitted, tasks, journal, narrate)


def _measure_left(
    settings: EvalSettings,
    defences: Sequence[Defence],
    fitted: FittedBaselines,
    tasks: Sequence[QualityTask],
    journal: Journal[QualityRow],
    narrate: Narrate,
) -> None:
    done = {(row.case_id, row.defence) for row in journal.items}
    left = [
        task
        for task in tasks
        if any((task.case.id, d.name) not in done for d in defences if d.name in task.answers)
    ]
    if not left:
        return
    narrate(f"KL and perplexity on {len(left)} harmless requests")
    session = replace(settings.session, guard="off")
    for row in measure_in_child(measure_quality, session, fitted, tuple(defences), tuple(left)):
        if (row.case_id, row.defence) not in done:
            journal.append(row)


def measure_overheads(settings: EvalSettings, narrate: Narrate) -> None:
    """Overheads side by side, one answer at a time; kept if they were measured before."""
    path = settings.folder / BENCH
    if not settings.n_bench_repeats or path.exists():
        return
    session = settings.session
    bench = BenchSettings(
        model=session.model,
        bundle=session.bundle,
        n_prompts=_N_BENCH_PROMPTS,
        max_tokens=max(2, session.max_tokens),
        n_repeats=settings.n_bench_repeats,
        n_threads=session.n_threads,
        n_ctx=session.n_ctx,
        n_gpu_layers=session.n_gpu_layers,
    )
    result = run_bench(bench, narrate=lambda line: narrate(f"bench: {line}"))
    with atomic_write(path, "w") as stream:
        json.dump(bench_to_json(result), stream, ensure_ascii=False)
