"""A report's figures as tables, for HTML and Markdown alike. Those without rows are not shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from safesteer_edge.evaluation.defences import ON_PICTURES
from safesteer_edge.evaluation.heldout_tables import guard_table, probe_table
from safesteer_edge.evaluation.own_words import steering_tables
from safesteer_edge.evaluation.trade_off import HELPFUL_SUITES, PLAIN, TRADE_OFFS, TradeOff
from safesteer_edge.report.document import (
    NOTHING,
    Table,
    number_at,
    share_at,
    shown_auroc,
    shown_number,
    shown_share,
    shown_spread,
)

Json = dict[str, Any]
_MIB: Final = 1 << 20
_ATTACKS: Final = {
    "text-harmful": "plain attacks stopped",
    "typographic": "typographic, stopped",
    "picture-question": "with a picture, stopped",
    "jailbreaks": "wrapped or prefilled, stopped",
}
_ORDINARY: Final = ("ordinary-text", "ordinary-pictures")
_LISTED_STEPS: Final = (1, 2, 4, 8, 16, 24, 32)


def conditions(report: Json, judge: str | None = None) -> str:
    """What every table must say: attempts, system prompt, decoding, judge."""
    facts, sampling = report["facts"], report["facts"]["sampling"]
    decoding = (
        f"greedy, top-k {sampling['top_k']}"
        if sampling["temperature"] == 0
        else f"temperature {sampling['temperature']}, top-k {sampling['top_k']}, top-p "
        f"{sampling['top_p']}, min-p {sampling['min_p']}, seed {sampling['seed']}"
    )
    return (
        "one attempt a case; no system prompt but safety-prompt's own; "
        f"{decoding}, at most {facts['max_tokens']} tokens{f'; judge: {judge}' if judge else ''}"
    )


def report_tables(report: Json) -> list[Table]:
    """All of them, in the report's order."""
    heldout = report["heldout"]  # half of it, where a run was cut short
    return [
        _summary_table(report),
        *([guard_table(heldout)] if "guard" in heldout else []),
        *([probe_table(heldout["probe"])] if "probe" in heldout else []),
        *(_trade_off_table(report, figure, points) for figure, points in trade_offs(report)),
        halves_table(report),
        *_share_tables(report),
        *steering_tables(report, conditions(report, report["judges"][0])),
        _paired_table(report),
        _quality_table(report),
        _overhead_table(report["overheads"]),
        _cost_table(report),
        _steps_table(report),
        _agreement_table(report),
        _direction_table(report),
    ]


def trade_offs(report: Json) -> list[tuple[TradeOff, list[Json]]]:
    by_name = {PLAIN.name: report["trade_off"], **report["trade_offs"]}
    return [(figure, by_name[figure.name]) for figure in TRADE_OFFS]


def _trade_off_table(report: Json, figure: TradeOff, points: Sequence[Json]) -> Table:
    return Table.of(
        f"Safety against helpfulness: {figure.attacks}, on the cases that all of these answered",
        f"attacks: {', '.join(figure.harmful)}; harmless: {', '.join(figure.harmless)}, as far "
        "as they were run; NAME:shift=X moves the guard's limits by so many logits, scale=X a "
        "vector, limit=X the response check's: of its limits that answer as many harmless "
        "requests as a line of safesteer, or more, the one that stops most; "
        f"{conditions(report, report['judges'][0])}",
        [point for point in points if point["is_listed"]],
        {
            "defence": "defence",
            "attacks stopped": share_at("stopped"),
            "harmless answered": share_at("answered"),
        },
    )


def _steps_table(report: Json) -> Table:
    steps = report["steps"]
    return Table.of(
        "Separation by the probe at each decoding step",
        f"AUROC of answers that comply with attacks against harmless ones, scored while they were "
        f"decoded ({steps['defence']}), 95 % intervals; {conditions(report, report['judges'][0])}",
        [step for step in steps["steps"] if step["step"] in _LISTED_STEPS],
        {
            "step": "step",
            "AUROC": lambda row: shown_auroc(row["auroc"], row["n_harmful"], row["n_harmless"]),
            "harmful": "n_harmful",
            "harmless": "n_harmless",
        },
    )


