"""Choosing a model: what the list says, and what switching does."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from safesteer_edge.errors import NoBundleError
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.tui.screens.models_screen import ModelFit, ModelRow, known_models
from tests.tui.app_driver import driven, opened
from tests.tui.scripted_session import ScriptedModel

GUARDED = ModelRow(
    "smollm2-135m-instruct", "SmolLM2", "Q4_1", 98 << 20, True, "text", "MIT", Path("/a.gguf"), ""
)
OTHER = ModelRow("other", "Another", "Q8_0", 2 << 30, True, "text", "MIT", Path("/b.gguf"), "")
BARE = ModelRow("bare", "Bare One", "Q4_K_M", 3 << 30, False, "text", "MIT", Path("/c.gguf"), "")
ABSENT = ModelRow("absent", "Absent", "", None, True, "text", "MIT", None, "pull absent")
ROWS = [GUARDED, OTHER, BARE, ABSENT]


def test_switching_keeps_the_chat_and_frees_the_old_model():
    async def test():
        model = ScriptedModel()
        async with opened(model, model_lister=lambda: ROWS) as driver:
            await driver.send("one")
            await driver.ready()
            await driver.press("f3")
            await driver.sees("2.0 GiB")
            await driver.press("down", "enter")
            await driver.sees("other Q4_1")
            await driver.send("two")
            await driver.sees("You said: two")
            await driver.ready()
            first, second = model.opened
            assert first.is_closed
            assert not second.is_closed
            assert [m.text for m in second.messages] == [
                "one",
                "You said: one",
                "two",
                "You said: two",
            ]

    driven(test())


@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
def test_a_model_without_a_guard_asks_first(size: tuple[int, int]):
    async def test():
        model = ScriptedModel()
        async with opened(model, size=size, model_lister=lambda: ROWS) as driver:
            await driver.sees("ready")
            await driver.press("f3")
            await driver.sees("no guard")
            await driver.press("down", "down", "enter")
            await driver.sees("There is no guard for bare")
            await driver.sees("Make a guard now")
            await driver.sees("Chat without a guard")
            await driver.press("right", "enter")
            await driver.sees("GUARD OFF")
            await driver.until(lambda: len(model.opened) == 2, "the model to load")
            assert model.session.info.bundle is None
            await driver.send("/guard steer")
            await driver.sees("has no guard; make one")
            await driver.send("/model other")
            await driver.sees("guard: steer")

    driven(test())


MAKING = """
import pathlib, sys, time
gate = pathlib.Path(sys.argv[1])
print("harvesting answers: 3/9, 2 min left", file=sys.stderr, flush=True)
while not gate.exists():
    time.sleep(0.01)
print("safesteer-edge: " + gate.read_text(), file=sys.stderr, flush=True)
sys.exit(2 if gate.read_text() else 0)
"""


def test_a_guard_is_made_from_within_the_chat(tmp_path: Path):
    gate = tmp_path / "gate"

    async def test():
        model = ScriptedModel()
        made_for = list[str]()

        def command(name: str) -> list[str]:
            made_for.append(name)
            return [sys.executable, "-c", MAKING, str(gate)]

        options = {"model_lister": lambda: ROWS, "guard_command": command}
        async with opened(model, size=(140, 30), **options) as driver:
            await driver.sees("ready")
            await driver.send("/model bare")
            await driver.sees("Make a guard now")
            await driver.press("enter")
            await driver.sees("making a guard for bare: harvesting answers: 3/9, 2 min left")
            await driver.send("one")  # what is loaded goes on
            await driver.sees("You said: one")
            assert len(model.opened) == 1
            await driver.send("/model bare")
            await driver.sees("Make a guard now")
            await driver.press("enter")
            await driver.sees("a guard is being made")
            gate.write_text("")
            await driver.sees("bare Q4_1")
            await driver.sees("guard: steer")
            assert (made_for, len(model.opened)) == (["bare"], 2)

    driven(test())


def test_a_model_that_starts_without_a_guard_answers_once_one_was_made(tmp_path: Path):
    gate = tmp_path / "gate"

    async def test():
        model = ScriptedModel(load_error=NoBundleError("no guard bundle is known for 'bare'"))
        command = [sys.executable, "-c", MAKING, str(gate)]
        settings = SessionSettings(model="bare")
        options = {"guard_command": lambda _: command, "settings": settings}
        async with opened(model, size=(140, 30), **options) as driver:
            await driver.sees("Make a guard now")
            await driver.press("enter")
            await driver.sees("making a guard for bare")
            await driver.send("one")
            await driver.sees("no model is loaded")
            gate.write_text("the disk is full")
            await driver.sees("no guard was made: the disk is full")
            gate.unlink()
            await driver.send("/model bare.gguf")
            await driver.sees("Make a guard now")
            await driver.press("enter")
            await driver.sees("making a guard for bare.gguf")
            model.load_error = None
            gate.write_text("")
            await driver.sees("bare.gguf Q4_1")
            await driver.send("two")
            await driver.sees("You said: two")

    driven(test())


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_leaving_interrupts_what_is_being_made(tmp_path: Path):
    gate = tmp_path / "gate"
    program = f"""
