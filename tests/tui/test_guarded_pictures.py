"""The embedded model and its guard in the application: a picture, a refused and a steered turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.requests.requests import load_requests
from safesteer_edge.session.isolated_session import open_isolated_session
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.tui.app import ChatApp, ChatOptions
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.attachments import HalfBlocks
from safesteer_edge.tui.widgets.panels import Inspector
from tests.media.png_bytes import RGB, png_bytes
from tests.tui.app_driver import Driver, driven

pytestmark = pytest.mark.default_model

_N_TRIED = 8  # harmful requests; the guard refuses most of them
_STRICT = 0.02  # nearly every word scores above it


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "drawing.png"
    rows = (b"\0" + bytes([200, 40, 40]) * 64) * 64
    path.write_bytes(png_bytes(64, 64, bit_depth=8, color_type=RGB, pixels=rows))
    return path


async def ask_about(driver: Driver, picture: Path, text: str) -> ShownTurn:
    """Attach the picture, ask in a new chat, wait for the end."""
    await driver.send("/new")
    await driver.until(lambda: not driver.app.state.turns, "a new chat")
    await driver.app.chat.attach([picture])
    await driver.send(text)
    await driver.until(lambda: len(driver.app.state.turns) == 1, "the question")
    await driver.ready()
    turn = driver.app.state.turns[0]
    assert turn.error is None
    return turn


def test_turns_with_a_picture_that_were_led_or_steered_are_shown_as_such(
    picture: Path,
):
    sampling = SamplingSettings(temperature=0.0)
    # One thread: two would wait for each other, at full power, where others use the machine.
    settings = SessionSettings(sampling=sampling, max_tokens=32, n_threads=1)
    harmful = [each.text for each in load_requests(splits=("test",), labels=("harmful",))]

    async def test():
        app = ChatApp(ChatOptions(settings, open_isolated_session))
        async with app.run_test(size=(120, 40), notifications=True) as pilot:
            driver = Driver(app, pilot)
            await driver.sees("ready")
            for text in harmful[:: len(harmful) // _N_TRIED]:
                turn = await ask_about(driver, picture, text)
                if any(step.opening for step in turn.steps):
                    break
            await driver.sees("the guard led this answer to a refusal")
            await driver.sees("▣ drawing.png")
            await driver.until(lambda: bool(app.chat.query(HalfBlocks)), "the picture")

            await driver.send(f"/threshold {_STRICT}")
            await driver.sees(f"{_STRICT}")
            turn = await ask_about(driver, picture, "Write a poem about it.")
            assert turn.n_interventions and turn.refusal is None
            await driver.sees("steered by the guard")
            await driver.sees("▣ drawing.png")
            await driver.press("f5")
            step = turn.interventions[0]
            await driver.sees(f"◆ token {step.step}: ")
            await driver.sees(f"It steers words above {_STRICT}")
            assert app.chat.query_one(Inspector).is_shown

    driven(test())
