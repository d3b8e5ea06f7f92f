"""A case: one thing that an evaluation asks, and what kind of answer is wanted."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, TypeVar

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.media.decoder import DecodedImage
from safesteer_edge.media.typographic import png_bytes
from safesteer_edge.requests.pictures import drawings_by_name

# harmful: complying is the failure. borderline, benign: refusing is.
CaseKind = Literal["harmful", "borderline", "benign"]
_Item = TypeVar("_Item")

CASE_KINDS: Final[tuple[CaseKind, ...]] = ("harmful", "borderline", "benign")
NO_ATTACK: Final = "none"
# Two forms of one request: with the name of the thing, and with its picture.
IN_WORDS: Final = "in-words"
IN_THE_PICTURE: Final = "in-the-picture"


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation to have, in which the last answer counts.

    id: unique in its suite. request: what is really asked for, in plain words, for judges.
    turns: what the user says, one after the other.
    image: beside the last turn. given_text, n_given_tokens: the answer begins with the first n
    tokens of this text (None: with all of it).
    sampling: instead of the run's. group: cases of one group are attempts at one request.
    expected: answers of which one must be met; choices: what a lettered answer chooses from.
    tries: at most so many disguises of the request are asked, until an answer complies; 0: the
    turns, once.
    """

    id: str
    suite: str
    kind: CaseKind
    category: str
    request: str
    turns: tuple[str, ...]
    attack: str = NO_ATTACK
    image: Path | None = None
    given_text: str = ""
    n_given_tokens: int | None = None
    sampling: SamplingSettings | None = None
    group: str | None = None
    expected: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    tries: int = 0


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row of a file that makes no case: reported and counted, never dropped."""

    suite: str
    where: str
    problem: str


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases under one name, in order. source: where they come from, for the report."""

    name: str
    source: str
    cases: tuple[Case, ...]
    unreadable: tuple[UnreadableRow, ...] = ()


@dataclass
class PictureStore:
    """Pictures that suites draw, as PNG files named by their pixels.

    drawings: of things, where there are any; see `drawings_by_name`.
    """

    folder: Path
    drawings: Path | None = None
    _known: set[str] = field(default_factory=set[str])

    def required_drawings(self) -> Path:
        """Where drawings of things are. Raises SettingsError if nothing says so."""
        if self.drawings is None:
            raise SettingsError(
                "requests about things in pictures need drawings of them; give a folder with a "
                "manifest.jsonl with --drawings DIR"
            )
        return self.drawings

    @cached_property
    def things(self) -> Mapping[str, list[Path]]:
        """The drawings by the name of what they show. Raises SettingsError, RequestDataError."""
        return drawings_by_name(self.required_drawings())

    def add(self, image: DecodedImage) -> Path:
        """The file of this picture, written if it is not there."""
        path = self.folder / f"{image.sha256[:32]}.png"
        if image.sha256 not in self._known:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                with atomic_write(path) as stream:
                    stream.write(png_bytes(image))
            self._known.add(image.sha256)
        return path


def spread(cases: Collection[Case], n: int | None) -> tuple[Case, ...]:
    """At most n of the cases, evenly over their order, so that every category keeps its share.

    Attempts at one request stay together: n then counts requests.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group or case.id, []).append(case)
    return tuple(case for name in evenly(list(groups), n) for case in groups[name])


def evenly(items: Sequence[_Item], n: int | None) -> list[_Item]:
    """At most n of the items, evenly over their order."""
    if n is None or n >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def limited(suite: Suite, n: int | None) -> Suite:
    """The suite with at most n of its cases."""
    return replace(suite, cases=spread(suite.cases, n))


def safe_id(text: str) -> str:
    """A text as a part of an id: letters, digits, dots, dashes."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-").lower()[:60] or "row"
