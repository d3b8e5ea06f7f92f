"""JSON of a schema, and calls of tools, in every dialect and through the official clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from safesteer_edge.guard.events import Event, Refused, TextDelta
from safesteer_edge.session.session import open_session
from tests.guarded_tiny import ALARMED, QUIET, GuardedTiny
from tests.serve.conftest import Reply, Server, Start

PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat")
QUESTION = "Hello there"
# An answer and a chunk of one, as the official clients describe them.
TYPES: dict[str, tuple[Any, Any]] = {
    "/v1/chat/completions": (ChatCompletion, ChatCompletionChunk),
    "/v1/messages": (anthropic.types.Message, anthropic.types.RawMessageStreamEvent),
    "/v1/responses": (Response, ResponseStreamEvent),
    "/api/chat": (ollama.ChatResponse, ollama.ChatResponse),
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["apple", "pear"]},
        "n": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3},
    },
    "required": ["kind", "n"],
}
FUNCTION = {"name": "pick", "description": "Pick some", "parameters": SCHEMA}
MAX_TOKENS = 100


def body_of(path: str, model: str, messages: list[Any], *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "stream": stream, "messages": messages, "seed": 0}
    if path == "/v1/responses":
        return {**body, "input": body.pop("messages"), "max_output_tokens": MAX_TOKENS}
    if path == "/api/chat":
        return {**body, "options": {"num_predict": MAX_TOKENS}}
    return {**body, "max_tokens": MAX_TOKENS}


def json_form(path: str) -> dict[str, Any]:
    shape = {"type": "json_schema", "schema": SCHEMA}
    return {
        "/v1/chat/completions": {
            "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
        },
        "/v1/messages": {"output_config": {"format": shape}},
        "/v1/responses": {"text": {"format": {**shape, "name": "it"}}},
        "/api/chat": {"format": SCHEMA},
    }[path]


def tools_form(path: str) -> dict[str, Any]:
    nested = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}
    flat = {"name": "pick", "description": "Pick some", "input_schema": SCHEMA}
    return {
        "/v1/chat/completions": nested,
        "/v1/messages": {"tools": [flat], "tool_choice": {"type": "any"}},
        "/v1/responses": {
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {"type": "function", "name": "pick"},
        },
        "/api/chat": nested,
    }[path]


def ask(server: Server, path: str, form: dict[str, Any], *, stream: bool) -> Reply:
    messages = [{"role": "user", "content": QUESTION}]
    reply = server.send(path, {**body_of(path, server.model, messages, stream=stream), **form})
    assert reply.status == 200, reply.body
    return reply


def text_and_calls(
    path: str, reply: Reply, *, stream: bool
) -> tuple[str, list[tuple[str, Any]], str]:
    """The text, the calls, and why it ended, of an answer in any dialect."""
    if path == "/v1/responses":
        told = reply.chunks[-1]["response"] if stream else reply.json
        parts = [p for item in told["output"] for p in item.get("content", [])]
        text = "".join(part.get("text", "") for part in parts)
        calls = [item for item in told["output"] if item["type"] == "function_call"]
        if stream:
            deltas = [c for c in reply.chunks if c["type"] == "response.output_text.delta"]
            assert text == "".join(chunk["delta"] for chunk in deltas)
            done = [c for c in reply.chunks if c["type"] == "response.output_item.done"]
            assert [chunk["item"] for chunk in done] == told["output"]
            assert [c["sequence_number"] for c in reply.chunks] == [*range(len(reply.chunks))]
        why = (told["incomplete_details"] or {}).get("reason", told["status"])
        return text, [(call["name"], json.loads(call["arguments"])) for call in calls], why
    if path == "/v1/messages":
        if not stream:
            blocks, why = reply.json["content"], reply.json["stop_reason"]
        else:
            blocks, why = _anthropic_blocks(reply.chunks)
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        used = [block for block in blocks if block["type"] == "tool_use"]
        return text, [(block["name"], block["input"]) for block in used], why
    if path == "/api/chat":
        chunks = reply.chunks if stream else [reply.json]
        calls = [each for c in chunks for each in c["message"].get("tool_calls", [])]
        text = "".join(chunk["message"]["content"] for chunk in chunks)
        told_calls = [(c["function"]["name"], c["function"]["arguments"]) for c in calls]
        return text, told_calls, chunks[-1]["done_reason"]
    choices = [c["choices"][0] for c in (reply.chunks if stream else [reply.json])]
    messages = [choice["delta" if stream else "message"] for choice in choices]
    calls = [call for m in messages for call in m.get("tool_calls", [])]
    assert all(call["id"].startswith("call_") for call in calls)
    return (
        "".join(m.get("content") or "" for m in messages),
        [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls],
        choices[-1]["finish_reason"],
    )


def _anthropic_blocks(chunks: list[Any]) -> tuple[list[Any], str]:
    blocks: list[Any] = []
    why = ""
    for chunk in chunks:
        if chunk["type"] == "content_block_start":
            assert chunk["index"] == len(blocks)
            blocks.append({**chunk["content_block"], "told": ""})
        elif chunk["type"] == "content_block_delta":
            delta = chunk["delta"]
            blocks[-1]["told"] += delta.get("text", "") + delta.get("partial_json", "")
        elif chunk["type"] == "content_block_stop":
            assert chunk["index"] == len(blocks) - 1
            told = blocks[-1].pop("told")
            is_text = blocks[-1]["type"] == "text"
            blocks[-1]["text" if is_text else "input"] = told if is_text else json.loads(told)
        elif chunk["type"] == "message_delta":
            why = chunk["delta"]["stop_reason"]
    assert not any("told" in block for block in blocks)
    return blocks, why


@pytest.fixture(scope="module")
def quiet(start_tiny: Start, calling_tiny: GuardedTiny) -> Iterator[Server]:
    server = start_calling(start_tiny, calling_tiny, calling_tiny.bundle(QUIET))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def alarmed(start_tiny: Start, calling_tiny: GuardedTiny) -> Iterator[Server]:
    server = start_calling(start_tiny, calling_tiny, calling_tiny.bundle(ALARMED))
    yield server
    server.stop()


def start_calling(start_tiny: Start, tiny: GuardedTiny, bundle: Path) -> Server:
    return start_tiny(bundle, "--model", str(tiny.model), "--ctx", "2048")


def events_in_process(tiny: GuardedTiny, bundle: Path, **options: Any) -> list[Event]:
    settings = tiny.settings(bundle, max_tokens=MAX_TOKENS, n_ctx=2048)
    with open_session(settings) as session:
        return list(session.ask(QUESTION, **options))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_an_answer_is_json_of_the_schema_that_was_asked_for(
    quiet: Server, calling_tiny: GuardedTiny, path: str, *, stream: bool
):
    reply = ask(quiet, path, json_form(path), stream=stream)
    text, calls, why = text_and_calls(path, reply, stream=stream)
    told = json.loads(text)
    assert list(told) == ["kind", "n"] and told["kind"] in ("apple", "pear")
    assert len(told["n"]) == 3 and calls == []
    assert why in ("stop", "end_turn", "completed")
    alone = events_in_process(calling_tiny, calling_tiny.bundle(QUIET), json_schema=SCHEMA)
    assert text == "".join(event.text for event in alone if isinstance(event, TextDelta))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_refusal_stands_outside_of_the_json_and_no_unsettled_text_leaves(
    alarmed: Server, calling_tiny: GuardedTiny, path: str, *, stream: bool
):
    bundle = calling_tiny.bundle(ALARMED)
    events = events_in_process(calling_tiny, bundle, json_schema=SCHEMA)
    settled = "".join(event.text for event in events if isinstance(event, TextDelta))
    (refused,) = [event for event in events if isinstance(event, Refused)]
    assert refused.n_tokens_taken_back
    reply = ask(alarmed, path, json_form(path), stream=stream)
    text, calls, why = text_and_calls(path, reply, stream=stream)
    assert (text, calls) == (settled, [])
    assert why in ("content_filter", "refusal")
    assert (refused.text.strip() in reply.body.decode()) is (path != "/api/chat")  # has no field
    assert '\\"kind' not in reply.body.decode() or '"kind' in settled


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_call_of_a_tool_comes_in_the_dialects_own_field(
    quiet: Server, path: str, *, stream: bool
):
    reply = ask(quiet, path, tools_form(path), stream=stream)
    text, calls, why = text_and_calls(path, reply, stream=stream)
    ((name, arguments),) = calls
    assert (text, name) == ("", "pick")
    assert list(arguments) == ["kind", "n"] and len(arguments["n"]) == 3
    assert why in ("tool_calls", "tool_use", "completed", "stop")
    assert b"<tool_call>" not in reply.body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_call_in_a_refused_answer_does_not_leave(alarmed: Server, path: str, *, stream: bool):
    reply = ask(alarmed, path, tools_form(path), stream=stream)
    text, calls, why = text_and_calls(path, reply, stream=stream)
    assert calls == []
    assert why in ("content_filter", "refusal")
    assert "tool_call>" not in reply.body.decode() and "pick" not in text


def test_what_a_tool_gave_back_is_read_and_the_call_before_it_is_in_the_cache(quiet: Server):
    path, messages = PATHS[0], [{"role": "user", "content": QUESTION}]
    form = tools_form(path)
    asked = {**body_of(path, quiet.model, messages, stream=False), **form}
    first = quiet.send(path, asked).json
    message = first["choices"][0]["message"]
    (call,) = message["tool_calls"]
    call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]), indent=1)
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Two pears"}
    asked["messages"] = [*messages, message, result]
    second = quiet.send(path, asked).json
    usage = second["usage"]
    n_cached = usage["prompt_tokens_details"]["cached_tokens"]
    n_before = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    assert n_cached >= n_before - 2
    assert usage["prompt_tokens"] > n_cached + 5
    # Another result makes another prompt.
    asked["messages"][-1] = {**result, "content": "Two pears and many more apples"}
    assert quiet.send(path, asked).json["usage"]["prompt_tokens"] > usage["prompt_tokens"]


def test_no_tools_are_offered_where_none_may_be_called(quiet: Server):
    form = {**tools_form(PATHS[0]), "tool_choice": "none"}
    offered = ask(quiet, PATHS[0], tools_form(PATHS[0]), stream=False).json["usage"]
    nothing = ask(quiet, PATHS[0], form, stream=False).json
    assert nothing["usage"]["prompt_tokens"] < offered["prompt_tokens"] - 200
    assert nothing["choices"][0]["message"].get("tool_calls") is None


@pytest.mark.parametrize("path", PATHS)
def test_no_field_is_missing_that_the_official_types_ask_for(
    quiet: Server, alarmed: Server, path: str
):
    whole, part = TYPES[path]
    for server in (quiet, alarmed):
        for form in ({}, json_form(path), tools_form(path)):
            TypeAdapter(whole).validate_python(ask(server, path, form, stream=False).json)
            for chunk in ask(server, path, form, stream=True).chunks:
                TypeAdapter(part).validate_python(chunk)


# -- the official clients --------------------------------------------------------------------------


def test_openais_client_takes_calls_and_json(quiet: Server):
    client = openai.OpenAI(base_url=f"{quiet.url}/v1", api_key="anything", max_retries=0)
    tools: Any = [{"type": "function", "function": FUNCTION}]
    messages: Any = [{"role": "user", "content": QUESTION}]
    asked: dict[str, Any] = {"model": quiet.model, "messages": messages, "max_tokens": MAX_TOKENS}
    whole = client.chat.completions.create(**asked, tools=tools, tool_choice="required")
    assert whole.choices[0].finish_reason == "tool_calls"
    (call,) = whole.choices[0].message.tool_calls or []
    with client.chat.completions.stream(**asked, tools=tools, tool_choice="required") as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert call.type == streamed.type == "function"
    assert call.function.arguments == streamed.function.arguments
    shape: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
    told = client.chat.completions.create(**asked, response_format=shape)
    assert json.loads(told.choices[0].message.content or "")["kind"] in ("apple", "pear")
    flat: Any = [{"type": "function", "strict": False, **FUNCTION}]
    answer = client.responses.create(
        model=quiet.model, input=QUESTION, tools=flat, tool_choice="required", max_output_tokens=100
    )
    (item,) = answer.output
    assert item.type == "function_call" and item.name == "pick"
    given: Any = [
        {"role": "user", "content": QUESTION},
        item.to_dict(),
        {"type": "function_call_output", "call_id": item.call_id, "output": "Two pears"},
    ]
    events = list(client.responses.create(model=quiet.model, input=given, tools=flat, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_anthropics_client_takes_calls(quiet: Server):
    client = anthropic.Anthropic(base_url=quiet.url, api_key="anything", max_retries=0)
    asked: dict[str, Any] = {
        "model": quiet.model,
        "max_tokens": MAX_TOKENS,
        "tools": [{"name": "pick", "description": "Pick some", "input_schema": SCHEMA}],
    }
    messages: Any = [{"role": "user", "content": QUESTION}]
    whole = client.messages.create(**asked, messages=messages, tool_choice={"type": "any"})
    (block,) = whole.content
    assert whole.stop_reason == "tool_use" and block.type == "tool_use"
    choice: Any = {"type": "tool", "name": "pick"}
    with client.messages.stream(**asked, messages=messages, tool_choice=choice) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.type == "tool_use" and streamed.input == block.input
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "Two pears"}
    messages += [
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    counted = client.messages.count_tokens(
        model=asked["model"], tools=asked["tools"], messages=messages
    )
    usage = client.messages.create(**asked, messages=messages).usage
    assert usage.cache_read_input_tokens
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_ollamas_client_takes_json_and_offers_tools(quiet: Server):
    client = ollama.Client(quiet.url)
    messages = [{"role": "user", "content": QUESTION}]
    options = {"num_predict": MAX_TOKENS}
    told = client.chat(quiet.model, messages, format=SCHEMA, options=options)
    assert json.loads(told.message.content or "")["kind"] in ("apple", "pear")
    assert "tools" in (client.show(quiet.model).capabilities or [])
    tools: Any = [{"type": "function", "function": FUNCTION}]
    assert client.chat(quiet.model, messages, tools=tools, options=options).prompt_eval_count
