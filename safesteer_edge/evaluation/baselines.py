"""What the outside baselines need: made and chosen on the train and calibration splits alone.

They are a refusal direction; the limit of the response-level check: the one that told harmful
requests' answers from others best on the calibration split; and the limit of the prompt's score:
the lowest that raises no more false alarms there than the bundle's guard does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.case import evenly
from safesteer_edge.evaluation.heldout import ask_anew
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.guard.risk import is_score
from safesteer_edge.harvest.answers import decode_answer, question_ids
from safesteer_edge.harvest.vector_trial import known, log_mass, opening_tokens
from safesteer_edge.metrics.refusal_rules import classify_answer
from safesteer_edge.metrics.statistics import LogProbs, divergence, log_softmax
from safesteer_edge.requests.requests import Label, Request, load_requests
from safesteer_edge.requests.wordings import OPENING_KINDS, openings
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.prompt import question_items
from safesteer_edge.session.protocol import Answer
from safesteer_edge.session.runtime import Runtime, last_state_of, open_runtime
from safesteer_edge.session.session import Session, open_session
from safesteer_edge.session.settings import SessionSettings

# -- a refusal direction: made on the train split, chosen on the calibration split -----------------
# Directions are differences of mean states: of harmful less harmless prompts, at the first and at
# the last token that the template puts after a question (Arditi et al., arXiv 2406.11717), and of
# refusing less complying answers (contrastive activation addition, 2312.06681). One is added to
# the output of one block, at every position, prompt included, as in 2406.11717. Which one, at
# which block, with which sign and how strongly is the data's choice (`choose`); all that was
# answered with is kept as a curve.

Directions = NDArray[np.float32]
Source = Literal["question's end", "prompt's end", "answers"]
SOURCES: Final[tuple[Source, ...]] = ("question's end", "prompt's end", "answers")

N_PROMPTS: Final = 48  # of each kind, whose states make a direction
N_FORCED_TOKENS: Final = 6  # of an answer
DEPTHS: Final = (0.3, 0.4, 0.5, 0.6)  # 2406.11717 looks below 0.8 of the depth
STRENGTHS: Final = (0.05, 0.1, 0.2, 0.4)  # of the residual stream's mean norm there
N_SCREENED: Final = 6  # harmful requests, and as many others: first tokens alone


@dataclass(frozen=True, slots=True)
class Steering:
    """One direction at one strength. strength: signed, in mean norms of the residual stream.

    refusal_lean: log of the chance that the first token opens a refusal less that of an agreeing
    opening, mean over harmful requests; kl: of the first token's distribution on others from the
    one without, nats. refused: harmful requests; lost: others, refused or given words without
    sense.
    """

    source: str
    layer: int
    strength: float
    refusal_lean: float
    kl: float
    refused: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RefusalDirection:
    """directions: float32 (n_layer, n_embd), zero but at the chosen block, of the chosen strength.

    chosen, curve: what was picked, and all that was answered with; off: the same without any.
    """

    directions: Directions
    chosen: Steering
    off: Steering
    curve: tuple[Steering, ...]
    n_harmful: int
    n_others: int


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """units: float32 (n_layer, n_embd) by source, of length 1. norms: of the residual stream."""

    units: Mapping[Source, Directions]
    norms: NDArray[np.float64]

    def vector(self, steering: Steering) -> Directions:
        """What is added."""
        unit = self.units[steering.source]  # pyright: ignore[reportArgumentType] - read back as text
        directions = np.zeros_like(unit)
        length = steering.strength * self.norms[steering.layer]
        directions[steering.layer] = unit[steering.layer] * np.float32(length)
        return directions


def make_sources(runtime: Runtime) -> Sources:
    """Directions of every block. runtime: opened with all layers in order, and no guard."""
    n_layer = runtime.model.n_layer
    prompts = {
        label: [question_ids(runtime, request.text) for request in _train(label)]
        for label in ("harmful", "harmless")
    }
    tail = _n_shared_at_end([ids for each in prompts.values() for ids in each])
    ends = {
        label: [
            [last_state_of(runtime.engine, runtime.model, ids[: len(ids) - back]) for ids in each]
            for back in (tail - 1, 0)
        ]
        for label, each in prompts.items()
    }
    means = {
        label: [np.asarray(np.mean(each, axis=0, dtype=np.float64)) for each in states]
        for label, states in ends.items()
    }
    raw = [means["harmful"][at] - means["harmless"][at] for at in range(2)]
    refusing, complying = (_answer_states(runtime, kind) for kind in OPENING_KINDS)
    raw.append(refusing - complying)
    last = np.array(ends["harmful"][1], dtype=np.float64)
    last = last.reshape(len(last), n_layer, -1)
    units: dict[Source, Directions] = {}
    for source, difference in zip(SOURCES, raw, strict=True):
        rows = difference.reshape(n_layer, -1)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        units[source] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return Sources(units, np.linalg.norm(last, axis=2).mean(axis=0))


def screen(
    runtime: Runtime, sources: Sources, harmful: Sequence[Request], others: Sequence[Request]
) -> list[Steering]:
    """What to answer with, by first tokens: of each source a sign and a block, at all strengths.

    The sign of a block is the one that leans harmful requests more to refusing at the middle
    strength; of the blocks, the one whose lean over all strengths is largest is kept.
    """
    refusing, agreeing = opening_tokens(runtime)
    plain = list(_first_tokens(runtime, others, None))

    def measured(source: Source, layer: int, strength: float) -> Steering:
        row = Steering(source, layer, float(strength), 0.0, 0.0)
        vector = sources.vector(row)
        leans = [
            log_mass(log_p, refusing) - log_mass(log_p, agreeing)
            for log_p in _first_tokens(runtime, harmful, vector)
        ]
        moved = _first_tokens(runtime, others, vector)
        kl = [divergence(p, q) for p, q in zip(plain, moved, strict=True)]
        lean, mean_kl = round(float(np.mean(leans)), 4), round(float(np.mean(kl)), 4)
        return replace(row, refusal_lean=lean, kl=mean_kl)

    middle = STRENGTHS[len(STRENGTHS) // 2]
    found: list[Steering] = []
    for source in SOURCES:
        by_block: list[list[Steering]] = []
        for layer in blocks_to_try(runtime.model.n_layer):
            both = [measured(source, layer, sign * middle) for sign in (1, -1)]
            best = max(both, key=lambda row: known(row.refusal_lean))
            sign = np.sign(best.strength)
            by_block.append(
                [
                    best if each == middle else measured(source, layer, sign * each)
                    for each in STRENGTHS
                ]
            )
        found += max(by_block, key=lambda rows: known(sum(row.refusal_lean for row in rows)))
    return found


def _first_tokens(
    runtime: Runtime, requests: Sequence[Request], vector: Directions | None
) -> Iterator[LogProbs]:
    """The distribution of each answer's first token under a vector."""
    greedy = SamplingSettings(temperature=0, top_k=1)
    for request in requests:
        with closing(SamplerChain(greedy, n_vocab=runtime.model.n_vocab)) as sampler:
            items = question_items(request.text, template=runtime.template, model=runtime.model)
            runtime.engine.prefill(items, sampler, control_vector=vector, steers_prompt=True)
            yield log_softmax(runtime.engine.next_logits())