import pathlib, sys, time
try:
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(gate)!r}).write_text("interrupted")
"""

    async def test():
        command = [sys.executable, "-c", program]
        async with opened(size=(140, 30), guard_command=lambda _: command) as driver:
            await driver.sees("ready")
            await driver.send("/model bare.gguf")
            await driver.sees("Make a guard now")
            await driver.press("enter")
            await driver.sees("making a guard for bare.gguf: begun")

    driven(test())
    deadline_s = time.monotonic() + 60
    while not (gate.exists() and gate.read_text()):
        assert time.monotonic() < deadline_s, "waited in vain for the interrupt"
        time.sleep(0.01)


def test_what_is_not_installed_says_how_to_install_it():
    async def test():
        async with opened(model_lister=lambda: ROWS) as driver:
            await driver.sees("ready")
            await driver.press("f3")
            await driver.sees("to install")
            await driver.press("up", "enter")
            await driver.sees("not installed; to install it, run: pull absent")

    driven(test())


def test_the_list_of_models_is_filtered_as_one_types():
    async def test():
        model = ScriptedModel()
        async with opened(model, model_lister=lambda: ROWS) as driver:
            await driver.sees("ready")
            await driver.press("f3")
            await driver.sees("98 MiB")
            await driver.type("anoth")
            await driver.sees_no("Bare One")
            await driver.sees("2.0 GiB")
            await driver.press("x")
            await driver.sees("no model matches")
            await driver.press("backspace", "enter")
            await driver.sees("other Q4_1")

    driven(test())


def test_a_filter_that_empties_the_list_before_it_was_looked_at_harms_nothing():
    """As where one types faster than the screen is drawn."""

    async def test():
        async with opened(ScriptedModel(), model_lister=lambda: ROWS) as driver:
            await driver.sees("ready")
            await driver.press("f3")
            await driver.sees("98 MiB")
            driver.app.screen.query_one(Input).value = "nothing that is there"
            driver.app.screen.query_one(OptionList).action_last()
            await driver.sees("no model matches")

    driven(test())


def test_one_question_is_answered_with_and_without_the_guard():
    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.send("one")
            await driver.ready()
            await driver.press("f6")
            await driver.sees("GUARD OFF: not checked")
            await driver.until(lambda: driver.screen_text().count("You said: one") == 2, "both")
            await driver.press("escape")
            await driver.send("two")
            await driver.ready()
            assert [m.text for m in model.session.messages][::2] == ["one", "two"]
            assert model.session.turn_settings.guard == "steer"

    driven(test())


def test_whether_a_model_fits_is_said_as_models_list_says_it():
    rows = {row.name: row for row in known_models()}
    assert rows["smollm2-135m-instruct"].fit.fits in ("gpu", "part", "yes", "tight", "no", "?")
    assert rows["smollm2-135m-instruct"].fit.needs_bytes
    large = next(row for row in rows.values() if row.path is None and row.fit.needs_bytes)

    async def test():
        row = replace(large, fit=ModelFit(3 << 30, "no"))
        async with opened(model_lister=lambda: [row], size=(80, 24)) as driver:
            await driver.press("f3")
            await driver.sees("too big")
            await driver.sees("no guard to install")
            await driver.sees("needs about 3.0 GiB: does not fit in memory")

    driven(test())
