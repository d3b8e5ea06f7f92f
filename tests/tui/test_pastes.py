"""Pastes: taken whole from what the terminal sends, folded where they are long, never sent."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from textual import events
from textual.message import Message

from safesteer_edge.tui.terminal import WholePasteParser
from safesteer_edge.tui.widgets.composer import Composer
from tests.tui.app_driver import Driver, driven, opened
from tests.tui.scripted_session import ScriptedModel

START, END = "\x1b[200~", "\x1b[201~"
COLOURED = "my build fails with:\r\n\x1b[31merror\x1b[0m: no such file\r\nwhat can I do?"
PLAIN = "my build fails with:\nerror: no such file\nwhat can I do?"
LOG = "".join(f"line {number} of a log\n" for number in range(5_000))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)


def told(messages: Iterable[Message]) -> list[object]:
    """Keys by their names, and pastes with their text."""
    return [
        ("paste", message.text) if isinstance(message, events.Paste)
        else message.key if isinstance(message, events.Key)
        else message
        for message in messages
    ]  # fmt: skip


def heard(*reads: str) -> list[object]:
    """What the parser makes of these reads."""
    parser = WholePasteParser()
    return [each for read in reads for each in told(parser.feed(read))]


def test_a_coloured_paste_is_one_text_without_control_codes_however_the_reads_cut_it():
    sent = f"a{START}{COLOURED}{END}"
    expected = ["a", ("paste", PLAIN)]
    assert heard(sent) == heard(*sent) == expected
    for n_first in range(1, len(sent)):
        assert heard(sent[:n_first], sent[n_first:]) == expected


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b]0;title\x07a\x1b]52;c;aGk=\x1b\\b", "ab"),
        ("a\x00\x08\x7f\x9b31mb\u202e\tc\rd", "ab\tc\nd"),
        ("\x1b", ""),
        ("\x1b[200~a\x1b[200~", "a"),
        ("é\U0001f600漢", "é\U0001f600漢"),
    ],
)
def test_what_a_paste_could_do_to_a_terminal_goes_and_its_text_stays(text: str, left: str):
    assert heard(START + text + END) == [("paste", left)]


@pytest.mark.parametrize("enter", ["\r", "\x1b[13u", "\x1b\r"])
def test_enter_behind_an_end_marker_in_the_text_of_a_paste_is_a_new_line(
    monkeypatch: pytest.MonkeyPatch, enter: str
):
    clock = Clock(monkeypatch)
    parser = WholePasteParser()
    keys = told(parser.feed(f"{START}a{END}b{enter}"))
    keys += told(parser.feed(f"c{enter}{END}"))
    assert keys[:2] == [("paste", "a"), "b"]
    assert "enter" not in keys
    clock.now_s += 1
    assert told(parser.feed("\r")) == ["enter"]  # which a person pressed


def test_a_paste_whose_end_never_comes_is_shown_and_a_key_ends_it(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    parser = WholePasteParser()
    assert told(parser.feed(f"{START}one\rtwo\r")) == []
    assert told(parser.tick()) == []
    clock.now_s += 3
    assert told(parser.tick()) == [("paste", "one\ntwo\n")]
    assert told(parser.tick()) == []
    assert told(parser.feed("x\r")) == ["x", "enter"]


def test_a_paste_that_goes_on_after_a_pause_is_still_a_paste(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    parser = WholePasteParser()
    assert told(parser.feed(f"{START}one\r")) == []
    clock.now_s += 3
    assert told(parser.tick()) == [("paste", "one\n")]
    clock.now_s += 3
    assert told(parser.feed("and the rest of it\rgoes on\r")) == []
    assert told(parser.feed(END)) == [("paste", "and the rest of it\ngoes on\n")]
    assert told(parser.feed(f"{START}{END}")) == [("paste", "")]


def test_a_paste_beyond_all_bounds_is_cut_and_says_so():
    note = "\n[the paste was cut here, at 4,194,304 characters]\n"
    assert heard(START, *["x" * 3_000_000] * 3, END) == [("paste", "x" * (4 << 20) + note)]


# -- in the input ---------------------------------------------------------------------------------


def composer(driver: Driver) -> Composer:
    return driver.app.chat.query_one(Composer)


async def paste(driver: Driver, *texts: str) -> None:
    for text in texts:
        composer(driver).post_message(events.Paste(text))
    await driver.pilot.pause()


def asked(model: ScriptedModel) -> Sequence[str]:
    return [message.text for message in model.session.messages if message.role == "user"]


def test_a_long_paste_is_folded_and_sent_whole():
    lines = "".join(f"{number}\n" for number in range(30))

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.type("Why? ")
            await paste(driver, lines, "short", lines, "x" * 3_000, lines.replace("7", "8"))
            shown = "[pasted 30 lines]"
            expected = f"Why? {shown}short{shown}[pasted 3,000 characters][pasted 30 lines, 2]"
            assert composer(driver).text == expected
            await driver.press("enter")
            await driver.until(lambda: bool(asked(model)), "the question")
            await driver.ready()
            whole = f"Why? {lines}short{lines}{'x' * 3_000}{lines.replace('7', '8')}"
            assert asked(model) == [whole.strip()]
            # Earlier messages come back as they were typed, a question to edit folded as well.
            await driver.press("up")
            assert composer(driver).text == expected
            await driver.send("/edit")
            await driver.until(lambda: "[pasted 30 lines]" in composer(driver).text, "a label")

    driven(test())


@pytest.mark.parametrize("key", ["backspace", "ctrl+w", "delete"])
def test_a_folded_paste_is_stepped_over_and_removed_as_one(key: str):
    async def test():
        async with opened() as driver:
            await driver.type("a")
            await paste(driver, LOG)
            await driver.type("b")
            await driver.press("left", "left")
            await driver.type("c")
            await driver.press("right")
            await driver.type("d")
            assert composer(driver).text == "ac[pasted 5,000 lines]db"
            await driver.sees("Tab expands it, Backspace removes it")
            await driver.press("left", *(["left"] if key == "delete" else []), key)
            assert composer(driver).text == "acdb"
            await driver.sees_no("Tab expands it, Backspace removes it")
            await driver.press("ctrl+z")
            assert composer(driver).whole(composer(driver).text) == f"ac{LOG}db"
            composer(driver).select_all()
            assert composer(driver).selected_text == f"ac{LOG}db"

    driven(test())


def test_tab_unfolds_a_paste_to_be_edited():
    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await paste(driver, "".join(f"{number}\n" for number in range(25)))
            await driver.press("tab")
            await driver.press("backspace")
            await driver.type("!")
            assert composer(driver).text.endswith("23\n24!")
            await driver.press("enter")
            await driver.until(lambda: bool(asked(model)), "the question")
            assert asked(model)[0].startswith("0\n1\n2\n")

    driven(test())


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        (["enter"], f"Why? {LOG}"),
        (["right", "enter"], ""),
        (["escape"], "Why? [pasted 5,000 lines]"),
    ],
    ids=["edit", "discard", "cancel"],
)
def test_too_long_a_paste_is_not_sent_and_is_edited_or_discarded(keys: list[str], left: str):
    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            await driver.type("Why? ")
            await paste(driver, LOG)
            await driver.press("enter")
            await driver.sees("The prompt has 25001 tokens")
            await driver.press(*keys)
            await driver.sees_no("The prompt has 25001 tokens")
            await driver.until(lambda: composer(driver).text == left, "what is left")
            if not left:
                await driver.press("up")
            assert composer(driver).whole(composer(driver).text) == f"Why? {LOG}"
            assert not asked(model)

    driven(test())


def test_a_long_paste_waits_for_the_model_and_is_not_sent_if_it_was_changed_meanwhile():
    async def test(is_changed: bool):
        gate = threading.Event()
        model = ScriptedModel(load_gate=gate)
        async with opened(model) as driver:
            await paste(driver, "line\n" * 30)
            await driver.press("enter", "enter")
            await driver.sees("will be sent once the model has loaded")
            if is_changed:
                await driver.type("!")
            gate.set()
            await driver.sees("ready")
            if is_changed:
                await driver.press("enter")
            await driver.until(lambda: bool(asked(model)), "the question")
            await driver.ready()
            assert asked(model) == [("line\n" * 30 + "!" * is_changed).strip()]

    driven(test(is_changed=False))
    driven(test(is_changed=True))


def test_files_that_a_folded_paste_names_stay_in_it(tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(b"")
    log = f"reading {tmp_path / 'cat.png'}\n" * 30

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await paste(driver, log)
            await driver.press("enter")
            await driver.until(lambda: bool(asked(model)), "the question")
            assert asked(model) == [log.strip()]
            assert not model.session.messages[-2].images

    driven(test())
