"""What a run consists of: which cases under which defences, and what makes it that run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from safesteer_edge.bundle.bundle import read_config
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.evaluation.answering import Item
from safesteer_edge.evaluation.case import Case, PictureStore, Suite, limited, spread
from safesteer_edge.evaluation.case_files import PAPER, FileChoice
from safesteer_edge.evaluation.defences import (
    DEFAULT_DEFENCES,
    HALVES,
    NEAR_CALIBRATED,
    Defence,
    curve_defences,
)
from safesteer_edge.evaluation.disguises import MAX_TRIES
from safesteer_edge.evaluation.suites import BUILTIN_SUITES, build_suite
from safesteer_edge.evaluation.trade_off import PLAIN, TRADE_OFFS
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.settings import SessionSettings

# Requests of each built-in suite, by profile. `builtin` takes some 30 minutes for the default model
# on two cores; `quick` is a look; `full` has every test request;
# `disguised` is for what is done to requests.
_DISGUISED: Final[Mapping[str, int | None]] = {
    "surface": 16,
    "surrounded": 16,
    "languages": 24,
    "multi-turn": 16,
    "adaptive": 16,
}
PROFILES: Final[Mapping[str, Mapping[str, int | None]]] = {
    "builtin": {
        "text-harmful": 52,
        "typographic": 26,
        "picture-question": 26,
        "jailbreaks": 8,
        "wrapped-ordinary": 4,
        "decoding-grid": 2,
        "borderline": 36,
        "harmless-twins": 26,
        "ordinary-text": 36,
        "follow-ups": 12,
        "ordinary-pictures": 18,
    },
    "quick": {
        "text-harmful": 6,
        "typographic": 4,
        "jailbreaks": 1,
        "borderline": 6,
        "ordinary-text": 6,
        "ordinary-pictures": 3,
    },
    "full": {name: None for name in BUILTIN_SUITES if name not in (*_DISGUISED, "pointed")},
    "disguised": _DISGUISED,
}
# Each request of these is many answers: only what may change the result is run on it.
MANY_ANSWERS: Final = ("decoding-grid", "adaptive")
_MANY_ANSWERS_DEFENCES: Final = ("off", "safesteer")
_SLOW_SUITES: Final = ("text-harmful", "ordinary-text")
_SLOW_SHARE: Final = 4
_CURVE_SHARE: Final = 2
_PLAN_NAME: Final = "plan.json"
# What differs from `off` and `safesteer` by the vector alone.
WITHOUT_VECTOR: Final = {"probe-only": "safesteer", "vector-only": "off"}


@dataclass(frozen=True, slots=True)
class SuiteChoice:
    """A profile or a suite by name. n: requests of each suite at most."""

    name: str
    n: int | None = None


def choose_suites(
    choices: Sequence[SuiteChoice], pictures: PictureStore, *, seed: int
) -> list[Suite]:
    """Build what was asked for, each suite once. Raises SettingsError for an unknown name."""
    sizes: dict[str, int | None] = {}
    for choice in choices:
        if choice.name in PROFILES:
            for name, n in PROFILES[choice.name].items():
                known = [size for size in (n, choice.n) if size is not None]
                sizes[name] = min(known, default=None)
        elif choice.name in BUILTIN_SUITES:
            sizes[choice.name] = choice.n
        else:
            raise SettingsError(
                f"no suite {choice.name!r}; there are the profiles {', '.join(PROFILES)} and the "
                f"suites {', '.join(BUILTIN_SUITES)}"
            )
    return [limited(build_suite(name, pictures, seed=seed, n=n), n) for name, n in sizes.items()]


def default_defences(*, has_vector: bool, halves_alone: bool = False) -> tuple[str, ...]:
    """All of them; without a vector, those that differ from others by it are left out.

    halves_alone: what is asked is there to compare the guard's halves.
    """
    names = HALVES if halves_alone else DEFAULT_DEFENCES
    if has_vector:
        return names
    return tuple(name for name in names if name not in WITHOUT_VECTOR)


def plan_items(
    suites: Sequence[Suite], defences: Sequence[Defence], *, with_curve: bool
) -> list[Item]:
    """What to answer, defence by defence: the model is loaded once for each."""
    items = [
        (defence, case)
        for defence in defences
        for suite in suites
        for case in _cases_for(defence, suite)
    ]
    if with_curve:
        known = {defence.name for defence in defences}
        items += [
            (defence, case)
            for defence in curve_defences()
            if defence.name not in known
            for suite in suites
            for case in _curve_cases_for(defence, suite)
        ]
    return items


def _curve_cases_for(defence: Defence, suite: Suite) -> tuple[Case, ...]:
    """Half of the requests under each attack, which take turns in some suites."""
    figures = TRADE_OFFS if defence.name in NEAR_CALIBRATED else (PLAIN,)
    if not any(suite.name in figure.suites for figure in figures):
        return ()
    kept: set[str] = set()
    for attack in {case.attack for case in suite.cases}:
        cases = [case for case in suite.cases if case.attack == attack]
        n_requests = len({case.group or case.id for case in cases})
        kept |= {case.id for case in spread(cases, -(-n_requests // _CURVE_SHARE))}
    return tuple(case for case in suite.cases if case.id in kept)


def _cases_for(defence: Defence, suite: Suite) -> tuple[Case, ...]:
    if suite.name in MANY_ANSWERS and defence.name not in _MANY_ANSWERS_DEFENCES:
        return ()
    if defence.rerank == "eager":
        if suite.name not in _SLOW_SUITES:
            return ()
        return spread(suite.cases, -(-len(suite.cases) // _SLOW_SHARE))
    if defence.media_only or defence.is_ablation:
        return tuple(case for case in suite.cases if (case.image is not None) == defence.media_only)
    return suite.cases


def keep_plan(folder: Path, facts: Mapping[str, Any], suites: Sequence[Suite]) -> None:
    """Write down what this run is, or check that the folder holds the same one.

    facts: all that an answer depends on besides the cases. Raises InputError if it is another run.
    """
    plan = {**facts, "cases_sha256": cases_sha256(suites)}
    path = folder / _PLAN_NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "w") as stream:
            json.dump(plan, stream, indent=1, sort_keys=True)
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; give another folder") from error
    wanted = json.loads(json.dumps(plan))
    if kept != wanted:
        differing = sorted(key for key in {*kept, *wanted} if kept.get(key) != wanted.get(key))
        raise InputError(
            f"{str(folder)!r} holds another run ({', '.join(differing)} differ); give another "
            "folder, or the options that it was begun with"
        )


def cases_sha256(suites: Sequence[Suite]) -> str:
    """Names the cases of a run, in order; pictures by their file's name (drawn: their pixels)."""
    digest = hashlib.sha256()
    for suite in suites:
        for case in suite.cases:
            values = asdict(case)
            values["image"] = case.image.name if case.image else None
            digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()


