"""`safesteer-edge measure`: the guard's figures, and what the model sees, on held-out data."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import (
    GUARD,
    JSON,
    MODEL,
    OK,
    RUNTIME_ERROR,
    Argument,
    Command,
    Progress,
    print_result,
    sampling,
    session_settings,
    write_text,
)
from safesteer_edge.cli.verify_command import quantization_to_json, table_lines
from safesteer_edge.errors import BundleError, InputError, SettingsError
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.evaluation.picture_skill import (
        PictureSkill,
        PictureTask,
        ReaderSkill,
    )
    from safesteer_edge.harvest.probe_quality import ProbeQuality

# As `engine.model` knows them; that loads llama.cpp, which --help does not need.
TYPES = ("Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
_DEFAULTS = SessionSettings(sampling=SamplingSettings(temperature=0.0), max_tokens=64)
_DEFAULT_DATA = Path("smollm2-135m-instruct/vision/heldout")


def _settings(options: argparse.Namespace) -> SessionSettings:
    if options.limit is not None and options.limit < 1:
        raise SettingsError(f"--limit is {options.limit}; expected at least 1")
    return session_settings(options, _DEFAULTS)


def _guarded(options: argparse.Namespace) -> SessionSettings:
    settings = _settings(options)
    if settings.guard == "off":
        raise SettingsError("there is no guard to measure with --guard off; choose another mode")
    return settings


def run_probe(options: argparse.Namespace) -> int:
    """Measure the probe, step by step."""
    from safesteer_edge.evaluation.heldout import (
        measure_probe,
        n_probe_requests,
        requests_of_test_split,
    )

    settings, requests = _guarded(options), requests_of_test_split(options.limit)
    progress = Progress().of("requests", n_probe_requests(requests))
    found = measure_probe(settings, requests, progress=progress)
    lines = _quality_lines(found.quality, found.known)
    return print_result(options, found.to_json(), lines)


def _quality_lines(quality: ProbeQuality, known: ProbeQuality) -> list[str]:
    """known: of the same harmful requests, after openings that calibrations use."""
    bounds = {
        "ordinary": quality.mean_against_ordinary_95,
        "borderline": quality.mean_against_borderline_95,
        "twins": quality.mean_against_harmless_twins_95,
    }
    shown = ", ".join(f"{name} {low:.3f}–{high:.3f}" for name, (low, high) in bounds.items())
    return [
        f"AUROC of complying answers to {quality.n_harmful} harmful requests, on the decode path, "
        f"against answers to\n{quality.n_ordinary} ordinary, {quality.n_borderline} borderline and "
        f"{quality.n_harmless} harmless twin requests; candidate: against the refusing answer\n"
        f"to the same request ({quality.n_candidate_pairs} pairs), in words that calibration never "
        "uses,\nand in words that it does. Step 0 is the prompt's end; risk: prompt and 16 tokens "
        "together, as\nthe guard adds them up.",
        f"{'step':>5} {'ordinary':>9} {'borderline':>11} {'twins':>7} {'candidate':>10} "
        f"{'known words':>12}",
        *(
            f"{row.step:>5} {row.against_ordinary:>9.3f} {row.against_borderline:>11.3f} "
            f"{row.against_harmless_twins:>7.3f} {row.candidate:>10.3f} "
            f"{known_row.candidate:>12.3f}"
            for row, known_row in zip(quality.steps, known.steps, strict=True)
        ),
        f"{'risk':>5} {quality.mean_against_ordinary:>9.3f} "
        f"{quality.mean_against_borderline:>11.3f} {quality.mean_against_harmless_twins:>7.3f}",
        f"risk, 95 %: {shown}",
        f"candidate, mean of steps 1–4: {quality.early_candidate:.3f}; known words "
        f"{known.early_candidate:.3f}",
        "harmful answers found at 1 % false alarms, by their risk",
        f"  on ordinary answers    {quality.found_at_1_percent_ordinary}",
        f"  on borderline answers  {quality.found_at_1_percent_borderline}",
    ]


def run_guard(options: argparse.Namespace) -> int:
    """Measure what the guard changes."""
    from safesteer_edge.evaluation.heldout import (
        effect_to_json,
        measure_guard_effects,
        requests_of_test_split,
    )

    settings, requests = _guarded(options), requests_of_test_split(options.limit)
    progress = Progress().of("requests", len(requests))
    effects = measure_guard_effects(settings, requests, progress=progress)
    lines = [
        f"guard {settings.guard} ({settings.rerank}) against off, {settings.max_tokens} tokens"
    ]
    for effect in effects:
        figures = {
            "byte-identical answers": effect.identical,
            "answered, guard off": effect.off_answered,
            "answered, guarded": effect.guarded_answered,
            "forward passes a token": f"{effect.passes_per_token:.3f}",
            "speed where identical": f"{effect.speed_ratio:.3f}× of off",
        }
        lines += [f"\n{effect.label} requests", *_rows(figures)]
    return print_result(options, [effect_to_json(effect) for effect in effects], lines)


def _rows(figures: Mapping[str, object]) -> list[str]:
    """A line for each figure that there is."""
    return [f"  {name:<24} {value}" for name, value in figures.items() if value is not None]


def run_rerank(options: argparse.Namespace) -> int:
    """Compare lazy and eager re-ranking, token by token."""
    from safesteer_edge.evaluation.heldout import compare_lazy_with_eager, requests_of_test_split
    from safesteer_edge.session.session import open_session

    settings = _guarded(options)
    if settings.sampling.temperature != 0:
        raise SettingsError("lazy and eager are compared token by token at --temperature 0 only")
    requests = requests_of_test_split(options.limit or 25, labels=("harmful", "ordinary"))
    progress = Progress().of("requests", len(requests))
    with (
        open_session(replace(settings, guard="steer", rerank="lazy")) as lazy,
        open_session(replace(settings, guard="steer", rerank="eager")) as eager,
    ):
        assert lazy.policy is not None  # it steers
        result = compare_lazy_with_eager(requests, lazy, eager, lazy.policy, progress=progress)
    lines = [
        f"lazy and eager gave the same tokens for {result.n_identical} of {result.n_prompts} "
        f"prompts ({result.n_steps_compared} steps, {result.n_interventions} interventions)",
        f"noise between batch shapes: {result.noise:.4f} nats of log p − penalty",
        *(
            f"  {item.request_id} differs at step {item.step}: gap {item.gap:.4f} nats"
            for item in result.divergences
        ),
        f"differences outside twice the noise: {len(result.unexplained)}",
    ]
    print_result(options, {**asdict(result), "unexplained": len(result.unexplained)}, lines)
    return RUNTIME_ERROR if result.unexplained else OK


# -- pictures --------------------------------------------------------------------------------------


def run_pictures(options: argparse.Namespace) -> int:
    """Measure what model and guard see in pictures."""
    # Deferred: they import llama.cpp.
    from safesteer_edge.evaluation.picture_skill import (
        answers_to_jsonl,
        ask_about_pictures,
        measure_reader,
        read_things,
        skill_to_json,
        summarise,
    )
    from safesteer_edge.media.image_decoding import ImageFit
    from safesteer_edge.media.picture_words import picture_reader
    from safesteer_edge.session.choice import require_projector
    from safesteer_edge.session.session import open_session

    settings, progress = _settings(options), Progress()
    files = require_projector(settings, images=True, sounds=False)
    assert files is not None and files.projector is not None and files.mmproj is not None
    sets = _read_sets(options, files.mmproj.parent / "heldout")
    closed_world = files.mmproj.parent / "things.txt"
    things = read_things(closed_world) if closed_world.is_file() else None
    tasks = [task for each in sets.values() for task in each]
    # The reader first: what memory it takes cannot be told beside a model.
    fit, n_threads = ImageFit(files.projector.square_side), settings.n_threads or n_usable_cores()
    readers: dict[str, ReaderSkill] = {}
    for name, each in sets.items():
        reader = picture_reader(n_threads=n_threads)  # a new one for each set
        if reader is not None:
            shown = progress.of("pictures read by the guard", len(each))
            readers[name] = measure_reader(reader, fit, each, progress=shown)
    with open_session(settings, files=files) as session:
        answers = ask_about_pictures(session, tasks, progress=progress.of("pictures", len(tasks)))
        name_of_model = session.info.model_name
    if options.answers is not None:
        write_text(options.answers, answers_to_jsonl(answers))
    value: dict[str, object] = {}
    mode, heat = settings.guard, settings.sampling.temperature
    lines = [f"{name_of_model}, guard {mode}, temperature {heat:g}"]
    for name, each in sets.items():
        skill, read = summarise(answers[: len(each)], things), readers.get(name)
        answers = answers[len(each) :]
        value[name] = skill_to_json(skill, read)
        lines += [f"\n{name}: {skill.n_pictures} pictures", *_rows(_figures(skill, read))]
    return print_result(options, value, lines)


def _read_sets(options: argparse.Namespace, own: Path) -> dict[str, list[PictureTask]]:
    """own: where the projector's own held-out pictures are, if it has any beside it."""
    from safesteer_edge.evaluation.picture_skill import read_manifest, read_safebench
    from safesteer_edge.library.catalogue import models_folder

    usual = dict.fromkeys(folder.resolve() for folder in (own, models_folder() / _DEFAULT_DATA))
    folders = options.data or [folder for folder in usual if folder.is_dir()]
    sets = {
        "held-out pictures" if len(folders) == 1 else f"{folder}": read_manifest(folder)
        for folder in folders
    }
    if options.safebench is not None:
        sets["FigStep SafeBench-Tiny"] = read_safebench(options.safebench)
    sets = {name: tasks[: options.limit] for name, tasks in sets.items()}
    if not sets or not all(sets.values()):
        raise InputError("there are no pictures to measure on; give a folder with --data DIR")
    return sets


