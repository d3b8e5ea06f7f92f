"""OpenAI's /v1/responses, without a memory: each request brings its whole conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import count
from typing import Any, Final

from safesteer_edge.guard.events import Refused, TextDelta
from safesteer_edge.serve.asked import Asked, an_object, read_asked
from safesteer_edge.serve.dialect import Dialect, Head, Json, named_sse
from safesteer_edge.serve.served_model import Answered, Piece
from safesteer_edge.session.answer_form import ToolCall

_ONLY: Final[Mapping[str, tuple[object, ...]]] = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "top_logprobs": (0,),
}


def _read(body: object) -> Asked:
    given = an_object(body, "the body")
    if isinstance(given.get("input"), str):
        given["input"] = [{"role": "user", "content": given["input"]}]
    given["response_format"] = an_object(given.get("text") or {}, "text").get("format")
    names = {"input": "messages", "instructions": "system", "max_output_tokens": "max_tokens"}
    return read_asked(given, _ONLY, names, where="input")


def _whole(head: Head, answered: Answered) -> Json:
    refusal, text = answered.refusal, answered.text
    content = [_part("refusal", refusal.text.strip())] if refusal else []
    text = text.removesuffix(refusal.text) if refusal else text
    calls = [_call(head, *each) for each in enumerate(answered.calls)]
    if text or not (refusal or calls):
        content.insert(0, _part("output_text", text))
    status = "incomplete" if answered.is_cut else "completed"
    messages = [_message(head, status, content)] if content else []
    return _response(head, answered, [*messages, *calls])


async def _stream(head: Head, pieces: AsyncIterator[Piece]) -> AsyncIterator[Json]:
    """Calls come behind the message in the whole answer, and so they do here."""
    numbers = count()
    yield _event(numbers, "response.created", response=_response(head))
    yield _event(numbers, "response.in_progress", response=_response(head))
    message = _message(head, "in_progress", [])
    kind, text, parts = "", "", list[Json]()
    async for piece in pieces:
        if not isinstance(piece, TextDelta | Refused | Answered):
            continue
        if isinstance(piece, TextDelta) and piece.part == "reasoning":
            continue
        wanted = {TextDelta: "output_text", Refused: "refusal"}.get(type(piece), "")
        at: Json = {"item_id": message["id"], "output_index": 0, "content_index": len(parts)}
        if kind and kind != wanted:  # the part before this piece is whole
            parts.append(_part(kind, text))
            done = {("refusal" if kind == "refusal" else "text"): text}
            yield _event(numbers, f"response.{kind}.done", **at, **_logprobs(kind), **done)
            yield _event(numbers, "response.content_part.done", **at, part=parts[-1])
            at["content_index"] = len(parts)
        if isinstance(piece, Answered):
            for event in _ending(numbers, _whole(head, piece), message, has_begun=bool(kind)):
                yield event
            return
        added = piece.text.strip() if isinstance(piece, Refused) else piece.text
        if not kind:
            yield _event(numbers, "response.output_item.added", output_index=0, item=message)
        if kind != wanted:
            kind, text = wanted, ""
            yield _event(numbers, "response.content_part.added", **at, part=_part(kind, ""))
        text += added
        yield _event(numbers, f"response.{kind}.delta", **at, **_logprobs(kind), delta=added)


def _ending(
    numbers: Iterator[int], whole: Json, message: Json, *, has_begun: bool
) -> Iterator[Json]:
    """What is whole now, item by item. has_begun: its message has been told but for its end."""
    for index, item in enumerate(whole["output"]):
        at: Json = {"item_id": item["id"], "output_index": index}
        if item["type"] == "function_call":
            begun = {**item, "arguments": "", "status": "in_progress"}
            yield _event(numbers, "response.output_item.added", output_index=index, item=begun)
            kind, arguments = "response.function_call_arguments", item["arguments"]
            yield _event(numbers, f"{kind}.delta", **at, delta=arguments)
            yield _event(numbers, f"{kind}.done", **at, name=item["name"], arguments=arguments)
        elif not has_begun:
            yield _event(numbers, "response.output_item.added", output_index=index, item=message)
        yield _event(numbers, "response.output_item.done", output_index=index, item=item)
    yield _event(numbers, f"response.{whole['status']}", response=whole)


def _call(head: Head, index: int, call: ToolCall) -> Json:
    return {
        "id": f"fc_{head.id}{index}",
        "type": "function_call",
        "status": "completed",
        "call_id": head.call_id(index),
        "name": call.name,
        "arguments": call.arguments,
    }


def _event(numbers: Iterator[int], kind: str, **members: Any) -> Json:
    return {"type": kind, "sequence_number": next(numbers), **members}


def _logprobs(kind: str) -> Json:
    return {"logprobs": []} if kind == "output_text" else {}


def _part(kind: str, text: str) -> Json:
    if kind == "refusal":
        return {"type": kind, "refusal": text}
    return {"type": kind, "text": text, "annotations": [], "logprobs": []}


def _message(head: Head, status: str, content: list[Json]) -> Json:
    return {
        "id": f"msg_{head.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _response(
    head: Head, answered: Answered | None = None, output: list[Json] | None = None
) -> Json:
    why, usage = None, None
    if answered is not None:
        used = answered.usage
        why = "max_output_tokens" if answered.is_cut else None
        why = "content_filter" if answered.refusal else why
        usage = {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": used.reused_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        }
    return {
        "id": f"resp_{head.id}",
        "object": "response",
        "created_at": head.created,
        "status": "in_progress" if answered is None else "incomplete" if why else "completed",
        "error": None,
        "incomplete_details": {"reason": why} if why else None,
        "instructions": None,
        "max_output_tokens": head.asked.max_tokens,
        "model": head.asked.model,
        "output": output or [],
        "parallel_tool_calls": not head.asked.one_call,
        "previous_response_id": None,
        "store": False,
        "temperature": head.asked.sampling.get("temperature"),
        "text": {"format": {"type": "json_object" if head.asked.is_json else "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": head.asked.sampling.get("top_p"),
        "truncation": "disabled",
        "usage": usage,
        "metadata": {},
        **(head.trace(answered) if answered else {}),
    }


def _failed(error: Json) -> Json:
    return {**error["error"], "type": "error", "sequence_number": 0}


RESPONSES: Final = Dialect(_read, _whole, _stream, named_sse, _failed)
