"""What a session remembers of its conversation: messages with their tokens, and their risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from safesteer_edge.errors import InputError
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.session.protocol import ChatMessage
from safesteer_edge.templates.conversation import Content, Conversation, Message


@dataclass(frozen=True, slots=True)
class SessionHistory:
    """risks: one a message, the running risk at its end; None: not an answer, or unknown."""

    conversation: Conversation = field(default_factory=Conversation)
    risks: tuple[float | None, ...] = ()

    def with_message(self, message: Message, risk: float | None = None) -> SessionHistory:
        """This history with one more message at its end."""
        return SessionHistory(self.conversation.with_message(message), (*self.risks, risk))

    def without_last(self) -> SessionHistory:
        """This history without its last message."""
        return SessionHistory(Conversation(self.conversation.messages[:-1]), self.risks[:-1])

    def carried_risk(self, policy: GuardPolicy) -> float:
        """What the next answer starts with: a share of the last one's risk.

        Where that is unknown, as much as an answer can have ended with that was let through:
        restarting the program or switching the guard off must not wash a conversation clean.
        """
        for message, risk in zip(
            reversed(self.conversation.messages), reversed(self.risks), strict=True
        ):
            if message.role == "assistant":
                return policy.conversation_carry * (policy.risk_limit if risk is None else risk)
        return 0.0


def restored_history(
    messages: Sequence[ChatMessage],
    present: SessionHistory,
    *,
    content_of: Callable[[ChatMessage], tuple[Content, ...]],
) -> SessionHistory:
    """The history of stored messages.

    What they share with the present one keeps its exact tokens, and so its place in the KV cache;
    what follows has none: a file's tokens are never trusted.
    Raises InputError for an order that no conversation has, and what content_of raises.
    """
    _check_order(messages)
    is_shared = True
    restored: list[Message] = []
    for index, message in enumerate(messages):
        made = Message(message.role, content_of(message))
        known = present.conversation.messages[index : index + 1]
        is_shared = is_shared and bool(known) and _says_the_same(known[0], made)
        restored.append(known[0] if is_shared else made)
    return SessionHistory(
        Conversation(tuple(restored)), tuple(message.risk for message in messages)
    )


def _says_the_same(one: Message, other: Message) -> bool:
    return (one.role, one.content) == (other.role, other.content)


def _check_order(messages: Sequence[ChatMessage]) -> None:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise InputError(
            f"cannot restore a conversation of {roles[:8]}: expected a system prompt or none, then "
            "questions and answers in turn; leave out what has no answer"
        )
    for message in messages:
        has_files = message.images or message.sounds or message.documents
        if message.role != "user" and has_files:
            raise InputError(f"cannot restore a {message.role} message with files: only users send")
