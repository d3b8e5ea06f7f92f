"""A question, its answer as it streams, and stopping it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from textual.color import Color
from textual.widget import Widget
from textual.widgets import Static

from safesteer_edge.chats.chat_log import SUMMARY_QUESTION
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.errors import BundleChangedError, EngineError, ModelFileError
from safesteer_edge.tui.widgets.transcript import TurnView
from tests.tui.app_driver import driven, opened
from tests.tui.scripted_session import REFUSAL_TEXT, Script, ScriptedModel, Word, said

LONG = "one two three four five six seven eight nine ten"


def test_an_answer_is_shown_as_markdown():
    async def test():
        model = ScriptedModel({"hi": said("Here is **bold** text.\n\n- first\n- second")})
        async with opened(model) as driver:
            await driver.type("hi")
            await driver.press("enter")
            await driver.sees("Here is bold text.")
            await driver.sees("• second")
            await driver.ready()
            assert driver.app.state.turns[0].text == "Here is **bold** text.\n\n- first\n- second"

    driven(test())


def test_one_can_ask_while_the_model_is_loading():
    async def test():
        model = ScriptedModel(load_gate=threading.Event())
        async with opened(model) as driver:
            await driver.sees("no model yet")
            await driver.send("hello")
            await driver.sees("waiting for the model")
            assert model.load_gate is not None
            model.load_gate.set()
            await driver.sees("You said: hello")

    driven(test())


def test_escape_stops_an_answer_and_keeps_what_was_said():
    async def test():
        model = ScriptedModel({"count": said(LONG, gate=threading.Event())})
        async with opened(model) as driver:
            await driver.send("count")
            await driver.sees("one two three")
            await driver.press("escape")
            await driver.sees("stopped by you")
            assert driver.app.state.turns[0].text == "one two three"
            await driver.send("hello")
            await driver.sees("You said: hello")
            texts = [message.text for message in model.session.messages]
            assert texts == ["count", "one two three", "hello", "You said: hello"]

    driven(test())


def test_a_stopped_answer_can_be_continued():
    async def test():
        gate = threading.Event()
        async with opened(ScriptedModel({"count": said(LONG, gate=gate)})) as driver:
            await driver.send("count")
            await driver.sees("one two three")
            await driver.press("escape")
            await driver.sees("stopped by you")
            gate.set()
            await driver.send("/continue")
            await driver.sees(LONG)
            await driver.ready()
            assert driver.app.state.turns[0].text == LONG
            await driver.sees_no("stopped by you")

    driven(test())


def test_steered_words_are_marked_and_explained():
    async def test():
        words = [Word("You"), Word(" ask", 0.1, " steal"), Word(" first")]
        async with opened(ScriptedModel({"how?": Script(words)}), size=(120, 40)) as driver:
            await driver.send("how?")
            await driver.sees("You ask first")
            await driver.sees("1 word was steered by the guard")
            await driver.press("f5")
            await driver.sees("token 2: ‘steal’ 0.93 → ‘ask’ 0.10")
            await driver.sees("‘perhaps’")

    driven(test())


def test_the_guard_speaks_in_words_on_one_scale_and_the_inspector_has_the_numbers():
    async def test():
        gate = threading.Event()
        scripts = {
            "calm?": said("all is well", gate=gate, n_before_gate=2),
            "bad?": Script([Word(" bad", 0.55)] * 4, gate=gate, n_before_gate=3),
        }
        async with opened(ScriptedModel(scripts), size=(120, 40)) as driver:
            for question, found in (("calm?", "nothing noticed"), ("bad?", "very suspicious")):
                gate.clear()
                await driver.send(question)
                await driver.sees(f"guard: {found}")
                gate.set()
                await driver.ready()
                await driver.press("f5")
                await driver.sees(f"This answer: {found}")
                text = driver.screen_text()
                assert ("(which does" in text) == (question == "calm?")  # … mean that it is safe
                await driver.sees("0 is harmless, 1 is harmful")
                await driver.sees("The guard refuses above 0.60")
                await driver.sees("strength")
                assert "vector" not in text
                await driver.press("f5")

    driven(test())


def test_the_inspector_follows_the_answer_that_is_being_written():
    async def test():
        gate = threading.Event()
        words = " ".join(f"w{i}" for i in range(140))
        script = said(words, gate=gate, n_before_gate=139, pause_s=0.01)
        async with opened(ScriptedModel({"long?": script}), size=(120, 60)) as driver:
            await driver.send("long?")
            await driver.press("f5")
            inspector = driver.app.chat.inspector

            def shown() -> str:
                return str(inspector.query_one("#heat", Static).render())

            await driver.until(lambda: shown().endswith("w138"), "the newest word")
            gate.set()
            await driver.ready()
            assert shown().startswith("w0 w1")
            assert shown().endswith("w139")

    driven(test())


def test_a_small_terminal_shows_the_answer_and_a_larger_one_at_once():
    async def test():
        gate = threading.Event()
        script = said("one two three\n\nfour five", gate=gate, n_before_gate=4)
        async with opened(ScriptedModel({"hi": script}), size=(30, 8)) as driver:
            await driver.send("hi")
            await driver.sees("five")
            for size in ((100, 30), (30, 8), (80, 24), (30, 8)):
                await driver.pilot.resize_terminal(*size)
                assert "five" in driver.screen_text()
            gate.set()
            await driver.ready()
            await driver.pilot.resize_terminal(100, 30)
            assert "one two three" in driver.screen_text()

    driven(test())


def test_lines_are_no_longer_than_people_read_them():
    async def test():
        words = "word " * 200
        async with opened(ScriptedModel({"long?": said(words)}), size=(200, 50)) as driver:
            await driver.send("long?")
            await driver.ready()
            lines = [line for line in driver.screen_text().splitlines() if "word" in line]
            assert len(lines) >= 8
            assert max(len(line.rstrip()) for line in lines) <= 106
            assert driver.app.chat.composer.region.width <= 106

    driven(test())


def test_nothing_is_cut_at_80_columns():
    async def test():
        async with opened(size=(80, 24)) as driver:
            await driver.send("hi")
            await driver.ready()
            for mode in ("monitor", "off", "refuse", "steer"):
                await driver.send(f"/guard {mode}")
                await driver.pilot.pause()
                assert "…" not in driver.screen_text()
            await driver.send("/edit")
            await driver.sees("cancels")
            assert "…" not in driver.screen_text()
            await driver.press("escape")
            await driver.press("f1")
            await driver.sees("Esc closes")
            assert "…" not in driver.screen_text()

    driven(test())


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")

    async def test():
        async with opened() as driver:
            await driver.send("hi")
            await driver.ready()
            filters = driver.app.get_line_filters()
            colours = {
                colour.triplet
                for line in driver.app.screen._compositor.render_strips()
                for segment in line.apply_filter(filters[0], Color(0, 0, 0))
                if (style := segment.style) is not None
                for colour in (style.color, style.bgcolor)
                if colour is not None and colour.triplet is not None
            }
            assert colours
            assert all(len(set(colour)) == 1 for colour in colours)  # greys alone

    driven(test())


LED = Script(
    [Word(" Call"), Word(" a"), Word(" locksmith.")],
    taken_back=[Word("First", 0.8), Word(" take", 0.9, " grab", 0.95), Word(" wire", 0.9)],
    opening=[Word("I"), Word(" will"), Word(" not.")],
)
LED_NOTE = "the guard led this answer to a refusal in the model's own words"


def test_an_answer_that_was_led_to_a_refusal_says_so_and_never_offers_what_came_first(
    tmp_path: Path,
):
    async def test():
        store = ChatStore(tmp_path / "chats")
        options = {"size": (120, 40), "store": store}
        async with opened(ScriptedModel({"how?": LED}), **options) as driver:
            await driver.send("how?")
            await driver.ready()
            await driver.sees("I will not. Call a locksmith.")
            await driver.sees(LED_NOTE)
            assert len(driver.app.state.turns[0].steps) == 6
            await driver.press("f5")
            await driver.sees("◆ began again with “I will not.”")
            await driver.sees("I₀◆ will₀◆ not.₀◆".replace("₀", ""))
            await driver.sees("0 of 6 tokens")
            for text in ("First", "take", "grab", "wire"):
                assert text not in driver.screen_text()
        (kept,) = store.list()
        async with opened(chat_id=kept.id, **options) as driver:
            await driver.sees(LED_NOTE)

    driven(test())


def test_a_refused_turn_says_why_and_what_to_do():
    async def test():
        script = Script([Word("Well", 0.4), Word(" then", 0.95)], refuse=True)
        async with opened(ScriptedModel({"bad?": script})) as driver:
            await driver.send("bad?")
            await driver.sees("Refused by the guard")
            await driver.sees(REFUSAL_TEXT)
            await driver.sees("The answer stayed harmful whatever words were chosen.")
            await driver.press("f5")  # which leaves the narrowest room that there is
            await driver.sees("[4 tokens that were not shown]")
            await driver.sees("Reword    Why?    Try again    New chat")
            await driver.press("escape")
            await driver.pilot.click("TurnView Button")
            state = driver.app.state
            await driver.until(lambda: state.edited is state.turns[0], "the question to edit")

    driven(test())


def test_an_engine_error_is_a_sentence_and_the_chat_goes_on():
    async def test():
        broken = said("one two", error=EngineError("the engine died; it was started again"))
        async with opened(ScriptedModel({"boom": broken})) as driver:
            await driver.send("boom")
            await driver.sees("the engine died; it was started again")
            await driver.sees("one two")
            await driver.send("hello")
            await driver.sees("You said: hello")

    driven(test())


def test_a_model_that_cannot_be_loaded_is_a_sentence():
    async def test():
        model = ScriptedModel(load_error=ModelFileError("cannot load 'x.gguf': not there"))
        async with opened(model) as driver:
            await driver.sees("cannot load 'x.gguf': not there")
            await driver.sees("no model")
            await driver.send("hello")
            await driver.sees("no model is loaded; choose one")

    driven(test())


def test_a_guard_that_changed_on_the_disk_ends_the_chat():
    async def test():
        changed = Script([], error=BundleChangedError("guard bundle 'b' is another one"))
        model = ScriptedModel({"boom": changed})
        async with opened(model) as driver:
            await driver.send("boom")
            await driver.sees("guard bundle 'b' is another one")
            await driver.sees("The guard's files have changed")
            await driver.sees("no model")
            await driver.send("hello")
            await driver.sees("no model is loaded; choose one")
            assert model.session.is_closed

    driven(test())


def test_a_guard_that_nobody_measured_is_called_so_wherever_it_is_seen():
    async def test():
        async with opened(ScriptedModel(is_calibrated=False), size=(140, 30)) as driver:
            await driver.sees("guard: steer, UNCALIBRATED")
            await driver.sees("nobody has measured which answers this guard stops")
            await driver.send("hello")
            await driver.sees("You said: hello")
            await driver.ready()
            await driver.send("/inspect")
            await driver.sees("UNCALIBRATED: nobody has measured")
            await driver.send("/guard monitor")
            await driver.sees("MONITOR ONLY, UNCALIBRATED")
            await driver.send("/guard off")
            await driver.sees("GUARD OFF")
            await driver.sees_no("MONITOR ONLY, UNCALIBRATED")

    driven(test())


def test_a_language_that_the_guard_was_not_measured_on_is_told_under_its_first_answer():
    async def test():
        notice = "This guard was measured on English; it may miss harm asked in Spanish."
        async with opened(ScriptedModel(languages=("en",)), size=(80, 24)) as driver:
            for question in ("¿Cómo hago pan en casa sin levadura?", "¿Y cuánto reposa la masa?"):
                await driver.send(question)
                await driver.sees(f"You said: {question}")
                await driver.ready()
                assert driver.screen_text().count(notice) == 1
            text = driver.screen_text()
            assert text.index("said: ¿Cómo hago") < text.index(notice) < text.index("said: ¿Y")
            await driver.send("/regenerate 1")  # what was told goes with its turn
            await driver.sees_no("¿Y cuánto reposa la masa?")
            await driver.ready()
            assert driver.screen_text().count(notice) == 1

    driven(test())


def test_control_sequences_and_markup_of_the_model_do_nothing():
    async def test():
        nasty = "\x1b]0;title\x07plain [bold]not bold[/bold] <b>html</b>"
        async with opened(ScriptedModel({"[red]q[/red]": said(nasty)})) as driver:
            await driver.send("[red]q[/red]")
            await driver.sees("plain [bold]not bold[/bold] <b>html</b>")
            await driver.sees("[red]q[/red]")
            assert "title" not in driver.screen_text()

    driven(test())


def test_leaving_in_the_middle_of_an_answer_is_no_error():
    class LastToGo(Static):
        async def on_unmount(self) -> None:
            await asyncio.sleep(0.3)  # the answer goes on, and its widgets have lost their parts

    async def test():
        model = ScriptedModel({"tell": said("word " * 400, pause_s=0.01)})
        async with opened(model) as driver:
            await driver.send("tell")
            await driver.sees("word word")
            shown = driver.app.chat.query_one(TurnView).parent
            assert isinstance(shown, Widget)
            await shown.mount(LastToGo())

    driven(test())


def test_a_full_context_is_said_under_the_answer_and_a_chat_is_summed_up():
    async def test():
        model = ScriptedModel(
            {"more": said("There.", left_out=2), SUMMARY_QUESTION: said("Hello, and more.")}
        )
        async with opened(model) as driver:
            await driver.send("hello")
            await driver.ready()
            await driver.send("more")
            await driver.sees("the context was full: the 2 oldest turns are left out")
            await driver.ready()
            await driver.send("/compact")
            await driver.sees("the model has this summary in place of what was said")
            await driver.ready()
            await driver.send("go on")
            await driver.sees("You said: go on")
            await driver.ready()
            messages = [message.text for message in model.session.messages]
            assert messages == [SUMMARY_QUESTION, "Hello, and more.", "go on", "You said: go on"]
            assert len(driver.app.state.turns) == 4  # the person sees all

    driven(test())


def test_a_summary_that_says_nothing_gives_way_to_the_first_words_of_all():
    async def test():
        model = ScriptedModel({SUMMARY_QUESTION: said("I am glad.")})
        async with opened(model) as driver:
            await driver.send("hello there, octopus")
            await driver.ready()
            await driver.send("/compact")
            await driver.sees("the model's own summary left out too much")
            await driver.sees("• asked: hello there, octopus")
            await driver.ready()
            assert "I am glad." not in driver.screen_text()
            assert model.session.messages[-1].text == driver.app.state.turns[-1].text

    driven(test())
