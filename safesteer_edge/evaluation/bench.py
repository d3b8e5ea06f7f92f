"""The bench: what the guard costs on this machine, against no guard and against llama-cpp-python.

The variants take turns, repeat by repeat and in rotated order, so that whatever drifts (heat,
other programs) hits all alike. One decodes at a time.
"""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from safesteer_edge.errors import EngineError, SettingsError
from safesteer_edge.evaluation.bench_summary import (
    Spread,
    VariantRatio,
    ratio_of,
    shown_ratio,
    spread,
)
from safesteer_edge.evaluation.bench_variants import (
    PROMPT_KINDS,
    VARIANTS,
    BenchPrompt,
    BenchServer,
    MeasuredAnswer,
    PromptKind,
    Variant,
    VariantName,
    open_variant,
    over_whole,
)
from safesteer_edge.evaluation.case import evenly
from safesteer_edge.evaluation.machine import (
    MachineFacts,
    measure_in_child,
    peak_memory_bytes,
    read_machine,
)
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.report.document import Table, shown_number
from safesteer_edge.requests.requests import Label, load_requests
from safesteer_edge.session.choice import ModelChoice, choose_model
from safesteer_edge.session.settings import DEFAULT_N_CTX, SessionSettings

_LABELS: Final[tuple[tuple[PromptKind, Label], ...]] = (
    ("benign", "ordinary"),
    ("harmful", "harmful"),
)
# Above this, four copies of the KV cache and compute buffers may not fit: one variant at a time.
_KEEP_OPEN_BYTES: Final = 1 << 30
_MEMORY_MAX_TOKENS: Final = 16  # buffers are made before the first token
_CONTEXTS: Final = (512, 1024, 2048, 4096, 8192, 16384)
_MORE_CONTEXT: Final = 512  # for what a prompt is longer than meant, and for candidates
_SAMPLED: Final = (64, 256)  # characters whose tokens are counted first


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """n_prompts: of each kind. n_threads: None: all usable cores. The rest as `SessionSettings`.

    Raises SettingsError for a value out of range.
    """

    model: str | None = None
    bundle: Path | None = None
    n_prompts: int = 8
    max_tokens: int = 64
    n_repeats: int = 5
    n_threads: int | None = None
    temperature: float = 0.0
    n_ctx: int | None = None
    n_gpu_layers: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_prompts", "n_repeats", "n_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value!r}; expected at least 1")
        if self.max_tokens < 2:
            raise SettingsError(
                f"max_tokens is {self.max_tokens!r}; expected 2 or more: a rate needs two"
            )


