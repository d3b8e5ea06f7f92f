"""Ollama's /api/chat, and what it tells of models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timezone
from typing import Final

from safesteer_edge.guard.events import Refused, TextDelta
from safesteer_edge.serve.asked import Asked, an_object, read_asked
from safesteer_edge.serve.dialect import Dialect, Head, Json, compact
from safesteer_edge.serve.served_model import Answered, Piece
from safesteer_edge.session.answer_form import ToolCall
from safesteer_edge.session.protocol import SessionInfo

# The version whose dialect this is: clients refuse an old one.
VERSION: Final = "0.13.3"
_ONLY: Final[Mapping[str, tuple[object, ...]]] = {
    "think": (False,),
    "logprobs": (False,),
}


def _read(body: object) -> Asked:
    given = an_object(body, "the body")
    options = an_object(given.get("options") or {}, "options")
    form = given.pop("format", None)  # a schema, or the word
    if form == "json":
        given["response_format"] = {"type": "json_object"}
    elif form:
        given["response_format"] = {"type": "json_schema", "schema": form}
    given = {"stream": True} | options | {k: v for k, v in given.items() if k != "options"}
    return read_asked(given, _ONLY, {"num_predict": "max_tokens"})


def _whole(head: Head, answered: Answered) -> Json:
    message: Json = {"role": "assistant", "content": answered.text}
    if answered.calls:
        message["tool_calls"] = [*map(_call, answered.calls)]
    if answered.ended.reasoning:
        message["thinking"] = answered.ended.reasoning
    return _last(head, answered, message)


async def _stream(head: Head, pieces: AsyncIterator[Piece]) -> AsyncIterator[Json]:
    async for piece in pieces:
        if isinstance(piece, Answered):
            yield _last(head, piece, {"role": "assistant", "content": ""})
        elif isinstance(piece, ToolCall):
            told = {"role": "assistant", "content": "", "tool_calls": [_call(piece)]}
            yield {**_common(head), "message": told, "done": False}
        elif isinstance(piece, TextDelta) or (
            isinstance(piece, Refused) and not head.asked.is_json
        ):
            thinks = isinstance(piece, TextDelta) and piece.part == "reasoning"
            told = {"content": "", "thinking": piece.text} if thinks else {"content": piece.text}
            yield {**_common(head), "message": {"role": "assistant", **told}, "done": False}


def _call(call: ToolCall) -> Json:
    return {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}


def _last(head: Head, answered: Answered, message: Json) -> Json:
    timings, usage = answered.ended.timings, answered.usage
    reason = "length" if answered.is_cut else "stop"
    return {
        **_common(head),
        "message": message,
        "done": True,
        "done_reason": "content_filter" if answered.refusal else reason,
        "total_duration": _nanoseconds(timings.prefill_s + timings.decode_s),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timings.prefill_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timings.decode_s),
        **head.trace(answered),
    }


def _common(head: Head) -> Json:
    return {"model": head.asked.model, "created_at": moment(head.created)}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def moment(timestamp: float) -> str:
    """Seconds since 1970 as the dialect writes them."""
    return datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def tag(info: SessionInfo, started: int) -> Json:
    """A model in the list of /api/tags."""
    return {
        "name": info.model_name,
        "model": info.model_name,
        "modified_at": moment(started),
        "size": info.model_path.stat().st_size if info.model_path.exists() else 0,
        "digest": info.tensor_table_sha256,
        "details": _details(info),
    }


def shown(info: SessionInfo, started: int) -> Json:
    """What /api/show tells of a model."""
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": moment(started),
        "details": _details(info),
        "model_info": {
            "general.architecture": info.architecture,
            f"{info.architecture}.context_length": info.n_ctx,
        },
        "capabilities": [
            "completion",
            *(["vision"] if info.sees else []),
            *(["tools"] if info.tool_format else []),
        ],
    }


def _details(info: SessionInfo) -> Json:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": "",
        "quantization_level": info.quantization,
    }


OLLAMA: Final = Dialect(
    _read,
    _whole,
    _stream,
    lambda chunk: compact(chunk) + b"\n",
    media_type="application/x-ndjson",
)
