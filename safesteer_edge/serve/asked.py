"""What a request asks, whatever its dialect: messages, sampling, and how much more guard."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Literal

from safesteer_edge.formats.json_values import BadValueError, from_json, load_json
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.session.answer_form import ToolCall
from safesteer_edge.session.protocol import AskOptions
from safesteer_edge.templates.conversation import Role

_MAX_MEDIA: Final = 16
_MAX_STOPS: Final = 16
_MAX_TOOLS: Final = 128
_NO_LIMIT: Final = 1 << 20  # tokens: the context ends it
_TOOL_NAME: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",  # what it says are results, which questions carry
}
_DATA_URI: Final = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.ASCII)
# What the dialects call a text, by the key that holds it.
_TEXT_PARTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
_MEDIA_PARTS: Final = ("image_url", "input_image", "image", "input_audio")
_KNOWN_PARTS: Final = (*_TEXT_PARTS, *_MEDIA_PARTS, "tool_use", "tool_result")


@dataclass(frozen=True)
class Medium:
    """The bytes of a picture or a sound that came with a request."""

    kind: Literal["image", "audio"]
    data: bytes

    @cached_property
    def name(self) -> str:
        """The name of its file: the same bytes have the same."""
        return sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class Said:
    """One message as a client sent it. calls: of an answer; results: of tools, with a question."""

    role: Role
    text: str
    media: tuple[Medium, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MoreGuard:
    """The object `safesteer` of a request: a stronger guard for it, and what the guard saw."""

    strength: float | None = None
    threshold: float | None = None
    trace: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an answer. Numbers that are None are the server's own.

    messages: a system prompt or none, then questions and answers in turn, a question last.
    sampling: fields of SamplingSettings that the request sets. has_usage: in a stream as well.
    form: schema and tools. one_call: the answer ends with its first call.
    """

    model: str
    messages: tuple[Said, ...]
    is_stream: bool = False
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])
    guard: MoreGuard = field(default_factory=MoreGuard)
    has_usage: bool = False
    form: AskOptions = field(default_factory=AskOptions)
    one_call: bool = False

    @property
    def is_json(self) -> bool:
        """Whether the answer's text is JSON, which no refusal is put into."""
        return self.form.get("json_schema") is not None


@dataclass(frozen=True, slots=True)
class _Request:
    """What we know of a request: each dialect's own names are made these."""

    model: str
    messages: object
    system: object = None
    stream: bool | None = None
    stream_options: Mapping[str, object] | None = None
    max_tokens: int | None = None
    stop: object = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    tools: object = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None
    response_format: object = None
    safesteer: MoreGuard = field(default_factory=MoreGuard)


def read_asked(
    body: object,
    only: Mapping[str, Sequence[object]],
    names: Mapping[str, str] | None = None,
    *,
    where: str = "messages",
) -> Asked:
    """A request. What is not known, and changes nothing here, is left unread.

    only: fields that would change the answer and cannot be served, with the values that ask for
    nothing. names: ours by the dialect's own. Raises BadValueError that names the field.
    """
    given = an_object(body, "the body")
    for name, neutral in only.items():
        if given.get(name) not in (None, *neutral):
            raise BadValueError(f"{name!r} is not supported by this server; leave it out")
    for theirs, ours in (names or {}).items():
        if given.get(theirs) is not None:
            given[ours] = given[theirs]
    known = {each.name: given[each.name] for each in fields(_Request) if each.name in given}
    request = from_json(_Request, known)
    if request.seed == -1:  # as Ollama, llama.cpp and LM Studio say it: another one each time
        request = replace(request, seed=None)
    sampling = {each.name: getattr(request, each.name, None) for each in fields(SamplingSettings)}
    return Asked(
        model=request.model,
        messages=_read_messages(_a_list(request.messages, where), where, request.system),
        is_stream=bool(request.stream),
        max_tokens=_NO_LIMIT if request.max_tokens in (-1, -2) else request.max_tokens,
        stop=_read_stop(request.stop),
        sampling={name: value for name, value in sampling.items() if value is not None},
        guard=request.safesteer,
        has_usage=(request.stream_options or {}).get("include_usage") is True,
        form=_read_form(request),
        one_call=request.parallel_tool_calls is False
        or (
            isinstance(request.tool_choice, dict)
            and request.tool_choice.get("disable_parallel_tool_use") is True
        ),
    )


