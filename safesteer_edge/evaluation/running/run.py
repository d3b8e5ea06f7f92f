"""A run, from what was asked for to rows, verdicts and figures in a folder.

Everything is appended as it is made, so a run that was killed goes on where it stood when the same
command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from safesteer_edge import __version__
from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.baselines import (
    NO_BASELINES,
    FittedBaselines,
    fit_baselines,
    load_baselines,
    save_baselines,
)
from safesteer_edge.evaluation.bench_machine import measure_in_child, n_usable_cores, read_machine
from safesteer_edge.evaluation.defences import OFF, Defence, parse_defences
from safesteer_edge.evaluation.figures.next_token import (
    QualityRow,
    QualityTask,
    measure_quality,
    quality_row_from_json,
)
from safesteer_edge.evaluation.judges.judging import judge_rows, open_judge
from safesteer_edge.evaluation.readers.read import FileChoice, read_suite
from safesteer_edge.evaluation.running.answering import AnswerSettings
from safesteer_edge.evaluation.running.journal import Journal, open_journal
from safesteer_edge.evaluation.running.plan import (
    SuiteChoice,
    choose_suites,
    default_defences,
    keep_plan,
    plan_items,
)
from safesteer_edge.evaluation.running.pool import answer_all
from safesteer_edge.evaluation.running.progress import Progress
from safesteer_edge.evaluation.running.rows import EvalRow, row_from_json
from safesteer_edge.evaluation.running.subject import Subject, inspect_subject
from safesteer_edge.evaluation.running.worker import Item
from safesteer_edge.evaluation.suites.case import (
    NO_ATTACK,
    PictureStore,
    Suite,
    limited,
    spread,
)
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.settings import SessionSettings

ROWS: Final = "rows.jsonl"
JUDGEMENTS: Final = "judgements.jsonl"
QUALITY: Final = "quality.jsonl"
FACTS: Final = "facts.json"

Narrate = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """session: the model, and how it samples. defences: by name; none: all that differ.

    limit: cases of a suite at most. n_quality: harmless cases for KL and perplexity.
    """

    session: SessionSettings
    folder: Path
    suites: tuple[SuiteChoice, ...] = ()
    files: tuple[FileChoice, ...] = ()
    defences: tuple[str, ...] = ()
    judges: tuple[str, ...] = ("rules",)
    with_curve: bool = False
    limit: int | None = None
    n_quality: int = 12
    n_workers: int = 1
    judge_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.suites and not self.files:
            raise SettingsError("there is nothing to ask; give --suite or --data")
        if not self.judges:
            raise SettingsError("there is no judge; give --judge rules")
        for name, low in (("limit", 1), ("n_quality", 0), ("n_workers", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise SettingsError(f"{name} is {value!r}; expected at least {low}")


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
            judge_rows(rows, judge, settings.folder / JUDGEMENTS)
        finally:
            judge.close()
    _measure(settings, items, defences, fitted, rows, narrate)


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
    if model.facts["bundle"] is None and any(defence.scores for defence in defences):
        raise SettingsError(
            f"no guard bundle is known for {model.facts['model']!r}; pass its folder with "
            "--bundle, or choose defences without a probe: --defence safety-prompt"
        )


def _plan_facts(
    settings: EvalSettings, model: Subject, defences: Sequence[Defence]
) -> dict[str, Any]:
    session = settings.session
    return {
        "version": __version__,
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
    if not any(defence.needs_fit for defence in defences) and not settings.with_curve:
        return NO_BASELINES
    kept = load_baselines(settings.folder)
    if kept is not None:
        return kept
    narrate("baselines: choosing their strength on the calibration split")
    fitted = measure_in_child(fit_baselines, _one_worker(settings))
    save_baselines(fitted, settings.folder)
    return fitted


def _one_worker(settings: EvalSettings) -> SessionSettings:
    """The session of one of the workers, which share the cores."""
    threads = settings.session.n_threads or max(1, n_usable_cores() // settings.n_workers)
    return replace(settings.session, n_threads=threads)


def _answer(
    settings: EvalSettings, items: Sequence[Item], fitted: FittedBaselines
) -> tuple[EvalRow, ...]:
    top_k = max(
        (case.sampling.top_k for _, case in items if case.sampling),
        default=settings.session.sampling.top_k,
    )
    answer_settings = AnswerSettings(
        _one_worker(settings), fitted, max(top_k, settings.session.sampling.top_k)
    )
    path = settings.folder / ROWS
    with open_journal(path, to_json=EvalRow.to_json, from_json=row_from_json) as journal:
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


def _measure(
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
    with open_journal(path, to_json=QualityRow.to_json, from_json=quality_row_from_json) as journal:
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
        "n_threads": _one_worker(settings).n_threads,
        "n_planned": len(items),
        "baselines": fitted.facts(),
        "suites": [{"name": s.name, "source": s.source, "n_cases": len(s.cases)} for s in suites],
        "skipped_suites": skipped,
        "unreadable": [asdict(row) for suite in suites for row in suite.unreadable],
        "titles": {d.name: d.title for d, _ in items},
    }
    with atomic_write(settings.folder / FACTS, "w") as stream:
        json.dump(facts, stream, indent=1, ensure_ascii=False)
