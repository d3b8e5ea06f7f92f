from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.errors import InputError
from safesteer_edge.templates.conversation import (
    Content,
    Conversation,
    MediaContent,
    Message,
    TextContent,
)

_SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)
_MEDIA = st.builds(MediaContent, st.sampled_from(["image", "audio"]), _SHA256)
_CONTENT: st.SearchStrategy[Content] = st.builds(TextContent, st.text()) | _MEDIA
_MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant"]),
    st.lists(_CONTENT, max_size=4).map(tuple),
    st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
)
_CONVERSATIONS = st.lists(_MESSAGES, max_size=5).map(tuple).map(Conversation)


@settings(deadline=None)
@given(_CONVERSATIONS)
def test_a_conversation_survives_json(conversation: Conversation) -> None:
    assert Conversation.from_json(json.loads(json.dumps(conversation.to_json()))) == conversation


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


def test_token_ids_can_be_left_behind() -> None:
    conversation = Conversation((Message.from_text("assistant", "hi", token_ids=(1, 2)),))
    assert conversation.without_token_ids().messages[0].token_ids is None
    assert conversation.without_token_ids().messages[0].text == "hi"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([], "an object"),
        ({}, "'messages'"),
        ({"messages": {}}, "'messages' to be a list"),
        ({"messages": [{"content": []}]}, "'role'"),
        ({"messages": [{"role": "tool", "content": []}]}, "'tool'"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "'content' to be a list"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "a string"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "'video'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "sha256": "../x"}]}]},
            "64 lower-case",
        ),
        ({"messages": [{"role": "user", "content": [], "token_ids": [True]}]}, "integers from 0"),
        ({"messages": [{"role": "user", "content": [], "token_ids": [-1]}]}, "integers from 0"),
    ],
)
def test_json_of_another_shape_is_refused(value: object, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Conversation.from_json(value)
