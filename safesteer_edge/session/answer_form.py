"""The form that an answer must have: JSON of a schema, and the tools that it may or must call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from safesteer_edge.errors import InputError
from safesteer_edge.formats.json_values import from_json
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
