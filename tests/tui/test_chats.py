"""Chats as they are kept: found, resumed, renamed, exported, forked, deleted."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from PIL import Image

from safesteer_edge.chats.chat_store import ChatStore
from tests.tui.app_driver import driven, opened
from tests.tui.scripted_session import ScriptedModel, said


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats")


def texts(store: ChatStore, chat_id: str) -> list[str]:
    return [entry.text for entry in store.read(chat_id).branch()]


def test_yesterdays_chat_is_found_and_resumed(store: ChatStore):
    async def test():
        async with opened(store=store) as driver:
            await driver.send("How warm is the sea?")
            await driver.ready()
        async with opened(store=store) as driver:
            await driver.send("Something else")
            await driver.ready()
            await driver.press("f2")
            await driver.sees("How warm is the sea?")
            await driver.type("warm")
            await driver.sees("1 asked  How warm is the sea?")
            await driver.press("enter")
            await driver.sees("You said: How warm is the sea?")
            await driver.send("And the lake?")
            await driver.sees("You said: And the lake?")
            await driver.ready()
        chats = {chat.title: chat.id for chat in store.list()}
        assert texts(store, chats["How warm is the sea?"]) == [
            "How warm is the sea?",
            "You said: How warm is the sea?",
            "And the lake?",
            "You said: And the lake?",
        ]

    driven(test())


def test_a_picture_that_is_lost_is_said_and_the_chat_goes_on(store: ChatStore, tmp_path: Path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (56, 56), "navy").save(picture)

    async def test():
        async with opened(store=store) as driver:
            await driver.send(f"{picture} what is this")
            await driver.ready()
        (chat,) = store.list()
        for kept in (store.folder / "media").glob("*.png"):
            kept.unlink()
        async with opened(store=store, chat_id=chat.id) as driver:
            await driver.sees("a.png is lost")
            await driver.send("And now?")
            await driver.sees("You said: And now?")
            await driver.ready()

    driven(test())


def test_the_command_lines_chat_goes_on_with_the_command_lines_question(store: ChatStore):
    async def test():
        async with opened(store=store, question="How warm is the sea?") as driver:
            await driver.sees("You said: How warm is the sea?")
            await driver.ready()
        (chat,) = store.list()
        async with opened(store=store, chat_id=chat.id, question="And the lake?") as driver:
            await driver.sees("You said: And the lake?")
            await driver.ready()
        assert texts(store, chat.id) == [
            "How warm is the sea?",
            "You said: How warm is the sea?",
            "And the lake?",
            "You said: And the lake?",
        ]

    driven(test())


def test_a_chat_is_renamed_and_deleted_only_after_asking(store: ChatStore):
    async def test():
        async with opened(store=store) as driver:
            await driver.send("first question")
            await driver.ready()
            await driver.press("ctrl+n")
            await driver.sees("Type a question below")
            await driver.press("f2")
            await driver.sees("first question")
            await driver.press("ctrl+t")
            await driver.sees("New title")
            await driver.press("ctrl+a", "ctrl+k")
            await driver.type("bread")
            await driver.press("enter")
            await driver.sees("bread")
            await driver.press("ctrl+d")
            await driver.sees("Delete ‘bread’, 2 messages?")
            await driver.press("enter")
            assert [chat.title for chat in store.list()] == ["bread"]
            await driver.press("ctrl+d")
            await driver.press("right", "enter")
            await driver.sees("no chats yet")
            assert store.list() == ()

    driven(test())


def test_down_and_enter_go_on_with_the_second_chat_of_the_list(store: ChatStore):
    async def test():
        async with opened(store=store) as driver:
            for question in ("the older one", "the newer one"):
                await driver.send(question)
                await driver.ready()
                await driver.press("ctrl+n")
            await driver.press("f2")
            await driver.sees("the older one")
            await driver.press("down", "enter")
            await driver.sees("You said: the older one")

    driven(test())


def test_a_chat_is_exported(store: ChatStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    async def test():
        async with opened(store=store) as driver:
            await driver.send("How warm is the sea?")
            await driver.ready()
            await driver.send("/export json sea.json")
            await driver.sees("wrote sea.json")
            await driver.press("f2")
            await driver.sees("Export ^E")
            await driver.press("ctrl+e")
            await driver.press("enter")
            await driver.sees("wrote how-warm-is-the-sea.md")
        assert "You said: How warm" in (tmp_path / "how-warm-is-the-sea.md").read_text()
        json.loads((tmp_path / "sea.json").read_text())

    driven(test())


def test_a_question_is_edited_and_the_old_branch_stays_in_the_file(store: ChatStore):
    async def test():
        async with opened(store=store) as driver:
            await driver.send("one")
            await driver.ready()
            await driver.send("two")
            await driver.ready()
            await driver.send("/edit 1")
            await driver.sees("Edit the question")
            await driver.press("!", "enter")
            await driver.sees("You said: one!")
            await driver.ready()
            await driver.sees_no("You said: two")
            (chat,) = store.list()
            assert texts(store, chat.id) == ["one!", "You said: one!"]
            everything = [entry.text for entry in store.read(chat.id).entries]
            assert "You said: two" in everything

    driven(test())


def test_regenerating_answers_again_with_another_seed(store: ChatStore):
    async def test():
        model = ScriptedModel()
        async with opened(model, store=store) as driver:
            await driver.send("one")
            await driver.ready()
            seed = model.session.turn_settings.sampling.seed
            await driver.press("ctrl+r")
            await driver.until(lambda: len(store.read(store.list()[0].id).entries) == 4, "answers")
            await driver.ready()
            assert model.session.turn_settings.sampling.seed == seed + 1
            assert [m.text for m in model.session.messages] == ["one", "You said: one"]

    driven(test())


def test_a_fork_is_another_chat(store: ChatStore):
    async def test():
        async with opened(store=store) as driver:
            await driver.send("one")
            await driver.ready()
            await driver.send("two")
            await driver.ready()
            await driver.send("/fork 1")
            await driver.sees("you are now in a copy")
            await driver.sees_no("You said: two")
            assert len(store.list()) == 2

    driven(test())


def test_what_was_said_so_far_is_in_the_file_while_it_streams(store: ChatStore):
    async def test():
        gate = threading.Event()
        model = ScriptedModel({"count": said("one two three four five", gate=gate)})
        async with opened(model, store=store) as driver:
            await driver.send("count")
            await driver.sees("one two three")
            await driver.until(
                lambda: texts(store, store.list()[0].id)[-1] == "one two three", "the file"
            )
            gate.set()

    driven(test())


def test_an_interrupted_question_comes_back_into_the_input(store: ChatStore):
    async def test():
        async with opened(store=store) as driver:
            await driver.send("answered")
            await driver.ready()
        (chat,) = store.list()
        with store.path(chat.id).open("ab") as file:
            file.write(
                b'{"type":"message","id":"m9","parent":"m2","role":"user","at":1.0,'
                b'"text":"never answered","media":[]}\n'
            )
        async with opened(store=store) as driver:
            await driver.press("f2")
            await driver.sees("answered")
            await driver.press("enter")
            await driver.sees("You said: answered")
            await driver.until(
                lambda: driver.app.chat.query_one("#composer").text == "never answered",  # pyright: ignore[reportAttributeAccessIssue]
                "the question in the input",
            )

    driven(test())
