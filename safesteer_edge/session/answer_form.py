"""The form of an answer: JSON of a schema, tools that it may call, and calls in its text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from safesteer_edge.errors import InputError
from safesteer_edge.formats.json_values import BadValueError, from_json, load_json
from safesteer_edge.templates.conversation import Tool


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer must look like, and what it may call.

    json_schema: of an answer that is JSON, as JSON text; '': any text. tools: that the prompt
    offers. tool_choice: `auto` leaves it to the model, `required` makes it call one of them, and a
    name that one. Raises InputError for a choice that there is not.
    """

    json_schema: str = ""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if self.tool_choice not in ("auto", *(["required", *names] if names else [])):
            raise InputError(f"there is no tool {self.tool_choice!r} to call; there are {names}")
        if len(set(names)) < len(names):
            raise InputError(f"two tools have one name: {names}")

    @property
    def calls(self) -> tuple[Tool, ...]:
        """The tools of which an answer must call one; none: it need not."""
        if self.tool_choice == "auto":
            return ()
        return tuple(tool for tool in self.tools if self.tool_choice in ("required", tool.name))


ANY_FORM: Final = AnswerForm()


def answer_form(
    json_schema: Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]], tool_choice: str
) -> AnswerForm:
    """The form of what a caller gives as plain values. Raises InputError."""
    schema = "" if json_schema is None else _json_text(json_schema)
    return AnswerForm(schema, tuple(map(_as_tool, tools)), tool_choice)


def _json_text(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a JSON schema is no JSON value: {error}") from error


def _as_tool(tool: Mapping[str, Any]) -> Tool:
    told = dict(tool)
    if "parameters" in tool:
        told["parameters"] = _json_text(tool["parameters"])
    return from_json(Tool, told, "tools")


# -- calls of tools in an answer's text, in the form that the model's own template has for them ----


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wrote, or that a client says it wrote. arguments: JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one kind of template writes calls: as JSON objects between two marks.

    arguments_key: the key of the arguments beside `name`. closing: '' where an answer that begins
    like a call is one to its end; opening is then a part of the JSON. fence: other marks, which
    its models write as well; what stands between them is a call of a tool that there is, or text.
    """

    opening: str
    closing: str
    arguments_key: str
    break_: str = ""  # between the marks and what they hold
    fence: tuple[str, str] | None = None

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
        behind = (text.rpartition(opening)[1:] for opening, _ in self.marks)
        closings = (closing for _, closing in self.marks)
        return any(
            mark and closing not in rest
            for (mark, rest), closing in zip(behind, closings, strict=True)
        )

    @property
    def marks(self) -> tuple[tuple[str, str], ...]:
        """What calls stand between."""
        return ((self.opening, self.closing), *([self.fence] if self.fence else []))

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
HERMES: Final = ToolFormat(
    "<tool_call>",
    "</tool_call>",
    "arguments",
    "\n",
    fence=("```json", "```"),  # Qwen2.5-Coder's, whatever its prompt says
)
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

    def __init__(self, style: ToolFormat, names: Collection[str]) -> None:
        """names: of the tools that there are."""
        self._style = style
        self._names = names
        self._held = ""
        self._marks: tuple[str, str] | None = None  # of the call that has begun
        self._has_said = False  # anything: a form without a closing mark begins the answer
        self._has_called = False
        self._blanks = ""  # before it

    def feed(self, text: str) -> list[str | ToolCall]:
        """Return what is certain now."""
        self._held += text
        told: list[str | ToolCall] = []
        while True:
            if self._marks is not None:
                body, mark, rest = self._held.partition(self._marks[1] or "\0")
                if not mark:
                    return told
                self._end(told, body, mark)
                self._held = rest
                continue
            begun = self._next_call()
            if begun is not None:
                place, self._marks = begun
                before, held = self._held[:place], self._held[place:]
                self._say(told, before.rstrip())
                self._held = held.removeprefix(self._marks[0])
                self._blanks = before[len(before.rstrip()) :]
                continue
            n_held = self._n_undecided()
            self._say(told, self._held[: len(self._held) - n_held])
            self._held = self._held[len(self._held) - n_held :]
            return told

    def finish(self, *, is_refused: bool = False) -> list[str | ToolCall]:
        """Return what was held back: no more text will come. is_refused: drop a begun call."""
        told: list[str | ToolCall] = []
        if self._marks is None:
            self._say(told, "" if self._has_called and not self._held.strip() else self._held)
        elif not is_refused:
            self._end(told, self._held, "")
        self._held, self._marks = "", None
        return told

    def _next_call(self) -> tuple[int, tuple[str, str]] | None:
        """Where the next call begins, and between which marks it stands."""
        places = ((self._held.find(marks[0]), marks) for marks in self._style.marks)
        found = min((each for each in places if each[0] >= 0), default=None)
        if found is None or self._style.closing:
            return found
        return None if self._has_said or self._held[: found[0]].strip() else found

    def _end(self, told: list[str | ToolCall], body: str, mark: str) -> None:
        """Tell the calls that stand in a body, or the text that it is."""
        calls = self._calls_in(body) if mark or not self._style.closing else []
        if calls:
            told += calls
            self._has_called = True
        elif self._marks is not None:
            self._say(told, self._blanks + self._marks[0] + body + mark)
        self._marks = None

    def _calls_in(self, body: str) -> list[ToolCall]:
        marks = self._marks
        calls = self._style.read(body if marks is None or marks[1] else marks[0] + body)
        is_fenced = marks is not None and marks == self._style.fence
        if is_fenced and not all(call.name in self._names for call in calls):
            return []
        return calls

    def _say(self, told: list[str | ToolCall], text: str) -> None:
        if text:
            self._has_said = True
            told.append(text)

    def _n_undecided(self) -> int:
        """Characters at the end that may be the beginning of a call, or white space before one."""
        held = self._held
        n_mark = max(
            next(
                (n for n in range(min(len(held), len(mark) - 1), 0, -1) if mark[:n] == held[-n:]), 0
            )
            for mark, _ in self._style.marks
        )
        before = held[: len(held) - n_mark]
        return len(held) - len(before.rstrip())
