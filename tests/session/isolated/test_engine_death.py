"""The engine dies in every way that Python cannot catch: the answer ends, the session does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from safesteer_edge.errors import BundleChangedError, EngineDiedError
from safesteer_edge.guard.events import Event, Step, TextDelta, TurnEnded
from safesteer_edge.session import engine_process
from safesteer_edge.session.engine_process import EngineProcess
from safesteer_edge.session.isolated_session import IsolatedSession
from safesteer_edge.session.protocol import ChatMessage
from tests.guarded_tiny import ALARMED, QUIET, GuardedTiny
from tests.session.isolated.conftest import Open

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


# More than the pipe holds, so that the engine cannot be done when it is killed.
N_LONG = 1600


def kill_while_it_tells(session: IsolatedSession, number: int, question: str) -> list[Event]:
    """Ask, and end the engine's process at the twentieth step; what came until then."""
    seen: list[Event] = []
    usual = session.turn_settings
    session.change(replace(usual, max_tokens=N_LONG))
    with pytest.raises(EngineDiedError) as caught:
        for event in session.ask(question):
            seen.append(event)
            if isinstance(event, Step) and event.step == 20:
                assert session.process_id is not None
                os.kill(session.process_id, number)
    session.change(usual)
    assert signal.Signals(number).name in str(caught.value)
    assert "ask again" in str(caught.value)
    return seen


def kill(session: IsolatedSession) -> None:
    os.kill(session.process_id or 0, signal.SIGKILL)
    os.waitid(os.P_PID, session._process.process_id, os.WEXITED | os.WNOWAIT)  # pyright: ignore[reportOptionalMemberAccess]  # it was there


def shown(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_the_answer_so_far_is_kept_and_the_next_question_works(
    guarded_tiny: GuardedTiny, opened_isolated: Open, number: int
):
    session = opened_isolated(guarded_tiny.bundle(QUIET))
    first = list(session.ask("Hello there"))[-1]
    assert isinstance(first, TurnEnded)
    killed = session.process_id
    seen = kill_while_it_tells(session, number, "And then?")
    assert session.messages[2:] == (
        ChatMessage("user", "And then?"),
        ChatMessage("assistant", shown(seen)),
    )
    assert session.process_id not in (None, killed)
    *_, again = session.ask("Go on")
    assert isinstance(again, TurnEnded)
    texts = [message.text for message in session.messages]
    assert texts == ["Hello there", first.text, "And then?", shown(seen), "Go on", again.text]


def test_a_partial_answer_goes_on_in_the_new_process(
    guarded_tiny: GuardedTiny, opened_isolated: Open
):
    session = opened_isolated(guarded_tiny.bundle(QUIET))
    said = shown(kill_while_it_tells(session, signal.SIGKILL, "Hello there"))
    *_, ended = session.continue_answer()
    assert isinstance(ended, TurnEnded)
    assert said
    assert ended.text.startswith(said)
    assert len(ended.text) > len(said)
    assert session.messages[-1].text == ended.text


def test_a_death_while_nothing_is_asked_is_not_even_noticed(
    guarded_tiny: GuardedTiny, opened_isolated: Open
):
    session = opened_isolated(guarded_tiny.bundle(QUIET))
    list(session.ask("Hello there"))
    kill(session)
    *_, ended = session.ask("And then?")
    assert isinstance(ended, TurnEnded)
    assert len(session.messages) == 4


def test_settings_outlive_the_process(guarded_tiny: GuardedTiny, opened_isolated: Open):
    session = opened_isolated(guarded_tiny.bundle(QUIET))
    session.change(replace(session.turn_settings, guard="monitor", max_tokens=30))
    kill_while_it_tells(session, signal.SIGKILL, "Hello there")
    *_, ended = session.ask("Again")
    assert isinstance(ended, TurnEnded)
    assert (ended.guard.mode, ended.usage.completion_tokens) == ("monitor", 30)
    assert session.info.guard == "monitor"


def own_copy(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "bundle"))


def weaken(bundle: Path, _other: Path) -> None:
    config = json.loads((bundle / "guard.json").read_text())
    config["policy"]["strength"] /= 2
    (bundle / "guard.json").write_text(json.dumps(config))


def exchange(bundle: Path, other: Path) -> None:
    shutil.rmtree(bundle)
    shutil.copytree(other, bundle)


def damage_the_probe(bundle: Path, _other: Path) -> None:
    (bundle / "probe.onnx").write_bytes(b"another one")


def remove(bundle: Path, _other: Path) -> None:
    shutil.rmtree(bundle)