def _figures(skill: PictureSkill, reader: ReaderSkill | None) -> dict[str, object]:
    """None: there is no such figure."""
    naming, added_s = skill.naming, skill.added_s
    figures = {
        "words read": skill.reading,
        "right name": naming and f"{naming}, {skill.n_classes} classes",
        "  of the closed world": skill.closed,
        "  of the open world": skill.open_world,
        "ended by the guard": skill.n_refused or None,
        "encoding, prefill": f"{skill.encode_s:.2f} s, {skill.prefill_s:.2f} s (medians)",
        "added to the first text": None if added_s is None else f"{added_s:.2f} s (median)",
    }
    if reader is None:
        return {**figures, "read by the guard": "nothing: the extra picture-words is not installed"}
    then = "" if reader.then_s is None else f", each more {reader.then_s:.2f} s (median)"
    size = reader.added_bytes
    return {
        **figures,
        "read by the guard": reader.reading,
        "words where none are": reader.made_up,
        "reading took": f"the first {reader.first_s:.2f} s{then}",
        "memory for reading": None if size is None else f"{size / 2**20:.0f} MiB",
    }


# -- openings --------------------------------------------------------------------------------------


def run_openings(options: argparse.Namespace) -> int:
    """Measure what openings lead to, and what re-ranking could reach, without a guard."""
    from safesteer_edge.evaluation.heldout import requests_of_test_split
    from safesteer_edge.evaluation.openings import measure_ceiling, measure_openings
    from safesteer_edge.evaluation.suites import COMPLIANT_PREFIX
    from safesteer_edge.session.runtime import open_runtime

    settings = replace(_settings(options), guard="off")
    requests, progress = requests_of_test_split(options.limit), Progress()
    harmful = [request for request in requests if request.label == "harmful"]
    with closing(open_runtime(settings)) as runtime:
        shown = progress.of("requests", len(requests))
        outcomes = measure_openings(runtime, requests, progress=shown)
        ceilings = [
            measure_ceiling(
                runtime,
                harmful,
                prefix=prefix,
                progress=progress.of("harmful requests", len(harmful)),
            )
            for prefix in ("", COMPLIANT_PREFIX)
        ]
    lines = [
        "| opening | requests | n | refused | redirected | complied | no answer |",
        "|" + " --- |" * 7,
        *(
            f"| {found.opening or '(its own)'} | {found.label} | {found.n} | {found.refused} | "
            f"{found.redirected} | {found.complied} | {found.no_answer} |"
            for found in outcomes
        ),
        *(
            f"\nof {found.n} complying answers to harmful requests that begin "
            f"{repr(found.prefix) if found.prefix else 'by themselves'}, {found.reachable} have a "
            f"next token that leads to a refusal; by rank {list(found.reached_by_rank)}"
            for found in ceilings
        ),
    ]
    value = {"openings": list(map(asdict, outcomes)), "ceilings": list(map(asdict, ceilings))}
    return print_result(options, value, lines)


