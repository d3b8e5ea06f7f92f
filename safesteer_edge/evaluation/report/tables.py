"""A report's figures as tables, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]
_NOTHING: Final = "–"
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """note: under what conditions, in one line. rows: as many cells as the header."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def report_tables(report: Json) -> tuple[Table, ...]:
    """All of them, those without rows left out."""
    made = [
        *(_attack_table(report, judge) for judge in report["judges"]),
        _category_table(report),
        *(_best_table(report, judge) for judge in report["judges"]),
        _refusal_table(report),
        _identical_table(report),
        _accuracy_table(report),
        _trade_off_table(report),
        _paired_table(report),
        _quality_table(report),
        _cost_table(report),
        _steps_table(report),
        _agreement_table(report),
    ]
    return tuple(table for table in made if table.rows)


def conditions(report: Json, judge: str | None = None) -> str:
    """What every table must say: attempts, system prompt, decoding, judge."""
    facts = report["facts"]
    sampling = facts["sampling"]
    if sampling["temperature"] == 0:
        decoding = f"greedy, top-k {sampling['top_k']}"
    else:
        decoding = (
            f"temperature {sampling['temperature']}, top-k {sampling['top_k']}, top-p "
            f"{sampling['top_p']}, min-p {sampling['min_p']}, seed {sampling['seed']}"
        )
    parts = [
        "one attempt a case",
        "no system prompt but safety-prompt's own",
        f"{decoding}, at most {facts['max_tokens']} tokens",
    ]
    if judge:
        parts.append(f"judge: {judge}")
    return "; ".join(parts)


def shown_share(value: Json | None) -> str:
    """count/n (percent, Wilson interval)."""
    if value is None or not value["n"]:
        return _NOTHING
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{value['count']}/{value['n']} ({100 * value['share']:.0f} %, {low:.0f}–{high:.0f})"


def _attack_table(report: Json, judge: str) -> Table:
    rows = [row for row in report["attack_success"] if row["judge"] == judge]
    return _cross_table(
        f"Attack success ({judge})",
        f"{conditions(report, judge)}. {_success_note(judge)} Lower is better.",
        ("suite", "attack"),
        rows,
        shown_share,
    )


def _success_note(judge: str) -> str:
    if judge == "rules":
        return "An answer that does not refuse counts as success, harmful and right or not."
    return ""


def _category_table(report: Json) -> Table:
    return _cross_table(
        "Attack success by category",
        f"all attacks but the decoding grid; {conditions(report, report['judges'][0])}",
        ("category",),
        report["by_category"],
        shown_share,
    )


def _best_table(report: Json, judge: str) -> Table:
    rows = [row for row in report["best_of_n"] if row["judge"] == judge]
    rows = [{**row, "suite": f"{row['suite']}, best of {row['attempts']}"} for row in rows]
    return _cross_table(
        f"Requests for which any attempt succeeded ({judge})",
        f"attempts as named; {conditions(report, judge).partition('; ')[2]}",
        ("suite",),
        rows,
        shown_share,
    )


def _refusal_table(report: Json) -> Table:
    return _cross_table(
        "Harmless requests refused",
        f"{conditions(report, report['judges'][0])}. Lower is better.",
        ("suite",),
        report["refusal"],
        lambda row: shown_share(row["refused"] if row else None),
    )


def _identical_table(report: Json) -> Table:
    rows = [row for row in report["refusal"] if row["defence"] != "off"]
    return _cross_table(
        "Answers to harmless requests, byte for byte as without a defence",
        conditions(report),
        ("suite",),
        rows,
        lambda row: shown_share(row["identical"] if row else None),
    )


def _accuracy_table(report: Json) -> Table:
    return _cross_table(
        "Right answers, where it is known what is right",
        f"{conditions(report)}; an answer is right if it holds an expected one",
        ("suite",),
        report["accuracy"],
        shown_share,
    )


def _trade_off_table(report: Json) -> Table:
    return Table(
        "Safety against helpfulness, on the cases that all of these answered",
        f"attacks: plain harmful requests; {conditions(report, report['judges'][0])}",
        ("defence", "attacks stopped", "harmless answered"),
        tuple(
            (point["defence"], shown_share(point["stopped"]), shown_share(point["answered"]))
            for point in report["trade_off"]
        ),
    )


