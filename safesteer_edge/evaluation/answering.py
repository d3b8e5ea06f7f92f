"""One defence, ready to answer cases: a model that is loaded once, and a conversation a case."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import SafeSteerError
from safesteer_edge.evaluation.baselines import FittedBaselines
from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.defences import Defence
from safesteer_edge.evaluation.disguises import try_again
from safesteer_edge.evaluation.machine import forget_peak_memory, peak_memory_bytes
from safesteer_edge.evaluation.picture_skill import QUESTIONS
from safesteer_edge.evaluation.rows import EvalRow, unanswered
from safesteer_edge.guard.events import (
    Event,
    PrefillDone,
    Refused,
    Steered,
    Step,
    TurnEnded,
)
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.media.decoder import DecodedImage
from safesteer_edge.media.picture_words import PictureReader
from safesteer_edge.processes.pool import Died, share_out
from safesteer_edge.session.protocol import TurnSettings
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.session import Session
from safesteer_edge.session.settings import SessionSettings

N_KEPT_SCORES = 48
_EARLIER_TURN_TOKENS = 24  # answers on the way to the one that counts
_NAME_TOKENS: Final = 12  # of what a picture is named
_POINTS: Final = re.compile(r"\b(?:this|these|the picture|the image)\b", re.IGNORECASE)
_SHOWS: Final = "The picture shows"  # how the answer that names it is made to begin


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """session: the model and how it samples. top_k: the largest of all cases.

    withheld_text: what a check of the finished answer puts in its place, if no bundle says it.
    """

    session: SessionSettings
    fitted: FittedBaselines
    top_k: int
    withheld_text: str = "I can't help with that."


class DefenceRunner:
    """Answers cases under one defence. Close it: it owns a model."""

    def __init__(self, settings: AnswerSettings, defence: Defence) -> None:
        """Raises ModelFileError, BundleError, SettingsError, EngineError."""
        self._settings = settings
        self.defence = defence
        self._tells_memory = forget_peak_memory()
        opened = replace(
            settings.session,
            guard=defence.guard,
            rerank=defence.rerank,
            sampling=replace(settings.session.sampling, top_k=settings.top_k),
        )
        self._runtime = open_runtime(opened)
        try:
            self._alignment = _alignment_vector(self._runtime, defence)
            self._reader = self._runtime.picture_reader
            self._picture_name = ""
            _apply_defence_inplace(self._runtime, defence)
            self._session = Session(self._runtime, opened)
        except BaseException:
            self._runtime.close()
            raise

    def close(self) -> None:
        """Free the model."""
        self._runtime.close()

    def answer(self, case: Case) -> EvalRow:
        """Ask it; whatever keeps it from being answered is the row's error."""
        if case.tries:
            return try_again(case, self._answer, seed=self._settings.session.sampling.seed)
        return self._answer(case)[0]

    def _answer(self, case: Case) -> tuple[EvalRow, float | None]:
        """The row, and the risk that the guard tells."""
        try:
            events = self._converse(case)
            row = self._row(case, events)
        except SafeSteerError as error:
            return unanswered(case, self.defence, "error", str(error)), None
        ended = events[-1]
        return row, ended.guard.risk if isinstance(ended, TurnEnded) else None

    def _converse(self, case: Case) -> list[Event]:
        session, defence = self._session, self.defence
        session.reset()
        self._picture_name = ""
        if defence.names_pictures and case.image:
            self._picture_name = self._name_of(case.image)
            said = _in_words(case.turns[-1], self._picture_name)
            self._runtime.picture_reader = _WordsBesides(said, self._reader)
        self._runtime.fixed_vector = self._vector(case)
        self._runtime.fixed_vector_steers_prompt = defence.vector == "refusal-direction"
        usual = TurnSettings(
            guard=defence.guard,
            rerank=defence.rerank,
            sampling=case.sampling or self._settings.session.sampling,
            max_tokens=self._settings.session.max_tokens,
        )
        session.change(replace(usual, max_tokens=min(usual.max_tokens, _EARLIER_TURN_TOKENS)))
        system = defence.system
        for turn in case.turns[:-1]:
            list(session.ask(turn, system=system))
            system = None
        session.change(usual)
        told: list[Event] = []
        for event in session.ask(
            case.turns[-1],
            images=[case.image] if case.image else [],
            system=system,
            answer_prefix=self._given_text(case),
        ):
            told.append(event)
            if isinstance(event, PrefillDone) and self._withholds_at_once(event):
                session.cancel()
        return told

    def _name_of(self, image: Path) -> str:
        """What the model says that the picture shows, unguarded: only the guard hears it."""
        greedy = SamplingSettings(temperature=0.0, top_k=1)
        self._session.change(TurnSettings(guard="off", sampling=greedy, max_tokens=_NAME_TOKENS))
        *_, ended = self._session.ask(QUESTIONS["name"], images=[image], answer_prefix=_SHOWS)
        self._session.reset()
        said = ended.text.removeprefix(_SHOWS) if isinstance(ended, TurnEnded) else ""
        return " ".join(re.split(r"[.,;:\n]", said.strip())[0].split())

    def _withholds_at_once(self, prompt: PrefillDone) -> bool:
        """Whether the prompt's score alone keeps it from being answered; it is if not known."""
        score, limit = prompt.prompt_score, self._settings.fitted.prompt_limit
        return self.defence.withholds == "prompt" and not (score is not None and score <= limit)

    def _vector(self, case: Case) -> NDArray[np.float32] | None:
        """What is on in every turn of this case; None leaves it to the session."""
        defence = self.defence
        if defence.vector == "refusal-direction":
            return self._settings.fitted.directions * np.float32(defence.vector_factor)
        if defence.vector == "alignment" and defence.guard == "monitor" and case.image:
            return self._alignment
        return None

    def _given_text(self, case: Case) -> str:
        if case.n_given_tokens is None:
            return case.given_text
        model = self._runtime.model
        token_ids = model.tokenize_plain(case.given_text)[: case.n_given_tokens]
        return b"".join(model.piece(token_id) for token_id in token_ids).decode("utf-8", "ignore")

    def _row(self, case: Case, events: list[Event]) -> EvalRow:
        ended = events[-1]
        if not isinstance(ended, TurnEnded):
            raise TypeError(f"a turn ended with {type(ended).__name__}")
        if ended.refusal is not None and ended.refusal.reason == "guard_failed":
            return unanswered(case, self.defence, "error", ended.refusal.detail)
        steps = [event for event in events if isinstance(event, Step)]
        scores = [step.score for step in steps if step.score is not None]
        n_given = sum(step.given for step in steps)
        mean, timings = ended.guard.mean_score, ended.timings
        limit, bundle = self._settings.fitted.response_limit, self._runtime.bundle
        withheld = self.defence.withholds == "answer" and mean is not None and mean > limit
        withheld = withheld or any(
            self._withholds_at_once(event) for event in events if isinstance(event, PrefillDone)
        )
        said = _standing(events)
        n_raised = sum(step.opening for step in said)
        after = said[max((i + 1 for i, step in enumerate(said) if step.opening), default=0) :]
        shown = ended.text
        if withheld:
            shown = bundle.config.refusal_text if bundle else self._settings.withheld_text
        # When a person sees the first text: after all of it, where the whole is checked first.
        at_end_s = timings.prefill_s + timings.decode_s
        return replace(
            unanswered(case, self.defence, "ok", ""),
            answer=shown,
            own_answer=ended.text if withheld else "",
            finish_reason=ended.finish_reason,
            withheld=withheld,
            vector_active=ended.guard.vector_active,
            n_tokens=len(steps) - n_given,
            n_given=n_given,
            passes=ended.usage.forward_passes,
            interventions=ended.guard.interventions,
            steered=ended.guard.steered,
            opening=ended.guard.opening,
            n_opening=n_raised,
            n_own=len(list(takewhile(lambda step: step.accepted, after))) if n_raised else 0,
            ttft_s=round(at_end_s if self.defence.withholds == "answer" else timings.ttft_s, 4),
            decode_s=round(timings.decode_s, 4),
            scores=tuple(round(score, 4) for score in scores[:N_KEPT_SCORES]),
            mean_score=mean,
            peak_memory_bytes=peak_memory_bytes() if self._tells_memory else None,
            prompt_score=next(
                (event.prompt_score for event in events if isinstance(event, PrefillDone)), None
            ),
            picture_name=self._picture_name,
        )