def _read_stop(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else _a_list(value, "stop")
    if len(texts) > _MAX_STOPS:
        raise BadValueError(f"'stop' has {len(texts)} texts; the limit is {_MAX_STOPS}")
    return tuple(filter(None, (_a_text(text, "stop") for text in texts)))


# -- the answer's form ----------------------------------------------------------------------------


def _read_form(request: _Request) -> AskOptions:
    """What the answer must be, in whichever words the dialect asks for it."""
    tools = _a_list(request.tools, "tools")
    if len(tools) > _MAX_TOOLS:
        raise BadValueError(f"'tools' has {len(tools)} tools; the limit is {_MAX_TOOLS}")
    told = tuple(_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    choice = _read_choice(request.tool_choice)
    if choice == "none":
        told, choice = (), "auto"
    schema = _read_format(request.response_format)
    return AskOptions(json_schema=schema, tools=told, tool_choice=choice)


def _read_tool(value: object, where: str) -> dict[str, Any]:
    tool = an_object(value, where)
    if tool.get("type", "function") not in ("function", "custom", None):
        raise BadValueError(f"'{where}.type' is {str(tool['type'])[:40]!r}; expected 'function'")
    spec = an_object(tool.get("function") or tool, where)
    name = spec.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise BadValueError(f"'{where}.name' is {str(name)[:40]!r}; expected a name of a function")
    parameters = spec.get("parameters") or spec.get("input_schema") or {}
    schema = {"type": "object", "properties": {}} | an_object(parameters, f"{where}.parameters")
    _a_text(_as_json(schema), f"{where}.parameters")
    description = _a_text(spec.get("description") or "", f"{where}.description")
    return {"name": name, "description": description, "parameters": schema}


def _read_choice(value: object) -> str:
    """`auto`, `none`, `required`, or the name of a tool."""
    kind = value
    if isinstance(value, dict):
        function = value.get("function")
        named = function.get("name") if isinstance(function, dict) else value.get("name")
        kind = value.get("type")
        if kind in ("function", "tool"):
            kind = named if named not in ("auto", "none", "required") else None
    if kind is not None and (not isinstance(kind, str) or not kind):
        raise BadValueError(f"'tool_choice' is {str(value)[:40]!r}; expected auto, none, required")
    return {"any": "required"}.get(kind, kind) if kind else "auto"


def _read_format(value: object) -> dict[str, Any] | None:
    """The schema of an answer that must be JSON; None: it need not."""
    if value in (None, "", {}):
        return None
    given = an_object(value, "response_format")
    kind, own = given.get("type"), given.get("json_schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise BadValueError(
            f"'response_format.type' is {str(kind)[:40]!r}; expected text, json_object, json_schema"
        )
    schema = (own if isinstance(own, dict) else given).get("schema")
    return an_object(schema, "response_format.json_schema.schema")


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# -- messages -------------------------------------------------------------------------------------


def _read_messages(items: Sequence[object], where: str, system: object) -> tuple[Said, ...]:
    """Messages in the order that a conversation has; neighbours of one role become one.

    Instructions may stand anywhere and go to the front. Raises BadValueError that names the place.
    """
    told = [_read_message(item, f"{where}[{index}]") for index, item in enumerate(items)]
    instructions = [Said("system", _text_of(system, "system"))] if system else []
    instructions += [said for said in told if said.role == "system"]
    turns: list[Said] = []
    for said in told:
        if said.role == "system":
            continue
        if turns and turns[-1].role == said.role:
            said = _as_one(turns.pop(), said)
        turns.append(said)
    if not turns or turns[0].role != "user" or turns[-1].role != "user":
        raise BadValueError(f"{where!r} must begin and end with a user's message")
    n_media = sum(len(said.media) for said in turns)
    if n_media > _MAX_MEDIA:
        raise BadValueError(f"{n_media} pictures and sounds; the limit is {_MAX_MEDIA}")
    text = _joined(instructions)
    return (*([Said("system", text)] if text.strip() else []), *turns)


def _as_one(first: Said, second: Said) -> Said:
    return Said(
        first.role,
        _joined([first, second]),
        (*first.media, *second.media),
        (*first.calls, *second.calls),
        (*first.results, *second.results),
    )


def _joined(messages: Sequence[Said]) -> str:
    return "\n\n".join(said.text for said in messages if said.text)


def _read_message(item: object, where: str) -> Said:
    message = an_object(item, where)
    kind = message.get("type", "message")
    if kind == "function_call":  # an item of /v1/responses
        return Said("assistant", "", calls=(_read_call(message, where),))
    if kind == "function_call_output":
        return Said("user", "", results=(_text_of(message.get("output"), f"{where}.output"),))
    if kind != "message":
        raise BadValueError(f"'{where}.type' is {str(kind)[:40]!r}; this server knows messages")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadValueError(f"'{where}.role' is {str(role)[:40]!r}; expected one of {list(_ROLES)}")
    said = _read_content(_ROLES[role], message.get("content"), f"{where}.content")
    images = tuple(
        Medium("image", _base64(image, f"{where}.images"))
        for image in _a_list(message.get("images"), f"{where}.images")  # Ollama's
    )
    calls = tuple(
        _read_call(an_object(call, where).get("function"), f"{where}.tool_calls[{index}]")
        for index, call in enumerate(_a_list(message.get("tool_calls"), f"{where}.tool_calls"))
    )
    text, refusal = said.text, message.get("refusal")
    if isinstance(refusal, str) and not text.endswith(refusal):
        text = f"{text}\n\n{refusal}" if text else refusal
    if role == "tool":
        return replace(said, text="", results=(*said.results, _a_text(text, where)))
    said = replace(
        said, text=_a_text(text, where), media=said.media + images, calls=said.calls + calls
    )
    if (said.media or said.results) and said.role != "user":
        raise BadValueError(f"'{where}' has pictures, sounds or results: only users send them")
    if said.calls and said.role != "assistant":
        raise BadValueError(f"'{where}' calls tools: only the assistant does")
    return said


def _read_call(value: object, where: str) -> ToolCall:
    call = an_object(value, where)
    name, arguments = call.get("name"), call.get("arguments", call.get("input"))
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise BadValueError(f"'{where}.name' is {str(name)[:40]!r}; expected a name of a function")
    if isinstance(arguments, str):
        arguments = load_json(arguments or "{}")
    told = _as_json(an_object(arguments or {}, f"{where}.arguments"))
    return ToolCall(name, _a_text(told, f"{where}.arguments"))


def _text_of(content: object, where: str) -> str:
    return _read_content("user", content, where).text


def _read_content(role: Role, content: object, where: str, *, is_result: bool = False) -> Said:
    """What a message, or a tool's result, says. Raises BadValueError that names an unknown part."""
    if content is None or isinstance(content, str):
        return Said(role, _a_text(content or "", where))
    texts: list[str] = []
    media: list[Medium] = []
    calls: list[ToolCall] = []
    results: list[str] = []
    for index, item in enumerate(_a_list(content, where)):
        at = f"{where}[{index}]"
        part = an_object(item, at)
        kind = part.get("type")
        if isinstance(kind, str) and kind in _TEXT_PARTS:
            texts.append(_a_text(part.get(_TEXT_PARTS[kind]), at))
        elif kind in ("image_url", "input_image"):
            url = part.get("image_url")
            media.append(_picture(url.get("url") if isinstance(url, dict) else url, at))
        elif kind == "image":
            source = an_object(part.get("source"), f"{at}.source")
            if source.get("type") != "base64":
                raise BadValueError(f"'{at}.source' is not base64: nothing is fetched from the net")
            media.append(Medium("image", _base64(source.get("data"), at)))
        elif kind == "input_audio":
            sound = an_object(part.get("input_audio"), f"{at}.input_audio")
            media.append(Medium("audio", _base64(sound.get("data"), at)))
        elif kind == "tool_use" and not is_result:
            calls.append(_read_call(part, at))
        elif kind == "tool_result" and not is_result:
            told = _read_content(role, part.get("content"), f"{at}.content", is_result=True)
            results.append(told.text)
            media += told.media
        else:
            raise BadValueError(
                f"'{at}.type' is {str(kind)[:40]!r}; expected one of {list(_KNOWN_PARTS)}"
            )
    return Said(role, "\n".join(texts), tuple(media), tuple(calls), tuple(results))


def _picture(url: object, where: str) -> Medium:
    head = _DATA_URI.match(url) if isinstance(url, str) else None
    if not isinstance(url, str) or head is None:
        raise BadValueError(
            f"'{where}' is no picture as data:image/…;base64,…: nothing is fetched from the net"
        )
    return Medium("image", _base64(url[head.end() :], where))


def _base64(value: object, where: str) -> bytes:
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise BadValueError(f"'{where}' is not base64")
    return data


def an_object(value: object, where: str) -> dict[str, Any]:
    """A JSON object. Raises BadValueError."""
    if not isinstance(value, dict):
        raise BadValueError(f"{where!r} is {str(value)[:40]!r}; expected an object")
    return value


def _a_list(value: object, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise BadValueError(f"{where!r} is {str(value)[:40]!r}; expected a list")
    return value or []


def _a_text(value: object, where: str) -> str:
    """Raise BadValueError for anything else, and for half a character (a lone surrogate)."""
    if not isinstance(value, str):
        raise BadValueError(f"{where!r} is {str(value)[:40]!r}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(f"{where!r} holds half a character, which no text has") from error
    return value
