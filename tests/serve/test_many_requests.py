"""Many requests: bodies that no client would send, and clients that come and go."""

from __future__ import annotations

import copy
import http.client
import json
import os
import random
import signal
import threading
import time
from typing import Any

import pytest

from tests.guarded_tiny import QUIET, GuardedTiny
from tests.serve.conftest import Server, Start

TEXT = "Why is the sky blue?"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": "Hello", "refusal": None},
    {"role": "user", "content": TEXT},
]
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAADE"
DOT += "lEQVR4nGNgIB0AAAA0AAF2Xq7DAAAAAElFTkSuQmCC"
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DOT}"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^[a-z]{1,3}$", "maxLength": 3},
        "b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "minItems": 1, "maxItems": 2},
        "d": {"anyOf": [{"type": "integer"}, {"const": None}, {"enum": ["x", 1]}]},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"c": {"type": "boolean"}},
}
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "!", "parameters": SCHEMA}}
]
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": "b"}'}}
USE = {"type": "tool_use", "id": "1", "name": "look", "input": {"a": "b"}}
GIVEN = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "Four"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [*MESSAGES, {"role": "user", "content": [PICTURE]}],
        "max_tokens": 2,
        "stop": ["\n"],
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "safesteer": {"trace": True, "strength": 100.0},
    },
    "/v1/chat/completions#json": {
        "messages": MESSAGES[3:],
        "max_tokens": 4,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    },
    "/v1/chat/completions#tools": {
        "messages": [
            *MESSAGES[3:],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "Four"},
        ],
        "max_tokens": 4,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    },
    "/v1/messages#tools": {
        "messages": [
            *MESSAGES[3:],
            {"role": "assistant", "content": [USE]},
            {"role": "user", "content": [GIVEN, {"type": "text", "text": "And?"}]},
        ],
        "max_tokens": 4,
        "tools": [{"name": "look", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
    },
    "/v1/responses#tools": {
        "input": [
            *MESSAGES[3:],
            {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "Four"},
        ],
        "max_output_tokens": 4,
        "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    },
    "/v1/messages": {"messages": MESSAGES[1:], "system": "Be brief.", "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": MESSAGES[1:]},
    "/v1/responses": {"input": MESSAGES, "max_output_tokens": 2, "instructions": "Be brief."},
    "/v1/moderations": {"input": [TEXT]},
    "/api/chat": {
        "messages": MESSAGES,
        "options": {"num_predict": 2, "seed": -1},
        "format": SCHEMA,
        "tools": TOOLS,
    },
    "/api/show": {},
}
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 2**70, 1e308, -1e308, 0.1, "", "x" * 5000, "\ud800", "\x00\x1b[2J"),
    *("<|im_start|>system\n", [], {}, [[[[]]]], {"type": "text"}, {"role": "user"}, [None], ["a"]),
    [SOUND],
]
PROPER = {200, 400, 404, 413}


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [place] if place else []
    for key, item in items:
        found += places_in(item, (*place, key)) if item and isinstance(item, dict | list) else []
        found.append((*place, key))
    return found


def mutated(body: dict[str, Any], rng: random.Random) -> bytes:
    """The body with one to three things in it changed, or with some of its bytes."""
    changed = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place = rng.choice(places_in(changed))
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        kind = rng.random()
        if kind < 0.2:
            del holder[place[-1]]
        elif kind < 0.3 and isinstance(holder, dict):
            holder[rng.choice(["model", "tools", "n", "prompt", "é"])] = copy.deepcopy(
                rng.choice(STRANGE)
            )
        else:
            holder[place[-1]] = copy.deepcopy(rng.choice(STRANGE))
        if not changed:
            break
    data = bytearray(json.dumps(changed).encode())
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def fuzz(server: Server, n: int, seed: int) -> dict[int, int]:
    rng = random.Random(seed)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    statuses: dict[int, int] = {}
    for index in range(n):
        path = rng.choice(list(BODIES))
        body = mutated({"model": server.model, **BODIES[path]}, rng)
        connection.request("POST", path.partition("#")[0], body)
        reply = connection.getresponse()
        said = reply.read()
        assert reply.status in PROPER, (seed, index, path, body, reply.status, said)
        if reply.status != 200:
            assert json.loads(said)["error"], (path, body, said)
        statuses[reply.status] = statuses.get(reply.status, 0) + 1
    assert server.chat("Still there?").status == 200
    assert "Traceback" not in "".join(server.log)
    return statuses


@pytest.fixture(scope="module")
def tiny(start_tiny: Start, calling_tiny: GuardedTiny) -> Server:
    files = ["--model", str(calling_tiny.model), "--mmproj", str(calling_tiny.projector)]
    return start_tiny(calling_tiny.bundle(QUIET), *files, "--ctx", "2048")


def test_mutated_bodies_get_a_proper_status(tiny: Server):
    statuses = fuzz(tiny, 400, seed=1)
    assert statuses[200] > 20 and statuses[400] > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_ten_thousand_mutated_bodies_get_a_proper_status(tiny: Server, seed: int):
    engines = tiny.engines()
    print(fuzz(tiny, 5_000, seed))
    assert tiny.engines() == engines  # none has died


# -- clients that come and go ----------------------------------------------------------------------


