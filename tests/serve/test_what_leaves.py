"""Nothing leaves that the guard has not settled; where it cannot judge there is an error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.guard.events import Event, Refused, Step, TextDelta
from safesteer_edge.session.session import open_session
from tests.brittle_bundle import limit_within_answer, write_brittle_bundle
from tests.guarded_tiny import ALARMED, PATIENT_POLICY, QUIET, WAVERING, GuardedTiny
from tests.serve.conftest import Server, Start

QUESTION = "Hello there"
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat")
# Where texts of an answer stand.
TEXT_KEYS = ("content", "text", "refusal", "delta", "thinking", "reasoning_content")


def body_of(path: str, model: str, *, stream: bool, max_tokens: int = 12) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTION}]
    body: dict[str, Any] = {"model": model, "stream": stream, "messages": messages, "seed": 0}
    if path == "/v1/responses":
        return {**body, "input": QUESTION, "max_output_tokens": max_tokens}
    if path == "/api/chat":
        return {**body, "options": {"num_predict": max_tokens}}
    return {**body, "max_tokens": max_tokens}


def texts_in(value: Any) -> list[str]:
    """All texts of an answer that a JSON value holds."""
    if isinstance(value, list):
        return [text for item in value for text in texts_in(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)]
    return own + [text for item in value.values() for text in texts_in(item)]


def events_in_process(tiny: GuardedTiny, bundle: Path, **changes: Any) -> list[Event]:
    with open_session(tiny.settings(bundle, **changes)) as session:
        return list(session.ask(QUESTION))


@pytest.fixture(scope="module")
def alarmed(start_tiny: Start, guarded_tiny: GuardedTiny) -> Server:
    return start_tiny(guarded_tiny.bundle(ALARMED))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_refused_turn_sends_settled_text_alone(
    alarmed: Server, guarded_tiny: GuardedTiny, path: str, *, stream: bool
):
    events = events_in_process(guarded_tiny, guarded_tiny.bundle(ALARMED))
    settled = "".join(event.text for event in events if isinstance(event, TextDelta))
    decoded = "".join(event.text for event in events if isinstance(event, Step))
    (refused,) = [event for event in events if isinstance(event, Refused)]
    taken_back = decoded.removeprefix(settled)
    assert taken_back.strip(), "the guard took nothing back, so nothing is shown by this"

    reply = alarmed.send(path, body_of(path, alarmed.model, stream=stream))
    assert reply.status == 200
    sent = texts_in(reply.chunks if stream else reply.json)
    assert any(refused.text.strip() in text for text in sent)
    allowed = settled + refused.text
    assert [text for text in sent if text not in allowed and text != "text"] == []
    assert taken_back not in reply.body.decode()
    assert json.dumps(taken_back).strip('"') not in reply.body.decode()


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_is_what_the_guard_settled_word_for_word(
    start_tiny: Start, guarded_tiny: GuardedTiny, path: str
):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    server = start_tiny(bundle)
    events = events_in_process(guarded_tiny, bundle, max_tokens=40)
    settled = "".join(event.text for event in events if isinstance(event, TextDelta))
    reply = server.send(path, body_of(path, server.model, stream=True, max_tokens=40))
    last = {"/v1/chat/completions": "choices", "/v1/messages": "delta", "/api/chat": "message"}
    told = reply.chunks
    if path == "/v1/responses":
        sent = "".join(c["delta"] for c in told if c["type"] == "response.output_text.delta")
    else:
        sent = "".join(text for c in told if last[path] in c for text in texts_in(c[last[path]]))
    assert sent == settled
    server.stop()


def test_an_answer_that_the_server_did_not_give_counts_as_a_risky_one(
    start_tiny: Start, guarded_tiny: GuardedTiny
):
    server = start_tiny(guarded_tiny.bundle(QUIET))
    first = server.chat(QUESTION).json["choices"][0]["message"]["content"]

    def risk_after(answer: str) -> float:
        said = [("user", QUESTION), ("assistant", answer), ("user", "And then?")]
        messages = [{"role": role, "content": text} for role, text in said]
        reply = server.chat("", messages=messages, safesteer={"trace": True}, max_tokens=4)
        return reply.json["safesteer"]["risk"]

    known = risk_after(first)
    assert risk_after(f"{first}\n ") == pytest.approx(known)  # clients trim
    assert risk_after(f"{first} Surely!") > known + 0.01
    server.stop()


# -- where the guard, or the engine, is not there --------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_probe_that_gives_nan_is_an_error_without_its_text(
    brittle: Server, path: str, *, stream: bool
):
    reply = brittle.send(path, body_of(path, brittle.model, stream=stream, max_tokens=40))
    if not stream:
        assert reply.status == 500
        assert texts_in(reply.json) == []
    else:  # what was settled before is out, and the last word is an error
        last = reply.chunks[-1]
        assert "error" in last or last["type"] == "error"
        assert b"[DONE]" not in reply.body
        assert b"I can't help" not in reply.body


@pytest.fixture(scope="module")
def brittle(
    start_tiny: Start, guarded_tiny: GuardedTiny, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    limit, _ = limit_within_answer(guarded_tiny, QUESTION, n_tokens=40)
    folder = tmp_path_factory.mktemp("brittle") / "bundle"
    return start_tiny(write_brittle_bundle(guarded_tiny, folder, limit=limit))


def test_without_a_bundle_the_server_does_not_start(guarded_tiny: GuardedTiny):
    command = [sys.executable, "-m", "safesteer_edge", "serve", "--port", "0"]
    ran = subprocess.run(
        [*command, "--model", str(guarded_tiny.model)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "there is no guard bundle" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_dead_engine_is_an_error_and_the_next_question_starts_it_again(
    start_tiny: Start, guarded_tiny: GuardedTiny
):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--ctx", "4096")
    whole = server.chat(QUESTION)
    assert whole.status == 200
    body = body_of(PATHS[0], server.model, stream=True, max_tokens=3000)
    request = urllib.request.Request(server.url + PATHS[0], json.dumps(body).encode())
    with urllib.request.urlopen(request) as stream:
        stream.readline()
        (engine,) = server.engines()
        os.kill(engine, signal.SIGKILL)
        rest = stream.read()
    *_, last = [line for line in rest.splitlines() if line]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_died"
    again = server.chat(QUESTION)
    assert again.status == 200
    assert again.json["choices"] == whole.json["choices"]
    assert server.engines() != [engine]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_guard_that_changed_before_a_restart_ends_the_service(
    start_tiny: Start, guarded_tiny: GuardedTiny, tmp_path: Path
):
    bundle = Path(shutil.copytree(guarded_tiny.bundle(QUIET), tmp_path / "bundle"))
    server = start_tiny(bundle)
    assert server.chat(QUESTION).status == 200
    shutil.rmtree(bundle)
    (engine,) = server.engines()
    os.kill(engine, signal.SIGKILL)
    replies = [server.chat(QUESTION, stream=stream) for stream in (False, True, False)]
    assert [reply.status for reply in replies] == [503, 503, 503]
    for reply in replies:
        assert texts_in(reply.json) == []
