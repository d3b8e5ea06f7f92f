"""`safesteer-edge measure`: the guard's figures, and what the model sees, on held-out data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli import measure_pictures, measure_quantization
from safesteer_edge.cli.options import (
    OK,
    RUNTIME_ERROR,
    add_guard_options,
    add_model_options,
    add_sampling_options,
    session_settings,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.json_values import without_nan

if TYPE_CHECKING:
    from safesteer_edge.harvest.probe_quality import ProbeQuality
    from safesteer_edge.session.settings import SessionSettings


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "measure",
        help="measure the guard on held-out requests, or what the model sees",
        description="Measure a guard on the test split of the project's own requests, or what the "
        "model reads and names in held-out pictures, and the guard's reader reads (greedy).",
    )
    parser.add_argument(
        "what",
        choices=("probe", "guard", "rerank", "pictures", "quantization"),
        help="probe: AUROC per decoding step; guard: what it changes, against --guard off; "
        "rerank: lazy against eager, token by token; pictures: words read and things named; "
        "quantization: the guard on requantized files of the model, before and after "
        "'calibrate --from'",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="requests of each label, or pictures, at most"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    measure_pictures.add_options(parser)
    measure_quantization.add_options(parser)
    add_model_options(parser)
    add_guard_options(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run, temperature=0.0, max_tokens=64)


def run(options: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    if options.guard == "off" and options.what != "pictures":
        raise SettingsError("there is no guard to measure with --guard off; choose another mode")
    if options.limit is not None and options.limit < 1:
        raise SettingsError(f"--limit is {options.limit}; expected at least 1")
    for flag in ("data", "safebench", "answers"):
        if getattr(options, flag) is not None and options.what != "pictures":
            raise SettingsError(f"--{flag} is for 'measure pictures'; leave it out here")
    settings = session_settings(options)
    measures: dict[str, Callable[[SessionSettings, argparse.Namespace], int]] = {
        "probe": _measure_probe,
        "guard": _measure_guard,
        "rerank": _measure_rerank,
        "pictures": _measure_pictures,
        "quantization": _measure_quantization,
    }
    return measures[options.what](settings, options)


def _measure_probe(settings: SessionSettings, options: argparse.Namespace) -> int:
    from safesteer_edge.evaluation.heldout import (
        measure_probe,
        n_probe_requests,
        requests_of_test_split,
    )

    requests = requests_of_test_split(options.limit)
    progress = _progress(n_probe_requests(requests))
    found = measure_probe(settings, requests, progress=progress)
    if options.json:
        print(json.dumps(without_nan(found.to_json())))
    else:
        _print_quality(found.quality, found.known)
    return OK


def _print_quality(quality: ProbeQuality, known: ProbeQuality) -> None:
    """known: of the same harmful requests, after openings that calibrations use."""
    print(
        f"AUROC of complying answers to {quality.n_harmful} harmful requests, on the decode path, "
        f"against answers to\n{quality.n_ordinary} ordinary, {quality.n_borderline} borderline and "
        f"{quality.n_harmless} harmless twin requests; candidate: against the refusing answer\n"
        f"to the same request ({quality.n_candidate_pairs} pairs), in words that calibration never "
        "uses,\nand in words that it does. Step 0 is the prompt's end; risk: prompt and 16 tokens "
        "together, as\nthe guard adds them up."
    )
    print(
        f"{'step':>5} {'ordinary':>9} {'borderline':>11} {'twins':>7} {'candidate':>10} "
        f"{'known words':>12}"
    )
    for row, known_row in zip(quality.steps, known.steps, strict=True):
        print(
            f"{row.step:>5} {row.against_ordinary:>9.3f} {row.against_borderline:>11.3f} "
            f"{row.against_harmless_twins:>7.3f} {row.candidate:>10.3f} "
            f"{known_row.candidate:>12.3f}"
        )
    print(
        f"{'risk':>5} {quality.mean_against_ordinary:>9.3f} "
        f"{quality.mean_against_borderline:>11.3f} {quality.mean_against_harmless_twins:>7.3f}"
    )
    bounds = (
        ("ordinary", quality.mean_against_ordinary_95),
        ("borderline", quality.mean_against_borderline_95),
        ("twins", quality.mean_against_harmless_twins_95),
    )
    shown = ", ".join(f"{name} {low:.3f}–{high:.3f}" for name, (low, high) in bounds)
    print(f"risk, 95 %: {shown}")
    print(
        f"candidate, mean of steps 1–4: {quality.early_candidate:.3f}; known words "
        f"{known.early_candidate:.3f}"
    )
    print("harmful answers found at 1 % false alarms, by their risk")
    print(f"  on ordinary answers    {quality.found_at_1_percent_ordinary}")
    print(f"  on borderline answers  {quality.found_at_1_percent_borderline}")


def _measure_guard(settings: SessionSettings, options: argparse.Namespace) -> int:
    from safesteer_edge.evaluation.heldout import (
        effect_to_json,
        measure_guard_effects,
        requests_of_test_split,
    )

    requests = requests_of_test_split(options.limit)
    effects = measure_guard_effects(settings, requests, progress=_progress(len(requests)))
    if options.json:
        print(json.dumps(without_nan([effect_to_json(effect) for effect in effects])))
        return OK
    print(f"guard {settings.guard} ({settings.rerank}) against off, {options.max_tokens} tokens")
    for effect in effects:
        print(f"\n{effect.label} requests")
        print(f"  byte-identical answers   {effect.identical}")
        print(f"  answered, guard off      {effect.off_answered}")
        print(f"  answered, guarded        {effect.guarded_answered}")
        print(f"  forward passes a token   {effect.passes_per_token:.3f}")
        print(f"  speed where identical    {effect.speed_ratio:.3f}× of off")
    return OK


def _measure_rerank(settings: SessionSettings, options: argparse.Namespace) -> int:
    from safesteer_edge.evaluation.heldout import compare_lazy_with_eager, requests_of_test_split
    from safesteer_edge.session.session import open_session

    if settings.sampling.temperature != 0:
        raise SettingsError("lazy and eager are compared token by token at --temperature 0 only")
    requests = requests_of_test_split(options.limit or 25, labels=("harmful", "ordinary"))
    with (
        open_session(replace(settings, guard="steer", rerank="lazy")) as lazy,
        open_session(replace(settings, guard="steer", rerank="eager")) as eager,
    ):
        assert lazy.policy is not None  # it steers
        result = compare_lazy_with_eager(
            requests, lazy, eager, lazy.policy, progress=_progress(len(requests))
        )
    if options.json:
        value = {**asdict(result), "unexplained": len(result.unexplained)}
        print(json.dumps(without_nan(value)))
    else:
        print(
            f"lazy and eager gave the same tokens for {result.n_identical} of "
            f"{result.n_prompts} prompts ({result.n_steps_compared} steps, "
            f"{result.n_interventions} interventions)"
        )
        print(f"noise between batch shapes: {result.noise:.4f} nats of log p − penalty")
        for item in result.divergences:
            print(f"  {item.request_id} differs at step {item.step}: gap {item.gap:.4f} nats")
        print(f"differences outside twice the noise: {len(result.unexplained)}")
    return RUNTIME_ERROR if result.unexplained else OK


def _measure_pictures(settings: SessionSettings, options: argparse.Namespace) -> int:
    return measure_pictures.measure_pictures(settings, options, _progress)


def _measure_quantization(settings: SessionSettings, options: argparse.Namespace) -> int:
    def show(what: str, n_done: int, n_total: int) -> None:
        _progress(n_total, what)(n_done)

    return measure_quantization.measure_quantization(settings, options, show)


def _progress(n_total: int, what: str = "requests") -> Callable[[int], None]:
    def show(n_done: int) -> None:
        if n_done % 10 == 0 or n_done == n_total:
            print(f"\r{n_done}/{n_total} {what}", end="", file=sys.stderr, flush=True)
        if n_done == n_total:
            print(file=sys.stderr)

    return show
