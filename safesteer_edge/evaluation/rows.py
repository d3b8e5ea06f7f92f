"""A row: one case under one defence, what was answered and what it took. The unit of a run.

A row says whether it holds an answer: what could not be asked, judged or decoded is a row with
status `error`, is counted, and is never taken for an answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.case import Case, CaseKind
from safesteer_edge.evaluation.defences import Defence
from safesteer_edge.formats.json_values import load_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RowStatus = Literal["ok", "error", "crashed"]
RowKey = tuple[str, str, str]  # suite, case, defence


@dataclass(frozen=True, slots=True)
class EvalRow:
    """answer: what a person would read. own_answer: the model's, where a check withheld it.

    n_tokens: of the answer without given ones; n_given: those. steered: how often the guard took
    the tail back and steered. opening: the raised one that stands; n_opening: its tokens; n_own:
    those that follow it until the guard chose another. scores: of the first tokens, given ones
    included; mean_score: of all. Empty and None without a probe. passes: forward passes of
    decoding. peak_memory_bytes: of the process since this defence was opened. tries: the number of
    this answer, where there were several until one complied, else 0. disguise: of that one.
    prompt_score: the prompt's harmful score. picture_name: what the model said that the picture
    shows, if it was asked.
    """

    suite: str
    case_id: str
    defence: str
    kind: CaseKind
    category: str
    attack: str
    group: str
    request: str
    status: RowStatus
    error: str = ""
    answer: str = ""
    own_answer: str = ""
    finish_reason: str = ""
    withheld: bool = False
    has_media: bool = False
    vector_active: bool = False
    n_tokens: int = 0
    n_given: int = 0
    passes: int = 0
    interventions: int = 0
    steered: int = 0
    opening: str = ""
    n_opening: int = 0
    n_own: int = 0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    scores: tuple[float, ...] = ()
    mean_score: float | None = None
    peak_memory_bytes: int | None = None
    expected: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    tries: int = 0
    disguise: str = ""
    prompt_score: float | None = None
    picture_name: str = ""

    @property
    def key(self) -> RowKey:
        """What makes the row one of its kind in a run."""
        return self.suite, self.case_id, self.defence


def unanswered(case: Case, defence: Defence, status: RowStatus, error: str) -> EvalRow:
    """The row of a case that has no answer."""
    return EvalRow(
        suite=case.suite,
        case_id=case.id,
        defence=defence.name,
        kind=case.kind,
        category=case.category,
        attack=case.attack,
        group=case.group or case.id,
        request=case.request,
        status=status,
        error=error,
        has_media=case.image is not None,
        expected=case.expected,
        choices=case.choices,
    )


# -- a journal: JSON lines that are appended as they are made, and survive a kill ------------------
# A line counts once its line end is there: what a kill cut off is removed when the journal is
# opened again, and made anew.

_Item = TypeVar("_Item", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class Journal(Generic[_Item]):
    """The items of a file, and a way to append one. Use `open_journal`."""

    stream: IO[bytes]
    items: list[_Item]

    def append(self, item: _Item) -> None:
        """Add one and hand it to the system, which keeps it if this process is killed."""
        line = json.dumps(asdict(item), ensure_ascii=False, allow_nan=False)
        self.stream.write(line.encode("utf-8", "surrogatepass") + b"\n")
        self.stream.flush()
        self.items.append(item)


@contextmanager
def open_journal(path: Path, kind: type[_Item]) -> Iterator[Journal[_Item]]:
    """Open a journal with what it already holds. Raises InputError for a file that is not one.

    kind: the dataclass of its items, with plain values and tuples of them.
    """
    items = list(read_journal(path, kind)) if path.exists() else []
    with path.open("ab") as stream:
        _cut_half_line(path)
        yield Journal(stream, items)


def read_journal(path: Path, kind: type[_Item]) -> Iterator[_Item]:
    """The whole lines of a journal. Raises InputError for one that cannot be read."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                members: Any = load_json(raw.decode("utf-8", "surrogatepass"))
                yield kind(
                    **{k: tuple(v) if isinstance(v, list) else v for k, v in members.items()}
                )
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"cannot go on with {str(path)!r}: line {number} is damaged ({error}); remove "
                    "that line, or begin in another folder"
                ) from error


def _cut_half_line(path: Path) -> None:
    with path.open("r+b") as stream:
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            stream.truncate(whole)


# -- how far a long run is, and how long it will still take ----------------------------------------

_EVERY_S: Final = 15.0
_EVERY_ON_A_TERMINAL_S: Final = 0.5


class Progress:
    """Counts on a stream: in place on a terminal, else a line now and then."""

    def __init__(self, n_all: int, what: str, *, stream: IO[str] | None = None) -> None:
        self._n_all = n_all
        self._what = what
        self._stream = stream or sys.stderr
        self._started_s = time.monotonic()
        self._shown_s = -1e9
        self._n_errors = 0
        self._n_done = 0

    def add(self, *, is_error: bool = False) -> None:
        """One more is done."""
        self._n_done += 1
        self._n_errors += is_error
        now = time.monotonic()
        on_terminal = self._stream.isatty()
        every = _EVERY_ON_A_TERMINAL_S if on_terminal else _EVERY_S
        if now - self._shown_s >= every or self._n_done == self._n_all:
            self._shown_s = now
            line = self.line(now - self._started_s)
            ends = "\n" if not on_terminal or self._n_done == self._n_all else ""
            start = "\r\x1b[K" if on_terminal else ""
            print(f"{start}[{line}]", end=ends, file=self._stream, flush=True)

    def line(self, elapsed_s: float) -> str:
        """E.g. `120/900 answers, 2 errors, 4 min left`."""
        parts = [f"{self._n_done}/{self._n_all} {self._what}"]
        if self._n_errors:
            parts.append(f"{self._n_errors} error{'s' if self._n_errors > 1 else ''}")
        left = self._n_all - self._n_done
        if left and self._n_done:
            parts.append(f"{_duration(elapsed_s / self._n_done * left)} left")
        elif not left:
            parts.append(f"took {_duration(elapsed_s)}")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
