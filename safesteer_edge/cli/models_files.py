"""`models pull`, `add`, `remove` and `verify`: the files of models."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

from safesteer_edge.cli.options import OK, confirmed, print_json, say
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.display_text import strip_control_characters

if TYPE_CHECKING:
    from safesteer_edge.library.index import InstalledModel

_MIB = 1 << 20
_REDRAW_S = 0.2
_LINE_S = 10.0  # between two lines where there is no terminal to draw on


def run_pull(options: argparse.Namespace) -> int:
    """Pull, and return the exit code."""
    from safesteer_edge.library.catalogue import find_model
    from safesteer_edge.library.pull import PullReport, pull

    progress = _Bytes(sys.stderr)
    report = PullReport(progress.narrate, progress.expect, progress.advance)
    try:
        record = pull(options.model, report, with_projector=not options.no_projector)
    finally:
        progress.end()
    if options.json:
        print_json(record_as_json(record))
        return OK
    print(f"{record.name} is installed; run: safesteer-edge ask --model {record.name} …")
    if find_model(record.name).bundle is None:
        print(
            "It has no guard bundle yet: make one with 'safesteer-edge calibrate', or run it "
            "unguarded by name, --guard off"
        )
    return OK


def run_add(options: argparse.Namespace) -> int:
    """Record the user's files. Raises SettingsError, ModelFileError."""
    from safesteer_edge.library.install import add_model

    record = add_model(options.name, options.model, options.mmproj)
    if options.json:
        print_json(record_as_json(record))
    else:
        print(f"{record.name}: {record.model.path}, SHA-256 {record.model.sha256}")
    return OK


def run_remove(options: argparse.Namespace) -> int:
    """Remove after a confirmation. Raises SettingsError if nobody can be asked."""
    from safesteer_edge.library.install import installed_record, planned_removal, remove_model

    record = installed_record(options.name)
    plan = planned_removal(record, with_own_files=options.delete_my_file)
    if not options.yes:
        if not sys.stdin.isatty():
            raise SettingsError(
                f"nobody is there to ask about removing {record.name!r}; pass --yes"
            )
        if not confirmed(f"Remove {record.name}?", *(f"  deletes {path}" for path in plan.deleted)):
            say("nothing was removed")
            return OK
    done = remove_model(record, with_own_files=options.delete_my_file)
    deleted, kept = [[str(path) for path in paths] for paths in (done.deleted, done.kept)]
    if options.json:
        print_json({"name": record.name, "deleted": deleted, "kept": kept})
        return OK
    lines = [f"  deleted: {path}" for path in deleted] + [f"  left alone: {path}" for path in kept]
    print("\n".join([f"{record.name} is removed", *lines]))
    return OK


def run_verify(options: argparse.Namespace) -> int:
    """Hash what is installed. Raises ModelFileError at the first file that has changed."""
    from safesteer_edge.library.index import read_index
    from safesteer_edge.library.install import installed_record, verify_model

    named = [installed_record(name) for name in options.name]
    verified = [verify_model(record) for record in named or read_index().models]
    if options.json:
        print_json({"verified": [record_as_json(record) for record in verified]})
        return OK
    for record in verified:
        n_bytes = sum(file.size_bytes for file in record.files)
        print(f"{record.name}: {len(record.files)} file(s), {n_bytes / _MIB:.1f} MiB, unchanged")
    if not verified:
        print("no model was pulled or added")
    return OK


def record_as_json(record: InstalledModel) -> dict[str, object]:
    """An installed model as `--json` shows it."""
    from safesteer_edge.library.catalogue import find_model

    bundle = find_model(record.name).bundle
    names = ("name", "title", "architecture", "quantization", "context", "takes")
    file_names = ("size_bytes", "sha256", "is_owned", "repository", "revision", "repository_file")
    return {
        **{name: getattr(record, name) for name in names},
        "bundle": str(bundle) if bundle else None,
        "files": [
            {
                "kind": "model" if file is record.model else "projector",
                "path": str(file.path),
                **{name: getattr(file, name) for name in file_names},
            }
            for file in record.files
        ],
    }


class _Bytes:
    """Bytes that have come, on one line of a terminal, or on a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._lock = threading.Lock()
        self._expected = self._come = 0
        self._started_s = self._shown_s = time.monotonic()
        self._is_drawn = False

    def narrate(self, line: str) -> None:
        """Say something on a line of its own."""
        with self._lock:
            self._clear()
            print(strip_control_characters(line), file=self._stream, flush=True)

    def expect(self, n_bytes: int) -> None:
        """So much is to come in all."""
        with self._lock:
            self._expected += n_bytes
            self._started_s = self._shown_s = time.monotonic()

    def advance(self, n_bytes: int) -> None:
        """So much has come."""
        with self._lock:
            self._come += n_bytes
            now_s = time.monotonic()
            if now_s - self._shown_s < (_REDRAW_S if self._is_terminal else _LINE_S):
                return
            self._shown_s = now_s
            self._clear()
            end = "" if self._is_terminal else "\n"
            print(self._line(now_s), end=end, file=self._stream, flush=True)
            self._is_drawn = self._is_terminal

    def end(self) -> None:
        """Take the line away."""
        with self._lock:
            self._clear()

    def _line(self, now_s: float) -> str:
        share = self._come / self._expected if self._expected else 0.0
        rate = self._come / _MIB / max(now_s - self._started_s, 1e-3)
        return (
            f"{share:6.1%} of {self._expected / _MIB:.0f} MiB, {self._come / _MIB:.0f} MiB here, "
            f"{rate:.1f} MiB/s"
        )

    def _clear(self) -> None:
        if self._is_drawn:
            print("\r\x1b[2K", end="", file=self._stream, flush=True)
            self._is_drawn = False
