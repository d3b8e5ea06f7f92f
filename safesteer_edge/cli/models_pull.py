"""`models pull`: a model from a hub, with progress on stderr."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

from safesteer_edge.cli.options import OK
from safesteer_edge.formats.display_text import strip_control_characters

if TYPE_CHECKING:
    from safesteer_edge.library.index import InstalledModel


_MIB = 1 << 20
_REDRAW_S = 0.2
_LINE_S = 10.0  # between two lines where there is no terminal to draw on

_DESCRIPTION = """\
Get a model and its projector from a hub, checked by hash and header before they are installed. Run
it again after an interruption: it goes on where it stopped. A file that Ollama, LM Studio or
llama.cpp already has on this machine is not downloaded. HF_TOKEN gives a token, HF_ENDPOINT a
mirror, HF_HUB_OFFLINE=1 keeps it off the network.
"""


def add_parsers(commands: Any) -> None:
    """Register the command."""
    pull = commands.add_parser("pull", help="get a model from a hub", description=_DESCRIPTION)
    pull.add_argument(
        "model",
        metavar="NAME[:QUANT]",
        help="a name of 'models list', or hf:OWNER/NAME[@REVISION][:QUANT or FILE.gguf]",
    )
    pull.add_argument("--no-projector", action="store_true", help="the language model alone")
    pull.add_argument("--json", action="store_true", help="print one JSON object when it is there")
    pull.set_defaults(run=run_pull)


def run_pull(options: argparse.Namespace) -> int:
    """Pull, and return the exit code."""
    from safesteer_edge.library.pull import PullReport, pull

    progress = Progress(sys.stderr)
    report = PullReport(progress.narrate, progress.expect, progress.advance)
    try:
        record = pull(options.model, report, with_projector=not options.no_projector)
    finally:
        progress.end()
    if options.json:
        print(json.dumps(record_as_json(record)))
    else:
        print(f"{record.name} is installed; run: safesteer-edge ask --model {record.name} …")
        _say_about_guard(record)
    return OK


def record_as_json(record: InstalledModel) -> dict[str, object]:
    """An installed model as `--json` shows it."""
    from safesteer_edge.library.catalogue import find_model

    bundle = find_model(record.name).bundle
    return {
        "name": record.name,
        "title": record.title,
        "architecture": record.architecture,
        "quantization": record.quantization,
        "context": record.context,
        "takes": list(record.takes),
        "bundle": str(bundle) if bundle else None,
        "files": [
            {
                "kind": "model" if file is record.model else "projector",
                "path": str(file.path),
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "is_owned": file.is_owned,
                "repository": file.repository,
                "revision": file.revision,
                "repository_file": file.repository_file,
            }
            for file in record.files
        ],
    }


def _say_about_guard(record: InstalledModel) -> None:
    from safesteer_edge.library.catalogue import find_model

    if find_model(record.name).bundle is None:
        print(
            "It has no guard bundle yet: make one with 'safesteer-edge calibrate', or run it "
            "unguarded by name, --guard off"
        )


class Progress:
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
