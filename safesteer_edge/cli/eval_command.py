"""`safesteer-edge eval` and `bench`: what the guard gains, and what it costs on this machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import (
    MACHINE,
    MODEL,
    OK,
    Argument,
    Command,
    Group,
    Progress,
    sampling,
    say,
    session_settings,
    setting_flags,
    write_text,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.evaluation.plan import SuiteChoice

_GREEDY = SamplingSettings(temperature=0.0)
_EVALUATED = SessionSettings(sampling=_GREEDY, max_tokens=48)
_BENCHED = SessionSettings(sampling=_GREEDY, max_tokens=64)
_STDOUT = "-"


def run_eval(options: argparse.Namespace) -> int:
    """Evaluate, write the report, and return the exit code."""
    from safesteer_edge.evaluation.report_pages import compare_reports, read_report

    if options.compare:
        print(compare_reports(*map(read_report, options.compare)), end="")
        return OK
    if options.output is None:
        raise SettingsError("there is no folder for the report; give one with -o DIR")
    # Deferred: these import llama.cpp and ONNX Runtime, which --help does not need.
    from safesteer_edge.evaluation.case_files import parse_file_choice
    from safesteer_edge.evaluation.plan import EvalSettings
    from safesteer_edge.evaluation.report_pages import write_reports
    from safesteer_edge.evaluation.run import run_evaluation

    suites = options.suite or ([] if options.data else ["quick"])
    settings = EvalSettings(
        session=session_settings(options, _EVALUATED),
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
        n_tries=options.tries,
        drawings=options.drawings,
    )
    run_evaluation(settings, narrate=lambda line: say(f"[{line}]"))
    report = write_reports(options.output, with_texts=options.show_texts)
    _print_summary(report, options.output)
    return OK


def _suite_choice(text: str) -> SuiteChoice:
    from safesteer_edge.evaluation.plan import SuiteChoice

    name, separator, number = text.partition("=")
    if not separator:
        return SuiteChoice(name)
    if not number.isdigit() or int(number) < 1:
        raise SettingsError(f"cannot read {text!r}: N in NAME=N must be 1 or more")
    return SuiteChoice(name, int(number))


def _print_summary(report: dict[str, Any], folder: Path) -> None:
    from safesteer_edge.evaluation.report_tables import halves_table
    from safesteer_edge.report.document import shown_share

    counts = report["counts"]
    print(
        f"{counts['answered']} of {counts['planned']} answers, {counts['errors']} errors, "
        f"{counts['crashed']} crashes, {counts['unreadable_rows']} unreadable rows"
    )
    shown: set[tuple[str, str]] = set()
    for row in report["attack_success"]:  # the first line of a suite is of all its attacks
        name = (row["suite"], row["defence"])
        if row["judge"] == report["judges"][0] and name not in shown:
            shown.add(name)
            print(f"attack success, {row['suite']}, {row['defence']}: {shown_share(row)}")
    for row in report["refusal"]:
        refused = shown_share(row["refused"])
        print(f"harmless refused, {row['suite']}, {row['defence']}: {refused}")
    for row in report["adaptive"]:
        if row["tries"] in (1, 10, 100) or row["is_last"]:
            print(f"answered, tries at most {row['tries']}, {row['defence']}: {shown_share(row)}")
    if report["halves"]:
        print(halves_table(report).to_text())
    for name, why in report["facts"]["skipped_suites"].items():
        print(f"not run: {name}, {why}")
    print(f"report: {folder / 'report.html'}")


# -- bench -----------------------------------------------------------------------------------------


def run_bench_command(options: argparse.Namespace) -> int:
    """Measure, print the report, and return the exit code."""
    # Deferred: these import llama.cpp and ONNX Runtime, which --help does not need.
    from safesteer_edge.evaluation.bench import (
        BenchSettings,
        contexts_to_text,
        cost_to_text,
        measure_contexts,
        measure_cost,
        measure_parallel,
        run_bench,
    )
    from safesteer_edge.evaluation.bench_report import bench_to_json, bench_to_text
    from safesteer_edge.evaluation.bench_summary import shown_ratio

    session = session_settings(options, _BENCHED)
    settings = BenchSettings(
        model=session.model,
        bundle=session.bundle,
        n_prompts=options.prompts,
        max_tokens=session.max_tokens,
        n_repeats=options.repeats,
        n_threads=session.n_threads,
        temperature=session.sampling.temperature,
        n_ctx=session.n_ctx,
        n_gpu_layers=session.n_gpu_layers,
    )
    if options.json not in (None, _STDOUT):
        _check_writable(Path(options.json))  # before minutes of work, not after
    progress = Progress()

    def narrate(line: str) -> None:
        progress.tell(f"[{line}]", stays=False)

    try:
        if options.isolate or options.serve:
            name = "served" if options.serve else "isolated"
            ratios = measure_cost(name, settings, narrate=narrate)
            value = {"ratios": [asdict(ratio) for ratio in ratios]}
            text = cost_to_text(name, ratios)
        elif options.parallel:
            ratio = measure_parallel(options.parallel, settings, narrate=narrate)
            value = {"n_parallel": options.parallel, "tokens_per_second": asdict(ratio)}
            what = f"{options.parallel} clients at a time, in all, over one client alone"
            text = f"{what}: {shown_ratio(ratio)} of the tokens a second\n"
        elif options.context:
            costs = measure_contexts(settings, narrate=narrate)
            value, text = {"contexts": list(map(asdict, costs))}, contexts_to_text(costs)
        else:
            result = run_bench(settings, narrate=narrate)
            value, text = bench_to_json(result), bench_to_text(result)
    finally:
        progress.end()
    line = json.dumps(value, ensure_ascii=False)
    if options.json == _STDOUT:
        print(line)
        return OK
    if options.json is not None:
        write_text(Path(options.json), line + "\n")
    print(text, end="")
    return OK


def _check_writable(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise SettingsError(f"cannot write {str(path)!r}: give a file in a folder that exists")


# -- the commands ----------------------------------------------------------------------------------

_SUITES = Group(
    "what to ask",
    (
        Argument(
            "--suite",
            "builtin, quick (default), full, disguised, or one suite; at most N requests of each",
            action="append",
            default=[],
            metavar="NAME[=N]",
        ),
        Argument(
            "--data",
            "a public file: advbench, harmbench, jailbreakbench, jailbreak-prompts, "
            "harmful-prompts, borderline-prompts, ordinary-prompts, maliciousinstruct, xstest, "
            "figstep, mm-safetybench, vlguard, msts, mm-vet, scienceqa, jsonl; or paper=FOLDER",
            action="append",
            default=[],
            metavar="FORMAT=F",
        ),
        Argument(
            "--drawings",
            "drawings of things, with a manifest.jsonl: for the suite 'pointed' and for msts",
            Path,
            metavar="DIR",
        ),
        Argument("--limit", "use at most N requests of each suite", int, metavar="N"),
    ),
)
_METHOD = Group(
    "how",
    (
        Argument(
            "--defence",
            "default: all but text-route; NAME:strength=X:shift=X:scale=X sets its strength",
            action="append",
            default=[],
            metavar="NAME",
        ),
        Argument("--curve", "also measure several strengths", action="store_true"),
        Argument(
            "--judge",
            "rules (default), model:F.gguf[:FORM], command:PROGRAM ARGUMENTS",
            action="append",
            default=[],
            metavar="JUDGE",
        ),
        Argument("--judge-timeout", type=float, default=60.0, metavar="S"),
        Argument("--quality", "requests for KL", int, 12, "N"),
        Argument("--tries", "disguises of a request of 'adaptive' (default: 100)", int, 100, "N"),
        Argument("--workers", "processes at once", int, 1, "N"),
        Argument("--bench", "repeats of 'bench' at the end (0: none)", int, 0, "N"),
        Argument(
            "--heldout",
            "finally run 'measure guard' and 'measure probe' on all test requests (--limit: of "
            "each label)",
            action="store_true",
        ),
        Argument("--show-texts", "show harmful texts in the HTML (folded)", action="store_true"),
    ),
)

EVAL = Command(
    "eval",
    "measure safety, helpfulness and cost in one report",
    run_eval,
    (
        Argument("-o --output", "folder of the run", Path, metavar="DIR"),
        Argument(
            "--compare",
            "only print what changed between two reports",
            Path,
            metavar=("A.json", "B.json"),
            nargs=2,
        ),
        _SUITES,
        _METHOD,
        MODEL,
        sampling(_EVALUATED),
    ),
    "Ask a model harmful and harmless requests under several defences, judge the answers, and "
    "write report.html, report.md and report.json into a folder. Run the same command again to "
    "continue after an interruption. Your settings are not used.",
)

BENCH = Command(
    "bench",
    "measure how much the guard slows this computer down",
    run_bench_command,
    (
        Argument("--json", "write the results as JSON to F (-: print them)", metavar="F|-"),
        Argument(
            "--isolate",
            "measure what it costs to run the engine in a separate process",
            action="store_true",
        ),
        Argument(
            "--serve",
            "measure what it costs to ask a server instead",
            action="store_true",
        ),
        Argument(
            "--parallel",
            "measure what N clients get of a server that answers N at a time",
            int,
            metavar="N",
        ),
        Argument(
            "--context",
            "measure what the guard costs as the context grows, up to --ctx or 16,384 tokens",
            action="store_true",
        ),
        Group("model", (*setting_flags("model.name", "model.bundle"), *MACHINE)),
        Group(
            "work",
            (
                Argument(
                    "--prompts",
                    "number of harmless, and of harmful, requests (default: 8)",
                    int,
                    8,
                    "N",
                ),
                Argument("--repeats", "how often to measure everything (default: 5)", int, 5, "N"),
                *setting_flags("sampling.max_tokens", "sampling.temperature", defaults=_BENCHED),
            ),
        ),
    ),
    "Measure speed, time to the first text and memory with the guard off, lazy and eager, and with "
    "llama-cpp-python on the same file. This takes minutes; close other programs first. Your "
    "settings are not used.",
)
