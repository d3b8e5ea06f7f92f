from __future__ import annotations

from safesteer_edge.templates.conversation import (
    Conversation,
    MediaContent,
    Message,
    TextContent,
)


def test_adding_a_message_leaves_the_conversation_as_it_was() -> None:
    first = Conversation().with_message(Message.from_text("user", "hello"))
    second = first.with_message(Message.from_text("assistant", "hi"))
    assert (len(first), len(second)) == (1, 2)
    assert [message.role for message in second] == ["user", "assistant"]


def test_the_text_of_a_message_leaves_out_its_media() -> None:
    picture = MediaContent("image", "0" * 64)
    message = Message("user", (TextContent("what is"), picture, TextContent("this?")))
    assert message.text == "what is\nthis?"
    assert message.media == (picture,)
