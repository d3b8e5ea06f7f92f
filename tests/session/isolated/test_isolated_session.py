"""A session in a child process is a session: the same events, errors and conversations."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safesteer_edge.errors import (
    EngineDiedError,
    EngineError,
    InputError,
    MediaError,
    ModelFileError,
    SafeSteerError,
)
from safesteer_edge.formats.json_values import from_json
from safesteer_edge.guard.events import Event, MediaPrepared, PrefillDone, Step, TurnEnded
from safesteer_edge.session.engine_process import EngineProcess, decode, encode
from safesteer_edge.session.isolated_session import IsolatedSession, open_isolated_session
from safesteer_edge.session.protocol import ChatMessage, ChatSession
from tests.guard.scripted_answers import NO_SCORES, no_scores
from tests.guarded_tiny import DRAWN, PATIENT_POLICY, QUIET, WAVERING, GuardedTiny
from tests.session.isolated.conftest import Open
from tests.session.turns import opened


def untimed(events: list[Event]) -> list[Event]:
    """The events without their seconds, which differ from run to run."""
    timeless: list[Event] = []
    for event in events:
        if isinstance(event, PrefillDone):
            timeless.append(replace(event, prefill_s=0.0))
        elif isinstance(event, MediaPrepared):
            timeless.append(replace(event, encode_s=0.0))
        elif isinstance(event, TurnEnded):
            timings = replace(
                event.timings, prefill_s=0, ttft_s=0, decode_s=0, probe_s=0, tokens_per_second=0
            )
            timeless.append(replace(event, timings=timings))
        else:
            timeless.append(event)
    return timeless


def tell(session: ChatSession, picture: Path) -> list[Event]:
    """All that a session can do, as one list of events."""
    settings = session.turn_settings
    events = list(session.ask("Hello there", system="Be brief."))
    session.change(replace(settings, sampling=DRAWN, max_tokens=8))
    events += session.ask("What is this?", images=[picture])
    events += session.continue_answer()
    session.restore(session.messages[:3])
    session.change(replace(settings, guard="monitor"))
    events += session.ask("And then?", answer_prefix="Well")
    session.reset()
    session.change(replace(settings, guard="off"))
    events += session.ask("Hello there")
    session.change(settings)
    return untimed(events)


def test_events_and_messages_are_those_of_a_session_in_this_process(
    guarded_tiny: GuardedTiny, isolated: IsolatedSession, tmp_path: Path
):
    picture = tmp_path / "a.png"
    Image.new("RGB", (56, 56), "navy").save(picture)
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        expected = tell(session, picture)
        assert tell(isolated, picture) == expected
        assert isolated.messages == session.messages
        assert replace(isolated.info, load_s=0) == replace(session.info, load_s=0)
        assert isolated.turn_settings == session.turn_settings


def error_of(call) -> SafeSteerError:
    with pytest.raises(SafeSteerError) as caught:
        call()
    return caught.value


def test_errors_are_of_the_same_class_with_the_same_text(
    guarded_tiny: GuardedTiny, isolated: IsolatedSession, tmp_path: Path
):
    (tmp_path / "note.png").write_text("not a picture")
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        for each in (isolated, session):
            list(each.ask("Hello there"))
        calls = (
            lambda s: next(s.ask("  ")),
            lambda s: next(s.ask("x", images=[tmp_path / "note.png"])),
            lambda s: next(s.ask("x", images=[tmp_path / "gone.png"])),
            lambda s: next(s.ask("x", sounds=[tmp_path / "gone.wav"])),
            lambda s: next(s.ask("x", system="Too late.")),
            lambda s: next(s.ask("word " * 600)),
            lambda s: s.check_fits("word " * 600),
            lambda s: s.check_fits("x", system="Too late."),
            lambda s: s.change(replace(s.turn_settings, strength=0.1)),
            lambda s: s.restore([ChatMessage("assistant", "Hi")]),
        )
        for call in calls:
            here, there = (
                error_of(lambda call=call: call(session)),
                error_of(lambda call=call: call(isolated)),
            )
            assert (type(there), str(there)) == (type(here), str(here))
            assert isolated.messages == session.messages
        for each in (isolated, session):
            each.check_fits("And then?")
            assert len(each.messages) == 2  # counting did not ask
    assert list(isolated.ask("And then?"))


def test_what_cannot_be_opened_is_said_as_ever(guarded_tiny: GuardedTiny, tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    settings = guarded_tiny.settings(None, model=str(tmp_path / "broken.gguf"))
    with pytest.raises(ModelFileError, match=r"broken\.gguf"):
        open_isolated_session(settings)


@pytest.mark.parametrize("step", [1, 5])
def test_an_answer_is_stopped_while_it_is_told(
    guarded_tiny: GuardedTiny, opened_isolated: Open, step: int
):
    # More than the pipe holds, so that the engine cannot be done when it is told to stop.
    session = opened_isolated(guarded_tiny.bundle(QUIET), max_tokens=1600)
    event: Event | None = None
    for event in session.ask("Hello there"):
        if isinstance(event, Step) and event.step == step:
            thread = threading.Thread(target=session.cancel)
            thread.start()
            thread.join()
    assert isinstance(event, TurnEnded)
    assert event.finish_reason == "cancelled"
    assert session.messages[-1] == ChatMessage("assistant", event.text, risk=event.guard.risk)


def test_cancelling_before_the_first_event_is_not_forgotten(isolated: IsolatedSession):
    events = isolated.ask("Hello there")
    isolated.cancel()
    *_, ended = events
    assert isinstance(ended, TurnEnded)
    assert ended.finish_reason == "cancelled"
    assert isolated.messages == () or isolated.messages[-1].text == ""


def test_an_early_cancel_is_not_overtaken_by_a_short_answer(
    isolated: IsolatedSession, monkeypatch: pytest.MonkeyPatch
):
    send_now = EngineProcess.send_now

    def send_late(process: EngineProcess, request: dict[str, object]) -> None:
        time.sleep(1.0)  # as on a busy machine: the engine is done with the answer by now
        send_now(process, request)

    monkeypatch.setattr(EngineProcess, "send_now", send_late)
    isolated.change(replace(isolated.turn_settings, max_tokens=1))
    events = isolated.ask("Hello there")
    isolated.cancel()
    *_, ended = events
    assert isinstance(ended, TurnEnded)
    assert ended.finish_reason == "cancelled"


def test_a_cancel_between_two_turns_does_not_stop_the_next(isolated: IsolatedSession):
    list(isolated.ask("Hello there"))
    isolated.cancel()
    *_, ended = isolated.ask("And then?")
    assert isinstance(ended, TurnEnded)
    assert ended.finish_reason == "length"


def test_closing_the_events_early_drops_the_turn_and_nothing_else(isolated: IsolatedSession):
    *_, expected = isolated.ask("Hello there")
    isolated.reset()
    for n_events in (1, 2, 5):
        events = isolated.ask("Something else")
        for _ in range(n_events):
            next(events)
        events.close()
        assert isolated.messages == ()
    left_open = isolated.ask("Something else")
    next(left_open)
    *_, ended = isolated.ask("Hello there")
    assert isinstance(ended, TurnEnded) and isinstance(expected, TurnEnded)
    assert ended.text == expected.text
    assert list(left_open) == []
    assert len(isolated.messages) == 2


def test_a_closed_session_says_so(guarded_tiny: GuardedTiny):
    session = open_isolated_session(guarded_tiny.settings(None))
    session.close()
    session.close()
    with pytest.raises(EngineError, match="session is closed"):
        next(session.ask("Hello"))


def test_nothing_native_reaches_our_streams(guarded_tiny: GuardedTiny):
    """A library that prints to its stdout prints into the log, and replies stay whole."""
    program = (
        "import sys\n"
        "from safesteer_edge.session import engine_process\n"
        "from safesteer_edge.session.isolated_session import open_isolated_session\n"
        "from safesteer_edge.session.settings import SessionSettings\n"
        f"settings = SessionSettings(model={str(guarded_tiny.model)!r}, guard='off', n_ctx=256,\n"
        "                           n_threads=1, max_tokens=6)\n"
        "with open_isolated_session(settings) as session:\n"
        "    list(session.ask('Hello'))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (ended.stdout, ended.stderr) == (b"", b"")


def test_a_restored_picture_that_is_gone_is_said(isolated: IsolatedSession, tmp_path: Path):
    gone = ChatMessage("user", "What is this?", images=(tmp_path / "gone.png",))
    with pytest.raises(MediaError, match=r"gone\.png"):
        isolated.restore([gone, ChatMessage("assistant", "A dog.")])
    assert isolated.messages == ()


@pytest.mark.parametrize("value", NO_SCORES)
def test_an_engine_that_tells_what_is_no_risk_is_ended(
    guarded_tiny: GuardedTiny,
    opened_isolated: Open,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
):
    session = opened_isolated(guarded_tiny.bundle(QUIET))
    heard = EngineProcess.receive

    def garbled(process: EngineProcess) -> dict[str, Any]:
        reply = heard(process)
        if reply.get("event") == "turn_ended":
            reply["guard"]["risk"] = value
        return reply

    with monkeypatch.context() as garbling:
        garbling.setattr(EngineProcess, "receive", garbled)
        with pytest.raises(EngineDiedError, match=r"cannot be understood \(risk is .*again"):
            list(session.ask("Hello there"))
    assert session.process_id is None
    assert session.messages[-1].risk is None  # what people read stays, and its risk is unknown
    assert isinstance(list(session.ask("And then?"))[-1], TurnEnded)


@given(no_scores, st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999"]))
def test_what_is_no_number_does_not_cross_the_pipe(value: float, token: str):
    with pytest.raises(ValueError, match=r"not a number|too large"):
        decode(b'{"event":"step","risk":%s}\n' % token.encode())
    if not math.isfinite(value):
        with pytest.raises(ValueError, match="not JSON compliant"):
            encode({"do": "restore", "messages": [{"risk": value}]})
    with pytest.raises(InputError):
        from_json(ChatMessage, {"role": "assistant", "text": "Hi", "risk": value})
