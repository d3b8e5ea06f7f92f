"""What a turn tells its caller: plain values that survive JSON and a pipe between processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from safesteer_edge.guard.policy import GuardMode, RerankName
from safesteer_edge.guard.risk import RefusalReason, require_score

FinishReason = Literal["stop", "length", "loop", "refused", "cancelled"]
AnswerPart = Literal["answer", "reasoning"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate of a step that was evaluated. text: what it would have added."""

    token_id: int
    logprob: float
    score: float
    text: str = ""

    def __post_init__(self) -> None:
        require_score("a candidate's score", self.score)


@dataclass(frozen=True, slots=True)
class MediaPrepared:
    """A picture or sound of the question became tokens; comes before `PrefillDone`, in order.

    name: the file's, without control characters. width, height, original_width, original_height:
    of a picture as the model sees it and as the file has it, upright; 0 for sound. seconds: of
    sound; 0 for a picture. encode_s: of the projector; 0 where the tokens were still in its cache.
    """

    kind: Literal["image", "audio"]
    name: str
    original_width: int
    original_height: int
    width: int
    height: int
    seconds: float
    n_tokens: int
    encode_s: float
    from_cache: bool


@dataclass(frozen=True, slots=True)
class TurnsLeftOut:
    """The context is full: the prompt leaves out the oldest turns. Comes before `PrefillDone`.

    n_turns: questions with their answers that it leaves out; the conversation still has them.
    n_new: of them, those that the prompt before had.
    """

    n_turns: int
    n_new: int


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """The prompt is in the context.

    n_reused_tokens of the prompt's tokens were still there from the turn before. n_media_encoded:
    pictures and sounds of the whole conversation that the projector had to encode for this prompt.
    prompt_score: harmful score of the prompt, None without a probe; that of another
    reading of the last message where it counts more. n_readings: how many of those there were.
    """

    n_prompt_tokens: int
    n_media_tokens: int
    n_reused_tokens: int
    prefill_s: float
    vector_active: bool
    prompt_score: float | None
    n_media_encoded: int = 0
    n_readings: int = 0

    def __post_init__(self) -> None:
        if self.prompt_score is not None:
            require_score("the prompt's score", self.prompt_score)


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step.

    text: what the token adds; '' while a UTF-8 character is incomplete. It may yet be taken back:
    show `TextDelta` to people. logprob: under the sampler, over its candidates. score, risk: None
    with the guard off. accepted: the sampler's own proposal was kept. candidates: those that were
    evaluated, if more than one. proposed_token_id: the sampler's own proposal. given: the caller
    began the answer with this token (logprob 0). opening: it is part of a safe opening that was
    chosen as one candidate; its first token tells the candidates.
    """

    step: int
    token_id: int
    text: str
    logprob: float
    score: float | None
    accepted: bool
    risk: float | None
    candidates: tuple[Candidate, ...] = ()
    proposed_token_id: int | None = None
    given: bool = False
    opening: bool = False

    def __post_init__(self) -> None:
        if self.score is not None:
            require_score("a token's score", self.score)
        if self.risk is not None:
            require_score("the running risk", self.risk)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer that is settled: it will not be taken back.

    part: a thinking model's reasoning is told apart from its answer, and guarded as well.
    start: where the text stands among all that the steps wrote, the marks of reasoning included,
    which no delta carries. None: right behind the delta before.
    """

    text: str
    part: AnswerPart = "answer"
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Steered:
    """The unsettled tokens were taken back, as if they had never been, and the answer goes on from
    there under the guard's steering: what comes next is the model's own, among safer candidates.

    attempt: 1 the first time. step: how many steps there were.
    """

    attempt: int
    reason: RefusalReason
    step: int
    n_tokens_taken_back: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The guard ended the turn: unsettled tokens were taken back and `text` stands in their place.

    detail: one sentence for people on why.
    """

    reason: RefusalReason
    detail: str
    text: str
    step: int
    n_tokens_taken_back: int


@dataclass(frozen=True, slots=True)
class GuardSummary:
    """The guard's part in one turn. Scores are those of emitted tokens; None: there are none.

    risk: what the conversation remembers: the running risk at the end, or the one at which the
    answer was taken back, if that was higher.
    steered: how often the answer was taken back and steered anew. opening: the safe opening that
    it then began with, as it stands; '' if none was chosen.
    """

    mode: GuardMode
    rerank: RerankName | None
    bundle: str | None
    interventions: int
    evaluated_candidates: int
    max_score: float | None
    mean_score: float | None
    risk: float | None
    refused: bool
    vector_active: bool
    steered: int = 0
    opening: str = ""

    def __post_init__(self) -> None:
        for what in ("max_score", "mean_score", "risk"):
            value: float | None = getattr(self, what)
            if value is not None:
                require_score(what, value)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn. media_tokens: the part of prompt_tokens that stands for media.

    completion_tokens: of the answer, given ones included.
    """

    prompt_tokens: int
    media_tokens: int
    reused_tokens: int
    completion_tokens: int
    forward_passes: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one turn; ttft_s is from the question to the first settled text or refusal."""

    prefill_s: float
    ttft_s: float
    decode_s: float
    probe_s: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The last event of every turn.

    text: the whole answer as it stands in the conversation. finish_reason: `loop`: the model said
    the same over and over, see `repeats_itself`. reasoning: what a thinking model wrote
    before it, which the conversation leaves out; None if it did not reason.
    """

    text: str
    finish_reason: FinishReason
    guard: GuardSummary
    usage: Usage
    timings: Timings
    refusal: Refused | None = None
    reasoning: str | None = None


Event = (
    MediaPrepared | TurnsLeftOut | PrefillDone | Step | TextDelta | Steered | Refused | TurnEnded
)

_KINDS: dict[type[Any], str] = {
    MediaPrepared: "media_prepared",
    TurnsLeftOut: "turns_left_out",
    PrefillDone: "prefill_done",
    Step: "step",
    TextDelta: "text_delta",
    Steered: "steered",
    Refused: "refused",
    TurnEnded: "turn_ended",
}

_CONSTRUCTORS = {name: made for made, name in _KINDS.items()}
_STEP_FIELDS = tuple(field.name for field in fields(Step))


def event_to_json(event: Event) -> dict[str, Any]:
    """The event as JSON-ready values, with its kind under `event`."""
    kind = _KINDS[type(event)]
    if isinstance(event, Step):  # one a token: `asdict` would take as long as all else of the pipe
        values = {name: getattr(event, name) for name in _STEP_FIELDS}
        values["candidates"] = tuple(asdict(candidate) for candidate in event.candidates)
        return {"event": kind, **values}
    return {"event": kind, **asdict(event)}


def event_from_json(data: dict[str, Any]) -> Event:
    """The event that `event_to_json` wrote.

    Raises KeyError or TypeError on anything else, GuardError for a score or risk that is none.
    """
    values = dict(data)
    kind = values.pop("event")
    if kind == "step":
        values["candidates"] = tuple(Candidate(**item) for item in values["candidates"])
    elif kind == "turn_ended":
        values["guard"] = GuardSummary(**values["guard"])
        values["usage"] = Usage(**values["usage"])
        values["timings"] = Timings(**values["timings"])
        values["refusal"] = Refused(**values["refusal"]) if values["refusal"] else None
    return _CONSTRUCTORS[kind](**values)
