"""How a model is steered: openings, how far it looks ahead, from which risk on, and how hard.

The openings are tried on the model itself: it goes on behind each, and what it then says is judged.
The numbers come from out-of-fold scores of its own answers, as the limits of refusals do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from safesteer_edge.calibration.policy_fit import (
    HIGHEST_START,
    AnswerScores,
    AnswerTable,
    PolicyChoice,
    least_start,
    strength_curve,
)
from safesteer_edge.engine.many_sequences import ManySequences, OpenAnswer
from safesteer_edge.engine.prompt_items import text_prompt
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.guard.policy import MAX_OPENINGS, GuardPolicy, SamplingSettings
from safesteer_edge.guard.protocols import Block, Probe
from safesteer_edge.guard.reranking import choose_by_odds
from safesteer_edge.guard.transcript import ends_sentence
from safesteer_edge.harvest.answers import decode_answer, open_many
from safesteer_edge.harvest.carriers import Carrier, carried_items
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.harvest.run import Progress
from safesteer_edge.metrics.refusal_rules import classify_answer, is_refusal
from safesteer_edge.requests.requests import Label, Request, spread
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings

# -- which openings --------------------------------------------------------------------------------

# Each ends where the model has to say what it is that it will not do: so the sentence is its own.
_OPENINGS: Final = (
    "I can't help with",
    "I won't help",
    "I can't assist with",
    "I'm sorry, but I can't",
    "I cannot provide",
    "I'm not going to",
)
N_TRIED: Final[dict[Label, int]] = {"harmful": 48, "harmless": 16}
_N_TOKENS: Final = 60  # behind an opening: some decline first, and comply later
_N_OWN_TOKENS: Final = 6  # of its own refusals, as an opening
_LEAST_OWN: Final = 3  # refusals that begin alike
_LEAST_OWN_WORDS: Final = 10  # tokens that it must go on for
_LEAST_DECLINED: Final = 0.75
# Where answers that began so are harmful in the end more often than this, each ends with its first
# sentence of some length.
_LEAST_LASTING: Final = 0.95


@dataclass(frozen=True, slots=True)
class OpeningTrial:
    """What a model makes of an opening. declined, twins_answered: shares of n answers of a kind.

    declined_at_once: of those that are cut behind their first sentence of `_LEAST_OWN_WORDS`.
    own_words: the mean number of tokens that it goes on for, at most `_N_TOKENS`.
    """

    opening: str
    n: int
    declined: float
    declined_at_once: float
    twins_answered: float
    own_words: float


@dataclass(frozen=True, slots=True)
class ChosenOpenings:
    """openings, opening_tokens: see GuardConfig. trial: what each that was tried led to, JSON."""

    openings: tuple[str, ...]
    opening_tokens: int
    trial: list[dict[str, Any]]


def choose_openings(
    session: SessionSettings, requests: Sequence[Request], progress: Progress
) -> ChosenOpenings:
    """The openings behind which this model declines in own words, the best first, and the trial.

    Of those that mostly lead to a refusal, the one comes first that does so most often, with its
    first sentence and to its end. Where even the best do not last, answers end with that sentence.
    Costs some 450 answers of 60 tokens, many at once. Without harmful requests, or where none
    serves: none.
    """
    pairs = [request for request in requests if request.pair_id is not None]
    tried = spread(pairs, N_TRIED)
    if not any(request.label == "harmful" for request in tried):
        return ChosenOpenings((), 0, [])
    with ExitStack() as undo:
        runtime = undo.enter_context(closing(open_runtime(replace(session, guard="off"))))
        many = None
        if not runtime.model.has_recurrent_state:
            many = undo.enter_context(closing(open_many(runtime, session, ())))
        own = _own_refusals(runtime, many, tried)  # however short: they are its own words
        texts = tuple(dict.fromkeys((*_OPENINGS, *own)))
        trials: list[OpeningTrial] = []
        for text in texts:
            progress("trying openings", len(trials), len(texts))
            trials.append(_try(runtime, many, tried, text))
        progress("trying openings", len(texts), len(texts))
    at_once = max(trial.declined for trial in trials) < _LEAST_LASTING

    def declined(trial: OpeningTrial) -> float:
        return trial.declined_at_once if at_once else trial.declined

    good = [
        trial
        for trial in trials
        if declined(trial) >= _LEAST_DECLINED
        and (trial.own_words >= _LEAST_OWN_WORDS or trial.opening in own)
    ]
    # One whose first sentence declines and the rest does not is easily led on: both count.
    good.sort(
        key=lambda trial: (
            -(trial.declined + trial.declined_at_once),
            -trial.twins_answered,
            len(trial.opening),
        )
    )
    chosen = tuple(trial.opening for trial in good[: MAX_OPENINGS // 2])
    n_tokens = _LEAST_OWN_WORDS if at_once else 0
    return ChosenOpenings(chosen, n_tokens, [asdict(trial) for trial in trials])


def _own_refusals(
    runtime: Runtime, many: ManySequences | None, requests: Sequence[Request]
) -> tuple[str, ...]:
    """How this model's own refusals of these requests begin; the two that come most often."""
    starts: Counter[str] = Counter()
    harmful = [request for request in requests if request.label == "harmful"]
    for tokens in _continuations(runtime, many, harmful, ""):
        if is_refusal(_text(runtime, tokens)):
            starts[_text(runtime, tokens[:_N_OWN_TOKENS]).strip()] += 1
    # One or two among so many are chance.
    common = [text for text, n in starts.most_common(2) if n >= _LEAST_OWN]
    return tuple(text for text in common if text.isprintable() and text)


