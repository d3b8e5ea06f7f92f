"""Anthropic's /v1/messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Final

from safesteer_edge.guard.events import Refused, TextDelta
from safesteer_edge.serve.asked import Asked, an_object, read_asked
from safesteer_edge.serve.dialect import Dialect, Head, Json, named_sse
from safesteer_edge.serve.served_model import Answered, Piece
from safesteer_edge.session.answer_form import ToolCall

_ONLY: Final[Mapping[str, tuple[object, ...]]] = {
    "mcp_servers": ([],),
    "thinking": (),
}


def _read(body: object) -> Asked:
    given = an_object(body, "the body")
    shape = an_object(given.get("output_config") or {}, "output_config")
    given["response_format"] = given.get("output_format") or shape.get("format")
    thinking = given.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") in ("disabled", "adaptive"):
        del given["thinking"]  # adaptive: as the model likes
    return read_asked(given, _ONLY, {"stop_sequences": "stop"})


def _whole(head: Head, answered: Answered) -> Json:
    content: list[Json] = [_call(head, *each) for each in enumerate(answered.calls)]
    if answered.text or not content:
        content.insert(0, {"type": "text", "text": answered.text})
    return {
        **_message(head, answered.usage.completion_tokens),
        "content": content,
        **_ending(answered),
        **head.trace(answered),
    }


async def _stream(head: Head, pieces: AsyncIterator[Piece]) -> AsyncIterator[Json]:
    yield {"type": "message_start", "message": _message(head, 0)}
    index, n_calls, is_text = -1, 0, False  # index: of the last block that has begun
    async for piece in pieces:
        if isinstance(piece, Refused) and head.asked.is_json:
            continue
        if isinstance(piece, Refused) or (isinstance(piece, TextDelta) and piece.part == "answer"):
            if not is_text:
                index, is_text = index + 1, True
                yield _block("start", index, content_block={"type": "text", "text": ""})
            yield _block("delta", index, delta={"type": "text_delta", "text": piece.text})
        elif isinstance(piece, ToolCall):
            if is_text:
                yield _block("stop", index)
            index, is_text = index + 1, False
            called = _call(head, n_calls, piece)
            n_calls += 1
            yield _block("start", index, content_block={**called, "input": {}})
            delta = {"type": "input_json_delta", "partial_json": piece.arguments}
            yield _block("delta", index, delta=delta)
            yield _block("stop", index)
        elif isinstance(piece, Answered):
            if index < 0:
                index, is_text = 0, True
                yield _block("start", index, content_block={"type": "text", "text": ""})
            if is_text:
                yield _block("stop", index)
            usage = _usage(head, piece.usage.completion_tokens)
            ending = {"delta": _ending(piece), "usage": usage}
            yield {"type": "message_delta", **ending, **head.trace(piece)}
            yield {"type": "message_stop"}


def _block(what: str, index: int, **members: Json) -> Json:
    return {"type": f"content_block_{what}", "index": index, **members}


def _call(head: Head, index: int, call: ToolCall) -> Json:
    called = {"type": "tool_use", "id": head.call_id(index), "name": call.name}
    return {**called, "input": json.loads(call.arguments)}


def _message(head: Head, n_output_tokens: int) -> Json:
    return {
        "id": f"msg_{head.id}",
        "type": "message",
        "role": "assistant",
        "model": head.asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(head, n_output_tokens),
    }


def _usage(head: Head, n_output_tokens: int) -> Json:
    n_cached = head.prefill.n_reused_tokens
    return {
        "input_tokens": head.prefill.n_prompt_tokens - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_output_tokens,
    }


def _ending(answered: Answered) -> Json:
    reason = "tool_use" if answered.calls else "end_turn"
    reason = "max_tokens" if answered.is_cut else "stop_sequence" if answered.stop else reason
    if answered.refusal is None:
        return {"stop_reason": reason, "stop_sequence": answered.stop}
    why = {"type": "refusal", "category": None, "explanation": answered.refusal.text.strip()}
    return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": why}


MESSAGES: Final = Dialect(_read, _whole, _stream, named_sse)
