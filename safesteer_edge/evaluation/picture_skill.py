"""What a model sees: texts read and things named through the runtime, and what a picture costs."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.machine import forget_peak_memory, peak_memory_bytes
from safesteer_edge.guard.events import MediaPrepared, Refused, TextDelta, TurnEnded
from safesteer_edge.media.decoder import MediaDecoder
from safesteer_edge.media.image_decoding import ImageFit
from safesteer_edge.media.picture_words import PictureReader
from safesteer_edge.metrics.statistics import Share, WordRecall, word_recall, words
from safesteer_edge.session.session import Session

# -- pictures with what they show, read from disk: our own held-out ones, and FigStep's ------------

MANIFEST = "manifest.jsonl"
SAFEBENCH = "SafeBench-Tiny.csv"
TaskKind = Literal["text", "name"]
QUESTIONS: dict[TaskKind, str] = {
    "text": "What does the text say?",
    "name": "What is in the picture?",
}


@dataclass(frozen=True, slots=True)
class PictureTask:
    """expected: of `text`, the one text; of `name`, the right names, the usual one first."""

    image: Path
    kind: TaskKind
    expected: tuple[str, ...]


def read_manifest(folder: Path) -> list[PictureTask]:
    """The tasks of `manifest.jsonl`: one JSON object a line with image, kind and expected.

    image: a path inside the folder. Other keys are the maker's own notes.
    Raises InputError that names the line.
    """
    path = folder / MANIFEST
    tasks: list[PictureTask] = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            tasks.append(_to_task(folder, json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"line {number} of {str(path)!r} is no picture task ({error}); expected image, "
                'kind ("text" or "name") and expected (a text, or a list of names)'
            ) from error
    if not tasks:
        raise InputError(f"{str(path)!r} has no pictures; write one JSON object a line")
    return tasks


def read_safebench(folder: Path) -> list[PictureTask]:
    """FigStep's SafeBench-Tiny: pictures of its `instruction` column, above an empty list.

    Source: github.com/ThuCCSLab/FigStep, data/question and data/images.
    """
    path = folder / SAFEBENCH
    rows = csv.DictReader(_read_text(path).splitlines())
    try:
        return [
            PictureTask(
                folder / f"query_{row['dataset']}_{row['category_id']}_{row['task_id']}_6.png",
                "text",
                (row["instruction"],),
            )
            for row in rows
        ]
    except (KeyError, csv.Error) as error:
        raise InputError(f"{str(path)!r} is no SafeBench table: {error} is missing") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read {str(path)!r}: {reason}; give the folder it is in"
        ) from error


def _to_task(folder: Path, row: dict[str, Any]) -> PictureTask:
    kind, expected = row["kind"], row["expected"]
    if kind not in QUESTIONS:
        raise ValueError(f"kind is {kind!r}")
    names = [expected] if kind == "text" else expected
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"expected is {expected!r}")
    image = folder / row["image"]
    if not image.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"image {row['image']!r} lies outside the folder")
    return PictureTask(image, kind, tuple(names))


# -- what a model says of pictures, and what they add to the time ----------------------------------

_N_TIMED = 25


@dataclass(frozen=True, slots=True)
class PictureAnswer:
    """What was said of one picture. n_tokens: that it takes. refused: the guard ended the turn.

    added_s: seconds that the picture added to the time to the first text, decoding of its file and
    encoding included; None where that was not measured. encode_s: of the projector, prefill_s: of
    the whole prompt.
    """

    task: PictureTask
    text: str
    n_tokens: int
    refused: bool
    added_s: float | None
    encode_s: float = 0.0
    prefill_s: float = 0.0

    @property
    def is_right(self) -> bool:
        """It has one of the names."""
        return names_one_of(self.task.expected, self.text)


@dataclass(frozen=True, slots=True)
class PictureSkill:
    """What a set of pictures says of a model. reading, naming: None where it has none of these.

    n_classes: different things among those to be named. n_refused: answers that the guard ended;
    they count as they stand. added_s, encode_s, prefill_s: medians. closed, open_world: of naming,
    the things that the projector was trained to name and others, where it is known which those are.
    """

    n_pictures: int
    reading: WordRecall | None
    naming: Share | None
    n_classes: int
    n_refused: int
    added_s: float | None
    encode_s: float | None
    prefill_s: float | None
    closed: Share | None = None
    open_world: Share | None = None


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
        answers.append(
            PictureAnswer(
                task,
                ended.text,
                sum(event.n_tokens for event in media),
                refused=ended.refusal is not None,
                added_s=added_s,
                encode_s=sum(event.encode_s for event in media),
                prefill_s=ended.timings.prefill_s,
            )
        )
        progress(number + 1)
    return answers


def read_things(path: Path) -> frozenset[str]:
    """The names that a projector was trained on, one a line before a colon; # begins a comment."""
    lines = (line.partition("#")[0] for line in _read_text(path).splitlines())
    return frozenset(line.partition(":")[0].strip().casefold() for line in lines if line.strip())


