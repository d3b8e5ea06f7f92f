"""What the guard's own reader makes of pictures: words read, words made up, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safesteer_edge.evaluation.bench_machine import forget_peak_memory, peak_memory_bytes
from safesteer_edge.evaluation.picture_tasks import PictureTask
from safesteer_edge.evaluation.statistics import Share
from safesteer_edge.evaluation.word_recall import WordRecall, word_recall
from safesteer_edge.media.decoder import MediaDecoder
from safesteer_edge.media.image_fit import ImageFit
from safesteer_edge.media.picture_words import PictureReader


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
