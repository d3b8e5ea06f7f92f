"""A run, from what was asked for to rows, verdicts and figures in a folder.

Everything is appended as it is made, so a run that was killed goes on where it stood when the same
command is given again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, Final

from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.evaluation.answering import AnswerSettings, Item, answer_all
from safesteer_edge.evaluation.baselines import (
    NO_BASELINES,
    FittedBaselines,
    fit_baselines,
    load_baselines,
    save_baselines,
)
from safesteer_edge.evaluation.bench import BenchSettings, run_bench
from safesteer_edge.evaluation.bench_report import bench_to_json
from safesteer_edge.evaluation.case import (
    NO_ATTACK,
    Case,
    PictureStore,
    Suite,
    evenly,
    limited,
    spread,
)
from safesteer_edge.evaluation.case_files import read_suites
from safesteer_edge.evaluation.defences import OFF, Defence, parse_defences
from safesteer_edge.evaluation.heldout import (
    effect_to_json,
    measure_guard_effects,
    measure_probe,
    n_probe_requests,
    requests_of_test_split,
)
from safesteer_edge.evaluation.judges import judge_rows, open_judge
from safesteer_edge.evaluation.machine import measure_in_child, read_machine
from safesteer_edge.evaluation.plan import (
    BENCH,
    FACTS,
    HELDOUT,
    JUDGEMENTS,
    QUALITY,
    ROWS,
    WITHOUT_VECTOR,
    EvalSettings,
    Narrate,
    Subject,
    choose_suites,
    default_defences,
    inspect_subject,
    keep_plan,
    plan_items,
)
from safesteer_edge.evaluation.quality import (
    AnswerKind,
    QualityRow,
    QualityTask,
    measure_fluency,
    measure_quality,
)
from safesteer_edge.evaluation.rows import EvalRow, Progress, open_journal
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.formats.version import VERSION
from safesteer_edge.harvest.run import workers_that_fit
from safesteer_edge.metrics.refusal_rules import is_refusal
from safesteer_edge.session.settings import SessionSettings

_N_BENCH_PROMPTS: Final = 8  # as many as `bench` takes
_HELDOUT_TOKENS: Final = 64  # as many as `measure guard` takes


def run_evaluation(settings: EvalSettings, *, narrate: Narrate = lambda _: None) -> None:
    """Answer, judge and measure, into the folder. Minutes to hours; see `EvalSettings.limit`.

    Raises InputError for what cannot be used, EngineError.
    """
    # 1. What is asked, and whether it can be.
    model = inspect_subject(settings.session)
    suites, skipped = _suites(settings, model)
    halves = settings.halves_alone
    names = settings.defences or default_defences(has_vector=model.has_vector, halves_alone=halves)
    defences = parse_defences(names)
    if halves and not model.has_vector and not settings.defences:
        for name, same in WITHOUT_VECTOR.items():
            skipped[name] = f"the bundle has no vector: it would answer as {same} does"
    items = plan_items(suites, defences, with_curve=settings.with_curve)
    if not items and not any(suite.unreadable for suite in suites):
        raise SettingsError("no suite has a case that this model can be asked")
    _check_guard(settings, defences, model)
    n_workers = workers_that_fit(settings.n_workers, model.facts["size_bytes"])
    if n_workers < settings.n_workers:
        narrate(f"{n_workers} of {settings.n_workers} processes: there is memory for no more")
        settings = replace(settings, n_workers=n_workers)
    plan = _plan_facts(settings, model, defences)
    keep_plan(settings.folder, plan, suites)
    fitted = _baselines(settings, defences, narrate)
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
        "titles": {defence.name: defence.title for defence, _ in items},
    }
    with atomic_write(settings.folder / FACTS, "w") as stream:
        json.dump(facts, stream, indent=1, ensure_ascii=False)
    # 2. Answers and verdicts.
    rows = _answer(settings, items, fitted)
    for name in settings.judges:
        n_threads, timeout_s = settings.session.n_threads, settings.judge_timeout_s
        with closing(open_judge(name, n_threads=n_threads, timeout_s=timeout_s)) as judge:
            narrate(f"judging by {judge.name}")
            judge_rows(rows, judge, settings.folder / JUDGEMENTS)
    # 3. What is measured besides.
    _measure_quality(settings, items, defences, fitted, rows, narrate)
    _measure_fluency(settings, items, rows, narrate)
    _measure_overheads(settings, narrate)
    _measure_heldout(settings, narrate)


def _suites(settings: EvalSettings, model: Subject) -> tuple[list[Suite], dict[str, str]]:
    """The suites, and those that this model cannot be asked, with the reason."""
    pictures = PictureStore(settings.folder / "media", settings.drawings)
    choices = [replace(c, n=c.n or settings.limit) for c in settings.suites]
    suites = choose_suites(choices, pictures, seed=settings.session.sampling.seed)
    suites = [_with_tries(suite, settings.n_tries) for suite in suites]
    missing: dict[str, str] = {}
    for file in settings.files:
        found, absent = read_suites(file, pictures)
        suites += [limited(suite, settings.limit) for suite in found]
        missing |= absent
    names = [suite.name for suite in suites]
    if len(set(names)) != len(names):
        raise SettingsError(f"two suites have one name ({', '.join(names)}); rename a file")
    if model.sees:
        return suites, missing
    reason = "the model does not see as it is loaded (no projector)"
    blind = {s.name: reason for s in suites if s.cases and all(c.image for c in s.cases)}
    return [suite for suite in suites if suite.name not in blind], missing | blind


def _with_tries(suite: Suite, n: int) -> Suite:
    cases = (
        replace(case, tries=min(case.tries, n)) if case.tries else case for case in suite.cases
    )
    return replace(suite, cases=tuple(cases))


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
    """All that an answer depends on besides the cases."""
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
    checks = {defence.withholds for defence in defences}
    with_limit, with_prompt_limit = ("answer" in checks), ("prompt" in checks)
    if not with_direction and not with_limit and not with_prompt_limit:
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
        with_prompt_limit=with_prompt_limit,
    )
    save_baselines(fitted, settings.folder)
    return fitted


def _answer(
    settings: EvalSettings, items: Sequence[Item], fitted: FittedBaselines
) -> tuple[EvalRow, ...]:
    top_ks = [case.sampling.top_k for _, case in items if case.sampling]
    top_k = max([settings.session.sampling.top_k, *top_ks])
    with open_journal(settings.folder / ROWS, EvalRow) as journal:
        done = {row.key for row in journal.items}
        left = [
            (defence, case)
            for defence, case in items
            if (case.suite, case.id, defence.name) not in done
        ]
        progress = Progress(len(left), "answers")
        worker = AnswerSettings(settings.one_worker(), fitted, top_k)
        for row in answer_all(left, worker, n_workers=settings.n_workers):
            journal.append(row)
            progress.add(is_error=row.status != "ok")
        return tuple(journal.items)


# -- what is measured after the answers: distance from the undefended model, overheads, the guard --
# Each part is kept if it was measured before.


def _measure_quality(
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
    cases = {
        (case.suite, case.id): case
        for _, case in items
        if case.kind == "benign"
        and case.attack == NO_ATTACK
        and not case.image
        and len(case.turns) == 1
        and OFF.name in answers.get((case.suite, case.id), {})
    }
    with open_journal(settings.folder / QUALITY, QualityRow) as journal:
        done = {(row.case_id, row.defence) for row in journal.items}
        tasks = [
            QualityTask(replace(case, id=f"{case.suite}/{case.id}"), answers[case.suite, case.id])
            for case in spread(cases.values(), settings.n_quality)
        ]
        left = tuple(
            task
            for task in tasks
            if any((task.case.id, d.name) not in done for d in defences if d.name in task.answers)
        )
        if not left:
            return
        narrate(f"KL and perplexity on {len(left)} harmless requests")
        session = replace(settings.session, guard="off")
        for row in measure_in_child(measure_quality, session, fitted, defences, left):
            if (row.case_id, row.defence) not in done:
                journal.append(row)


def _measure_fluency(
    settings: EvalSettings, items: Sequence[Item], rows: Sequence[EvalRow], narrate: Narrate
) -> None:
    """Perplexity of steered answers, and of the undefended model's own refusals to compare with."""
    cases = {
        (case.suite, case.id): replace(case, id=f"{case.suite}/{case.id}")
        for _, case in items
        if not case.image and not case.given_text and len(case.turns) == 1
    }
    asked: list[tuple[Case, str, str, AnswerKind]] = []
    by_defence: dict[str, list[EvalRow]] = {}
    for row in rows:
        if row.kind == "harmful" and row.status == "ok" and (row.suite, row.case_id) in cases:
            by_defence.setdefault(row.defence, []).append(row)
    for name, group in by_defence.items():
        kind: AnswerKind = "refusal" if name == OFF.name else "steered"
        wanted = [
            row
            for row in group
            if (is_refusal(row.answer, row.request) if kind == "refusal" else row.n_opening)
            and row.finish_reason != "refused"
        ]
        for row in evenly(wanted, settings.n_quality):
            asked.append((cases[row.suite, row.case_id], name, row.answer, kind))
    with open_journal(settings.folder / QUALITY, QualityRow) as journal:
        done = {(row.case_id, row.defence) for row in journal.items}
        left = [each for each in asked if (each[0].id, each[1]) not in done]
        if not left or not settings.n_quality:
            return
        narrate(f"perplexity of {len(left)} steered answers and refusals")
        for row in measure_in_child(measure_fluency, replace(settings.session, guard="off"), left):
            journal.append(row)