def run_judged(options: argparse.Namespace) -> int:
    """Make answers again that a person read, and compare the rules with what he found."""
    from safesteer_edge.evaluation.openings import answers_of, judge_again
    from safesteer_edge.metrics.statistics import Share
    from safesteer_edge.session.runtime import open_runtime

    with closing(open_runtime(replace(_settings(options), guard="off"))) as runtime:
        answers = answers_of(runtime.info.tensor_table_sha256)[: options.limit]
        if not answers:
            raise InputError(
                f"no answers of {runtime.choice.name!r} were read; there are some of the default "
                "model and of Qwen2.5-Coder-0.5B-Instruct Q4_K_M"
            )
        shown = Progress().of("answers", len(answers))
        found = judge_again(runtime, answers, progress=shown)
    same = [each for each in found if each.is_same]
    value: dict[str, Any] = {"n": len(found), "made_again": len(same)}
    lines = [
        f"{len(same)} of {len(found)} answers are byte for byte those that were read",
    ]
    for read in ("before", "after"):
        rows = [each for each in same if each.read.read == read]
        exact = Share(sum(each.label == each.read.label for each in rows), len(rows))
        complied = [(each.label == "complied", each.read.label == "complied") for each in rows]
        told = Share(sum(one == other for one, other in complied), len(rows))
        value[f"read_{read}"] = {"labels": asdict(exact), "complied": asdict(told)}
        lines.append(
            f"read {read} the rules were mended: label agrees {exact}; complied or not {told}"
        )
    pairs = Counter((each.read.label, each.label) for each in same)
    labels = sorted({label for pair in pairs for label in pair})
    lines += [
        "",
        f"| read as, judged | {' | '.join(labels)} |",
        "|" + " --- |" * (len(labels) + 1),
        *(
            f"| {one} | {' | '.join(str(pairs[one, other]) for other in labels)} |"
            for one in labels
        ),
    ]
    value["pairs"] = {f"{one}, {other}": n for (one, other), n in pairs.items()}
    return print_result(options, value, lines)


