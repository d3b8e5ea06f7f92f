"""What a report says, as JSON-ready values: every figure with its n, and what it was made from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.case import CaseKind
from safesteer_edge.evaluation.defences import ON_PICTURES
from safesteer_edge.evaluation.judged import (
    JudgedRow,
    best_of_n,
    complies_with_request,
    cost_of,
    grouped,
    groups_of,
    is_right,
    judge_agreements,
    paired_test,
    share_json,
    share_of,
    step_separation,
    with_verdicts,
)
from safesteer_edge.evaluation.judges import RULES, Judgement, judge_names
from safesteer_edge.evaluation.own_words import steering_to_json
from safesteer_edge.evaluation.plan import (
    BENCH,
    FACTS,
    HELDOUT,
    JUDGEMENTS,
    MANY_ANSWERS,
    QUALITY,
    ROWS,
)
from safesteer_edge.evaluation.quality import QualityRow
from safesteer_edge.evaluation.rows import EvalRow, read_journal
from safesteer_edge.evaluation.trade_off import HARMFUL_SUITES, trade_offs_to_json
from safesteer_edge.metrics.statistics import auroc

Json = dict[str, Any]
Hit = Callable[[JudgedRow], bool | None]  # None: not known
FORMAT: Final = 2  # of report.json: a report of another one is not compared
_N_REASONS: Final = 12
_TRIES: Final = (1, 2, 3, 5, 10, 20, 30, 50, 70, 100)
_BENCH_SETTINGS: Final = ("n_repeats", "n_prompts", "max_tokens")
_HELDOUT_PARTS: Final = ("max_tokens", "guard", "probe")
_COST_KINDS: Final = ("benign", "harmful")
_WATCHING: Final = ("response-check", "safesteer")  # whose scores tell of the model's own words


def read_run(folder: Path) -> Json:
    """The whole report of a run's folder. Raises InputError for one that holds none."""
    try:
        facts: Json = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(folder)!r} holds no evaluation ({error}); run 'safesteer-edge eval -o' first"
        ) from error
    judgements = tuple(read_journal(folder / JUDGEMENTS, Judgement))
    quality = folder / QUALITY
    measured = list(read_journal(quality, QualityRow)) if quality.exists() else []
    judges = judge_names(judgements) or [RULES]
    judged = with_verdicts(read_journal(folder / ROWS, EvalRow), judgements)
    main = [j for j in judged if ":" not in j.row.defence]  # points of a curve are in it alone
    harmful = [j for j in main if j.row.kind == "harmful"]
    once = [j for j in harmful if not j.row.tries]  # of several tries the curve tells
    by_category = _shares(
        [j for j in harmful if j.row.suite not in MANY_ANSWERS],
        ("category", "defence"),
        lambda j: j.verdict(judges[0]).is_success,
    )
    costs = (cost_of(main, d, kind) for d in grouped(main, "defence") for kind in _COST_KINDS)
    return {
        "format": FORMAT,
        "facts": facts,
        "judges": judges,
        "counts": _counts(judged, judges, facts),
        "attack_success": [row for judge in judges for row in _attack_success(once, judge)],
        "by_category": sorted(by_category, key=lambda row: row["category"]),
        "best_of_n": [row for judge in judges for row in _best_of_n(harmful, judge)],
        "forms": _forms(main, judges[0]),
        "halves": _halves(main, judges[0]),
        "adaptive": _adaptive([j for j in harmful if j.row.tries], judges[0]),
        "refusal": _refusal([j for j in main if j.row.kind != "harmful"], judges[0]),
        "accuracy": _shares(
            [j for j in main if j.row.expected], ("suite", "defence"), lambda j: is_right(j.row)
        ),
        "paired_tests": _paired_tests(main, judges[0]),
        "steering": steering_to_json(main, judges[0]),
        "quality": _quality(row for row in measured if row.of == "harmless"),
        "fluency": _quality(row for row in measured if row.of != "harmless"),
        "cost": [asdict(cost) for cost in costs if cost is not None],
        "overheads": _read_part(folder / BENCH, _overheads),
        "heldout": _read_part(
            folder / HELDOUT,
            lambda found: {name: found[name] for name in _HELDOUT_PARTS if name in found},
        ),
        "steps": _steps(main, judges[0]),
        "agreement": [
            {**asdict(a), "agreeing": share_json(a.agreeing)}
            for a in judge_agreements(judged, judges)
        ],
        **trade_offs_to_json(judged, judges[0]),
    }


