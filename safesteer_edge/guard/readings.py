"""Several readings of one prompt, and what they say together.

A message is judged as it was typed, and besides: as a reader sees it, sentence by sentence, and
joined with what was said before, so that a disguise, harmless neighbours or a second turn hide
nothing. Each kind of reading has false alarms of its own, and many readings have many. So a score
counts by how rare it is among benign texts that are read in that way, the limit is set on the
highest of each prompt, and readings beyond the usual number make each other less rare.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal

import numpy as np

from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.plain_text import readable
from safesteer_edge.guard.risk import is_score

# readable: as a reader sees it. part: a sentence alone. joined: behind the last messages.
ReadingKind = Literal["readable", "part", "joined"]

# Shares of benign texts that score higher than the logits of a curve.
TAILS: Final = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_LOG_TAILS: Final = np.log(TAILS)
_LEAST_STEP: Final = 0.01  # between two logits of a curve
_LEAST_SCORE: Final = 1e-9  # logits stay finite
# Readings of one prompt that its limit is set on as a whole. To pay for each of them once more hid
# harmful sentences among three others, and spared no benign prompt (18 of 1,077 were above it
# either way, on Qwen2.5-Coder-1.5B).
_N_USUAL: Final = 8

_MAX_JOINED: Final = 2  # earlier messages
_JOINED_CHARACTERS: Final = 600  # of each of them, from its end
_LEAST_WORDS: Final = 3  # a shorter sentence is read with the next
_SENTENCE_END: Final = re.compile(
    r"""(?<=[.!?…])["'”’)\]]*\s+   # a full stop and what closes behind it
      | (?<=[。！？])
      | (?<=:)\s+(?=["'“‘A-Z])     # what is introduced
      | \s*[\r\n]+\s*""",
    re.VERBOSE,
)
_AROUND: Final = " \t\"'“”‘’`*#>-"


@dataclass(frozen=True, slots=True)
class Reading:
    """A text that is read for itself."""

    kind: ReadingKind
    text: str


@dataclass(frozen=True, slots=True)
class ReadingCurves:
    """Of each way to read: the logits that TAILS of benign texts exceed. typed: as they come."""

    typed: tuple[float, ...]
    part: tuple[float, ...]
    joined: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            curve: tuple[float, ...] = getattr(self, field.name)
            rises = all(a < b for a, b in itertools.pairwise(curve))
            if len(curve) != len(TAILS) or not all(map(math.isfinite, curve)) or not rises:
                raise SettingsError(
                    f"the curve of {field.name} readings is {list(curve)}; expected {len(TAILS)} "
                    "rising numbers"
                )


def curve_of(scores: Iterable[float]) -> tuple[float, ...]:
    """The curve of these benign texts' scores."""
    logits = np.quantile([_logit(score) for score in scores], 1.0 - np.array(TAILS))
    steps = np.arange(len(TAILS)) * _LEAST_STEP
    # Ties, as of few texts, are drawn apart upwards.
    return tuple(float(x) for x in np.maximum.accumulate(logits - steps) + steps)


def combined_score(
    typed: float, others: Iterable[tuple[ReadingKind, float]], curves: ReadingCurves
) -> float:
    """One score for a prompt: the highest of what was typed and the others at typed texts' rates.

    None of those counts for more than its own score. NaN if one of them is no score: then nobody
    can judge.
    """
    scored = list(others)
    if not all(map(is_score, (typed, *(score for _, score in scored)))):
        return math.nan
    best = typed
    for kind, score in scored:
        # What a disguise hid is a text as it could have been typed.
        curve = curves.typed if kind == "readable" else getattr(curves, kind)
        logit = _logit(score)
        if logit <= curve[0]:
            continue  # half of all benign texts are above it
        log_rate = _log_rate(logit, curve) + math.log(max(1.0, len(scored) / _N_USUAL))
        as_rare = 1.0 / (1.0 + math.exp(-_logit_at(log_rate, curves.typed)))
        # Read alone a text is a prompt like any other: rare or not, it is no worse than it scores.
        best = max(best, min(score, as_rare))
    return best


def stands_out(score: float, curves: ReadingCurves) -> bool:
    """Whether a sentence, in its place, scores higher than half of all benign prompts.

    True for what is no score: nobody can tell, so it is read.
    """
    return not is_score(score) or _logit(score) > curves.typed[0]


def readings_of(text: str, earlier: Sequence[str] = ()) -> list[Reading]:
    """What is read beside a message as it was typed; a plain sentence: nothing.

    earlier: what the same person wrote before, the latest last.
    """
    plain = readable(text)
    found = [Reading("readable", plain)] if plain != text else []
    parts = sentences(plain)
    if len(parts) > 1:
        found += [Reading("part", part) for part in dict.fromkeys(parts)]
    if earlier:
        before = [each[-_JOINED_CHARACTERS:] for each in earlier[-_MAX_JOINED:]]
        found.append(Reading("joined", "\n".join((*before, plain))))
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order, without the marks round them."""
    found: list[str] = []
    is_open = False
    for piece in _SENTENCE_END.split(text):
        sentence = piece.strip(_AROUND)
        if not sentence:
            continue
        if is_open:
            found[-1] = f"{found[-1]} {sentence}"
        else:
            found.append(sentence)
        is_open = len(found[-1].split()) < _LEAST_WORDS and found[-1].isascii()
    return found


def _logit(score: float) -> float:
    clipped = min(1.0 - _LEAST_SCORE, max(_LEAST_SCORE, score))
    return math.log(clipped / (1.0 - clipped))


def _log_rate(logit: float, curve: Sequence[float]) -> float:
    """The logarithm of the share of benign texts above this logit; a line beyond the curve."""
    if logit <= curve[-1]:
        return float(np.interp(logit, curve, _LOG_TAILS))
    return float(_LOG_TAILS[-1] + (logit - curve[-1]) * _slope(curve))


def _logit_at(log_rate: float, curve: Sequence[float]) -> float:
    if log_rate >= _LOG_TAILS[-1]:
        return float(np.interp(-log_rate, -_LOG_TAILS, curve))
    return float(curve[-1] + (log_rate - _LOG_TAILS[-1]) / _slope(curve))


def _slope(curve: Sequence[float]) -> float:
    """Of the tail, from one text in ten on: below 0."""
    return float((_LOG_TAILS[-1] - _LOG_TAILS[2]) / (curve[-1] - curve[2]))