class Client(threading.Thread):
    """Asks its own questions one after another, and hangs up on some of the answers."""

    def __init__(self, server: Server, number: int, n: int, expected: dict[str, str]) -> None:
        super().__init__()
        self.server, self.number, self.n, self.expected = server, number, n, expected
        self.wrong: list[object] = []
        self.n_right = self.n_cancelled = self.n_engine_errors = 0

    def run(self) -> None:
        rng = random.Random(self.number)
        for _ in range(self.n):
            question = rng.choice(list(self.expected))
            try:
                self._ask(question, rng)
            except Exception as error:  # a thread's errors are its test's
                self.wrong.append(error)

    def _ask(self, question: str, rng: random.Random) -> None:
        connection = http.client.HTTPConnection(self.server.url.removeprefix("http://"))
        messages = [{"role": "user", "content": question}]
        body = {"model": self.server.model, "messages": messages, "stream": True, "seed": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body | {"max_tokens": 24}))
        if rng.random() < 0.1:
            time.sleep(rng.random() / 20)
            connection.close()
            self.n_cancelled += 1
            return
        reply = connection.getresponse()
        if reply.status == 503:
            self.n_engine_errors += 1
            return
        if rng.random() < 0.2:
            reply.readline()
            connection.close()
            self.n_cancelled += 1
            return
        told = reply.read()
        chunks = [json.loads(line[6:]) for line in told.splitlines() if line.startswith(b"data: {")]
        if any(chunk.get("error", {}).get("code") == "engine_died" for chunk in chunks):
            self.n_engine_errors += 1
            return
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        if reply.status != 200 or text != self.expected[question]:
            self.wrong.append((question, reply.status, text, self.expected[question]))
        self.n_right += 1


def alone(server: Server, n: int) -> dict[str, str]:
    """The answers to some questions when nobody else asks."""
    questions = [f"Question {number}: what is {number} times {number}?" for number in range(n)]
    replies = {each: server.chat(each, seed=0, max_tokens=24).json for each in questions}
    return {each: reply["choices"][0]["message"]["content"] for each, reply in replies.items()}


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_answers_to_clients_that_come_and_go_are_not_mixed(
    start_tiny: Start, guarded_tiny: GuardedTiny, n_parallel: int
):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--parallel", str(n_parallel))
    assert len(server.engines()) == n_parallel
    expected = alone(server, 8)
    assert len(set(expected.values())) > 4
    clients = [Client(server, number, 12, expected) for number in range(4)]
    run(clients)
    assert [wrong for client in clients for wrong in client.wrong] == []
    assert sum(client.n_right for client in clients) > 10
    assert sum(client.n_cancelled for client in clients) > 4
    assert "waiting 0.0" in server.send("/metrics").body.decode()
    server.stop()


def test_answers_at_a_time_go_side_by_side_and_each_conversation_to_its_own_cache(
    start_tiny: Start, guarded_tiny: GuardedTiny
):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--parallel", "2", "--ctx", "2048")
    long = {"messages": [{"role": "user", "content": "Go on"}], "max_tokens": 1500}
    body = json.dumps({"model": server.model, **long, "stream": True, "seed": 0})
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("POST", "/v1/chat/completions", body)
    reply = connection.getresponse()
    assert reply.readline().startswith(b"data: ")
    assert server.chat("Meanwhile").status == 200  # the first has not ended yet
    assert b"[DONE]" not in reply.read1(1 << 16)
    reply.read()
    # Two conversations in turn: neither drives the other out.
    said: dict[str, list[Any]] = {n: [{"role": "user", "content": n * 300}] for n in "AB"}
    for turn in range(3):
        for messages in said.values():
            answer = server.chat("", messages=messages).json
            n_cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert turn == 0 or answer["usage"]["prompt_tokens"] - n_cached < 60
            messages += [
                {"role": "assistant", "content": answer["choices"][0]["message"]["content"]},
                {"role": "user", "content": "More"},
            ]
    server.stop()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("n_parallel", [1, 4])
def test_a_thousand_requests_with_cancels_and_dying_engines_keep_their_answers(
    start_tiny: Start, guarded_tiny: GuardedTiny, n_parallel: int
):
    several = ["--queue", "64", "--parallel", str(n_parallel)]
    server = start_tiny(guarded_tiny.bundle(QUIET), *several)
    expected = alone(server, 16)
    run([Client(server, number, 8, expected) for number in range(16)])  # its threads and buffers
    clients = [Client(server, number, 63, expected) for number in range(16)]
    is_over = threading.Event()
    kills: list[int] = []

    def kill_now_and_then() -> None:
        n_before = 0
        while not is_over.wait(2.0):
            n_right = sum(client.n_right for client in clients)
            if n_right < n_before + 10:  # a busy machine may take long to start an engine
                continue
            n_before = n_right
            for engine in server.engines():
                os.kill(engine, signal.SIGKILL)
                kills.append(engine)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    memory_before = memory_of(server)
    run(clients)
    is_over.set()
    killer.join()
    counts = ("n_right", "n_cancelled", "n_engine_errors")
    print({name: sum(getattr(client, name) for client in clients) for name in counts}, len(kills))
    memory_after = memory_of(server)
    print("MiB of the server before and after:", memory_before, memory_after)
    assert memory_after <= 1.05 * memory_before
    assert [wrong for client in clients for wrong in client.wrong] == []
    # Those killed a moment ago may be met by one request each, which is told so.
    assert 200 in {server.chat("Still there?").status for _ in range(n_parallel + 1)}
    assert "Traceback" not in "".join(server.log)
    server.stop()


def run(clients: list[Client]) -> None:
    for client in clients:
        client.start()
    for client in clients:
        client.join()


def memory_of(server: Server) -> float:
    from pathlib import Path

    status = Path(f"/proc/{server.process.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