def summarise(
    answers: Sequence[PictureAnswer], things: frozenset[str] | None = None
) -> PictureSkill:
    """The figures of these answers. things: that the projector has learnt to name."""

    def share(group: Sequence[PictureAnswer]) -> Share | None:
        return Share(sum(each.is_right for each in group), len(group)) if group else None

    def is_known(answer: PictureAnswer) -> bool:
        return things is not None and answer.task.expected[0].casefold() in things

    texts = [(a.task.expected[0], a.text) for a in answers if a.task.kind == "text"]
    named = [a for a in answers if a.task.kind == "name"]
    return PictureSkill(
        n_pictures=len(answers),
        reading=word_recall(texts) if texts else None,
        naming=share(named),
        n_classes=len({a.task.expected[0].casefold() for a in named}),
        n_refused=sum(a.refused for a in answers),
        added_s=_median([a.added_s for a in answers if a.added_s is not None]),
        encode_s=_median([a.encode_s for a in answers]),
        prefill_s=_median([a.prefill_s for a in answers]),
        closed=None if things is None else share([a for a in named if is_known(a)]),
        open_world=None if things is None else share([a for a in named if not is_known(a)]),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


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


# -- what the guard's own reader makes of pictures: words read, words made up, time and memory -----


@dataclass(frozen=True, slots=True)
class ReaderSkill:
    """What a set of pictures says of the reader.

    reading: of the pictures of texts, made_up: those of things in which it read words all the same;
    None where there are none of these. first_s: with the loading of it; then_s: the others' median.
    added_bytes: of memory, less what an earlier reader left; None where the system does not tell.
    """

    reading: WordRecall | None
    made_up: Share | None
    first_s: float
    then_s: float | None
    added_bytes: int | None


def measure_reader(
    reader: PictureReader,
    fit: ImageFit,
    tasks: Sequence[PictureTask],
    *,
    progress: Callable[[int], None] = lambda _n_done: None,
) -> ReaderSkill:
    """Read each picture as the projector is shown it. tasks: at least one; reader: a new one.

    Raises MediaError for a file that is no picture, GuardError where it cannot be read.
    """
    texts: list[tuple[str, str]] = []
    things: list[str] = []
    took_s: list[float] = []
    with MediaDecoder(fit) as decoder:
        before = peak_memory_bytes() if forget_peak_memory() else None
        for task in tasks:
            image = decoder.load_image(task.image)
            started_s = time.perf_counter()
            text = reader.words(image)
            took_s.append(time.perf_counter() - started_s)
            if task.kind == "text":
                texts.append((task.expected[0], text))
            else:
                things.append(text)
            progress(len(took_s))
    after = peak_memory_bytes()
    return ReaderSkill(
        reading=word_recall(texts) if texts else None,
        made_up=Share(sum(map(bool, things)), len(things)) if things else None,
        first_s=took_s[0],
        then_s=statistics.median(took_s[1:]) if len(took_s) > 1 else None,
        added_bytes=None if before is None or after is None else after - before,
    )


# -- as JSON ---------------------------------------------------------------------------------------


def skill_to_json(skill: PictureSkill, reader: ReaderSkill | None) -> dict[str, Any]:
    """Of one set of pictures."""
    shares = ("naming", "closed", "open_world")
    return {
        **asdict(skill),
        "reading": _recall_to_json(skill.reading),
        **{name: _share_to_json(getattr(skill, name)) for name in shares},
        "reader": reader and {**asdict(reader), "reading": _recall_to_json(reader.reading)},
    }


def _share_to_json(share: Share | None) -> dict[str, Any] | None:
    return share and {**asdict(share), "accuracy": share.value, "wilson_95": share.interval}


def _recall_to_json(found: WordRecall | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "recall": found.value}


def answers_to_jsonl(answers: Sequence[PictureAnswer]) -> str:
    """A line for each answer, as `--drawings` and a person read them."""
    rows = [
        {
            "image": answer.task.image.name,
            "kind": answer.task.kind,
            "expected": list(answer.task.expected),
            "answer": answer.text,
            **({"right": answer.is_right} if answer.task.kind == "name" else {}),
            "n_tokens": answer.n_tokens,
            "refused": answer.refused,
            "added_s": answer.added_s,
            "encode_s": answer.encode_s,
            "prefill_s": answer.prefill_s,
        }
        for answer in answers
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