@pytest.mark.parametrize("change", [weaken, exchange, damage_the_probe, remove])
def test_a_new_process_that_meets_another_guard_ends_the_session(
    guarded_tiny: GuardedTiny,
    opened_isolated: Open,
    tmp_path: Path,
    change: Callable[[Path, Path], None],
):
    bundle = own_copy(guarded_tiny.bundle(ALARMED), tmp_path)
    session = opened_isolated(bundle, strength=9.0)
    list(session.ask("Hello there"))
    before = session.messages
    change(bundle, guarded_tiny.bundle(QUIET))
    kill(session)
    events: list[Event] = []
    with pytest.raises(BundleChangedError, match=r"'tiny\+30' is not what this session began with"):
        events.extend(session.ask("And then?"))
    assert events == []
    assert session.process_id is None
    assert session.messages == before
    for act in (session.continue_answer, lambda: session.ask("Again")):
        with pytest.raises(BundleChangedError):
            list(act())
    with pytest.raises(BundleChangedError):
        session.change(replace(session.turn_settings, guard="off"))
    assert session.process_id is None


def test_a_guard_that_changes_in_the_middle_of_an_answer_ends_the_session(
    guarded_tiny: GuardedTiny, opened_isolated: Open, tmp_path: Path
):
    bundle = own_copy(guarded_tiny.bundle(QUIET), tmp_path)
    session = opened_isolated(bundle, max_tokens=N_LONG)
    with pytest.raises(EngineDiedError):
        for event in session.ask("Hello there"):
            if isinstance(event, Step) and event.step == 20:
                weaken(bundle, bundle)
                kill(session)
    with pytest.raises(BundleChangedError):
        list(session.continue_answer())


def test_the_same_guard_written_again_is_the_same(
    guarded_tiny: GuardedTiny, opened_isolated: Open, tmp_path: Path
):
    bundle = own_copy(guarded_tiny.bundle(QUIET), tmp_path)
    session = opened_isolated(bundle)
    list(session.ask("Hello there"))
    exchange(bundle, guarded_tiny.bundle(QUIET))
    kill(session)
    assert isinstance(list(session.ask("And then?"))[-1], TurnEnded)


def test_a_frozen_engine_is_ended(
    guarded_tiny: GuardedTiny, opened_isolated: Open, monkeypatch: pytest.MonkeyPatch
):
    session = opened_isolated(guarded_tiny.bundle(QUIET), max_tokens=N_LONG)
    with pytest.raises(EngineDiedError, match="no sign of life"):
        for event in session.ask("Hello there"):
            if isinstance(event, Step) and event.step == 10:
                monkeypatch.setattr(engine_process, "_SILENCE_LIMIT_S", 0.5)
                os.kill(session.process_id or 0, signal.SIGSTOP)
    monkeypatch.undo()
    session.change(replace(session.turn_settings, max_tokens=6))
    assert list(session.ask("Again"))


def test_an_engine_that_does_not_understand_us_is_started_anew(
    guarded_tiny: GuardedTiny, opened_isolated: Open, monkeypatch: pytest.MonkeyPatch
):
    session = opened_isolated(guarded_tiny.bundle(QUIET))
    send = EngineProcess.send
    # In place of the question: after one that was sent before, the engine may be dead already,
    # and a death while nothing is asked is not even noticed.
    monkeypatch.setattr(EngineProcess, "send", lambda self, _: send(self, {"no": "request"}))
    with pytest.raises(EngineDiedError):
        list(session.ask("Hello there"))
    monkeypatch.undo()
    assert list(session.ask("Hello there"))


def wait_until(holds: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < limit_s, f"waited in vain for {what}"
        time.sleep(0.02)


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_no_engine_outlives_its_parent(guarded_tiny: GuardedTiny):
    program = (
        "import os, sys\n"
        "from safesteer_edge.session.isolated_session import open_isolated_session\n"
        "from safesteer_edge.session.settings import SessionSettings\n"
        f"settings = SessionSettings(model={str(guarded_tiny.model)!r}, guard='off', n_ctx=2048,\n"
        "                           max_tokens=1600, n_threads=1)\n"
        "session = open_isolated_session(settings)\n"
        "for n_asked in range(10**9):\n"  # it answers until it is killed, however late that is
        "    session.reset()\n"
        "    for index, event in enumerate(session.ask('Hello')):\n"
        "        if n_asked == 0 and index == 20:\n"
        "            print(session.process_id, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
        assert is_running(engine)
        parent.kill()
    wait_until(lambda: not is_running(engine), f"engine {engine} to end")
