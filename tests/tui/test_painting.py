"""What is painted while an answer streams: as little as there must be."""

from __future__ import annotations

import threading

from safesteer_edge.tui.widgets.answer import AnswerMarkdown
from safesteer_edge.tui.widgets.composer import Composer
from safesteer_edge.tui.widgets.transcript import Transcript
from tests.tui.app_driver import driven, opened
from tests.tui.scripted_session import Script, ScriptedModel, Word

N_LINES = 60


def lines_of(n_lines: int, gate: threading.Event, n_before_gate: int) -> Script:
    words = [Word(f"line {i}\n") for i in range(n_lines)]
    return Script(words, gate=gate, n_before_gate=n_before_gate)


class Turnstile(threading.Event):
    """A gate that lets one word through each time that it is set."""

    def wait(self, timeout: float | None = None) -> bool:
        is_open = super().wait(timeout)
        if is_open:
            self.clear()
        return is_open


def test_an_answer_grows_into_room_that_is_gone_at_its_end():
    async def test():
        gate = threading.Event()
        script = lines_of(N_LINES, gate, N_LINES - 1)
        async with opened(ScriptedModel({"long?": script}), size=(100, 40)) as driver:
            await driver.send("long?")
            await driver.sees(f"line {N_LINES - 2}")
            answer = driver.app.chat.query_one(AnswerMarkdown)
            await driver.until(lambda: answer.size.height > N_LINES + 1, "room for lines to come")
            gate.set()
            await driver.ready()
            await driver.until(lambda: answer.size.height <= N_LINES + 1, "the room to go")
            transcript = driver.app.chat.query_one(Transcript)
            assert transcript.scroll_y == transcript.max_scroll_y
            await driver.sees(f"line {N_LINES - 1}")

    driven(test())


def test_the_cursor_does_not_blink_while_an_answer_streams():
    async def test():
        gate = threading.Event()
        async with opened(ScriptedModel({"long?": lines_of(5, gate, 2)})) as driver:
            composer = driver.app.chat.query_one(Composer)
            assert composer.cursor_blink
            await driver.send("long?")
            await driver.sees("line 1")
            assert not composer.cursor_blink
            gate.set()
            await driver.ready()
            assert composer.cursor_blink

    driven(test())


def test_words_that_fit_into_the_last_line_move_nothing():
    async def test():
        gate = Turnstile()
        words = [Word("one"), Word(" two"), Word(" three")]
        script = Script(words, gate=gate, n_before_gate=1)
        async with opened(ScriptedModel({"few?": script})) as driver:
            arranged: list[object] = []
            driver.app.chat.screen_layout_refresh_signal.subscribe(
                driver.app.chat, arranged.append, immediate=True
            )
            await driver.send("few?")
            await driver.sees("one")
            while arranged:  # what the first word moves may come in several frames
                arranged.clear()
                for _ in range(20):
                    await driver.pilot.pause(0.01)
            gate.set()
            await driver.sees("one two")
            assert not arranged
            gate.set()
            await driver.ready()

    driven(test())
