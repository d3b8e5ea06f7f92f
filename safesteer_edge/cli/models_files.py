"""`models pull`, `add`, `remove` and `verify`: the files of models."""

from __future__ import annotations

import argparse
import sys
import threading
from typing import TYPE_CHECKING

from safesteer_edge.cli.options import OK, Progress, confirmed, print_result, say
from safesteer_edge.errors import SettingsError

if TYPE_CHECKING:
    from safesteer_edge.library.index import InstalledModel

_MIB = 1 << 20


def run_pull(options: argparse.Namespace) -> int:
    """Pull, and return the exit code."""
    from safesteer_edge.library.catalogue import find_model
    from safesteer_edge.library.pull import PullReport, pull

    progress = Progress()
    download = _Download(progress)
    report = PullReport(progress.say, download.expect, download.advance)
    try:
        record = pull(options.model, report, with_projector=not options.no_projector)
    finally:
        progress.end()
    lines = [f"{record.name} is installed; run: safesteer-edge ask --model {record.name} …"]
    if find_model(record.name).bundle is None:
        lines.append(
            "It has no guard bundle yet: make one with 'safesteer-edge calibrate', or run it "
            "unguarded by name, --guard off"
        )
    return print_result(options, record_as_json(record), lines)


def run_add(options: argparse.Namespace) -> int:
    """Record the user's files. Raises SettingsError, ModelFileError."""
    from safesteer_edge.library.install import add_model

    record = add_model(options.name, options.model, options.mmproj)
    line = f"{record.name}: {record.model.path}, SHA-256 {record.model.sha256}"
    return print_result(options, record_as_json(record), [line])


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
    lines = [f"  deleted: {path}" for path in deleted] + [f"  left alone: {path}" for path in kept]
    value = {"name": record.name, "deleted": deleted, "kept": kept}
    return print_result(options, value, [f"{record.name} is removed", *lines])


def run_verify(options: argparse.Namespace) -> int:
    """Hash what is installed. Raises ModelFileError at the first file that has changed."""
    from safesteer_edge.library.index import read_index
    from safesteer_edge.library.install import installed_record, verify_model

    named = [installed_record(name) for name in options.name]
    verified = [verify_model(record) for record in named or read_index().models]
    lines = [
        f"{record.name}: {len(record.files)} file(s), "
        f"{sum(file.size_bytes for file in record.files) / _MIB:.1f} MiB, unchanged"
        for record in verified
    ]
    value = {"verified": [record_as_json(record) for record in verified]}
    return print_result(options, value, lines or ["no model was pulled or added"])


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


class _Download:
    """Counts what is to come and what has come, for the threads that get it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._expected = self._come = 0

    def expect(self, n_bytes: int) -> None:
        """So much is to come in all."""
        with self._lock:
            self._expected += n_bytes

    def advance(self, n_bytes: int) -> None:
        """So much has come."""
        with self._lock:
            self._come += n_bytes
            self._progress.show("MiB here", self._come // _MIB, self._expected // _MIB)