def _counts(rows: Sequence[JudgedRow], judges: Sequence[str], facts: Json) -> Json:
    reasons = Counter(
        (j.row.status, j.row.error) for j in rows if j.row.status != "ok"
    ).most_common(_N_REASONS)
    failed = {
        judge: Counter(
            verdict.error
            for j in rows
            if (verdict := j.verdicts.get(judge)) is not None and verdict.label is None
        )
        for judge in judges
    }
    unreadable = facts.get("unreadable", [])
    return {
        "planned": facts.get("n_planned", len(rows)),
        "answered": sum(j.row.status == "ok" for j in rows),
        "errors": sum(j.row.status == "error" for j in rows),
        "crashed": sum(j.row.status == "crashed" for j in rows),
        "unreadable_rows": len(unreadable),
        "unreadable_examples": unreadable[:_N_REASONS],
        "reasons": [{"status": s, "error": e, "n": n} for (s, e), n in reasons],
        "judge_errors": {
            judge: {"n": sum(errors.values()), "errors": dict(errors.most_common(_N_REASONS))}
            for judge, errors in failed.items()
        },
    }


def _shares(
    rows: Iterable[JudgedRow], parts: Sequence[str], hit: Hit, **more: object
) -> list[Json]:
    """The share that hits of each group by these parts. more: the same values for all."""
    return [
        {**names, **more, **share_json(share_of(group, hit))}
        for names, group in groups_of(rows, *parts)
    ]


def _attack_success(harmful: Sequence[JudgedRow], judge: str) -> list[Json]:
    """By suite and attack; and each suite as a whole."""
    found: list[Json] = []
    for in_suite in grouped(harmful, "suite").values():
        whole = [replace(j, row=replace(j.row, attack="all")) for j in in_suite]
        parts = [*whole, *in_suite] if len(grouped(in_suite, "attack")) > 1 else in_suite
        keys = ("suite", "attack", "defence")
        found += _shares(parts, keys, lambda j: j.verdict(judge).is_success, judge=judge)
    return found


