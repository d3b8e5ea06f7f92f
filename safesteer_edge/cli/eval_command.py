"""`safesteer-edge eval`: a model with its guard against the same model without it, and a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from safesteer_edge.cli.options import OK, add_model_options, add_sampling_options, session_settings
from safesteer_edge.errors import SettingsError

_DEFAULT_SUITE = "quick"
_DESCRIPTION = (
    "Ask a model harmful and harmless requests under several defences, judge the answers, and "
    "write report.html, report.md and report.json into a folder. Given again, the same command "
    "goes on where it was stopped."
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval", help="safety, helpfulness and cost, in one report", description=_DESCRIPTION
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="print what changed between two reports, and do nothing else",
    )
    _add_suites(parser.add_argument_group("what to ask"))
    _add_method(parser.add_argument_group("how"))
    add_model_options(parser)
    add_sampling_options(parser)
    parser.set_defaults(
        run=run,
        temperature=0.0,
        max_tokens=48,
        guard="steer",
        rerank="lazy",
        strength=None,
        threshold=None,
    )


def _add_suites(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NAME[=N]",
        help="builtin, quick (default), full, or one suite; N requests of each at most",
    )
    what.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FORMAT=F",
        help="a public file: advbench, harmbench, jailbreakbench, maliciousinstruct, xstest, "
        "figstep, mm-safetybench, mm-vet, scienceqa, jsonl",
    )
    what.add_argument("--limit", type=int, metavar="N", help="requests of each suite at most")


def _add_method(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--defence",
        action="append",
        default=[],
        metavar="NAME",
        help="default: all; NAME:strength=X:shift=X:scale=X is another point of its trade-off",
    )
    how.add_argument("--curve", action="store_true", help="points of the trade-off as well")
    how.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="JUDGE",
        help="rules (default), model:F.gguf[:FORM], command:PROGRAM ARGUMENTS",
    )
    how.add_argument("--judge-timeout", type=float, default=60.0, metavar="S")
    how.add_argument("--quality", type=int, default=12, metavar="N", help="requests for KL")
    how.add_argument("--workers", type=int, default=1, metavar="N", help="processes at once")
    how.add_argument(
        "--bench", type=int, default=0, metavar="N", help="repeats of 'bench' at the end (0: none)"
    )
    how.add_argument(
        "--heldout",
        action="store_true",
        help="at the end, what 'measure guard' and 'measure probe' measure on the whole test split "
        "(--limit: of each label)",
    )
    how.add_argument(
        "--show-texts", action="store_true", help="harmful texts in the HTML, folded, not masked"
    )


def run(options: argparse.Namespace) -> int:
    """Evaluate, write the report, and return the exit code."""
    if options.compare:
        return _compare(*options.compare)
    if options.output is None:
        raise SettingsError("no folder to write to; give one with -o DIR")
    # Deferred: these import llama.cpp and ONNX Runtime, which --help does not need.
    from safesteer_edge.evaluation.case_files import parse_file_choice
    from safesteer_edge.evaluation.plan import EvalSettings
    from safesteer_edge.evaluation.report_pages import write_reports
    from safesteer_edge.evaluation.run import run_evaluation

    suites = options.suite or ([] if options.data else [_DEFAULT_SUITE])
    settings = EvalSettings(
        session=session_settings(options),
        folder=options.output,
        suites=tuple(_suite_choice(text) for text in suites),
        files=tuple(parse_file_choice(text) for text in options.data),
        defences=tuple(options.defence),
        judges=tuple(options.judge or ["rules"]),
        with_curve=options.curve,
        limit=options.limit,
        n_quality=options.quality,
        n_workers=options.workers,
        n_bench_repeats=options.bench,
        with_heldout=options.heldout,
        judge_timeout_s=options.judge_timeout,
    )
    run_evaluation(settings, narrate=lambda line: print(f"[{line}]", file=sys.stderr, flush=True))
    report = write_reports(options.output, with_texts=options.show_texts)
    _print_summary(report, options.output)
    return OK


def _suite_choice(text: str) -> Any:
    from safesteer_edge.evaluation.plan import SuiteChoice

    name, separator, number = text.partition("=")
    if not separator:
        return SuiteChoice(name)
    if not number.isdigit() or int(number) < 1:
        raise SettingsError(f"cannot read {text!r}: N in NAME=N must be 1 or more")
    return SuiteChoice(name, int(number))


def _compare(first: Path, second: Path) -> int:
    from safesteer_edge.evaluation.report_compare import compare_reports, read_report

    print(compare_reports(read_report(first), read_report(second)), end="")
    return OK


def _print_summary(report: dict[str, Any], folder: Path) -> None:
    from safesteer_edge.report.page import shown_share

    counts = report["counts"]
    print(
        f"{counts['answered']} of {counts['planned']} answers, {counts['errors']} errors, "
        f"{counts['crashed']} crashes, {counts['unreadable_rows']} unreadable rows"
    )
    for row in report["attack_success"]:
        if row["judge"] == report["judges"][0] and row["attack"] in ("all", "none", "figstep"):
            print(f"attack success, {row['suite']}, {row['defence']}: {shown_share(row)}")
    for row in report["refusal"]:
        refused = shown_share(row["refused"])
        print(f"harmless refused, {row['suite']}, {row['defence']}: {refused}")
    for name, why in report["facts"]["skipped_suites"].items():
        print(f"not run: {name}, {why}")
    print(f"report: {folder / 'report.html'}")
