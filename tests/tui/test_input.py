"""The input: lines, history, commands, the menu, help; and leaving."""

from __future__ import annotations

import pytest

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
            await driver.sees("how the guard acts")
            await driver.press("tab")
            assert typed(driver) == "/guard "

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


def test_help_and_first_run_are_closed_by_escape():
    async def test():
        async with opened(is_first_run=True) as driver:
            await driver.sees("What this is")
            await driver.press("escape")
            await driver.sees_no("What this is")
            await driver.press("f1")
            await driver.sees("new line; a \\ before Enter")
            await driver.press("escape")
            await driver.sees_no("new line; a \\ before Enter")

    driven(test())


def test_long_chats_show_their_end_and_more_when_asked():
    async def test():
        async with opened(size=(80, 24)) as driver:
            for number in range(5):
                await driver.send(f"question {number}")
                await driver.ready()
            await driver.send("/fork")
            await driver.sees("chats are not saved")
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
