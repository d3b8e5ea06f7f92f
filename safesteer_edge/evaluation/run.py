"""A run, from what was asked for to rows, verdicts and figures in a folder.

Everything is appended as it is made, so a run that was killed goes on where it stood when the same
command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.answering import AnswerSettings
from safesteer_edge.evaluation.baselines import (
    NO_BASELINES,
    FittedBaselines,
    fit_baselines,
    load_baselines,
    save_baselines,
)
from safesteer_edge.evaluation.bench_machine import measure_in_child, read_machine
from safesteer_edge.evaluation.case import PictureStore, Suite, limited
from safesteer_edge.evaluation.defences import Defence, parse_defences
from safesteer_edge.evaluation.heldout import measure_heldout
from safesteer_edge.evaluation.judges import judge_rows, open_judge
from safesteer_edge.evaluation.measuring import measure_distance, measure_overheads
from safesteer_edge.evaluation.plan import (
    FACTS,
    JUDGEMENTS,
    ROWS,
    EvalSettings,
    Narrate,
    choose_suites,
    default_defences,
    keep_plan,
    plan_items,
)
from safesteer_edge.evaluation.pool import Item, answer_all
from safesteer_edge.evaluation.public_files import read_suite
from safesteer_edge.evaluation.rows import EvalRow, Progress, open_journal
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.version import VERSION
from safesteer_edge.harvest.workers import Subject, inspect_subject, workers_that_fit


def run_evaluation(settings: EvalSettings, *, narrate: Narrate = lambda _: None) -> None:
    """Answer, judge and measure, into the folder. Minutes to hours; see `EvalSettings.limit`.

    Raises InputError for what cannot be used, EngineError.
    """
    model = inspect_subject(settings.session)
    suites, skipped = _suites(settings, model)
    names = settings.defences or default_defences(has_vector=model.has_vector)
    defences = parse_defences(names)
    items = plan_items(suites, defences, with_curve=settings.with_curve)
    _check_items(items, defences, suites, model)
    _check_guard(settings, defences, model)
    n_workers = workers_that_fit(settings.n_workers, model.facts["size_bytes"])
    if n_workers < settings.n_workers:
        narrate(f"{n_workers} of {settings.n_workers} processes: there is memory for no more")
        settings = replace(settings, n_workers=n_workers)
    facts = _plan_facts(settings, model, defences)
    keep_plan(settings.folder, facts, suites)
    fitted = _baselines(settings, defences, narrate)
    _write_facts(settings, suites, skipped, facts, fitted, items)
    rows = _answer(settings, items, fitted)
    for name in settings.judges:
        judge = open_judge(
            name, n_threads=settings.session.n_threads, timeout_s=settings.judge_timeout_s
        )
        try:
            narrate(f"judging by {judge.name}")
            judge_rows(rows, judge, settings.folder / JUDGEMENTS, progress=_verdict_progress())
        finally:
            judge.close()
    measure_distance(settings, items, defences, fitted, rows, narrate)
    measure_overheads(settings, narrate)
    measure_heldout(settings, narrate)


def _suites(settings: EvalSettings, model: Subject) -> tuple[list[Suite], dict[str, str]]:
    """The suites, and those that this model cannot be asked, with the reason."""
    pictures = PictureStore(settings.folder / "media")
    seed = settings.session.sampling.seed
    choices = [replace(c, n=c.n or settings.limit) for c in settings.suites]
    suites = choose_suites(choices, pictures, seed=seed)
    suites += [limited(read_suite(file, pictures), settings.limit) for file in settings.files]
    names = [suite.name for suite in suites]
    if len(set(names)) != len(names):
        raise SettingsError(f"two suites have one name ({', '.join(names)}); rename a file")
    if model.sees:
        return suites, {}
    reason = "the model does not see as it is loaded (no projector)"
    blind = {s.name: reason for s in suites if s.cases and all(c.image for c in s.cases)}
    return [suite for suite in suites if suite.name not in blind], blind


def _check_items(
    items: Sequence[Item], defences: Sequence[Defence], suites: Sequence[Suite], model: Subject
) -> None:
    if not items and not any(suite.unreadable for suite in suites):
        raise SettingsError("no suite has a case that this model can be asked")


def _check_guard(settings: EvalSettings, defences: Sequence[Defence], model: Subject) -> None:
    """Raises SettingsError if something needs a guard that there is not."""
    if model.facts["bundle"] is not None:
        return
    known = f"no guard bundle is known for {model.facts['model']!r}; pass its folder with --bundle"
    if any(defence.scores for defence in defences):
        raise SettingsError(f"{known}, or choose defences without a probe: --defence safety-prompt")
    if settings.with_heldout:
        raise SettingsError(f"{known}, or leave out --heldout, which measures a guard")


def _plan_facts(
    settings: EvalSettings, model: Subject, defences: Sequence[Defence]
) -> dict[str, Any]:
    session = settings.session
    return {
        "version": VERSION,
        **model.facts,
        "sampling": asdict(session.sampling),
        "max_tokens": session.max_tokens,
        "n_ctx": session.n_ctx,
        "kv_type": session.kv_type,
        "chat_template": session.chat_template,
        "defences": [asdict(defence) for defence in defences],
        "with_curve": settings.with_curve,
    }


def _baselines(
    settings: EvalSettings, defences: Sequence[Defence], narrate: Narrate
) -> FittedBaselines:
    with_direction = settings.with_curve or any(d.vector == "refusal-direction" for d in defences)
    with_limit = any(defence.withholds for defence in defences)
    if not with_direction and not with_limit:
        return NO_BASELINES
    kept = load_baselines(settings.folder)
    if kept is not None:
        return kept
    narrate("baselines: choosing their strength on the calibration split")
    fitted = measure_in_child(
        fit_baselines,
        settings.session,  # alone, on all cores
        with_direction=with_direction,
        with_limit=with_limit,
    )
    save_baselines(fitted, settings.folder)
    return fitted


def _answer(
    settings: EvalSettings, items: Sequence[Item], fitted: FittedBaselines
) -> tuple[EvalRow, ...]:
    top_k = max(
        (case.sampling.top_k for _, case in items if case.sampling),
        default=settings.session.sampling.top_k,
    )
    answer_settings = AnswerSettings(
        settings.one_worker(), fitted, max(top_k, settings.session.sampling.top_k)
    )
    path = settings.folder / ROWS
    with open_journal(path, EvalRow) as journal:
        done = {row.key for row in journal.items}
        left = [
            (defence, case)
            for defence, case in items
            if (case.suite, case.id, defence.name) not in done
        ]
        progress = Progress(len(left), "answers")
        for row in answer_all(left, answer_settings, n_workers=settings.n_workers):
            journal.append(row)
            progress.add(is_error=row.status != "ok")
        return tuple(journal.items)


def _verdict_progress() -> Callable[[int, int], None]:
    shown: list[Progress] = []

    def show(_n_done: int, n_all: int) -> None:
        if not shown:
            shown.append(Progress(n_all, "verdicts"))
        shown[0].add()

    return show


def _write_facts(
    settings: EvalSettings,
    suites: Sequence[Suite],
    skipped: dict[str, str],
    plan: dict[str, Any],
    fitted: FittedBaselines,
    items: Sequence[Item],
) -> None:
    """What a report says about the run besides its rows."""
    facts = {
        **plan,
        "machine": asdict(read_machine()),
        "n_workers": settings.n_workers,
        "n_threads": settings.one_worker().n_threads,
        "n_planned": len(items),
        "baselines": fitted.facts(),
        "suites": [{"name": s.name, "source": s.source, "n_cases": len(s.cases)} for s in suites],
        "skipped_suites": skipped,
        "unreadable": [asdict(row) for suite in suites for row in suite.unreadable],
        "titles": {d.name: d.title for d, _ in items},
    }
    with atomic_write(settings.folder / FACTS, "w") as stream:
        json.dump(facts, stream, indent=1, ensure_ascii=False)