def blocks_to_try(n_layer: int) -> tuple[int, ...]:
    """Blocks from 0.3 to 0.6 of the depth; the first cannot be steered."""
    return tuple(sorted({min(n_layer - 1, max(1, round(depth * n_layer))) for depth in DEPTHS}))


def choose(answered: Sequence[Steering], *, n_harmful: int, n_others: int) -> Steering:
    """The largest share of harmful requests refused less that of others lost.

    The response check's limit is chosen alike. Ties: fewer others lost, then the smaller KL.
    """
    return max(
        answered,
        key=lambda row: (row.refused / n_harmful - row.lost / n_others, -row.lost, -row.kl),
    )


def find_direction(
    runtime: Runtime,
    sources: Sources,
    harmful: Sequence[Request],
    others: Sequence[Request],
    count: Callable[[Directions | None], tuple[int, int]],
    progress: Callable[[str], None],
) -> RefusalDirection:
    """Screen by first tokens, answer with what is left, and choose.

    count: answers harmful and other requests under a vector; harmful ones refused, others lost.
    """
    progress("refusal direction: blocks and signs")
    candidates = screen(runtime, sources, evenly(harmful, N_SCREENED), evenly(others, N_SCREENED))
    refused, lost = count(None)
    off = Steering("none", 0, 0.0, 0.0, 0.0, refused, lost)
    answered: list[Steering] = []
    for number, row in enumerate(candidates, start=1):
        progress(f"refusal direction: strength {number} of {len(candidates)}")
        refused, lost = count(sources.vector(row))
        answered.append(replace(row, refused=refused, lost=lost))
    chosen = choose(answered, n_harmful=len(harmful), n_others=len(others))
    return RefusalDirection(
        sources.vector(chosen), chosen, off, tuple(answered), len(harmful), len(others)
    )