def _try(
    runtime: Runtime, many: ManySequences | None, requests: Sequence[Request], opening: str
) -> OpeningTrial:
    declined: list[bool] = []
    at_once: list[bool] = []
    answered: list[bool] = []  # twins
    n_own: list[int] = []
    found = _continuations(runtime, many, requests, opening)
    for request, tokens in zip(requests, found, strict=True):
        text = opening + _text(runtime, tokens)
        if request.label == "harmful":
            declined.append(is_refusal(text, request.text))
            at_once.append(is_refusal(opening + _first_sentence(runtime, tokens), request.text))
        else:
            answered.append(classify_answer(text) == "complied")
        n_own.append(len(tokens))
    return OpeningTrial(
        opening,
        len(declined),
        float(np.mean(declined)),
        float(np.mean(at_once)),
        float(np.mean(answered)) if answered else 0.0,
        float(np.mean(n_own)),
    )


def _continuations(
    runtime: Runtime, many: ManySequences | None, requests: Sequence[Request], opening: str
) -> Iterator[Sequence[int]]:
    """What the model says to each behind an opening, greedily; without the token that ends it.

    many: None: one after the other.
    """
    given = runtime.model.tokenize_plain(opening) if opening else []
    n_tokens = len(given) + _N_TOKENS
    # Among other words too: there a refusal is the first thing to go.
    carriers: tuple[Carrier, ...] = ("text", "wrapped")
    prompts = (
        carried_items(request, carriers[at % 2], runtime) for at, request in enumerate(requests)
    )
    if many is None:
        answers = (
            decode_answer(runtime, items, n_tokens=n_tokens, forced_text=opening).token_ids
            for items in prompts
        )
    else:
        questions = (OpenAnswer(text_prompt(items), n_tokens, given) for items in prompts)
        answers = (token_ids for token_ids, *_ in many.answer(questions))
    for answer in answers:
        own = answer[len(given) :]
        yield own[:-1] if own and runtime.engine.is_end(own[-1]) else own


def _first_sentence(runtime: Runtime, tokens: Sequence[int]) -> str:
    """Up to the first end of a sentence behind enough tokens, as `GuardedAnswer` ends there."""
    for n in range(_LEAST_OWN_WORDS, len(tokens)):
        text = _text(runtime, tokens[:n])
        if ends_sentence(text):
            return text
    return _text(runtime, tokens)