# -- what an evaluation is of ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """What an evaluation is of. facts: for the report. sees: it is loaded with a projector."""

    facts: dict[str, Any]
    sees: bool
    has_vector: bool


def inspect_subject(session: SessionSettings) -> Subject:
    """Read the files' headers; nothing native. Raises ModelFileError, BundleError."""
    choice = choose_model(session.model)
    info = check_language_model(choice.path)
    fingerprint = fingerprint_model(info)
    folder = session.bundle or choice.bundle
    config = read_config(folder) if folder is not None else None
    mmproj = session.mmproj or choice.mmproj
    facts = {
        "model": choice.name,
        "architecture": info.architecture,
        "quantization": info.quantization,
        "size_bytes": info.size_bytes,
        "tensor_table_sha256": fingerprint.tensor_table_sha256,
        "mmproj": mmproj.name if mmproj else None,
        "bundle": config.name if config else None,
        "probe_sha256": config.probe.sha256 if config else None,
        "policy": asdict(config.policy) if config else None,
        "vector_sha256": config.vector.sha256 if config and config.vector else None,
    }
    has_vector = config is not None and config.vector is not None
    return Subject(facts, sees=mmproj is not None, has_vector=has_vector)


# -- what an evaluation was asked for, and the files that its folder holds -------------------------

ROWS: Final = "rows.jsonl"
JUDGEMENTS: Final = "judgements.jsonl"
QUALITY: Final = "quality.jsonl"
FACTS: Final = "facts.json"
BENCH: Final = "bench.json"
HELDOUT: Final = "heldout.json"

Narrate = Callable[[str], None]
_LONGEST_JUDGE_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """session: the model, and how it samples. defences: by name; none: all that differ.

    limit: cases of a suite at most. n_quality: harmless cases for KL and perplexity.
    n_workers: at most; fewer where memory is short. n_bench_repeats: of the bench at the end.
    with_heldout: at the very end, the guard on the whole test split (`limit` of each label).
    n_tries: disguises of one request of `adaptive`, at most. drawings: of things, see
    `drawings_by_name`.
    """

    session: SessionSettings
    folder: Path
    suites: tuple[SuiteChoice, ...] = ()
    files: tuple[FileChoice, ...] = ()
    defences: tuple[str, ...] = ()
    judges: tuple[str, ...] = ("rules",)
    with_curve: bool = False
    limit: int | None = None
    n_quality: int = 12
    n_workers: int = 1
    n_bench_repeats: int = 0
    with_heldout: bool = False
    judge_timeout_s: float = 60.0
    n_tries: int = MAX_TRIES
    drawings: Path | None = None

    @property
    def halves_alone(self) -> bool:
        """Whether all that is asked compares the guard's halves on pictures."""
        asked = {suite.name for suite in self.suites} | {file.format for file in self.files}
        return asked <= {"pointed", "msts", PAPER}

    def __post_init__(self) -> None:
        if not self.suites and not self.files:
            raise SettingsError("there is nothing to ask; give --suite or --data")
        if not self.judges:
            raise SettingsError("there is no judge; give --judge rules")
        for name, low in (
            ("limit", 1),
            ("n_quality", 0),
            ("n_workers", 1),
            ("n_bench_repeats", 0),
            ("n_tries", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise SettingsError(f"{name} is {value!r}; expected at least {low}")

        if not 0 < self.judge_timeout_s <= _LONGEST_JUDGE_S:  # false for NaN as well
            raise SettingsError(
                f"judge_timeout_s is {self.judge_timeout_s!r}; expected seconds, more than 0 and "
                f"at most {_LONGEST_JUDGE_S:g}"
            )

    def one_worker(self) -> SessionSettings:
        """The session of one of the workers, which share the cores."""
        threads = self.session.n_threads or max(1, n_usable_cores() // self.n_workers)
        return replace(self.session, n_threads=threads)