# -- quantization ----------------------------------------------------------------------------------


def run_quantization(options: argparse.Namespace) -> int:
    """Requantize, measure, print a Markdown table, and return the exit code."""
    from safesteer_edge.calibration.quantization import (
        QuantizationSettings,
        measure_quantizations,
    )
    from safesteer_edge.evaluation.machine import read_machine
    from safesteer_edge.formats.user_folders import user_cache_folder
    from safesteer_edge.requests.requests import held_out_requests, recalibration_requests
    from safesteer_edge.session.choice import choose_model

    settings, kinds = _guarded(options), _types(options.types)
    choice = choose_model(settings.model)
    bundle = settings.bundle or choice.bundle
    if bundle is None:
        raise BundleError(f"there is no guard to measure for {choice.name!r}; pass --bundle")
    measured = QuantizationSettings(
        session=settings,
        source=choice.path,
        bundle=bundle,
        folder=options.folder or user_cache_folder(create=True) / "quantization",
        deciding=recalibration_requests(),
        held_out=held_out_requests(options.limit),
    )
    rows = measure_quantizations(measured, kinds, Progress().show)
    machine = read_machine()
    cpu, n_cores = machine.cpu, machine.n_cores
    n_tokens = rows[0].drift.n_tokens
    shown = [quantization_to_json(row) for row in rows]
    return print_result(
        options,
        {"cpu": cpu, "n_cores": n_cores, "rows": shown},
        [*table_lines(rows), f"\nMachine: {cpu}, {n_cores} cores; {n_tokens} tokens."],
    )


def _types(text: str) -> list[Any]:
    kinds = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [kind for kind in kinds if kind not in TYPES]
    if unknown or not kinds:
        raise SettingsError(f"--types is {text!r}; expected some of {','.join(TYPES)}")
    return kinds


# -- the commands ----------------------------------------------------------------------------------

_WHAT = (
    Argument("--limit", "use at most N requests of each label, or pictures", int, metavar="N"),
    JSON,
)
_HOW = (MODEL, GUARD, sampling(_DEFAULTS))
_PICTURES = (
    Argument(
        "--data",
        "folder with manifest.jsonl, and more of them (default: the projector's, built-in ones)",
        Path,
        action="append",
        metavar="DIR",
    ),
    Argument("--safebench", "also use FigStep's SafeBench-Tiny", Path, metavar="DIR"),
    Argument(
        "--answers", "write the answers about each picture to a file", Path, metavar="F.jsonl"
    ),
)
_QUANTIZATION = (
    Argument(
        "--types",
        f"quantizations to make (default: {','.join(TYPES)})",
        default=",".join(TYPES),
        metavar="T,T",
    ),
    Argument(
        "--folder",
        "folder for requantized files and scores, which a stopped run continues from (default: "
        "in the user's cache folder)",
        Path,
        metavar="DIR",
    ),
)


def _measure(
    name: str, text: str, run: Callable[[argparse.Namespace], int], *own: Argument
) -> Command:
    return Command(name, text, run, (*_WHAT, *own, *_HOW))


MEASURE = Command(
    "measure",
    "measure how well the guard, or the model's vision, works",
    description="Measure how well a guard works on built-in test requests, or what the model reads "
    "and names in test pictures. Your settings are not used.",
    commands=(
        _measure(
            "probe",
            "how well the probe tells harmful answers apart, at each step (AUROC)",
            run_probe,
        ),
        _measure("guard", "what the guard changes, compared with --guard off", run_guard),
        _measure("rerank", "compare lazy with eager re-ranking, token by token", run_rerank),
        _measure("openings", "what different openings of an answer lead to", run_openings),
        _measure(
            "judged", "compare the judge's rules with steered answers that were read", run_judged
        ),
        _measure(
            "pictures", "what the model reads and names in pictures", run_pictures, *_PICTURES
        ),
        _measure(
            "quantization",
            "how well the guard works on other quantizations of its model",
            run_quantization,
            *_QUANTIZATION,
        ),
    ),
)
