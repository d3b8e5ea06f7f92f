"""The process that renders an untrusted chat template, asked for one text after another."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from safesteer_edge.confined_process import ConfinedProcess
from safesteer_edge.errors import TemplateError

# Ends the message of every template error: what the user can do.
TEMPLATE_ADVICE = "choose a known-good one with --chat-template builtin:chatml"


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What an untrusted template may use."""

    render_s: float = 5.0  # wall-clock time of one render
    start_s: float = 30.0  # of starting the child: a cold disk or a virus scanner may be slow
    memory_bytes: int = 512 << 20
    source_chars: int = 256 << 10
    output_chars: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """The template failed on these messages, and may take others (`raise_exception`, mostly)."""

    message: str


class TemplateProcess:
    """One child process that renders one template. Not thread-safe."""

    def __init__(self, load_request: dict[str, Any], *, name: str, limits: TemplateLimits) -> None:
        """Start the child and hand it the template, without waiting for either.

        name: for messages, e.g. the file that the template is from.
        """
        self._name = name
        self._limits = limits
        self._is_loaded = False
        # JSON writes a character as up to two six-byte escapes.
        max_reply = 12 * limits.output_chars + 4096
        try:
            self._child = ConfinedProcess(
                Path(__file__).with_name("template_worker.py"),
                {"memory_bytes": limits.memory_bytes, "render_s": limits.render_s},
                packages=("jinja2", "markupsafe"),
                read_reply=partial(_read_reply, max_bytes=max_reply),
            )
        except (OSError, ModuleNotFoundError) as error:
            raise TemplateError(
                f"cannot start the process that renders the chat template: {error}"
            ) from error
        self._child.send(_encode(load_request))

    def request(self, request: dict[str, Any]) -> str | Refusal:
        """Return the rendered text, or the template's refusal.

        Raises TemplateError if the template is broken or breaks a limit; the process may be dead
        then (`is_alive`). May take start_s + 2 render_s the first time, render_s later.
        """
        try:
            if not self._is_loaded:
                self._load()
            self._child.send(_encode(request))
            reply = self._receive(self._limits.render_s, "render")
        except BaseException:  # Ctrl-C too: a late reply would pass for the next request's
            self._child.kill()
            raise
        return self._text_of(reply)

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

    def _load(self) -> None:
        started = self._receive(self._limits.start_s, "start")
        self._text_of(started if "kind" in started else {"text": ""})
        self._text_of(self._receive(self._limits.render_s, "compile"))
        self._is_loaded = True

    def _receive(self, limit_s: float, doing: str) -> dict[str, Any]:
        started_s = time.monotonic()
        try:
            reply = self._child.receive(limit_s)
        except TimeoutError:
            raise TemplateError(
                f"chat template of {self._name!r} took more than {limit_s:g} s to {doing}; "
                f"{TEMPLATE_ADVICE}"
            ) from None
        if reply is not None:
            return reply
        elapsed_s = time.monotonic() - started_s
        raise TemplateError(
            f"chat template of {self._name!r} ended its process after {elapsed_s:.1f} s "
            f"(it wanted too much time or memory, more than {self._limits.memory_bytes >> 20} MiB);"
            f" {TEMPLATE_ADVICE}"
        )

    def _text_of(self, reply: dict[str, Any]) -> str | Refusal:
        if "text" in reply:
            return str(reply["text"])
        if reply["kind"] == "refused":
            return Refusal(str(reply["message"]))
        raise TemplateError(
            f"chat template of {self._name!r} cannot be used: {reply['message']!r}; "
            f"{TEMPLATE_ADVICE}"
        )


def _encode(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode("ascii") + b"\n"


def _read_reply(stdout: IO[bytes], max_bytes: int) -> dict[str, Any] | None:
    """None: the child ended, or said more than that."""
    line = stdout.readline(max_bytes)
    return cast("dict[str, Any]", json.loads(line)) if line.endswith(b"\n") else None