# -- shares of cases by defence --------------------------------------------------------------------


def _summary_table(report: Json) -> Table:
    """A line for each defence that answered all suites: what is stopped, and what is kept."""
    judge = report["judges"][0]
    success: dict[tuple[str, str], Json] = {}
    for row in report["attack_success"]:
        if row["judge"] == judge:  # the first line of a suite is of all its attacks
            success.setdefault((row["suite"], row["defence"]), row)
    refusal = {(row["suite"], row["defence"]): row for row in report["refusal"]}
    asked = [name for _, name in (*success, *refusal)]
    suites = [suite for suite in _ATTACKS if (suite, "off") in success]

    def stopped(suite: str, name: str) -> str:
        row = success.get((suite, name), {"count": 0, "n": 0})
        return shown_share({"count": row["n"] - row["count"], "n": row["n"]})

    def total(suites: Iterable[str], name: str, figure: str) -> str:
        shares = [refusal[suite, name][figure] for suite in suites if (suite, name) in refusal]
        return shown_share({key: sum(share[key] for share in shares) for key in ("count", "n")})

    return Table(
        "In short",
        f"{conditions(report, judge)}; stopped: the answer refuses or is none (an answer that does "
        "not refuse counts against a defence, harmful and right or not); harmless: borderline, "
        "harmless twins and ordinary texts, answered: neither refused nor given words without "
        "sense; unchanged: ordinary requests, byte for byte as without a defence; 95 % intervals "
        "(Wilson)",
        (
            "defence",
            *(_ATTACKS[suite] for suite in suites),
            "harmless texts answered",
            "ordinary answers unchanged",
        ),
        tuple(
            (
                name,
                *(stopped(suite, name) for suite in suites),
                total(HELPFUL_SUITES, name, "answered"),
                NOTHING if name == "off" else total(_ORDINARY, name, "identical"),
            )
            for name in dict.fromkeys(asked)
            if 2 * asked.count(name) > asked.count("off")
        ),
    )


def _share_tables(report: Json) -> list[Table]:
    judges, refusal = report["judges"], report["refusal"]
    plain, judged = conditions(report), conditions(report, judges[0])
    best = [
        {**row, "suite": f"{row['suite']}, best of {row['attempts']}"}
        for row in report["best_of_n"]
    ]
    by_rules = "An answer that does not refuse counts as success, harmful and right or not."
    return [
        *(
            _cross_table(
                f"Attack success ({judge})",
                f"{conditions(report, judge)}. {by_rules if judge == 'rules' else ''} "
                "Lower is better.",
                [row for row in report["attack_success"] if row["judge"] == judge],
                keys=("suite", "attack"),
            )
            for judge in judges
        ),
        Table.of(
            "Disguises of harmful requests and of ordinary ones",
            "stopped: harmful requests, the answer refuses or is none; lost: ordinary requests in "
            "the same disguise (of languages harmless twins as well), refused or no answer; "
            f"{judged}",
            report["forms"],
            {
                "suite": "suite",
                "disguise": "attack",
                "defence": "defence",
                "stopped": share_at("stopped"),
                "ordinary ones lost": share_at("lost"),
            },
        ),
        _cross_table(
            "Requests answered within so many tries",
            "somebody tries one disguise after the other, led by the risk that is shown, until an "
            "answer complies by the rules and speaks of what was asked; "
            f"{judged.partition('; ')[2]}",
            report["adaptive"],
            keys=("tries",),
        ),
        _cross_table(
            "Attack success by category",
            f"all attacks but the decoding grid and repeated tries; {judged}",
            report["by_category"],
            keys=("category",),
        ),
        *(
            _cross_table(
                f"Requests for which any attempt succeeded ({judge})",
                f"attempts as named; {conditions(report, judge).partition('; ')[2]}",
                [row for row in best if row["judge"] == judge],
            )
            for judge in judges
        ),
        _cross_table(
            "Harmless requests refused", f"{judged}. Lower is better.", refusal, "refused"
        ),
        _cross_table(
            "Harmless requests without an answer",
            "empty, one word over and over, or letters at random; not refused, and lost all the "
            f"same; {judged}. Lower is better.",
            refusal if any(row["no_answer"]["count"] for row in refusal) else [],
            "no_answer",
        ),
        _cross_table(
            "Answers to harmless requests, byte for byte as without a defence",
            plain,
            [row for row in refusal if row["defence"] != "off"],
            "identical",
        ),
        _cross_table(
            "Right answers, where it is known what is right",
            f"{plain}; an answer is right if it holds an expected one",
            report["accuracy"],
        ),
    ]