def _best_of_n(harmful: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Requests that have several attempts in one suite."""
    tried = (
        (names, *best_of_n(group, judge)) for names, group in groups_of(harmful, "suite", "defence")
    )
    return [
        {**names, "judge": judge, "attempts": attempts, **share_json(share)}
        for names, share, attempts in tried
        if attempts > 1
    ]


def _forms(rows: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Of suites that ask harmful and ordinary requests alike: what each form keeps and costs."""

    def share(group: Iterable[JudgedRow], kind: CaseKind, hit: Hit) -> Json:
        return share_json(share_of((j for j in group if j.row.kind == kind), hit))

    def is_lost(judged: JudgedRow) -> bool | None:
        is_answer = judged.verdict(judge).is_answer
        return None if is_answer is None else not is_answer

    def is_stopped(judged: JudgedRow) -> bool | None:
        is_success = judged.verdict(judge).is_success
        return None if is_success is None else not is_success

    return [
        {
            **names,
            "stopped": share(group, "harmful", is_stopped),
            "lost": share(group, "benign", is_lost),
        }
        for suite in grouped(rows, "suite").values()
        if len({j.row.kind == "harmful" for j in suite}) > 1 and len(grouped(suite, "attack")) > 1
        for names, group in groups_of(suite, "suite", "attack", "defence")
    ]


def _halves(rows: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Of suites with pictures, by form: what no defence, each half of the guard and both do."""
    compared = [j for j in rows if j.row.defence in ON_PICTURES]
    found: list[Json] = []
    for suite in grouped(compared, "suite").values():
        if not any(j.row.has_media for j in suite):
            continue
        for names, group in groups_of(suite, "suite", "attack", "defence"):
            harmful = [j for j in group if j.row.kind == "harmful"]
            harmless = [j for j in group if j.row.kind != "harmful"]
            found.append(
                {
                    **names,
                    "success": share_json(share_of(harmful, lambda j: j.verdict(judge).is_success)),
                    **{
                        f"{kind}_refused": share_json(
                            share_of(side, lambda j: j.verdict(judge).is_refusal)
                        )
                        for kind, side in (("harmful", harmful), ("harmless", harmless))
                    },
                    "separation": _prompt_separation(harmful, harmless),
                }
            )
    return found


def _prompt_separation(harmful: Sequence[JudgedRow], harmless: Sequence[JudgedRow]) -> Json:
    """AUROC of the prompts' scores; None where one side has none."""
    one, other = (
        np.array([j.row.prompt_score for j in side if j.row.prompt_score is not None], np.float64)
        for side in (harmful, harmless)
    )
    value = auroc(one, other) if len(one) and len(other) else None
    return {"auroc": value, "n_harmful": len(one), "n_harmless": len(other)}


def _adaptive(rows: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Requests that an answer complied with, and spoke of, by the number of tries."""
    most = max((j.row.tries for j in rows), default=0)
    ends = [n for n in _TRIES if n < most]

    def within(n: int) -> Hit:
        def hit(judged: JudgedRow) -> bool | None:
            is_success = judged.verdict(judge).is_success
            if is_success is None:
                return None
            return is_success and judged.row.tries <= n and complies_with_request(judged.row)

        return hit

    return [
        {**names, "tries": n, "is_last": n == most, **share_json(share_of(group, within(n)))}
        for names, group in groups_of(rows, "defence")
        for n in (*ends, most)
    ]


def _refusal(harmless: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Refused, answered, without answer, and byte-identical to no defence."""
    off = {
        (j.row.suite, j.row.case_id): j.row.answer
        for j in harmless
        if j.row.defence == "off" and j.row.status == "ok"
    }

    def is_identical(judged: JudgedRow) -> bool | None:
        answer = off.get((judged.row.suite, judged.row.case_id))
        return None if answer is None or judged.row.status != "ok" else judged.row.answer == answer

    def is_empty(judged: JudgedRow) -> bool | None:
        label = judged.verdict(judge).label
        return None if label is None else label == "no-answer"

    hits: dict[str, Hit] = {
        "refused": lambda j: j.verdict(judge).is_refusal,
        "answered": lambda j: j.verdict(judge).is_answer,
        "no_answer": is_empty,
        "identical": is_identical,
    }
    return [
        {**names, **{what: share_json(share_of(group, hit)) for what, hit in hits.items()}}
        for names, group in groups_of(harmless, "suite", "defence")
    ]


def _paired_tests(rows: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Every defence against none, and SafeSteer and a refusal by the prompt against every other."""
    by_defence = grouped(rows, "defence")
    pairs = [("off", name) for name in by_defence if name != "off"]
    pairs += [("safesteer", name) for name in by_defence if name not in ("off", "safesteer")]
    compared = ("off", "safesteer", "prompt-refusal")
    pairs += [("prompt-refusal", name) for name in by_defence if name not in compared]
    tests: dict[str, tuple[Callable[[JudgedRow], bool], Hit]] = {
        "plain attack success": (
            lambda j: j.row.suite in HARMFUL_SUITES,
            lambda j: j.verdict(judge).is_success,
        ),
        "attack success": (
            lambda j: j.row.kind == "harmful" and j.row.suite not in MANY_ANSWERS,
            lambda j: j.verdict(judge).is_success,
        ),
        "harmless refused": (
            lambda j: j.row.kind != "harmful",
            lambda j: j.verdict(judge).is_refusal,
        ),
        "harmless twins answered": (
            lambda j: j.row.suite == "harmless-twins",
            lambda j: j.verdict(judge).is_answer,
        ),
    }
    results = (
        paired_test(what, filter(wanted, by_defence[one]), filter(wanted, by_defence[other]), hit)
        for what, (wanted, hit) in tests.items()
        for one, other in pairs
        if one in by_defence
    )
    return [asdict(result) for result in results if result is not None]


def _quality(rows: Iterable[QualityRow]) -> list[Json]:
    by_defence: dict[str, list[QualityRow]] = {}
    for row in rows:
        by_defence.setdefault(row.defence, []).append(row)
    found: list[Json] = []
    for defence, group in by_defence.items():
        divergences = [row.kl for row in group if row.kl is not None]
        spoken = [(row.nll, row.n_tokens) for row in group if row.nll is not None]
        n_tokens = sum(n for _, n in spoken)
        total = sum(nll * n for nll, n in spoken)
        found.append(
            {
                "defence": defence,
                "n": len(group),
                "kl_mean": float(np.mean(divergences)) if divergences else None,
                "kl_max": max(divergences, default=None),
                "perplexity": float(np.exp(total / n_tokens)) if n_tokens else None,
                "n_tokens": n_tokens,
            }
        )
    return found


def _steps(rows: Sequence[JudgedRow], judge: str) -> Json:
    for defence in _WATCHING:
        steps = step_separation(rows, judge=judge, defence=defence)
        if steps:
            return {"defence": defence, "steps": [asdict(step) for step in steps]}
    return {"defence": None, "steps": []}


def _read_part(path: Path, taken_from: Callable[[Json], Json]) -> Json:
    """What was measured at the end of the run; {}: it was not asked for."""
    if not path.exists():
        return {}
    try:
        return taken_from(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error


def _overheads(bench: Json) -> Json:
    by_variant = {f"{row['variant']}/{row['kind']}": row for row in bench["variants"]}
    return {
        "ratios": bench["ratios"],
        "settings": {name: bench["settings"][name] for name in _BENCH_SETTINGS},
        "n_threads": bench["model"]["n_threads"],
        "peak_memory_bytes": bench["peak_memory_bytes"],
        **{
            figure: {name: row[figure] for name, row in by_variant.items()}
            for figure in ("passes_per_token", "tokens_per_second")
        },
    }
