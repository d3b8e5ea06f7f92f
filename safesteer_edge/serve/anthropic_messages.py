"""Anthropic's /v1/messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

from safesteer_edge.guard.events import Refused, TextDelta
from safesteer_edge.serve.asked import Asked, read_asked
from safesteer_edge.serve.dialect import Dialect, Head, Json, named_sse
from safesteer_edge.serve.served_model import Answered, Piece

_ONLY: Final[Mapping[str, tuple[object, ...]]] = {
    "tools": ([],),
    "tool_choice": ({"type": "none"}, {"type": "auto"}),
    "mcp_servers": ([],),
    "thinking": ({"type": "disabled"},),
    "output_config": ({},),
    "output_format": (),
}


def _read(body: object) -> Asked:
    return read_asked(body, _ONLY, {"stop_sequences": "stop"})


def _whole(head: Head, answered: Answered) -> Json:
    return {
        **_message(head, answered.usage.completion_tokens),
        "content": [{"type": "text", "text": answered.text}],
        **_ending(answered),
        **head.trace(answered),
    }


async def _stream(head: Head, pieces: AsyncIterator[Piece]) -> AsyncIterator[Json]:
    yield {"type": "message_start", "message": _message(head, 0)}
    block = {"type": "text", "text": ""}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    async for piece in pieces:
        if isinstance(piece, Refused) or (isinstance(piece, TextDelta) and piece.part == "answer"):
            delta = {"type": "text_delta", "text": piece.text}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        elif isinstance(piece, Answered):
            yield {"type": "content_block_stop", "index": 0}
            usage = {"output_tokens": piece.usage.completion_tokens}
            ending = {"delta": _ending(piece), "usage": usage}
            yield {"type": "message_delta", **ending, **head.trace(piece)}
            yield {"type": "message_stop"}


def _message(head: Head, n_output_tokens: int) -> Json:
    n_cached = head.prefill.n_reused_tokens
    return {
        "id": f"msg_{head.id}",
        "type": "message",
        "role": "assistant",
        "model": head.asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": head.prefill.n_prompt_tokens - n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": n_cached,
            "output_tokens": n_output_tokens,
        },
    }


def _ending(answered: Answered) -> Json:
    reason = "max_tokens" if answered.is_cut else "stop_sequence" if answered.stop else "end_turn"
    return {
        "stop_reason": "refusal" if answered.refusal else reason,
        "stop_sequence": answered.stop,
    }


MESSAGES: Final = Dialect(_read, _whole, _stream, named_sse)