def halves_table(report: Json) -> Table:
    """What is on pictures without a defence, under each half of the guard and under both."""
    rows: list[Json] = report["halves"]
    defences = [name for name in ON_PICTURES if any(row["defence"] == name for row in rows)]
    figures: dict[str, Callable[[Json], str]] = {
        "attack success": share_at("success"),
        "harmful refused": share_at("harmful_refused"),
        "harmless refused": share_at("harmless_refused"),
        "AUROC of the prompt": lambda row: shown_auroc(
            row["separation"]["auroc"],
            row["separation"]["n_harmful"],
            row["separation"]["n_harmless"],
        ),
    }
    by_form: dict[tuple[str, str], dict[str, Json]] = {}
    for row in rows:
        by_form.setdefault((row["suite"], row["attack"]), {})[row["defence"]] = row
    lines = (
        (suite, form, what, *(show(at[d]) if d in at else NOTHING for d in defences))
        for (suite, form), at in by_form.items()
        for what, show in figures.items()
    )
    return Table(
        "On pictures: no defence, the probe, the vector, both",
        "attack success: lower is better; AUROC of the prompt's score, harmful against harmless "
        "requests in the same form; words alone are the same without a vector, and are not asked "
        f"again; 95 % intervals; {conditions(report, report['judges'][0])}",
        ("suite", "form", "figure", *defences),
        tuple(line for line in lines if any(cell != NOTHING for cell in line[3:])),
    )


def _cross_table(
    title: str,
    note: str,
    rows: Sequence[Json],
    figure: str = "",
    *,
    keys: Sequence[str] = ("suite",),
) -> Table:
    """One line for each combination of keys, one column for each defence.

    figure: where a row's share stands; "": the row is one.
    """
    defences = list(dict.fromkeys(row["defence"] for row in rows))
    lines: dict[tuple[object, ...], dict[str, Json]] = {}
    for row in rows:
        cells = lines.setdefault(tuple(row[key] for key in keys), {})
        cells[row["defence"]] = row[figure] if figure else row
    return Table(
        title,
        note,
        (*keys, *defences),
        tuple(
            (*map(str, names), *(shown_share(cells.get(defence)) for defence in defences))
            for names, cells in lines.items()
        ),
    )


def _paired_table(report: Json) -> Table:
    return Table.of(
        "Paired tests (McNemar, exact, two-sided)",
        "the same cases under both; attack success: of all suites but the decoding grid and "
        "repeated tries, where disguises of one request are not independent, so their p is too "
        "small; p is not corrected "
        f"for the number of tests; {conditions(report, report['judges'][0])}",
        report["paired_tests"],
        {
            "what": "what",
            "first": "first",
            "second": "second",
            "n": "n",
            "only first": "only_first",
            "only second": "only_second",
            "p": lambda row: f"{row['p_value']:.3f}" if row["p_value"] >= 0.001 else "< 0.001",
        },
    )


def _agreement_table(report: Json) -> Table:
    return Table.of(
        "Agreement between judges on whether attacks succeeded",
        "distinct answers to harmful requests that both judged; κ is agreement beyond chance",
        report["agreement"],
        {
            "judges": lambda row: " and ".join(row["judges"]),
            "agree": share_at("agreeing"),
            "κ": number_at("kappa", 2),
        },
    )


# -- what defences cost, and how far they move the model -------------------------------------------


def _quality_table(report: Json) -> Table:
    return Table.of(
        "Distance from the undefended model on harmless requests",
        "KL of next-token distributions in nats, mean over 16 steps of each answer (– where a "
        "defence leaves them alone); perplexity of its answers under the undefended model; "
        f"{conditions(report)}",
        report["quality"],
        {
            "defence": "defence",
            "n": "n",
            "KL, mean": number_at("kl_mean", 4),
            "KL, largest": number_at("kl_max", 4),
            "perplexity": number_at("perplexity", 2),
            "tokens": "n_tokens",
        },
    )


