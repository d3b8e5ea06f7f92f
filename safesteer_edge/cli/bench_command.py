"""`safesteer-edge bench`: what the guard costs on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import OK, add_machine_options, add_model_choice
from safesteer_edge.errors import SettingsError

if TYPE_CHECKING:
    from safesteer_edge.evaluation.bench import BenchResult, BenchSettings


_STDOUT = "-"
_DEFAULTS = {"prompts": 8, "max_tokens": 64, "repeats": 5, "temperature": 0.0}
_DESCRIPTION = (
    "Measure speed, time to the first text and memory: the guard off, lazy and eager, and "
    "llama-cpp-python on the same file, taking turns on the project's own test requests. "
    "Takes minutes; nothing else should run meanwhile."
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench", help="measure what the guard costs on this machine", description=_DESCRIPTION
    )
    parser.add_argument(
        "--json", metavar="F|-", help="write everything as JSON to F; - prints it instead of text"
    )
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="measure instead what the engine costs in a process of its own",
    )
    model = parser.add_argument_group("model")
    add_model_choice(model)
    add_machine_options(model)
    work = parser.add_argument_group("work")
    for flag, kind, text in (
        ("--prompts", int, "requests of each kind, benign and harmful"),
        ("--max-tokens", int, "tokens of an answer at most"),
        ("--repeats", int, "how often everything is measured"),
        ("--temperature", float, "0 is greedy"),
    ):
        default = _DEFAULTS[flag.removeprefix("--").replace("-", "_")]
        metavar = "N" if kind is int else "X"
        work.add_argument(
            flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default})"
        )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, print the report, and return the exit code."""
    # Deferred: these import llama.cpp and ONNX Runtime, which --help does not need.
    from safesteer_edge.evaluation.bench import BenchSettings, run_bench
    from safesteer_edge.evaluation.bench_report import bench_to_json, bench_to_text

    settings = BenchSettings(
        model=options.model,
        bundle=options.bundle,
        n_prompts=options.prompts,
        max_tokens=options.max_tokens,
        n_repeats=options.repeats,
        n_threads=options.threads,
        temperature=options.temperature,
        n_ctx=options.ctx,
        n_gpu_layers=options.gpu_layers,
    )
    if options.json not in (None, _STDOUT):
        _check_writable(Path(options.json))  # before minutes of work, not after
    if options.isolate:
        return _run_isolation(settings, options.json)
    try:
        result: BenchResult = run_bench(settings, narrate=_narrate)
    finally:
        _end_narration()
    if options.json is not None:
        text = json.dumps(bench_to_json(result), ensure_ascii=False)
        if options.json == _STDOUT:
            print(text)
            return OK
        _write(Path(options.json), text)
    print(bench_to_text(result), end="")
    return OK


def _run_isolation(settings: BenchSettings, json_path: str | None) -> int:
    from safesteer_edge.evaluation.bench import cost_to_text, measure_isolation

    try:
        ratios = measure_isolation(settings, narrate=_narrate)
    finally:
        _end_narration()
    text = json.dumps({"ratios": [asdict(ratio) for ratio in ratios]})
    if json_path == _STDOUT:
        print(text)
        return OK
    if json_path is not None:
        _write(Path(json_path), text)
    print(cost_to_text(ratios), end="")
    return OK


def _narrate(line: str) -> None:
    """One line for what begins now: on a terminal in the place of the one before it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K[{line}]", end="", file=sys.stderr, flush=True)
    else:
        print(f"[{line}]", file=sys.stderr, flush=True)


def _end_narration() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _check_writable(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise SettingsError(f"cannot write {str(path)!r}: give a file in a folder that exists")


def _write(path: Path, text: str) -> None:
    from safesteer_edge.formats.atomic_write import atomic_write

    try:
        with atomic_write(path, "w") as stream:
            stream.write(text + "\n")
    except OSError as error:
        raise SettingsError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
