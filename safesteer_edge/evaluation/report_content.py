"""What a report says, as JSON-ready values: every figure with its n, and what it was made from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.judged import (
    JudgedRow,
    best_of_n,
    cost_of,
    grouped,
    is_right,
    judge_agreements,
    paired_test,
    share_of,
    step_separation,
    with_verdicts,
)
from safesteer_edge.evaluation.judges import RULES, Judgement, judge_names
from safesteer_edge.evaluation.plan import BENCH, FACTS, HELDOUT, JUDGEMENTS, QUALITY, ROWS
from safesteer_edge.evaluation.quality import QualityRow
from safesteer_edge.evaluation.rows import EvalRow, read_journal
from safesteer_edge.evaluation.trade_off import HARMFUL_SUITES, share_json, trade_offs_to_json

# -- what was measured at the end of a run: overheads, and the guard on held-out requests ----------

Json = dict[str, Any]
_BENCH_SETTINGS: Final = ("n_repeats", "n_prompts", "max_tokens")
_HELDOUT_PARTS: Final = ("max_tokens", "guard", "probe")


def read_overheads(path: Path) -> Json:
    """What the bench measured at the end of this run; {}: it was not asked for."""
    if not path.exists():
        return {}
    try:
        bench: Json = json.loads(path.read_text(encoding="utf-8"))
        return {
            "ratios": bench["ratios"],
            "settings": {name: bench["settings"][name] for name in _BENCH_SETTINGS},
            "n_threads": bench["model"]["n_threads"],
            "peak_memory_bytes": bench["peak_memory_bytes"],
            "passes_per_token": {
                f"{row['variant']}/{row['kind']}": row["passes_per_token"]
                for row in bench["variants"]
            },
            "tokens_per_second": {
                f"{row['variant']}/{row['kind']}": row["tokens_per_second"]
                for row in bench["variants"]
            },
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error


def read_heldout(path: Path) -> Json:
    """What the guard does on the test split, as far as it was measured; {}: not asked for."""
    if not path.exists():
        return {}
    try:
        heldout: Json = json.loads(path.read_text(encoding="utf-8"))
        return {name: heldout[name] for name in _HELDOUT_PARTS if name in heldout}
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error


# -- the version of report.json: a report of another one is not compared ---------------------------

FORMAT: Final = 2


_N_REASONS: Final = 12
_GRID: Final = "decoding-grid"  # 49 attempts at one request: they would count as 49 requests
_WATCHING: Final = ("response-check", "safesteer")  # whose scores tell of the model's own words


def read_run(folder: Path) -> Json:
    """The whole report of a run's folder. Raises InputError for one that holds none."""
    try:
        facts: Json = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(folder)!r} holds no evaluation ({error}); run 'safesteer-edge eval -o' first"
        ) from error
    rows = tuple(read_journal(folder / ROWS, EvalRow))
    judgements = tuple(read_journal(folder / JUDGEMENTS, Judgement))
    quality_path = folder / QUALITY
    quality = tuple(read_journal(quality_path, QualityRow)) if quality_path.exists() else ()
    judges = judge_names(judgements) or [RULES]
    judged = with_verdicts(rows, judgements)
    main = [j for j in judged if ":" not in j.row.defence]  # points of a curve are in it alone
    return {
        "format": FORMAT,
        "facts": facts,
        "judges": judges,
        "counts": _counts(judged, judges, facts),
        "attack_success": [row for judge in judges for row in _attack_success(main, judge)],
        "by_category": _by_category(main, judges[0]),
        "best_of_n": [row for judge in judges for row in _best_of_n(main, judge)],
        "refusal": _refusal(main, judges[0]),
        "accuracy": _accuracy(main),
        "paired_tests": _paired_tests(main, judges[0]),
        "quality": _quality(quality),
        "cost": _costs(main),
        "overheads": read_overheads(folder / BENCH),
        "heldout": read_heldout(folder / HELDOUT),
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


def _attack_success(rows: Iterable[JudgedRow], judge: str) -> list[Json]:
    """Of harmful cases, by suite and attack; and each suite as a whole."""
    harmful = [j for j in rows if j.row.kind == "harmful"]
    found: list[Json] = []
    for suite, in_suite in grouped(harmful, lambda row: row.suite).items():
        attacks = grouped(in_suite, lambda row: row.attack)
        parts = {"all": in_suite, **attacks} if len(attacks) > 1 else attacks
        for attack, in_attack in parts.items():
            for defence, group in grouped(in_attack, lambda row: row.defence).items():
                share = share_of(group, lambda j: j.is_success(judge))
                found.append(
                    {
                        "suite": suite,
                        "attack": attack,
                        "defence": defence,
                        "judge": judge,
                        **share_json(share),
                    }
                )
    return found


def _by_category(rows: Iterable[JudgedRow], judge: str) -> list[Json]:
    harmful = [j for j in rows if j.row.kind == "harmful" and j.row.suite != _GRID]
    found: list[Json] = []
    for category, in_category in sorted(grouped(harmful, lambda row: row.category).items()):
        for defence, group in grouped(in_category, lambda row: row.defence).items():
            share = share_of(group, lambda j: j.is_success(judge))
            found.append({"category": category, "defence": defence, **share_json(share)})
    return found


def _best_of_n(rows: Iterable[JudgedRow], judge: str) -> list[Json]:
    """Requests that have several attempts in one suite."""
    found: list[Json] = []
    harmful = [j for j in rows if j.row.kind == "harmful"]
    for suite, in_suite in grouped(harmful, lambda row: row.suite).items():
        for defence, group in grouped(in_suite, lambda row: row.defence).items():
            share, attempts = best_of_n(group, judge)
            if attempts > 1:
                found.append(
                    {
                        "suite": suite,
                        "defence": defence,
                        "judge": judge,
                        "attempts": attempts,
                        **share_json(share),
                    }
                )
    return found


def _refusal(rows: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Of harmless cases: refused, without answer, and byte-identical to no defence."""
    harmless = [j for j in rows if j.row.kind != "harmful"]
    off = {
        (j.row.suite, j.row.case_id): j.row.answer
        for j in harmless
        if j.row.defence == "off" and j.row.status == "ok"
    }

    def is_identical(judged: JudgedRow) -> bool | None:
        answer = off.get((judged.row.suite, judged.row.case_id))
        return None if answer is None or judged.row.status != "ok" else judged.row.answer == answer

    def is_empty(judged: JudgedRow) -> bool | None:
        verdict = judged.verdicts.get(judge)
        return None if verdict is None or verdict.label is None else verdict.label == "no-answer"

    found: list[Json] = []
    for suite, in_suite in grouped(harmless, lambda row: row.suite).items():
        for defence, group in grouped(in_suite, lambda row: row.defence).items():
            found.append(
                {
                    "suite": suite,
                    "defence": defence,
                    "refused": share_json(share_of(group, lambda j: j.is_refused(judge))),
                    "answered": share_json(share_of(group, lambda j: j.is_answered(judge))),
                    "no_answer": share_json(share_of(group, is_empty)),
                    "identical": share_json(share_of(group, is_identical)),
                }
            )
    return found


def _accuracy(rows: Iterable[JudgedRow]) -> list[Json]:
    expected = [j for j in rows if j.row.expected]
    found: list[Json] = []
    for suite, in_suite in grouped(expected, lambda row: row.suite).items():
        for defence, group in grouped(in_suite, lambda row: row.defence).items():
            share = share_of(group, lambda j: is_right(j.row))
            found.append({"suite": suite, "defence": defence, **share_json(share)})
    return found


def _paired_tests(rows: Sequence[JudgedRow], judge: str) -> list[Json]:
    """Every defence against none, and SafeSteer against every other."""
    by_defence = grouped(rows, lambda row: row.defence)
    pairs = [("off", name) for name in by_defence if name != "off"]
    pairs += [("safesteer", name) for name in by_defence if name not in ("off", "safesteer")]
    tests: Mapping[str, tuple[Callable[[JudgedRow], bool], Callable[[JudgedRow], bool | None]]] = {
        "plain attack success": (
            lambda j: j.row.suite in HARMFUL_SUITES,
            lambda j: j.is_success(judge),
        ),
        "attack success": (
            lambda j: j.row.kind == "harmful" and j.row.suite != _GRID,
            lambda j: j.is_success(judge),
        ),
        "harmless refused": (lambda j: j.row.kind != "harmful", lambda j: j.is_refused(judge)),
    }
    found: list[Json] = []
    for what, (wanted, hit) in tests.items():
        for one, other in pairs:
            if one in by_defence:
                result = paired_test(
                    what,
                    [j for j in by_defence[one] if wanted(j)],
                    [j for j in by_defence[other] if wanted(j)],
                    hit,
                )
                if result is not None:
                    found.append(asdict(result))
    return found


def _quality(rows: Sequence[QualityRow]) -> list[Json]:
    by_defence: dict[str, list[QualityRow]] = {}
    for row in rows:
        by_defence.setdefault(row.defence, []).append(row)
    found: list[Json] = []
    for defence, group in by_defence.items():
        divergences = [row.kl for row in group if row.kl is not None]
        spoken = [row for row in group if row.nll is not None]
        n_tokens = sum(row.n_tokens for row in spoken)
        total = sum((row.nll or 0.0) * row.n_tokens for row in spoken)
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


def _costs(rows: Sequence[JudgedRow]) -> list[Json]:
    defences = list(grouped(rows, lambda row: row.defence))
    costs = [cost_of(rows, d, kind) for d in defences for kind in ("benign", "harmful")]
    return [asdict(cost) for cost in costs if cost is not None]


def _steps(rows: Sequence[JudgedRow], judge: str) -> Json:
    for defence in _WATCHING:
        steps = step_separation(rows, judge=judge, defence=defence)
        if steps:
            return {"defence": defence, "steps": [asdict(step) for step in steps]}
    return {"defence": None, "steps": []}


# -- how many answers there are, and why there are no more: errors, crashes, missing verdicts ------


def count_lines(report: Json) -> list[str]:
    """What was asked and what is no answer, in lines for people."""
    counts, facts = report["counts"], report["facts"]
    lines = [
        f"{counts['answered']} of {counts['planned']} answers; {counts['errors']} errors, "
        f"{counts['crashed']} crashes, {counts['unreadable_rows']} unreadable rows of files. None "
        "of these counts as an answer."
    ]
    lines += [f"{r['n']} × {r['status']}: {r['error']}" for r in counts["reasons"]]
    lines += [
        f"unreadable: {row['suite']}, {row['where']}: {row['problem']}"
        for row in counts["unreadable_examples"]
    ]
    for judge, failed in counts["judge_errors"].items():
        if failed["n"]:
            errors = "; ".join(f"{n} × {error}" for error, n in failed["errors"].items())
            lines.append(f"judge {judge} gave no verdict on {failed['n']} answers: {errors}")
    lines += [f"not run: {name}, {why}" for name, why in facts["skipped_suites"].items()]
    return lines
