"""The input: lines, history, commands, the menu, help; and leaving."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from safesteer_edge.errors import EngineError
from safesteer_edge.tui.widgets.composer import Composer
from tests.tui.app_driver import Driver, driven, opened
from tests.tui.scripted_session import ScriptedModel, said


def typed(driver: Driver) -> str:
    return driver.app.chat.query_one(Composer).text


@pytest.mark.parametrize("keys", [("ctrl+j",), ("shift+enter",), ("alt+enter",), ("\\", "enter")])
def test_a_new_line_in_any_terminal(keys: tuple[str, ...]):
    async def test():
        async with opened() as driver:
            await driver.press("a", *keys, "b")
            assert typed(driver) == "a\nb"

    driven(test())


def test_up_and_down_bring_earlier_messages_back():
    async def test():
        async with opened() as driver:
            for text in ("first", "second"):
                await driver.send(text)
                await driver.ready()
            await driver.type("draft")
            await driver.press("up")
            assert typed(driver) == "second"
            await driver.press("up")
            assert typed(driver) == "first"
            await driver.press("down", "down")
            assert typed(driver) == "draft"

    driven(test())


def test_commands_are_offered_and_completed():
    async def test():
        async with opened() as driver:
            await driver.type("/gu")
            await driver.sees("choose how the guard acts")
            await driver.press("tab")
            assert typed(driver) == "/guard "

    driven(test())


@pytest.mark.parametrize("name", ["quit", "exit", "bye"])
def test_whatever_name_leaving_has_it_leaves(name: str):
    async def test():
        async with opened() as driver:
            await driver.send(f"/{name}")
            await driver.until(lambda: not driver.app.is_running, "the end")

    driven(test())


def test_names_from_other_chats_are_understood():
    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.type("/cle")
            await driver.sees("start a new chat")
            for text in ("one", "two"):
                await driver.send(text)
                await driver.ready()
            await driver.send("/undo")
            await driver.sees_no("You said: two")
            await driver.until(lambda: len(model.session.messages) == 2, "the model to forget it")
            await driver.send("/clear")
            await driver.sees("Type a question below")
            await driver.send("/image /no/such.png")
            await driver.sees("there is no such file")

    driven(test())


def test_what_is_sent_while_an_answer_is_written_waits_for_its_end():
    async def test():
        gate = threading.Event()
        model = ScriptedModel({"count": said("one two three four five", gate=gate)})
        async with opened(model) as driver:
            await driver.send("count")
            await driver.sees("one two three")
            await driver.send("second")
            await driver.sees("queued: second")
            await driver.send("third")
            await driver.sees("queued: third")
            await driver.type("draft")
            gate.set()
            await driver.sees("You said: third")
            await driver.ready()
            await driver.sees_no("queued")
            assert typed(driver) == "draft"
            asked = [message.text for message in model.session.messages[::2]]
            assert asked == ["count", "second", "third"]

    driven(test())


def test_escape_takes_a_queued_message_back_before_it_stops_the_answer():
    async def test():
        gate = threading.Event()
        model = ScriptedModel({"count": said("one two three four five", gate=gate)})
        async with opened(model) as driver:
            await driver.send("count")
            await driver.sees("one two three")
            await driver.send("second")
            await driver.sees("Esc takes back · queued: second")
            await driver.press("escape")
            await driver.sees_no("queued: second")
            assert typed(driver) == "second"
            assert driver.app.chat.runner.turn is not None
            await driver.press("escape")
            await driver.sees("stopped by you")
            await driver.ready()
            assert [message.text for message in model.session.messages[::2]] == ["count"]

    driven(test())


def test_queued_messages_come_back_into_the_input_when_the_answer_fails():
    async def test():
        gate = threading.Event()
        broken = said("one two three four", gate=gate, error=EngineError("the engine died"))
        async with opened(ScriptedModel({"boom": broken})) as driver:
            await driver.send("boom")
            await driver.sees("one two three")
            await driver.send("second")
            await driver.sees("queued: second")
            gate.set()
            await driver.sees("the engine died")
            await driver.until(lambda: typed(driver) == "second", "the message in the input")

    driven(test())


def test_a_saved_prompt_fills_the_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "safesteer-edge" / "prompts"

    async def test():
        async with opened() as driver:
            await driver.send("/prompt")
            await driver.sees("there are none yet")
            folder.mkdir(parents=True)
            (folder / "short.md").write_text("Sum this up in one line:\n")
            await driver.send("/prompt shrt")
            await driver.sees("your prompts: short")
            await driver.send("/prompt short the sea is blue")
            await driver.until(
                lambda: typed(driver) == "Sum this up in one line: the sea is blue", "the prompt"
            )

    driven(test())


def test_the_menu_has_every_command():
    async def test():
        async with opened() as driver:
            await driver.press("ctrl+p")
            await driver.sees("Search for commands")
            await driver.type("strength")
            await driver.sees("how hard the guard steers")
            await driver.press("enter")
            await driver.until(lambda: typed(driver) == "/strength ", "the command in the input")

    driven(test())


def test_an_answers_keys_show_when_it_has_the_focus(monkeypatch: pytest.MonkeyPatch):
    async def test():
        copied: list[str] = []
        async with opened(ScriptedModel({"hi": said("some answer")})) as driver:
            monkeypatch.setattr(driver.app, "copy_to_clipboard", copied.append)
            await driver.send("hi")
            await driver.ready()
            await driver.press("shift+tab")
            await driver.sees("e edit  ·  r regenerate")
            await driver.press("c")
            await driver.sees("copied the answer")
            assert copied == ["some answer"]
            await driver.press("escape")
            assert isinstance(driver.focused(), Composer)

    driven(test())


def test_code_is_copied_by_number(monkeypatch: pytest.MonkeyPatch):
    async def test():
        copied: list[str] = []
        code = "```python\na = 1\n```\n\nand\n\n```\nb = 2\n```"
        async with opened(ScriptedModel({"code": said(code)})) as driver:
            monkeypatch.setattr(driver.app, "copy_to_clipboard", copied.append)
            await driver.send("code")
            await driver.ready()
            await driver.send("/copy code 1")
            await driver.sees("copied code block 1")
            await driver.send("/copy")
            await driver.sees("copied the last answer")
            assert copied == ["a = 1", code]

    driven(test())


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_what_is_typed_at_once_on_the_first_run_is_asked(size: tuple[int, int]):
    async def test():
        async with opened(is_first_run=True, size=size) as driver:
            await driver.type("hello")
            await driver.sees("runs on your computer")
            await driver.sees("all keys and commands")
            await driver.press("enter")
            await driver.sees("You said: hello")
            await driver.sees_no("runs on your computer")

    driven(test())


def test_help_is_closed_by_escape():
    async def test():
        async with opened() as driver:
            await driver.press("f1")
            await driver.sees("new line (in any terminal")
            await driver.press("escape")
            await driver.sees_no("new line (in any terminal")

    driven(test())


def test_long_chats_show_their_end_and_more_when_asked():
    async def test():
        async with opened(size=(80, 24)) as driver:
            for number in range(5):
                await driver.send(f"question {number}")
                await driver.ready()
            await driver.send("/fork")
            await driver.sees("chats are not being saved")
            driver.app.state.turns *= 12
            await driver.app.chat.show_chat()
            await driver.press("shift+tab")
            transcript = driver.app.chat.query_one("#transcript")
            transcript.scroll_home(animate=False)
            await driver.sees("54 earlier questions")
            await driver.pilot.click("EarlierTurns")
            await driver.sees_no("54 earlier questions")
            assert len(driver.app.chat.query("TurnView")) == 12
            await driver.press("escape")
            driver.app.chat.action_focus_composer()
            await driver.press(*["pageup"] * 4)
            await driver.sees_no("48 earlier questions")
            assert transcript.scroll_y > 0
            await driver.press(*["pagedown"] * 4)

    driven(test())


def test_ctrl_q_leaves_and_frees_the_model():
    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            await driver.press("ctrl+q")
        assert model.session.is_closed

    driven(test())