def _text(runtime: Runtime, token_ids: Sequence[int]) -> str:
    return b"".join(map(runtime.engine.piece, token_ids)).decode("utf-8", "replace")


# -- how far to look ahead -------------------------------------------------------------------------
# A shallowly aligned model has a refusal among its likeliest first words even where somebody has
# told it how to begin. Tried on the model itself, on harmful requests among other words: the
# probe's choice among its beginnings goes on for some words, and what it then says is judged.

# Tokens: one says little about where an answer goes, three or more say much. How many serves best
# is the model's: a probe tells most at the words that its refusals are made of.
N_AHEAD: Final = (3, 4, 6, 8)
_N_JUDGED_TOKENS: Final = 16  # of a beginning and what follows: enough to tell a refusal
_LEAST_FOUND: Final = 6  # beginnings that decline: fewer are chance


@dataclass(frozen=True, slots=True)
class Beginning:
    """What re-ranking chose where a harmful request was to be answered. score: of the choice."""

    score: float
    declined: bool


@dataclass(frozen=True, slots=True)
class LookAheadFit:
    """look_ahead, look_ahead_limit: see `GuardPolicy`; 0 where this model finds no way of its own.

    n, declined: beginnings that were tried, and that declined; taken, taken_declined: of those
    within the limit. The numbers of the best of those tried.
    """

    look_ahead: int
    look_ahead_limit: float
    n: int
    declined: int
    taken: int
    taken_declined: int

    def applied_to(self, policy: GuardPolicy) -> GuardPolicy:
        """The policy with what was found."""
        limit = self.look_ahead_limit
        return replace(policy, look_ahead=self.look_ahead, look_ahead_limit=limit)

    def to_json(self) -> dict[str, Any]:
        """The same, for a bundle's figures."""
        return asdict(self)


def fit_look_ahead(
    runtime: Runtime, probe: Probe, requests: Sequence[Request], progress: Progress
) -> LookAheadFit:
    """Try it on this model. runtime: reads the states that the probe scores.

    Costs some 80 forward passes for each of 48 requests. Raises GuardError, EngineError.
    """
    tried = spread([r for r in requests if r.pair_id is not None], {"harmful": N_TRIED["harmful"]})
    found: dict[int, list[Beginning]] = {n_ahead: [] for n_ahead in N_AHEAD}
    for n_done, request in enumerate(tried):
        progress("looking ahead", n_done, len(tried))
        for n_ahead, beginning in _beginnings(runtime, probe, request).items():
            found[n_ahead].append(beginning)
    progress("looking ahead", len(tried), len(tried))
    fits = (choose_limit(n_ahead, beginnings) for n_ahead, beginnings in found.items())
    return max(fits, key=lambda fit: fit.taken_declined)


def choose_limit(n_ahead: int, found: Sequence[Beginning]) -> LookAheadFit:
    """Up to the last that declines of those within which most do; none where too few do."""
    ordered = sorted(found, key=lambda beginning: beginning.score)
    declined = np.array([beginning.declined for beginning in ordered], dtype=bool)
    n_taken = np.arange(1, len(ordered) + 1)
    n_declined = np.cumsum(declined)
    is_reliable = (n_declined >= _LEAST_DECLINED * n_taken) & (n_declined >= _LEAST_FOUND)
    serving = np.flatnonzero(declined & is_reliable)
    if not len(serving):
        return LookAheadFit(0, 0.0, len(ordered), int(declined.sum()), 0, 0)
    last = int(serving[-1])
    return LookAheadFit(
        n_ahead,
        ordered[last].score,
        len(ordered),
        int(declined.sum()),
        last + 1,
        int(n_declined[last]),
    )


