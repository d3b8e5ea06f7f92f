"""The process that decodes media files, asked for one file after another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, cast

from safesteer_edge.confined_process import ConfinedProcess
from safesteer_edge.errors import MediaError

# HEIC apart from other pictures: its decoder needs threads, which the others may not start.
DecoderKind = Literal["image", "heif", "sound", "document"]

_PACKAGES = {
    "image": ("PIL",),
    "heif": ("PIL", "pillow_heif", "_pillow_heif"),
    "sound": ("miniaudio", "_miniaudio", "_cffi_backend"),
    "document": ("PIL", "pypdfium2", "pypdfium2_raw"),
}
_MAX_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """What one file may use of the decoding process. max_answer_bytes: of pixels or samples."""

    decode_s: float
    start_s: float = 30.0  # a cold disk or a virus scanner may be slow
    memory_bytes: int = 960 << 20
    max_answer_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class DecoderAnswer:
    """What the decoder said of a file, and its pixels or samples."""

    header: dict[str, Any]
    payload: bytes


class DecoderProcess:
    """One child process that decodes files of one kind, one after another. Not thread-safe."""

    def __init__(self, kind: DecoderKind, limits: DecoderLimits) -> None:
        """Start the child, without waiting for it. Raises MediaError if it cannot be started."""
        self._what = "image" if kind == "heif" else kind
        self._limits = limits
        self._is_ready = False
        try:
            self._child = ConfinedProcess(
                Path(__file__).with_name("decoder_worker.py"),
                {"kind": kind, "memory_bytes": limits.memory_bytes},
                packages=_PACKAGES[kind],
                read_reply=partial(_read_answer, max_bytes=limits.max_answer_bytes),
            )
        except (OSError, ModuleNotFoundError) as error:
            raise MediaError(
                f"cannot start the process that decodes {self._what}s: {error}"
            ) from error

    def decode(self, request: dict[str, Any], data: bytes) -> DecoderAnswer:
        """Decode one file. request: with `name`, for messages.

        Raises MediaError that says what is wrong with it, or that it broke a limit; the process may
        be dead then (`is_alive`).
        """
        try:
            if not self._is_ready:
                self._wait_for_start()
            line = json.dumps({**request, "n_bytes": len(data)}).encode("ascii") + b"\n"
            self._child.send(line + data)
            answer = self._wait_for_answer(f"{self._what} {request['name']}")
        except BaseException:  # Ctrl-C too: a late answer would pass for the next file's
            self._child.kill()
            raise
        if "error" in answer.header:
            raise MediaError(str(answer.header["error"]))
        return answer

    @property
    def is_alive(self) -> bool:
        """Whether the child can be asked again."""
        return self._child.is_alive

    @property
    def process_id(self) -> int:
        """The child's."""
        return self._child.process_id

    def close(self) -> None:
        """Ask the child to end, and kill it if it does not. Safe to call twice."""
        self._child.close()

    def _wait_for_start(self) -> None:
        try:
            self._is_ready = self._child.receive(self._limits.start_s) is not None
        except TimeoutError:
            self._is_ready = False
        if not self._is_ready:
            raise MediaError(
                f"the process that decodes {self._what}s does not start; reinstall safesteer-edge"
            )

    def _wait_for_answer(self, file: str) -> DecoderAnswer:
        limits = self._limits
        try:
            answer = self._child.receive(limits.decode_s)
        except TimeoutError:
            raise MediaError(
                f"{file} takes more than {limits.decode_s:g} s to decode; make it smaller, or save "
                "it in another format"
            ) from None
        if answer is None:
            raise MediaError(
                f"{file} ended the process that decoded it: it is damaged, or needs more than "
                f"{limits.memory_bytes >> 20} MiB; save it in another format"
            )
        return answer


def _read_answer(stdout: IO[bytes], max_bytes: int) -> DecoderAnswer | None:
    """None: the child ended, or did not say what it should."""
    line = stdout.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        return None
    header = cast("dict[str, Any]", json.loads(line))
    n_bytes = int(header["n_bytes"])
    if n_bytes > max_bytes:
        return None
    payload = stdout.read(n_bytes)
    return DecoderAnswer(header, payload) if len(payload) == n_bytes else None
