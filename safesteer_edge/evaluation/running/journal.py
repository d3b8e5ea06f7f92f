"""A journal: JSON lines that are appended as they are made, and survive a kill.

A line counts once its line end is there: what a kill cut off is removed when the journal is opened
again, and made anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from safesteer_edge.errors import InputError
from safesteer_edge.formats.finite_json import load_finite

_Item = TypeVar("_Item")


class Journal(Generic[_Item]):
    """The items of a file, and a way to append one. Use `open_journal`."""

    def __init__(
        self, stream: Any, items: list[_Item], to_json: Callable[[_Item], dict[str, Any]]
    ) -> None:
        self._stream = stream
        self._to_json = to_json
        self.items = items

    def append(self, item: _Item) -> None:
        """Add one and hand it to the system, which keeps it if this process is killed."""
        line = json.dumps(self._to_json(item), ensure_ascii=False, allow_nan=False)
        self._stream.write(line.encode("utf-8", "surrogatepass") + b"\n")
        self._stream.flush()
        self.items.append(item)


@contextmanager
def open_journal(
    path: Path,
    *,
    to_json: Callable[[_Item], dict[str, Any]],
    from_json: Callable[[object], _Item],
) -> Iterator[Journal[_Item]]:
    """Open a journal with what it already holds. Raises InputError for a file that is not one."""
    items = list(read_journal(path, from_json)) if path.exists() else []
    with path.open("ab") as stream:
        _cut_half_line(path)
        yield Journal(stream, items, to_json)


def read_journal(path: Path, from_json: Callable[[object], _Item]) -> Iterator[_Item]:
    """The whole lines of a journal. Raises InputError for one that cannot be read."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                yield from_json(load_finite(raw.decode("utf-8", "surrogatepass")))
            except (ValueError, RecursionError) as error:
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