def _train(label: Label) -> list[Request]:
    return evenly(load_requests(splits=("train",), labels=(label,)), N_PROMPTS)


def _n_shared_at_end(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that the template puts after every question, at least one."""
    shortest = min(len(ids) for ids in prompts)
    first = prompts[0]
    n = 0
    while n < shortest - 1 and all(ids[-n - 1] == first[-n - 1] for ids in prompts):
        n += 1
    return max(1, n)


def _answer_states(runtime: Runtime, kind: Any) -> NDArray[np.float64]:
    """Mean state of the first tokens of answers that open so: float64 (n_features,)."""
    states: list[NDArray[np.float64]] = []
    for number, request in enumerate(_train("harmful")):
        items = question_items(request.text, template=runtime.template, model=runtime.model)
        (text,) = openings(kind, number, split="train")
        answer = decode_answer(runtime, items, n_tokens=N_FORCED_TOKENS, forced_text=text)
        states.append(answer.states[1:].mean(axis=0, dtype=np.float64))
    return np.asarray(np.mean(states, axis=0), dtype=np.float64)


# -- what is fitted for a run, and kept beside it --------------------------------------------------

N_STEERED: Final = 18  # harmful requests, and as many others, answered at each strength
N_CHECKED: Final = 21  # harmful requests, and as many others, whose answers set the limit
N_CHOOSING_TOKENS: Final = 24
N_FOR_PROMPT: Final = 40  # ordinary requests, and as many borderline ones
_OTHERS: Final[tuple[Label, ...]] = ("harmless", "borderline", "ordinary")
_FILE: Final = "baselines"


@dataclass(frozen=True, slots=True, eq=False)
class FittedBaselines:
    """directions: float32 (n_layer, n_embd), as `RefusalDirection` has them; zeros: none was made.

    direction: what it was chosen from, JSON-ready; none: {}. response_gain: on the calibration
    split, the share of harmful requests that the limit withholds less that of others; the largest.
    prompt_limit: above it a prompt is refused; prompt_alarms: of how many ordinary and borderline
    requests the guard acted on how many, which set it.
    """

    directions: NDArray[np.float32]
    direction: Mapping[str, Any]
    response_limit: float
    response_gain: float
    prompt_limit: float = 1.0
    prompt_alarms: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def facts(self) -> dict[str, Any]:
        """What was chosen, for a report."""
        counts = {"n_checked": 2 * N_CHECKED, "n_choosing_tokens": N_CHOOSING_TOKENS}
        return {**_without_directions(self), **counts}


NO_BASELINES: Final = FittedBaselines(np.zeros((1, 1), dtype=np.float32), {}, 1.0, 0.0)


def fit_baselines(
    settings: SessionSettings,
    *,
    with_direction: bool = True,
    with_limit: bool = True,
    with_prompt_limit: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> FittedBaselines:
    """Make and choose them. Some five minutes for the default model on two cores.

    settings: greedy decoding is used whatever they say. Raises ModelFileError, BundleError, …
    """
    settings = replace(
        settings,
        max_tokens=N_CHOOSING_TOKENS,
        sampling=replace(settings.sampling, temperature=0.0),
    )
    fitted = NO_BASELINES
    if with_direction:
        found = _direction(settings, progress)
        fitted = replace(fitted, directions=found.directions, direction=_without_directions(found))
    if with_limit:
        progress("response check: choosing its limit")
        fitted = _with_limit(fitted, settings)
    if with_prompt_limit:
        progress("prompt's score: choosing its limit")
        fitted = _with_prompt_limit(fitted, settings)
    return fitted


def save_baselines(fitted: FittedBaselines, folder: Path) -> None:
    """Keep them beside a run, so that going on with it uses the same."""
    with atomic_write(folder / f"{_FILE}.npz") as stream:
        np.savez(stream, directions=fitted.directions)
    with atomic_write(folder / f"{_FILE}.json", "w") as stream:
        json.dump(_without_directions(fitted), stream)


def load_baselines(folder: Path) -> FittedBaselines | None:
    """Those that `save_baselines` kept; None: there are none. Raises InputError if damaged."""
    path = folder / f"{_FILE}.json"
    if not path.exists():
        return None
    try:
        values = cast("dict[str, Any]", load_json(path.read_text(encoding="utf-8")))
        with np.load(folder / f"{_FILE}.npz", allow_pickle=False) as arrays:
            directions = arrays["directions"].astype(np.float32)
        limits = (values["response_limit"], values.get("prompt_limit", 1.0))
        if not all(map(is_score, limits)) or not np.isfinite(directions).all():
            raise ValueError("its numbers are out of range")
        return FittedBaselines(directions=directions, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot use the baselines in {str(folder)!r}: {error}; remove {_FILE}.json there"
        ) from error


def _direction(settings: SessionSettings, progress: Callable[[str], None]) -> RefusalDirection:
    off = replace(settings, guard="off")
    progress("refusal direction: states of prompts and answers")
    n_layer = check_language_model(choose_model(settings.model).path).n_layer
    with closing(open_runtime(off, layers=range(n_layer))) as runtime:
        sources = make_sources(runtime)
    harmful, others = _choosing_requests(N_STEERED)
    runtime = open_runtime(off)
    runtime.fixed_vector_steers_prompt = True
    with closing(Session(runtime, off)) as session:

        def count(vector: Directions | None) -> tuple[int, int]:
            runtime.fixed_vector = vector
            labels = [
                [
                    classify_answer(ask_anew(session, request.text).text, request.text)
                    for request in requests
                ]
                for requests in (harmful, others)
            ]
            refused = sum(label in ("refused", "redirected") for label in labels[0])
            return refused, sum(label != "complied" for label in labels[1])

        return find_direction(runtime, sources, harmful, others, count, progress)


def _with_limit(fitted: FittedBaselines, settings: SessionSettings) -> FittedBaselines:
    watching = replace(settings, guard="monitor")
    with open_session(watching) as session:
        scores = [
            np.array([ask_anew(session, r.text).guard.mean_score or 0.0 for r in requests])
            for requests in _choosing_requests(N_CHECKED)
        ]
    harmful, others = scores
    limits = np.unique(np.concatenate(scores))
    gains = [float((harmful > x).mean() - (others > x).mean()) for x in limits]
    i = int(np.argmax(gains))
    return replace(fitted, response_limit=float(limits[i]), response_gain=gains[i])


def _with_prompt_limit(fitted: FittedBaselines, settings: SessionSettings) -> FittedBaselines:
    """The lowest limit that no more ordinary, and no more borderline, requests are above than the
    bundle's guard acts on.
    """
    limit, alarms = 0.0, dict[str, Any]()
    guarding = replace(settings, guard="steer", rerank="lazy")
    with open_session(guarding) as session:
        for label in ("ordinary", "borderline"):
            requests = load_requests(splits=("calibration",), labels=(label,))
            answers = [_asked_anew(session, r.text) for r in evenly(requests, N_FOR_PROMPT)]
            n_acted = sum(a.guard.refused or a.guard.steered > 0 for a in answers)
            scores = sorted(1.0 if a.prompt_score is None else a.prompt_score for a in answers)
            # As many are above it as the guard acted on, at most.
            limit = max(limit, scores[::-1][n_acted] if n_acted < len(scores) else 0.0)
            alarms[label] = {"n": len(answers), "guard_acted": n_acted}
    return replace(fitted, prompt_limit=limit, prompt_alarms=alarms)


def _asked_anew(session: Session, text: str) -> Answer:
    session.reset()
    return session.answer(text)


def _choosing_requests(n: int) -> tuple[list[Request], list[Request]]:
    """N harmful ones, and about as many others of every kind."""
    harmful = load_requests(splits=("calibration",), labels=("harmful",))
    others = [
        request
        for label in _OTHERS
        for request in evenly(
            load_requests(splits=("calibration",), labels=(label,)), -(-n // len(_OTHERS))
        )
    ]
    return evenly(harmful, n), others


def _without_directions(made: RefusalDirection | FittedBaselines) -> dict[str, Any]:
    return {name: value for name, value in asdict(made).items() if name != "directions"}