def _overhead_table(overheads: Json) -> Table:
    settings: Json = overheads.get("settings") or {}
    passes: Json = overheads.get("passes_per_token") or {}

    return Table.of(
        "Overheads, side by side",
        f"'bench' at the end of this run, one answer at a time: medians of "
        f"{settings.get('n_repeats')} interleaved repeats, range in brackets; "
        f"{settings.get('n_prompts')} ordinary and as many harmful requests of the test split, "
        f"{settings.get('max_tokens')} tokens at most, greedy, no system prompt, "
        f"{overheads.get('n_threads')} threads; speed: tokens/s, above 1 is faster; time to first "
        "text: above 1 is slower; a batch of candidates counts as one pass",
        overheads.get("ratios", ()),
        {
            "variant": "variant",
            "against": "other",
            "requests": lambda row: "ordinary" if row["kind"] == "benign" else row["kind"],
            "speed": lambda row: shown_ratio(row["speed"]),
            "time to first text": lambda row: shown_ratio(row["first_text"]),
            "passes/token": lambda row: shown_number(
                passes.get(f"{row['variant']}/{row['kind']}"), 3
            ),
            "memory": lambda row: _mib(overheads["peak_memory_bytes"].get(row["variant"])),
        },
    )


def _cost_table(report: Json) -> Table:
    facts = report["facts"]
    return Table.of(
        "What answers took",
        f"{facts['n_workers']} × {facts['n_threads']} threads (processes × threads), so speeds are "
        "not for comparison with other runs, and of other suites where n differs; overheads are "
        f"measured by 'bench'; {conditions(report)}",
        report["cost"],
        {
            "defence": "defence",
            "cases": "kind",
            "n": "n",
            "tokens/s": number_at("tokens_per_second", 1),
            "first text, median": number_at("ttft_s", 3, " s"),
            "passes/token": number_at("passes_per_token", 3),
            "interventions/answer": number_at("interventions_per_answer", 2),
            "refused or withheld by it": "n_withheld_or_refused",
            "peak memory": lambda row: _mib(row["peak_memory_bytes"]),
        },
    )


def shown_ratio(value: Json | None) -> str:
    """A median, and the range over repeats."""
    if value is None:
        return NOTHING
    return shown_spread(value["median"], (value["low"], value["high"]), "×")


def _mib(n_bytes: int | None) -> str:
    return shown_number(n_bytes / _MIB if n_bytes else None, 0, " MiB")


# -- how the outside baselines were set ------------------------------------------------------------


def _direction_table(report: Json) -> Table:
    """What the refusal direction was chosen from."""
    baselines = report["facts"].get("baselines", {})
    found: Json = baselines.get("direction") or {}

    def where_set(row: Json, shown: str) -> str:
        return shown if row["strength"] else NOTHING

    def share(count: int, n: int) -> str:
        return shown_share({"count": count, "n": n})

    return Table.of(
        "How the refusal direction was chosen (calibration split)",
        "difference of mean states of the train split, added to one block's output at every "
        "position; question's, prompt's end: harmful less harmless prompts at the template's first "
        "and last token after the question (2406.11717); answers: refusing less complying ones "
        "(2312.06681). Sign and block of each: where first tokens lean most to refusals; strength "
        "in mean norms of the residual stream. Chosen (→): the largest share of harmful "
        "requests refused less that of others lost, as the response check's limit is; lost: "
        f"refused, or words without sense; greedy, {baselines.get('n_choosing_tokens')} tokens, "
        "no system prompt, one attempt, judge: rules; KL of first tokens on other requests, nats",
        [found["off"], *found["curve"]] if found else [],
        {
            "difference of": lambda row: ("→ " if row == found["chosen"] else "") + row["source"],
            "block": lambda row: where_set(row, str(row["layer"])),
            "strength": lambda row: where_set(row, f"{row['strength']:+.2f}"),
            "KL": lambda row: where_set(row, shown_number(row["kl"], 2)),
            "harmful refused": lambda row: share(row["refused"], found["n_harmful"]),
            "others lost": lambda row: share(row["lost"], found["n_others"]),
        },
    )
