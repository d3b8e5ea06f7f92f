"""A thinking model's reasoning: folded away, opened, kept, never part of the answer."""

from __future__ import annotations

import threading
from pathlib import Path

from safesteer_edge.chats.chat_store import ChatStore
from tests.tui.app_driver import driven, opened
from tests.tui.scripted_session import Script, ScriptedModel, Word
from tests.tui.test_plain import Chatted

THOUGHTS = ("Tides follow", " the moon,", " so\n", "the moon \x1b[2J[b]it is.")


def thinking_model(gate: threading.Event | None = None) -> ScriptedModel:
    words = [Word("The"), Word(" moon.")]
    script = Script(words, thoughts=THOUGHTS, gate=gate, n_before_gate=0)
    return ScriptedModel({"Why tides?": script})


def test_reasoning_is_told_while_it_comes_and_then_folded_to_a_line():
    async def test():
        gate = threading.Event()
        async with opened(thinking_model(gate)) as driver:
            await driver.send("Why tides?")
            await driver.sees("▸ thinking …")
            await driver.sees("so the moon [b]it is.")
            gate.set()
            await driver.sees("▸ thought for 9 words")
            await driver.sees("The moon.")
            await driver.ready()
            await driver.sees_no("Tides")
            await driver.pilot.click("ReasoningBlock")
            await driver.sees("▾ thought for 9 words")
            await driver.sees("Tides follow the moon, so")
            await driver.press("t")
            await driver.sees_no("Tides")
            await driver.press("escape")
            await driver.send("/thoughts")
            await driver.sees("Tides")
            assert driver.app.state.turns[0].text == "The moon."

    driven(test())


def test_the_comparison_folds_reasoning_too():
    async def test():
        async with opened(thinking_model(), size=(120, 30)) as driver:
            await driver.sees("ready")
            await driver.send("/compare Why tides?")
            await driver.until(
                lambda: driver.screen_text().count("▸ thought for 9 words") == 2, "both thoughts"
            )
            await driver.pilot.click("#right ReasoningBlock")
            await driver.sees("Tides follow the moon, so")
            await driver.press("escape")
            await driver.sees_no("Side by side")

    driven(test())


def test_reasoning_is_kept_with_the_chat_and_is_no_part_of_the_answer(tmp_path: Path):
    store = ChatStore(tmp_path / "chats")

    async def test():
        async with opened(thinking_model(), store=store) as driver:
            await driver.send("Why tides?")
            await driver.ready()
        (chat,) = store.list()
        answer = store.read(chat.id).branch()[-1]
        assert (answer.text, answer.reasoning) == ("The moon.", "".join(THOUGHTS))
        async with opened(thinking_model(), store=store) as driver:
            await driver.press("f2")
            await driver.sees("Why tides?")
            await driver.press("enter")
            await driver.sees("▸ thought for 9 words")
            page = tmp_path / "chat.md"
            await driver.send(f"/export md {page}")
            await driver.until(page.exists, "the export")
            assert "> *thought for 9 words*\n>\n> Tides follow the moon, so\n" in page.read_text()

    driven(test())


def test_line_by_line_reasoning_is_a_line_until_it_is_asked_for():
    chatted = Chatted("Why tides?", "/thoughts", model=thinking_model())
    assert chatted.out == "The moon.\n"
    assert "[thought for 9 words; /thoughts shows them]" in chatted.notes
    assert "Tides follow the moon, so\nthe moon [b]it is." in chatted.notes
