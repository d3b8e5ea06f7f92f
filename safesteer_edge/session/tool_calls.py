"""Calls of tools in an answer's text, in the form that the model's own template has for them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, cast

from safesteer_edge.formats.json_values import BadValueError, load_json
from safesteer_edge.templates.conversation import Tool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wrote, or that a client says it wrote. arguments: JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one kind of template writes calls: as JSON objects between two marks.

    arguments_key: the key of the arguments beside `name`. closing: '' where an answer that begins
    like a call is one to its end; opening is then a part of the JSON.
    """

    opening: str
    closing: str
    arguments_key: str
    break_: str = ""  # between the marks and what they hold

    def call_schema(self, tool: Tool) -> dict[str, Any]:
        """The JSON schema of a call of this tool. Raises InputError."""
        value: Any = load_json(tool.parameters)
        if not isinstance(value, dict):
            raise BadValueError(f"the parameters of tool {tool.name!r} are no JSON schema")
        parameters = cast("dict[str, Any]", value)
        # They refer to their own definitions from the root.
        shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
        properties = {"name": {"const": tool.name}, self.arguments_key: parameters}
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        return {**shared, **schema}

    @property
    def before(self) -> str:
        """What a call begins with, before its JSON."""
        return self.opening + self.break_ if self.closing else ""

    @property
    def after(self) -> str:
        """What it ends with."""
        return self.break_ + self.closing

    def write(self, call: ToolCall) -> str:
        """A call as the model would have written it."""
        told = f'{{"name": {json.dumps(call.name)}, "{self.arguments_key}": {call.arguments}}}'
        return self.before + told + self.after

    def is_open(self, text: str) -> bool:
        """Whether a text ends inside a call."""
        if not self.closing:
            return text.lstrip().startswith(self.opening)
        return text.rfind(self.opening) > text.rfind(self.closing)

    def read(self, text: str) -> list[ToolCall]:
        """The calls that stand between two marks; none where that is no call at all."""
        try:
            value: Any = load_json(text)
        except BadValueError:
            return []
        calls: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
        told: list[ToolCall] = []
        for call in cast("list[dict[str, Any]]", calls):
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):  # pyright: ignore[reportUnnecessaryIsInstance]  # the model's words
                return []
            arguments = call.get(self.arguments_key, {})
            if not isinstance(arguments, dict):
                return []
            told.append(ToolCall(call["name"], json.dumps(arguments, ensure_ascii=False)))
        return told


# Also for calls that a model without tools is told of.
HERMES: Final = ToolFormat("<tool_call>", "</tool_call>", "arguments", "\n")
_LLAMA: Final = ToolFormat('{"name":', "", "parameters")
_ASKS_FOR_TOOLS: Final = re.compile(r"{%-?[^%]*\btools\b")


def tool_format(template_source: str) -> ToolFormat | None:
    """How a template's model calls tools; None: it shows it none, or in a form of its own."""
    if not _ASKS_FOR_TOOLS.search(template_source):
        return None
    if HERMES.opening in template_source and "<function=" not in template_source:
        return HERMES  # Qwen2.5, Qwen3, Hermes; not Qwen3-Coder, which writes XML
    if "ipython" in template_source and '"parameters"' in template_source:
        return _LLAMA  # 3.1 to 3.3
    return None


class ToolCallSplitter:
    """Feed it an answer as it streams; text and calls come out, and no part of a call.

    White space around a call is left out.
    """

    def __init__(self, style: ToolFormat) -> None:
        self._style = style
        self._held = ""
        self._is_in_call = False
        self._has_said = False  # anything: a form without a closing mark begins the answer
        self._has_called = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """Return what is certain now."""
        self._held += text
        told: list[str | ToolCall] = []
        while True:
            if self._is_in_call:
                body, mark, rest = self._held.partition(self._style.closing or "\0")
                if not mark:
                    return told
                told += self._calls_in(body)
                self._is_in_call, self._held = False, rest
                continue
            before, mark, rest = self._held.partition(self._style.opening)
            if mark and (self._style.closing or not (self._has_said or before.strip())):
                self._say(told, before.rstrip())
                self._is_in_call = True
                self._held = rest if self._style.closing else mark + rest
                continue
            n_held = self._n_undecided()
            self._say(told, self._held[: len(self._held) - n_held])
            self._held = self._held[len(self._held) - n_held :]
            return told

    def finish(self, *, is_refused: bool = False) -> list[str | ToolCall]:
        """Return what was held back: no more text will come. is_refused: drop a begun call."""
        told: list[str | ToolCall] = []
        if not self._is_in_call:
            self._say(told, "" if self._has_called and not self._held.strip() else self._held)
        elif not self._style.closing and (calls := self._style.read(self._held)):
            told += calls
        elif not is_refused:
            self._say(told, self._held if not self._style.closing else self._unread(self._held))
        self._held, self._is_in_call = "", False
        return told

    def _calls_in(self, body: str) -> list[str | ToolCall]:
        calls = self._style.read(body)
        self._has_called = self._has_called or bool(calls)
        return [*calls] if calls else [self._unread(body) + self._style.closing]

    def _unread(self, body: str) -> str:
        return self._style.opening + body

    def _say(self, told: list[str | ToolCall], text: str) -> None:
        if text:
            self._has_said = True
            told.append(text)

    def _n_undecided(self) -> int:
        """Characters at the end that may be the beginning of a call, or white space before one."""
        held, opening = self._held, self._style.opening
        longest = min(len(held), len(opening) - 1)
        n_mark = next((n for n in range(longest, 0, -1) if opening.startswith(held[-n:])), 0)
        before = held[: len(held) - n_mark]
        return len(held) - len(before.rstrip())
