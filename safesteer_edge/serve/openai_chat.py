"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from safesteer_edge.guard.events import Refused, TextDelta, Usage
from safesteer_edge.serve.asked import Asked, read_asked
from safesteer_edge.serve.dialect import Dialect, Head, Json, sse
from safesteer_edge.serve.served_model import Answered, Piece
from safesteer_edge.session.answer_form import ToolCall

_ONLY: Final[Mapping[str, tuple[object, ...]]] = {
    "functions": ([],),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


def _read(body: object) -> Asked:
    return read_asked(body, _ONLY, {"max_completion_tokens": "max_tokens"})


def _whole(head: Head, answered: Answered) -> Json:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answered.text or (None if answered.calls else ""),
        "refusal": answered.refusal.text.strip() if answered.refusal else None,
    }
    if answered.calls:
        message["tool_calls"] = [_call(head, *each) for each in enumerate(answered.calls)]
    if answered.ended.reasoning:
        message["reasoning_content"] = answered.ended.reasoning
    return {
        **_common(head, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": _finish_reason(answered),
            }
        ],
        "usage": _usage(answered.usage),
        **head.trace(answered),
    }


async def _stream(head: Head, pieces: AsyncIterator[Piece]) -> AsyncIterator[Json]:
    yield _chunk(head, {"role": "assistant", "content": ""})
    n_calls = 0
    async for piece in pieces:
        if isinstance(piece, TextDelta):
            key = "content" if piece.part == "answer" else "reasoning_content"
            yield _chunk(head, {key: piece.text})
        elif isinstance(piece, Refused):
            content = {} if head.asked.is_json else {"content": piece.text}
            yield _chunk(head, {**content, "refusal": piece.text.strip()})
        elif isinstance(piece, ToolCall):
            called = {"index": n_calls, **_call(head, n_calls, piece)}
            yield _chunk(head, {"tool_calls": [called]})
            n_calls += 1
        elif isinstance(piece, Answered):
            last = {**_chunk(head, {}, _finish_reason(piece)), **head.trace(piece)}
            usage = {"usage": _usage(piece.usage)}
            if head.asked.has_usage:
                yield last
                yield {**_common(head, "chat.completion.chunk"), "choices": [], **usage}
            else:
                yield {**last, **usage}


def _call(head: Head, index: int, call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": head.call_id(index), "type": "function", "function": function}


def _chunk(head: Head, delta: Json, finish_reason: str | None = None) -> Json:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    common = _common(head, "chat.completion.chunk")
    # Where the usage comes at the end, all other chunks say that there is none.
    return {**common, "choices": [choice], **({"usage": None} if head.asked.has_usage else {})}


def _common(head: Head, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{head.id}",
        "object": kind,
        "created": head.created,
        "model": head.asked.model,
        "system_fingerprint": head.fingerprint,
    }


def _finish_reason(answered: Answered) -> str:
    if answered.refusal is not None:
        return "content_filter"
    if answered.is_cut:
        return "length"
    return "tool_calls" if answered.calls else "stop"


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    }


CHAT: Final = Dialect(_read, _whole, _stream, sse, ending=b"data: [DONE]\n\n")


def moderation_result(score: float, limit: float, *, has_picture: bool) -> Json:
    """The verdict on one input: the probe knows a single category."""
    return {
        "flagged": score > limit,
        "categories": {"harmful": score > limit},
        "category_scores": {"harmful": score},
        "category_applied_input_types": {"harmful": ["text", *(["image"] if has_picture else [])]},
    }