@dataclass(frozen=True, slots=True)
class BenchedModel:
    """What was measured. bundle: the guard's name."""

    name: str
    path: str
    size_bytes: int
    architecture: str
    quantization: str
    bundle: str
    n_ctx: int
    n_threads: int
    hidden_state_route: str
    probe_provider: str


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Everything that was measured, raw. peak_memory: bytes, None where it cannot be read."""

    settings: BenchSettings
    model: BenchedModel
    machine: MachineFacts
    peak_memory: Mapping[VariantName, int | None]
    answers: tuple[MeasuredAnswer, ...]


def run_bench(
    settings: BenchSettings, *, narrate: Callable[[str], None] = lambda _: None
) -> BenchResult:
    """Measure. Takes minutes: n_repeats · 2 · n_prompts answers of each variant.

    narrate: is given one short line for each thing that begins.
    Raises SettingsError, ModelFileError, BundleError, TemplateError, EngineError.
    """
    prompts = choose_prompts(settings.n_prompts)
    choice = choose_model(settings.model)
    info = check_language_model(choice.path)
    session = bench_session(settings, choice, info)
    peak_memory: dict[VariantName, int | None] = {}
    for name in VARIANTS:  # first: a child that is forked off a large process starts out large
        narrate(f"memory of {name}")
        peak_memory[name] = measure_in_child(_answer_once, name, session, prompts[0])
    variants: dict[VariantName, Variant] = {}
    guard: Mapping[str, str | None] = {}
    answers: list[MeasuredAnswer] = []
    try:
        for repeat in range(settings.n_repeats):
            for name in variant_order(repeat):
                narrate(f"repeat {repeat + 1} of {settings.n_repeats}: {name}")
                if name not in variants:
                    variants[name] = open_variant(name, session)
                    guard = variants["lazy"].facts if name == "lazy" else guard
                    # Pages the model in, and makes the first graphs.
                    variants[name].answer(prompts[-1], -1)
                answers += [variants[name].answer(prompt, repeat) for prompt in prompts]
                if info.size_bytes > _KEEP_OPEN_BYTES:
                    variants.pop(name).close()
    finally:
        for variant in variants.values():
            variant.close()
    model = BenchedModel(
        name=choice.name,
        path=str(choice.path),
        size_bytes=info.size_bytes,
        architecture=info.architecture,
        quantization=info.quantization,
        bundle=guard["bundle"] or "",
        n_ctx=session.n_ctx or DEFAULT_N_CTX,
        n_threads=session.n_threads or n_usable_cores(),
        hidden_state_route=guard["hidden_state_route"] or "",
        probe_provider=guard["probe_provider"] or "",
    )
    return BenchResult(settings, model, read_machine(), peak_memory, tuple(answers))


def choose_prompts(n_of_each: int) -> tuple[BenchPrompt, ...]:
    """Test requests, spread evenly over their groups; the two kinds take turns.

    So no prompt ever follows itself, which would find all of itself in the KV cache.
    Raises SettingsError if there are not as many.
    """
    chosen: list[list[BenchPrompt]] = []
    for kind, label in _LABELS:
        requests = load_requests(splits=("test",), labels=(label,))
        if n_of_each > len(requests):
            raise SettingsError(
                f"{n_of_each!r} prompts of each kind; there are {len(requests)} {kind} ones"
            )
        picked = evenly(requests, n_of_each)
        chosen.append([BenchPrompt(request.id, kind, request.text) for request in picked])
    return tuple(prompt for pair in zip(*chosen, strict=True) for prompt in pair)


def variant_order(repeat: int) -> tuple[VariantName, ...]:
    """The variants in the order of this repeat (from 0): each stands in each place in turn."""
    start = repeat % len(VARIANTS)
    return VARIANTS[start:] + VARIANTS[:start]


def _answer_once(name: VariantName, session: SessionSettings, prompt: BenchPrompt) -> int | None:
    """Runs in a process of its own: its peak memory after one short answer."""
    short = replace(session, max_tokens=min(session.max_tokens, _MEMORY_MAX_TOKENS))
    with closing(open_variant(name, short)) as variant:
        variant.answer(prompt, -1)
        return peak_memory_bytes()


def bench_session(settings: BenchSettings, choice: ModelChoice, info: ModelInfo) -> SessionSettings:
    """What all variants get, resolved, so that all get the same."""
    return SessionSettings(
        model=str(choice.path),
        bundle=settings.bundle or choice.bundle,
        sampling=SamplingSettings(temperature=settings.temperature),
        max_tokens=settings.max_tokens,
        n_ctx=min(settings.n_ctx or DEFAULT_N_CTX, info.n_ctx_train or DEFAULT_N_CTX),
        n_gpu_layers=settings.n_gpu_layers,
        n_threads=settings.n_threads or n_usable_cores(),
    )


# -- what it costs to run the engine elsewhere: the same answers, here and there -------------------


def measure_cost(
    name: Literal["isolated", "served"],
    settings: BenchSettings,
    *,
    narrate: Callable[[str], None] = lambda _: None,
) -> tuple[VariantRatio, ...]:
    """Ratios of a variant over `lazy`, one for each kind of prompt.

    A server does not tell when each token came: its speed is that over whole answers, from the
    question on, and so is the other's.
    Both are open at once and answer each prompt one after the other, in turned order, so that
    whatever drifts hits both alike. Times are taken where the events arrive.
    Raises SettingsError, ModelFileError, BundleError, TemplateError, EngineError.
    """
    prompts = choose_prompts(settings.n_prompts)
    choice = choose_model(settings.model)
    session = bench_session(settings, choice, check_language_model(choice.path))
    answers: list[MeasuredAnswer] = []
    with (
        closing(open_variant("lazy", session)) as here,
        closing(open_variant(name, session)) as there,
    ):
        for variant in (here, there):
            variant.answer(prompts[-1], -1)
        for repeat in range(settings.n_repeats):
            narrate(f"repeat {repeat + 1} of {settings.n_repeats}")
            for index, prompt in enumerate(prompts):
                turned = (here, there) if (repeat + index) % 2 else (there, here)
                answers += [variant.answer(prompt, repeat) for variant in turned]
    if name == "served":
        answers = [over_whole(answer) for answer in answers]
    found = (ratio_of(answers, name, "lazy", kind) for kind in PROMPT_KINDS)
    return tuple(ratio for ratio in found if ratio is not None)


def cost_to_text(name: Literal["isolated", "served"], ratios: tuple[VariantRatio, ...]) -> str:
    """The ratios for people: median (least–greatest) over the repeats."""
    lines = (
        f"  {ratio.kind}: speed {shown_ratio(ratio.speed)} (below 1 is slower), "
        f"time to the first text {shown_ratio(ratio.first_text)} (above 1 is slower), "
        f"which is {ratio.later_ms.median:+.1f} ms\n"
        for ratio in ratios
    )
    what = {"isolated": "The engine in a process of its own", "served": "The server, from a client"}
    return f"{what[name]}, over the engine in this process\n" + "".join(lines)


def measure_parallel(
    n_parallel: int, settings: BenchSettings, *, narrate: Callable[[str], None] = lambda _: None
) -> Spread:
    """Tokens a second of so many clients in all, of a server that answers as many at a time.

    Over those of one client of a server that answers one at a time; each repeat is one ratio.
    Raises SettingsError, ModelFileError, EngineError.
    """
    if n_parallel < 2:
        raise SettingsError(f"parallel is {n_parallel!r}; expected at least 2")
    prompts = choose_prompts(settings.n_prompts)
    choice = choose_model(settings.model)
    session = bench_session(settings, choice, check_language_model(choice.path))
    # Cores are shared out among the engines, but for a number that was asked for.
    shared = replace(session, n_threads=settings.n_threads)

    def speed(server: BenchServer, n_clients: int, repeat: int) -> float:
        started_s = time.perf_counter()
        with ThreadPoolExecutor(n_clients) as clients:
            answers = list(clients.map(lambda prompt: server.answer(prompt, repeat), prompts))
        n_tokens = sum(len(answer.token_times_s) for answer in answers)
        return n_tokens / (time.perf_counter() - started_s)

    ratios: list[float] = []
    with (
        closing(BenchServer(session)) as alone,
        closing(BenchServer(shared, n_parallel)) as several,
    ):
        for repeat in range(-1, settings.n_repeats):  # the first pages the model in
            narrate(f"repeat {repeat + 1} of {settings.n_repeats}")
            one, all_together = speed(alone, 1, repeat), speed(several, n_parallel, repeat)
            if repeat >= 0:
                ratios.append(all_together / one)
    return spread(ratios)


# -- what the guard costs as the context grows -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContextCost:
    """Behind a prompt of so many tokens: speed guarded over off, a token's time, what is added.

    off_ms, added_us: of each repeat's median token.
    """

    n_prompt_tokens: int
    speed: Spread
    off_ms: Spread
    added_us: Spread


def measure_contexts(
    settings: BenchSettings, *, narrate: Callable[[str], None] = lambda _: None
) -> tuple[ContextCost, ...]:
    """The guard's cost for each length that the model takes, up to 16,384 tokens or n_ctx.

    Each prompt begins with the one before, so that the cache holds that; without full stops, so
    that no sentence of it is read for itself. Raises as `measure_cost`.
    """
    choice = choose_model(settings.model)
    info = check_language_model(choice.path)
    n_more = _MORE_CONTEXT + settings.max_tokens
    wanted = replace(settings, n_ctx=settings.n_ctx or _CONTEXTS[-1] + n_more)
    session = bench_session(wanted, choice, info)
    n_most = (session.n_ctx or DEFAULT_N_CTX) - n_more
    lengths = [n for n in _CONTEXTS if n <= n_most] or [max(1, n_most)]
    costs: list[ContextCost] = []
    with (
        closing(open_variant("off", session)) as off,
        closing(open_variant("lazy", session)) as lazy,
    ):
        few, some = _SAMPLED
        n_few, n_some = (
            off.answer(BenchPrompt("sample", "benign", _long_text(n)), -1).n_prompt_tokens
            for n in _SAMPLED
        )
        for n in lengths:
            text = _long_text(some + round((n - n_some) * (some - few) / (n_some - n_few)))
            prompt = BenchPrompt(f"{n} tokens", "benign", text)
            answers: list[MeasuredAnswer] = []
            for repeat in range(-1, settings.n_repeats):  # the first reads the prompt
                narrate(f"{n} tokens, repeat {repeat + 1} of {settings.n_repeats}")
                turned = (off, lazy) if repeat % 2 else (lazy, off)
                answers += [variant.answer(prompt, repeat) for variant in turned]
            costs.append(_context_cost([answer for answer in answers if answer.repeat >= 0]))
    return tuple(costs)


def _long_text(n_characters: int) -> str:
    """The same beginning whatever its length."""
    requests = load_requests(splits=("test",), labels=("ordinary",))
    said = itertools.cycle(re.sub(r"[^\w ]+", "", request.text).lower() for request in requests)
    text = "Tell me a long story with all of these in it"
    while len(text) < n_characters:
        text += f", {next(said)}"
    return text[:n_characters]


def _context_cost(answers: Sequence[MeasuredAnswer]) -> ContextCost:
    ratio = ratio_of(answers, "lazy", "off", "benign")
    if ratio is None or ratio.speed is None:
        raise EngineError("an answer ended with its first token; try another model")
    token_s = {
        (answer.variant, answer.repeat): statistics.median(
            later - earlier for earlier, later in itertools.pairwise(answer.token_times_s)
        )
        for answer in answers
    }
    repeats = sorted({answer.repeat for answer in answers})
    off_s = [token_s["off", repeat] for repeat in repeats]
    lazy_s = [token_s["lazy", repeat] for repeat in repeats]
    return ContextCost(
        n_prompt_tokens=answers[0].n_prompt_tokens,
        speed=ratio.speed,
        off_ms=spread([1e3 * own_s for own_s in off_s]),
        added_us=spread([1e6 * (a - b) for a, b in zip(lazy_s, off_s, strict=True)]),
    )


_CONTEXT_COLUMNS: Final[dict[str, Callable[[ContextCost], str]]] = {
    "prompt tokens": lambda cost: str(cost.n_prompt_tokens),
    "off, ms a token": lambda cost: shown_number(cost.off_ms.median, 2),
    "guarded / off": lambda cost: shown_ratio(cost.speed),
    "guard, µs a token": lambda cost: shown_number(cost.added_us.median, 0),
}


def contexts_to_text(costs: Sequence[ContextCost]) -> str:
    """The costs for people, and the machine."""
    title = "What the guard costs as the context grows (ratios below 1 are slower)"
    machine = read_machine()
    return (
        Table.of(title, "", costs, _CONTEXT_COLUMNS).to_text()
        + f"\n\nmachine  {machine.cpu}, {machine.n_cores} cores, {machine.operating_system}\n"
    )
