"""Small chats for tests."""

from __future__ import annotations

from safesteer_edge.chats.records import (
    AnswerEnded,
    ChatHeader,
    MessageAdded,
    ModelUsed,
    Record,
    TextAdded,
)
from safesteer_edge.guard.events import GuardSummary, Usage

MODEL = ModelUsed(
    "tiny", "/models/tiny.gguf", "llama", "F32", "0" * 64, None, "tiny-guard", "1" * 64
)
GUARD = GuardSummary("steer", "lazy", "tiny-guard", 1, 20, 0.6, 0.2, 0.25, False, False)
USAGE = Usage(10, 0, 0, 5, 6)


def header(chat_id: str = "20261122-101112-abcdef") -> ChatHeader:
    return ChatHeader(chat_id, 100.0, MODEL)


def turn(number: int, question: str, answer: str, *, parent: str | None = None) -> list[Record]:
    """A question m{2n-1} and its answer m{2n}, told in two pieces."""
    asked, said = f"m{2 * number - 1}", f"m{2 * number}"
    half = len(answer) // 2
    return [
        MessageAdded(asked, parent, "user", 100.0 + number, question),
        MessageAdded(said, asked, "assistant", 100.0 + number),
        TextAdded(said, answer[:half]),
        TextAdded(said, answer[half:]),
        AnswerEnded(said, 100.5 + number, "stop", GUARD, USAGE),
    ]