def _beginnings(runtime: Runtime, probe: Probe, request: Request) -> dict[int, Beginning]:
    """By how far it looks ahead: the choice, and whether what it leads to declines."""
    engine, rng = runtime.engine, np.random.default_rng(0)  # greedy: nothing is drawn
    sampling = SamplingSettings(temperature=0, top_k=1)
    declines: dict[int, bool] = {}
    found: dict[int, Beginning] = {}
    with closing(SamplerChain(sampling, n_vocab=runtime.model.n_vocab)) as sampler:
        engine.prefill(carried_items(request, "wrapped", runtime), sampler)
        proposal, states = engine.look_ahead(max(N_AHEAD))
        for n_ahead in N_AHEAD:
            choice = choose_by_odds(probe, proposal, [each[:n_ahead] for each in states], rng)
            if choice.index not in declines:
                said = _go_on(runtime, proposal.candidate(choice.index))
                declines[choice.index] = is_refusal(said, request.text)
            found[n_ahead] = Beginning(choice.score, declines[choice.index])
    return found


def _go_on(runtime: Runtime, block: Block) -> str:
    """What a beginning becomes; the sequence is left as it was."""
    engine, said = runtime.engine, [*block]
    engine.evaluate_blocks([block])
    engine.accept_block(block)
    while len(said) < _N_JUDGED_TOKENS and not engine.is_end(said[-1]):
        said.append(int(engine.propose().token_ids[0]))
        engine.evaluate(said[-1])
        engine.accept(said[-1])
    engine.rewind(len(said))
    return _text(runtime, said)


# -- from which risk on, and how hard --------------------------------------------------------------

_RETRIES: Final = 2
# Nearly all: with half, what a model is told to begin with ("Sure, ...") kept its place, and what
# the embedded default said in place of an opening complied.
_OPENING_SHARE: Final = 0.9
# τ: what nine of ten tokens of answers to the harmless twins of harmful requests stay below.
_CALM_SHARE: Final = 0.9
_THRESHOLDS: Final = (0.05, 0.5)
# λ: the mean chance that is left to a harmful answer's token above τ. Less makes nonsense: where
# the score alone decides, no token is one that the model would say.
_KEPT: Final = 0.25


def with_steering(
    choice: PolicyChoice, scores: AnswerScores, targets: FalseAlarmTargets
) -> PolicyChoice:
    """The policy with steering that depends on the risk.

    τ: above most tokens of benign answers to such questions. λ: the smallest tried that leaves a
    harmful answer's tokens above τ the wanted chance. Steering begins at the risk that no more
    benign answers reach than may be touched; what would be refused is steered anew instead.
    """
    policy = choice.policy
    benign = [*scores.harmless_twins, *scores.borderline] or [*scores.ordinary]
    tokens = np.concatenate([row[1:] for row in benign])
    low, high = _THRESHOLDS
    threshold = min(high, policy.hard_threshold, max(low, float(np.quantile(tokens, _CALM_SHARE))))
    strengths = strength_curve(scores.harmful, scores.ordinary, threshold)
    wanted = [row for row in strengths if not row["harmful_kept"] > _KEPT]
    names = ("ordinary", "borderline", "harmless_twins", "harmful")
    tables = {name: AnswerTable(getattr(scores, name)) for name in names}
    steer_from = min(HIGHEST_START * policy.risk_limit, least_start(tables, policy, targets))
    steered = replace(
        policy,
        threshold=threshold,
        strength=(wanted or [strengths[-1]])[0]["strength"],
        steer_from=steer_from,
        retries=_RETRIES,
        opening_share=_OPENING_SHARE,
    )
    touched = {
        name: _share_above(_risks(table, choice), steer_from) for name, table in tables.items()
    }
    return replace(choice, policy=steered, touched=touched, strengths=strengths)


def _risks(table: AnswerTable, choice: PolicyChoice) -> np.typing.NDArray[np.float64]:
    policy = choice.policy
    return table.largest_risks(policy.risk_decay, 1, policy.prompt_weight, policy.answer_prior)


def _share_above(risks: np.typing.NDArray[np.float64], limit: float) -> float:
    return float(np.mean(risks > limit)) if len(risks) else float("nan")
