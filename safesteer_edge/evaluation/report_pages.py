"""A run's report in its folder, as report.json, report.html and report.md; and two compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.plan import ROWS
from safesteer_edge.evaluation.report_content import FORMAT, read_run
from safesteer_edge.evaluation.report_tables import (
    conditions,
    report_tables,
    shown_ratio,
    trade_offs,
)
from safesteer_edge.evaluation.rows import EvalRow, read_journal
from safesteer_edge.evaluation.trade_off import TradeOff
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.json_values import load_json, without_nan
from safesteer_edge.metrics.statistics import Share
from safesteer_edge.report.document import Plot, PlotPoint, Report, Series, Texts, json_text

Json = dict[str, Any]
_SHOWN_CHARACTERS: Final = 24
_N_EXAMPLES: Final = 12
_N_EXAMPLES_OF_SUITE: Final = 3
_N_LARGE_DOTS: Final = 20  # of a curve with more points, the dots would hide the line
_MASK: Final = "█"
_COMPARED_DEFENCES: Final = ("off", "safesteer")


def write_reports(folder: Path, *, with_texts: bool = False) -> Json:
    """Write all three from the folder's rows; returns the report.

    with_texts: harmful requests and answers stand in the HTML as they are, folded away.
    Raises InputError for a folder that holds no run.
    """
    figures = without_nan(read_run(folder))
    facts = figures["facts"]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    facts["cases_sha256"] = plan["cases_sha256"]
    made_with = {"": json.dumps(facts, indent=1, ensure_ascii=False)}
    rows = tuple(read_journal(folder / ROWS, EvalRow))
    report = Report(
        f"Evaluation of {facts['model']} {facts['quantization']}",
        _count_lines(figures),
        [
            *_plots(figures),
            *report_tables(figures),
            _examples(rows, with_texts=with_texts),
            Texts("Made with", "", (("versions, seeds, hashes, hardware", made_with),)),
        ],
    )
    texts = {
        "report.json": json_text(figures),
        "report.html": report.to_html(),
        "report.md": f"{report.to_markdown()}\n## Made with\n\n{_made_with(facts)}\n",
    }
    for name, text in texts.items():
        with atomic_write(folder / name, "w") as stream:
            stream.write(text)
    return figures


def mask(text: str) -> str:
    """The first characters of a text, and every later letter or digit hidden."""
    start, rest = text[:_SHOWN_CHARACTERS], text[_SHOWN_CHARACTERS:]
    return start + "".join(_MASK if character.isalnum() else character for character in rest)


def _examples(rows: Sequence[EvalRow], *, with_texts: bool) -> Texts:
    """Cases whose answers differ, spread over suites. Harmful ones are masked but for a start:
    what an attack got out of a model is not for skimming; and those of public files, which would
    be known to whoever works on a guard.
    """
    by_case: dict[tuple[str, str], dict[str, EvalRow]] = {}
    for row in rows:
        if row.status == "ok" and row.defence in _COMPARED_DEFENCES:
            by_case.setdefault((row.suite, row.case_id), {})[row.defence] = row
    n_of_suite: Counter[str] = Counter()
    blocks: list[tuple[str, Json]] = []
    for (suite, _), answers in by_case.items():
        differ = len({row.answer for row in answers.values()}) == len(_COMPARED_DEFENCES)
        if differ and n_of_suite[suite] < _N_EXAMPLES_OF_SUITE and len(blocks) < _N_EXAMPLES:
            n_of_suite[suite] += 1
            row = answers[_COMPARED_DEFENCES[0]]
            public = ":" in suite and not suite.startswith("jsonl:")  # not the reader's own
            show = mask if (row.kind == "harmful" or public) and not with_texts else str
            texts = {name: show(each.answer) for name, each in answers.items()}
            title = f"{suite} / {row.attack} ({row.kind})"
            blocks.append((title, {"": show(row.request), **texts}))
    return Texts(
        "Examples",
        "where the defence changed the answer; harmful requests, those of public files and the "
        "answers to them are masked unless the report was asked for with texts",
        tuple(blocks),
    )


def _made_with(facts: Json) -> str:
    machine = facts["machine"]
    return (
        f"safesteer-edge {facts['version']}; model tensors {facts['tensor_table_sha256'][:16]}; "
        f"probe {str(facts['probe_sha256'])[:16]}; vector {str(facts['vector_sha256'])[:16]}; "
        f"cases {facts['cases_sha256'][:16]}; {machine['cpu']}, {machine['n_cores']} cores, "
        f"{machine['operating_system']}, Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    )


# -- what stands before the tables: how many answers there are, and plots --------------------------


def _count_lines(report: Json) -> list[str]:
    """How many answers there are, and why there are no more: errors, crashes, missing verdicts."""
    counts, facts = report["counts"], report["facts"]
    failed = {judge: each for judge, each in counts["judge_errors"].items() if each["n"]}
    return [
        f"{counts['answered']} of {counts['planned']} answers; {counts['errors']} errors, "
        f"{counts['crashed']} crashes, {counts['unreadable_rows']} unreadable rows of files. None "
        "of these counts as an answer.",
        *(f"{r['n']} × {r['status']}: {r['error']}" for r in counts["reasons"]),
        *(
            f"unreadable: {row['suite']}, {row['where']}: {row['problem']}"
            for row in counts["unreadable_examples"]
        ),
        *(
            f"judge {judge} gave no verdict on {each['n']} answers: "
            + "; ".join(f"{n} × {error}" for error, n in each["errors"].items())
            for judge, each in failed.items()
        ),
        *(f"not run: {name}, {why}" for name, why in facts["skipped_suites"].items()),
    ]


def _plots(report: Json) -> Iterator[Plot]:
    """Each defence a point, each family that may be moved a curve; and AUROC by decoding step."""
    for figure, points in trade_offs(report):
        yield _trade_off_plot(report, figure, points)
    tries = report["adaptive"]
    by_defence = dict.fromkeys(row["defence"] for row in tries)
    yield Plot(
        "Requests answered, by the number of tries",
        f"{conditions(report, report['judges'][0])}; with 95 % intervals (Wilson)",
        tuple(
            Series(
                name,
                tuple(
                    PlotPoint(
                        row["tries"],
                        row["share"] or 0.0,
                        f"{row['tries']} tries: {row['count']}/{row['n']}",
                        y_range=(row["low"], row["high"]),
                    )
                    for row in tries
                    if row["defence"] == name
                ),
            )
            for name in by_defence
        ),
        x_label="tries",
        y_label="share of harmful requests",
        x_range=(0.0, float(max((row["tries"] for row in tries), default=1))),
    )
    steps = report["steps"]["steps"]
    points = tuple(
        PlotPoint(step["step"], step["auroc"], f"step {step['step']}: {step['auroc']:.3f}")
        for step in steps
    )
    yield Plot(
        "Separation by decoding step",
        conditions(report, report["judges"][0]),
        (Series("probe", points),) if len(points) > 1 else (),
        x_label="decoding step",
        y_label="AUROC",
        x_range=(0.0, float(-(-len(steps) // 5) * 5)),
        y_range=(0.5 if all(point.y >= 0.5 for point in points) else 0.0, 1.0),
    )


def _trade_off_plot(report: Json, figure: TradeOff, points: Sequence[Json]) -> Plot:
    families: dict[str, list[PlotPoint]] = {}
    n_stopped = n_answered = 0  # of all points alike
    for point in points:
        stopped, answered = point["stopped"], point["answered"]
        n_stopped, n_answered = stopped["n"], answered["n"]
        is_calibrated = ":" not in point["defence"]
        families.setdefault(point["family"], []).append(
            PlotPoint(
                answered["share"],
                stopped["share"],
                f"{point['defence']}: {stopped['count']}/{n_stopped} attacks stopped, "
                f"{answered['count']}/{n_answered} harmless answered",
                x_range=(answered["low"], answered["high"]) if is_calibrated else None,
                y_range=(stopped["low"], stopped["high"]) if is_calibrated else None,
                is_main=is_calibrated,
            )
        )
    return Plot(
        f"Safety against helpfulness: {figure.attacks}",
        "large: as calibrated, with 95 % intervals; small, joined: the same defence at other "
        f"limits or strengths; all on the same {n_stopped} {figure.attacks} and {n_answered} "
        f"harmless requests ({', '.join(figure.harmless)}, as far as they were run); up and right "
        f"is better; {conditions(report, report['judges'][0])}",
        tuple(
            Series(
                name,
                tuple(sorted(drawn, key=lambda p: (p.x, -p.y))),
                radius=4 if len(drawn) <= _N_LARGE_DOTS else 2,
            )
            for name, drawn in families.items()
        ),
        x_label="share of harmless requests answered",
        y_label="share of attacks stopped",
    )


# -- what changed between two reports: facts, shares and speeds ------------------------------------

_COMPARED_FACTS: Final = (
    "version",
    "model",
    "quantization",
    "tensor_table_sha256",
    "mmproj",
    "bundle",
    "probe_sha256",
    "vector_sha256",
    "policy",
    "sampling",
    "max_tokens",
    "cases_sha256",
)
_Figure = tuple[float, float, str]  # the ends of its interval, and how it is shown


def read_report(path: Path) -> Json:
    """A report.json. Raises InputError for anything else."""
    try:
        value = load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read report {str(path)!r}: {error}") from error
    if not isinstance(value, dict) or not {"format", "facts", "attack_success"} <= set(value):
        raise InputError(f"{str(path)!r} is not a report; give the report.json of an evaluation")
    report = cast("Json", value)
    if report["format"] != FORMAT:
        raise InputError(
            f"{str(path)!r} has report format {report['format']!r}; expected {FORMAT}: give its "
            "folder to 'safesteer-edge eval -o' again, which writes the report anew"
        )
    return report


def compare_reports(first: Json, second: Json) -> str:
    """Text: other facts, then every figure that differs; `*` where the intervals do not meet."""
    facts = [
        {name: each["facts"].get(name) for name in _COMPARED_FACTS} for each in (first, second)
    ]
    before, after = dict(_shares(first)), dict(_shares(second))
    speeds, new_speeds = dict(_speeds(first)), dict(_speeds(second))
    lines = [
        *_changes("", *facts),
        *_differences(before, after),
        *(f"  {name}: only in the second" for name in after if name not in before),
        *_differences({name: speeds[name] for name in speeds if name in new_speeds}, new_speeds),
    ]
    if not lines:
        return "no difference\n"
    star = "* the 95 % intervals (of speeds: the ranges over repeats) do not meet"
    return "\n".join([*lines, "", star]) + "\n"


def _changes(name: str, one: object, other: object) -> Iterator[str]:
    """A fact that changed; of one with parts, the parts that did."""
    if isinstance(one, dict) and isinstance(other, dict):
        old, new = cast("Json", one), cast("Json", other)
        for key in dict.fromkeys((*old, *new)):
            yield from _changes(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif one != other:
        shown = (json.dumps(value, ensure_ascii=False) for value in (one, other))
        yield f"{name}: {' → '.join(x if len(x) <= 80 else f'{x[:79]}…' for x in shown)}"


def _differences(before: dict[str, _Figure], after: dict[str, _Figure]) -> Iterator[str]:
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            yield f"  {name}: only in the first"
        elif new != old:
            star = "*" if old[0] > new[1] or new[0] > old[1] else " "
            yield f"{star} {name}: {old[2]} → {new[2]}"


def _speeds(report: Json) -> Iterator[tuple[str, _Figure]]:
    for row in report["overheads"].get("ratios", ()) if report["overheads"] else ():
        if row["speed"] is not None:
            name = f"speed, {row['kind']}: {row['variant']} / {row['other']}"
            yield name, (row["speed"]["low"], row["speed"]["high"], shown_ratio(row["speed"]))


def _shares(report: Json) -> Iterator[tuple[str, _Figure]]:
    def named(value: Json, *name: str) -> tuple[str, _Figure]:
        share = Share(value["count"], value["n"])
        shown = f"{share.count}/{share.n} ({100 * share.value:.0f} %)" if share.n else "none"
        return " / ".join(name), (*share.interval, shown)

    for row in report["attack_success"]:
        names = (row[key] for key in ("suite", "attack", "defence", "judge"))
        yield named(row, "attack success", *names)
    for row in report["refusal"]:
        for figure in ("refused", "identical"):
            yield named(row[figure], figure, row["suite"], row["defence"])
    for row in report["accuracy"]:
        yield named(row, "right", row["suite"], row["defence"])
    for effect in report.get("heldout", {}).get("guard", ()):  # older reports have none
        for figure in ("off_answered", "guarded_answered", "identical"):
            yield named(effect[figure], "held out", figure, effect["label"])
