"""What a model sees: texts read and things named through the runtime, and what a picture costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.evaluation.picture_tasks import QUESTIONS, PictureTask
from safesteer_edge.evaluation.statistics import Share
from safesteer_edge.evaluation.word_recall import WordRecall, word_recall, words
from safesteer_edge.guard.events import MediaPrepared, Refused, TextDelta, TurnEnded
from safesteer_edge.session import Session

_N_TIMED = 25


@dataclass(frozen=True, slots=True)
class PictureAnswer:
    """What was said of one picture. n_tokens: that it takes. refused: the guard ended the turn.

    added_s: seconds that the picture added to the time to the first text, decoding of its file and
    encoding included; None where that was not measured.
    """

    task: PictureTask
    text: str
    n_tokens: int
    refused: bool
    added_s: float | None


@dataclass(frozen=True, slots=True)
class PictureSkill:
    """What a set of pictures says of a model. reading, naming: None where it has none of these.

    n_classes: different things among those to be named. n_refused: answers that the guard ended;
    they count as they stand. added_s: the median.
    """

    n_pictures: int
    reading: WordRecall | None
    naming: Share | None
    n_classes: int
    n_refused: int
    added_s: float | None


def ask_about_pictures(
    session: Session,
    tasks: Sequence[PictureTask],
    *,
    progress: Callable[[int], None] = lambda _n_done: None,
) -> list[PictureAnswer]:
    """Ask about each picture in a conversation of its own.

    The first 25 questions are asked without their picture as well, to see what it adds.
    """
    answers: list[PictureAnswer] = []
    for number, task in enumerate(tasks):
        question = QUESTIONS[task.kind]
        media, ended, with_picture_s = _ask(session, question, [task.image])
        added_s = None
        if number < _N_TIMED:
            added_s = with_picture_s - _ask(session, question, [])[2]
        n_tokens = sum(event.n_tokens for event in media)
        refused = ended.refusal is not None
        answers.append(PictureAnswer(task, ended.text, n_tokens, refused, added_s))
        progress(number + 1)
    return answers


def summarise(answers: Sequence[PictureAnswer]) -> PictureSkill:
    """The figures of these answers."""
    texts = [(a.task.expected[0], a.text) for a in answers if a.task.kind == "text"]
    named = [a for a in answers if a.task.kind == "name"]
    n_right = sum(names_one_of(a.task.expected, a.text) for a in named)
    timed = [a.added_s for a in answers if a.added_s is not None]
    return PictureSkill(
        n_pictures=len(answers),
        reading=word_recall(texts) if texts else None,
        naming=Share(n_right, len(named)) if named else None,
        n_classes=len({a.task.expected[0].casefold() for a in named}),
        n_refused=sum(a.refused for a in answers),
        added_s=statistics.median(timed) if timed else None,
    )


def names_one_of(names: Sequence[str], answer: str) -> bool:
    """Whether an answer has one of the names, as whole words, in singular or a plural with s."""
    said = f" {' '.join(words(answer))} "
    return any(
        f" {name} " in said or f" {name}s " in said
        for name in (" ".join(words(each)) for each in names)
        if name
    )


def _ask(
    session: Session, question: str, images: list[Path]
) -> tuple[list[MediaPrepared], TurnEnded, float]:
    """What became of the pictures, the end, and the seconds to the first text or refusal."""
    session.reset()
    media: list[MediaPrepared] = []
    first_text_s: float | None = None
    started_s = time.perf_counter()
    for event in session.ask(question, images=images):
        if isinstance(event, MediaPrepared):
            media.append(event)
        elif isinstance(event, TextDelta | Refused | TurnEnded) and first_text_s is None:
            first_text_s = time.perf_counter() - started_s
        if isinstance(event, TurnEnded):
            assert first_text_s is not None
            return media, event, first_text_s
    raise RuntimeError("the session ended a turn without saying so")
