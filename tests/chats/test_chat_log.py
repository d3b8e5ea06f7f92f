"""Branches of a chat: edits and second answers stand beside the first."""

from __future__ import annotations

import pytest

from safesteer_edge.chats.chat_log import ChatLog
from safesteer_edge.chats.records import (
    HeadMoved,
    MessageAdded,
    MessageDropped,
    StoredMedia,
    Titled,
)
from safesteer_edge.errors import ChatFileError
from tests.chats.sample_chats import header, turn


def texts(log: ChatLog) -> list[str]:
    return [entry.text for entry in log.branch()]


@pytest.fixture
def log() -> ChatLog:
    first = turn(1, "Hello", "Hi there")
    return ChatLog.of([header(), *first, *turn(2, "And then?", "Nothing.", parent="m2")])


def test_the_branch_leads_to_the_head(log: ChatLog):
    assert texts(log) == ["Hello", "Hi there", "And then?", "Nothing."]
    assert [entry.end is not None for entry in log.branch()] == [False, True, False, True]


def test_an_edit_stands_beside_the_question(log: ChatLog):
    for record in turn(3, "What else?", "More.", parent="m2"):
        log.apply(record)
    assert texts(log) == ["Hello", "Hi there", "What else?", "More."]
    assert [entry.text for entry in log.siblings("m5")] == ["And then?", "What else?"]
    log.apply(HeadMoved(log.newest_leaf("m3")))
    assert texts(log)[-2:] == ["And then?", "Nothing."]
    assert log.newest_leaf("m1") == "m6"


def test_a_question_without_an_answer_can_leave(log: ChatLog):
    log.apply(MessageAdded("m5", "m4", "user", 9.0, "Well?"))
    log.apply(MessageDropped("m5"))
    assert log.head == "m4"
    with pytest.raises(ChatFileError, match="has answers"):
        log.apply(MessageDropped("m3"))
    assert log.new_id() not in {entry.id for entry in log.entries}


def test_the_title_is_the_first_question_until_there_is_one(log: ChatLog):
    assert log.title == "Hello"
    log.apply(Titled("Greetings"))
    assert log.title == "Greetings"
    assert ChatLog(header()).title == "new chat"
    long = ChatLog.of([header(), MessageAdded("m1", None, "user", 1.0, "word\n" * 50)])
    assert len(long.title) == 60
    assert long.title.endswith("…") and "\n" not in long.title
    picture = StoredMedia("image", "a" * 64, "a" * 64, "cat.png")
    shown = ChatLog.of([header(), MessageAdded("m1", None, "user", 1.0, "", (picture,))])
    assert shown.title == "cat.png"


def test_a_long_answer_grows_in_linear_time(log: ChatLog):
    from safesteer_edge.chats.records import TextAdded

    for _ in range(200_000):
        log.apply(TextAdded("m4", "word "))
    assert len(log.entry("m4").text) == len("Nothing.") + 5 * 200_000