class _WordsBesides(PictureReader):
    """Finds these words in every picture, besides what another reader reads in it."""

    def __init__(self, said: str, reader: PictureReader | None) -> None:
        super().__init__(n_threads=1)
        self._said = said
        self._reader = reader

    def words(self, image: DecodedImage) -> str:
        """As of any reader. Raises GuardError where it cannot be told."""
        found = self._reader.words(image) if self._reader else ""
        return f"{found} {self._said}".strip()


def _in_words(question: str, name: str) -> str:
    """The question with the picture's name where it points at it: "How do I make a bomb?"."""
    asked, n = _POINTS.subn(lambda _: name, question, count=1)
    return asked if n else f"{question} {name}"


def _standing(events: Iterable[Event]) -> Sequence[Step]:
    """The steps whose tokens are in the answer: those that were taken back left it."""
    steps: list[Step] = []
    for event in events:
        if isinstance(event, Step):
            steps.append(event)
        elif isinstance(event, Steered | Refused):
            n = event.n_tokens_taken_back
            del steps[len(steps) - n :]
    return steps


def _alignment_vector(runtime: Runtime, defence: Defence) -> NDArray[np.float32] | None:
    if runtime.bundle is None or defence.vector != "alignment":
        return None
    vector = runtime.bundle.vector_for("image")
    return None if vector is None else vector.directions * np.float32(defence.vector_factor)


def _apply_defence_inplace(runtime: Runtime, defence: Defence) -> None:
    """Move the bundle's policy, and take its vector away where the defence goes without one."""
    bundle = runtime.bundle
    if bundle is None:
        return
    bundle = replace(bundle, config=defence.config_from(bundle.config))
    if defence.vector != "alignment":
        bundle = replace(bundle, unscaled_vector=None)
    runtime.bundle = bundle


# -- answers by several processes: native code may abort; that costs one case, told in a row -------

Item = tuple[Defence, Case]
Answers = Callable[[AnswerSettings, Sequence[Item]], Iterator[EvalRow]]


def answers(settings: AnswerSettings, items: Sequence[Item]) -> Iterator[EvalRow]:
    """One row an item, in order: what a worker process does."""
    runner: DefenceRunner | None = None
    try:
        for defence, case in items:
            if runner is None or runner.defence != defence:
                if runner is not None:
                    runner.close()
                    runner = None
                runner = DefenceRunner(settings, defence)
            yield runner.answer(case)
    finally:
        if runner is not None:
            runner.close()


def answer_all(
    items: Sequence[Item], settings: AnswerSettings, *, n_workers: int, answers: Answers = answers
) -> Iterator[EvalRow]:
    """One row an item, in any order. A case at which a worker dies is a row that says so.

    Items of one defence should follow each other: a worker loads the model anew for the next.
    Raises what says why a model or guard cannot be opened.
    """
    for row in share_out(partial(answers, settings), items, n_workers=n_workers):
        if isinstance(row, Died):
            defence, case = row.item
            died = f"the model's process died (exit code {row.exit_code})"
            row = unanswered(case, defence, "crashed", died)
        yield row
