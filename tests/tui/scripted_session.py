"""A session that answers by a script: no model, no llama.cpp, the same events."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safesteer_edge.errors import PromptTooLongError, SafeSteerError
from safesteer_edge.guard.events import (
    Candidate,
    Event,
    GuardSummary,
    PrefillDone,
    Refused,
    Steered,
    Step,
    TextDelta,
    Timings,
    TurnEnded,
    TurnsLeftOut,
    Usage,
)
from safesteer_edge.guard.policy import GuardMode, GuardPolicy
from safesteer_edge.session.protocol import ChatMessage, Document, SessionInfo, TurnSettings
from safesteer_edge.session.settings import SessionSettings

POLICY = GuardPolicy(
    strength=8.0,
    threshold=0.5,
    hard_threshold=0.9,
    hard_patience=3,
    risk_limit=0.6,
    risk_decay=0.9,
    risk_min_steps=4,
    risk_gain=0.0,
    conversation_carry=0.5,
)
_SPEED = 41.7  # tokens per second, as it is told
REFUSAL_TEXT = "I can't help with that."
REFUSAL_DETAIL = "the answer stayed harmful whatever words were chosen"


@dataclass(frozen=True, slots=True)
class Word:
    """A token of a script. instead_of: what the sampler wanted, if the guard chose this one."""

    text: str
    score: float = 0.02
    instead_of: str | None = None
    instead_score: float = 0.93


@dataclass(slots=True)
class Script:
    """What one question brings. refuse: the guard ends it after its words. error: it breaks there.

    pause_s: between two words. gate: if given, the answer waits for it after `n_before_gate` words.
    thoughts: words of reasoning before them. taken_back: words that the guard takes back before
    they are shown; the answer then begins with the words of the opening. left_out: turns that its
    prompt leaves out anew.
    """

    words: Sequence[Word]
    refuse: bool = False
    error: SafeSteerError | None = None
    pause_s: float = 0.0
    gate: threading.Event | None = None
    n_before_gate: int = 3
    thoughts: Sequence[str] = ()
    taken_back: Sequence[Word] = ()
    opening: Sequence[Word] = ()
    left_out: int = 0


def said(text: str, **changes: object) -> Script:
    """A script that says this, harmless."""
    parts = text.split(" ")
    words = [Word(part if i == 0 else " " + part) for i, part in enumerate(parts)]
    return Script(words, **changes)  # pyright: ignore[reportArgumentType]  # fields of Script


@dataclass(slots=True)
class ScriptedModel:
    """Makes sessions. scripts: by question; other questions are echoed. opened: all sessions."""

    scripts: dict[str, Script] = field(default_factory=dict)
    load_error: SafeSteerError | None = None
    load_gate: threading.Event | None = None
    sees: bool = True
    is_calibrated: bool = True
    languages: tuple[str, ...] = ()
    is_quick: bool = False
    opened: list[ScriptedSession] = field(default_factory=list)

    def open(self, settings: SessionSettings) -> ScriptedSession:
        """An opener for the application."""
        if self.load_gate is not None:
            assert self.load_gate.wait(120), "waited in vain for the gate of the load to open"
        if self.load_error is not None:
            raise self.load_error
        session = ScriptedSession(settings, self)
        self.opened.append(session)
        return session

    @property
    def session(self) -> ScriptedSession:
        """The latest session."""
        return self.opened[-1]


class ScriptedSession:
    """A `ChatSession` over scripts."""

    def __init__(self, settings: SessionSettings, model: ScriptedModel) -> None:
        self._model = model
        self._settings = settings
        self.turn_settings = TurnSettings.of(settings)
        self.messages: tuple[ChatMessage, ...] = ()
        self.is_closed = False
        self._cancelled = threading.Event()
        self._rest: tuple[Script, int] | None = None

    @property
    def info(self) -> SessionInfo:
        """As of a small model."""
        guard: GuardMode = self.turn_settings.guard
        has_bundle = self._settings.guard != "off"
        return SessionInfo(
            model_name=self._settings.model or "smollm2-135m-instruct",
            model_path=Path("/models/scripted.gguf"),
            architecture="llama",
            quantization="Q4_1",
            tensor_table_sha256="0" * 64,
            n_ctx=4096,
            n_candidates=16,
            sees=self._model.sees,
            hears=False,
            mmproj=None,
            guard=guard,
            bundle="scripted guard" if has_bundle else None,
            probe_sha256="1" * 64 if has_bundle else None,
            policy=POLICY if has_bundle else None,
            probe_provider="CPU",
            hidden_state_route="layer_inputs",
            template_sha256="2" * 64,
            warnings=(),
            load_s=0.1,
            is_calibrated=self._model.is_calibrated if has_bundle else None,
            languages=self._model.languages if guard != "off" else (),
            is_quick=self._model.is_quick,
        )

    def ask(
        self,
        text: str,
        *,
        images: Sequence[Path] = (),
        sounds: Sequence[Path] = (),
        documents: Sequence[Document] = (),
        system: str | None = None,
        answer_prefix: str = "",
    ) -> Generator[Event, None, None]:
        """Answer as the script says."""
        self._cancelled.clear()
        if system is not None:
            self.messages = (ChatMessage("system", system),)
        question = ChatMessage("user", text, tuple(images), tuple(sounds), tuple(documents))
        script = self._model.scripts.get(text) or said(f"You said: {text}")
        return self._answer(question, script)

    def check_fits(self, text: str, *, system: str | None = None) -> None:
        """A word is a token."""
        n_tokens, n_ctx = len(f"{system or ''} {text}".split()), self.info.n_ctx
        if n_tokens > n_ctx:
            raise PromptTooLongError(
                f"the prompt has {n_tokens} tokens, and a context of {n_ctx} has room for {n_ctx}; "
                "shorten it, or raise --ctx"
            )

    def continue_answer(self) -> Generator[Event, None, None]:
        """Say the rest of the script."""
        self._cancelled.clear()
        question, answer = self.messages[-2:]
        script = self._model.scripts[question.text]
        self.messages = self.messages[:-2]
        n_said, text = 0, ""
        while text != answer.text:
            text += script.words[n_said].text
            n_said += 1
        return self._answer(question, script, n_said)

    def restore(self, messages: Sequence[ChatMessage]) -> None:
        """Take these messages."""
        self.messages = tuple(messages)

    def reset(self) -> None:
        """Forget all."""
        self.messages = ()

    def change(self, settings: TurnSettings) -> None:
        """Take these settings, as a session does."""
        POLICY.tightened(strength=settings.strength, threshold=settings.threshold)
        self.turn_settings = settings

    def cancel(self) -> None:
        """Stop."""
        self._cancelled.set()

    def close(self) -> None:
        """Remember that it was closed."""
        self.is_closed = True

    def _answer(
        self, question: ChatMessage, script: Script, n_said: int = 0
    ) -> Generator[Event, None, None]:
        if script.left_out:
            yield TurnsLeftOut(script.left_out, script.left_out)
        yield PrefillDone(20, 0, 0, 0.01, bool(question.images), 0.03)
        text = "".join(word.text for word in script.words[:n_said])
        for thought in script.thoughts:
            yield TextDelta(thought, "reasoning")
        for index, word in enumerate(script.taken_back, 1):
            yield step_of(index, word, word.score)
        if script.taken_back:
            yield Steered(1, "risk_limit", len(script.taken_back), len(script.taken_back))
        for index, word in enumerate(script.opening, len(script.taken_back) + 1):
            yield replace(step_of(index, word, word.score), accepted=False, opening=True)
            yield TextDelta(word.text)
            text += word.text
        n_steps, n_steered, risk = 0, 0, 0.0
        reason = "stop"
        for step in self._steps(script, n_said):
            if step is None:
                reason = "cancelled"
                break
            n_steps += 1
            n_steered += not step.accepted
            risk = step.risk or 0.0
            yield step
            text += step.text
            yield TextDelta(step.text)
        refusal = None
        if script.error is not None and reason == "stop":
            raise script.error
        if script.refuse and reason == "stop":
            said_text = ("\n\n" if text else "") + REFUSAL_TEXT
            refusal = Refused("risk_limit", REFUSAL_DETAIL, said_text, n_steps, 4)
            yield refusal
            text, reason = text + said_text, "refused"
        if text:
            self.messages = (*self.messages, question, ChatMessage("assistant", text, risk=risk))
        yield TurnEnded(
            text=text,
            finish_reason=reason,  # pyright: ignore[reportArgumentType]  # one of the four
            guard=GuardSummary(
                mode=self.turn_settings.guard,
                rerank="lazy",
                bundle="scripted guard",
                interventions=n_steered,
                evaluated_candidates=0,
                max_score=None,
                mean_score=None,
                risk=risk,
                refused=refusal is not None,
                vector_active=bool(question.images),
                steered=int(bool(script.taken_back)),
                opening="".join(word.text for word in script.opening),
            ),
            usage=Usage(20, 0, 0, n_steps, n_steps),
            timings=Timings(0.01, 0.21, n_steps / _SPEED, 0.0, _SPEED),
            refusal=refusal,
        )

    def _steps(self, script: Script, n_said: int) -> Iterator[Step | None]:
        """Steps; None where it was stopped."""
        total, n_counted = 0.0, 0
        words = [_guarded(word, self.turn_settings.guard) for word in script.words[n_said:]]
        for index, word in enumerate(words, start=1):
            if script.gate is not None and n_said + index > script.n_before_gate:
                while not script.gate.wait(0.005) and not self._cancelled.is_set():
                    pass
            if script.pause_s:
                self._cancelled.wait(script.pause_s)
            if self._cancelled.is_set():
                yield None
                return
            total, n_counted = total + word.score, n_counted + 1
            step = step_of(index, word, total / n_counted)
            if self.turn_settings.guard == "off":
                step = replace(step, score=None, risk=None)
            yield step


def _guarded(word: Word, guard: GuardMode) -> Word:
    """The word as this mode lets it be: only steering changes any."""
    if word.instead_of is None or guard == "steer":
        return word
    return Word(word.instead_of, word.instead_score)


def step_of(index: int, word: Word, risk: float) -> Step:
    token_id = 100 + index
    if word.instead_of is None:
        return Step(index, token_id, word.text, -0.2, word.score, True, risk, (), token_id)
    candidates = (
        Candidate(7, -0.3, word.instead_score, word.instead_of),
        Candidate(token_id, -1.6, word.score, word.text),
        Candidate(9, -2.4, 0.71, " perhaps"),
    )
    return Step(index, token_id, word.text, -1.6, word.score, False, risk, candidates, 7)