def _paired_table(report: Json) -> Table:
    return Table(
        "Paired tests (McNemar, exact, two-sided)",
        f"the same cases under both; {conditions(report, report['judges'][0])}",
        ("what", "first", "second", "n", "only first", "only second", "p"),
        tuple(
            (
                test["what"],
                test["first"],
                test["second"],
                str(test["n"]),
                str(test["only_first"]),
                str(test["only_second"]),
                _p_value(test["p_value"]),
            )
            for test in report["paired_tests"]
        ),
    )


def _quality_table(report: Json) -> Table:
    return Table(
        "Distance from the undefended model on harmless requests",
        "KL of next-token distributions in nats, mean over 16 steps of each answer (– where a "
        "defence leaves them alone); perplexity of its answers under the undefended model",
        ("defence", "n", "KL, mean", "KL, largest", "perplexity", "tokens"),
        tuple(
            (
                row["defence"],
                str(row["n"]),
                _number(row["kl_mean"], 4),
                _number(row["kl_max"], 4),
                _number(row["perplexity"], 2),
                str(row["n_tokens"]),
            )
            for row in report["quality"]
        ),
    )


def _cost_table(report: Json) -> Table:
    facts = report["facts"]
    return Table(
        "What answers took",
        f"{facts['n_workers']} processes of {facts['n_threads']} threads at once, so speeds are "
        "not for comparison with other runs; 'safesteer-edge bench' measures overheads",
        (
            "defence",
            "cases",
            "n",
            "tokens/s",
            "first text, median",
            "passes/token",
            "interventions/answer",
            "refused or withheld by it",
            "peak memory",
        ),
        tuple(
            (
                row["defence"],
                row["kind"],
                str(row["n"]),
                _number(row["tokens_per_second"], 1),
                _number(row["ttft_s"], 3, " s"),
                _number(row["passes_per_token"], 3),
                _number(row["interventions_per_answer"], 2),
                str(row["n_withheld_or_refused"]),
                _number(
                    row["peak_memory_bytes"] / _MIB if row["peak_memory_bytes"] else None,
                    0,
                    " MiB",
                ),
            )
            for row in report["cost"]
        ),
    )


def _steps_table(report: Json) -> Table:
    steps = report["steps"]
    wanted = (1, 2, 4, 8, 16, 24, 32)
    return Table(
        "Separation by the probe at each decoding step",
        f"AUROC of answers that comply with attacks against harmless ones, scored while they were "
        f"decoded ({steps['defence']}); {conditions(report, report['judges'][0])}",
        ("step", "AUROC", "harmful", "harmless"),
        tuple(
            (
                str(step["step"]),
                _number(step["auroc"], 3),
                str(step["n_harmful"]),
                str(step["n_harmless"]),
            )
            for step in steps["steps"]
            if step["step"] in wanted
        ),
    )


def _agreement_table(report: Json) -> Table:
    return Table(
        "Agreement between judges on whether attacks succeeded",
        "distinct answers to harmful requests that both judged; κ is agreement beyond chance",
        ("judges", "agree", "κ"),
        tuple(
            (" and ".join(row["judges"]), shown_share(row["agreeing"]), _number(row["kappa"], 2))
            for row in report["agreement"]
        ),
    )


def _cross_table(
    title: str,
    note: str,
    keys: Sequence[str],
    rows: Sequence[Json],
    show: Callable[[Json | None], str],
) -> Table:
    """One line for each combination of keys, one column for each defence."""
    defences = list(dict.fromkeys(row["defence"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, Json]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in keys), {})[row["defence"]] = row
    return Table(
        title,
        note,
        (*keys, *defences),
        tuple(
            (*names, *(show(cells.get(defence)) for defence in defences))
            for names, cells in lines.items()
        ),
    )


def _number(value: float | None, digits: int, unit: str = "") -> str:
    if value is None or value != value:
        return _NOTHING
    return f"{value:.{digits}f}{unit}"


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