def _measure_overheads(settings: EvalSettings, narrate: Narrate) -> None:
    """Side by side, one answer at a time."""
    path, session = settings.folder / BENCH, settings.session
    if not settings.n_bench_repeats or path.exists():
        return
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


def _measure_heldout(settings: EvalSettings, narrate: Narrate) -> None:
    """What `measure guard` and `measure probe` measure on the whole test split."""
    if not settings.with_heldout:
        return
    path, kept = settings.folder / HELDOUT, dict[str, Any]()
    session = replace(
        settings.session,
        guard="steer",
        rerank="lazy",
        max_tokens=_HELDOUT_TOKENS,
        sampling=replace(settings.session.sampling, temperature=0.0),
    )
    if path.exists():
        try:
            kept = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error
    for name, what, measure in (
        ("guard", "what the guard changes", _guard_on_test_split),
        ("probe", "how well the probe separates", _probe_on_test_split),
    ):
        if name not in kept:
            narrate(f"held out: {what}")
            kept[name] = measure_in_child(measure, session, settings.limit)
            kept["max_tokens"] = _HELDOUT_TOKENS
            with atomic_write(path, "w") as stream:
                json.dump(without_nan(kept), stream, ensure_ascii=False)


def _guard_on_test_split(session: SessionSettings, limit: int | None) -> Any:
    requests = requests_of_test_split(limit)
    progress = Progress(len(requests), "held-out requests, with the guard and without")
    effects = measure_guard_effects(session, requests, progress=lambda _: progress.add())
    return [effect_to_json(effect) for effect in effects]


def _probe_on_test_split(session: SessionSettings, limit: int | None) -> Any:
    requests = requests_of_test_split(limit)
    progress = Progress(n_probe_requests(requests), "held-out requests, for the probe")
    return measure_probe(session, requests, progress=lambda _: progress.add()).to_json()
