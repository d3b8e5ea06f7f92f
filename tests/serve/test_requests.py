"""Who may ask, what is refused with which status, and what the server says of itself."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.guarded_tiny import QUIET, GuardedTiny
from tests.serve.conftest import DEFAULT, Server, Start

CHAT = "/v1/chat/completions"
ERRORS = {CHAT: "error", "/v1/messages": "error", "/v1/responses": "error", "/api/chat": "error"}
A_PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


@pytest.fixture(scope="module")
def tiny(start_tiny: Start, guarded_tiny: GuardedTiny) -> Server:
    return start_tiny(guarded_tiny.bundle(QUIET))


NOW = {"type": "function", "function": {"name": "now"}}
CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


def said(content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize("path", ERRORS)
def test_an_unknown_model_is_404_and_names_the_known(tiny: Server, path: str):
    body = {"model": "gpt-9", "messages": said("Hi"), "input": "Hi"}
    reply = tiny.send(path, body)
    assert reply.status == 404
    assert "'gpt-9'" in str(reply.json) and tiny.model in str(reply.json)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"messages": said([{"type": "file", "file": {}}])}, "'messages[0].content[0].type'"),
        ({"messages": said([A_PICTURE])}, "nothing is fetched"),
        ({"messages": said("Hi", "function")}, "'messages[0].role'"),
        ({"messages": said("Hi", "assistant")}, "user"),
        ({"messages": []}, "user"),
        ({"messages": said("\ud800")}, "half a character"),
        ({"messages": "Hi"}, "'messages'"),
        ({"tools": [{"type": "function"}]}, "'tools[0].name'"),
        ({"tools": [{"type": "web_search"}]}, "'tools[0].type'"),
        ({"tools": [NOW]}, "cannot call tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, "no tool 'now'"),
        ({"tool_choice": 3}, "'tool_choice'"),
        ({"response_format": {"type": "xml"}}, "'response_format.type'"),
        ({"response_format": {"type": "json_schema"}}, "'response_format.json_schema.schema'"),
        ({"response_format": schema_of({"type": "strange"})}, "JSON schema"),
        ({"response_format": schema_of({"$ref": "http://127.0.0.1/"})}, "$ref"),
        ({"messages": [{"role": "user", "content": "Hi", "tool_calls": [CALL]}]}, "calls tools"),
        ({"n": 2}, "'n'"),
        ({"temperature": 99}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 99}, "'stop'"),
        ({"stop": 5}, "'stop'"),
        ({"safesteer": {"strenght": 9}}, "did you mean 'strength'"),
        ({"safesteer": {"strength": 0.5}}, "below the bundle's"),
        ({"safesteer": {"threshold": 0.9}}, "above the bundle's"),
        ({"safesteer": {"guard": "off"}}, "unknown key 'safesteer.guard'"),
    ],
)
def test_what_cannot_be_served_is_400_and_names_it(
    tiny: Server, changes: dict[str, Any], named: str
):
    reply = tiny.chat("Hi", **changes)
    assert reply.status == 400
    assert named in reply.json["error"]["message"]
    assert reply.json["error"]["type"] == "invalid_request_error"


def test_fields_that_ask_for_nothing_are_taken(tiny: Server):
    nothing = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": 1}
    assert tiny.chat("Hi", **nothing, user="me", metadata={}, stop=None).status == 200


@pytest.mark.parametrize("top_k", [40, 0, -1])
def test_a_top_k_of_more_than_the_guard_has_is_all_that_it_has(tiny: Server, top_k: int):
    asked = {"temperature": 1.0, "seed": 7, "max_tokens": 40}
    most = tiny.chat("Hi", **asked, top_k=8)
    assert most.status == 200
    assert tiny.chat("Hi", **asked, top_k=top_k).json["choices"] == most.json["choices"]


def test_minus_one_is_no_limit_and_another_seed_each_time(tiny: Server):
    replies = [tiny.chat("Hi", temperature=1.0, seed=-1, max_tokens=-1).json for _ in range(3)]
    assert len({reply["choices"][0]["message"]["content"] for reply in replies}) > 1
    assert max(reply["usage"]["completion_tokens"] for reply in replies) > 12


def test_the_last_chunk_has_the_usage_of_the_whole_answer(tiny: Server):
    told = tiny.chat("Hi").json
    for form, where in ({}, "choices"), ({"stream_options": {"include_usage": True}}, "usage"):
        last = tiny.chat("Hi", stream=True, **form).chunks[-1]
        assert last[where]
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert [last["usage"][name] for name in names] == [told["usage"][name] for name in names]
        assert last["system_fingerprint"] == told["system_fingerprint"]
    body = {"model": tiny.model, "messages": said("Hi"), "max_tokens": 12}
    message = tiny.send("/v1/messages", body).json
    *_, last, _ = tiny.send("/v1/messages", {**body, "stream": True}).chunks
    assert last["usage"] == tiny.send("/v1/messages", body).json["usage"]
    assert last["usage"]["output_tokens"] == message["usage"]["output_tokens"]


@pytest.mark.parametrize("content", ["", " \n", None, []])
def test_an_empty_question_is_answered_as_other_servers_do(tiny: Server, content: Any):
    reply = tiny.chat("", messages=said(content))
    assert reply.status == 200 and reply.json["usage"]["completion_tokens"] > 0


def test_more_guard_may_be_asked_for(tiny: Server):
    reply = tiny.chat("Hi", safesteer={"strength": 1000.0, "threshold": 0.1, "trace": True})
    assert reply.status == 200
    assert reply.json["safesteer"]["mode"] == "steer"
    assert "risk" in reply.headers["x-safesteer-trace"]


def test_a_prompt_over_the_context_is_400_with_both_numbers(tiny: Server):
    for text in ("word " * 400, "x" * 100_000):
        reply = tiny.chat(text)
        assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
        assert "512" in reply.json["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a":1,"a":2}', b"\xff\xfe"])
@pytest.mark.parametrize("path", ERRORS)
def test_a_body_that_is_no_request_is_400(tiny: Server, path: str, body: bytes):
    reply = tiny.send(path, body)
    assert reply.status == 400
    assert reply.json["error"]


def test_a_body_that_is_too_long_is_413_before_it_is_read(tiny: Server):
    host, port = tiny.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {1 << 40}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_unknown_paths_and_methods_are_told_as_json(tiny: Server):
    assert (tiny.send("/v1/nothing").status, tiny.send(CHAT).status) == (404, 405)
    assert "error" in tiny.send("/v1/nothing").json


# -- who may ask -----------------------------------------------------------------------------------


def test_a_web_page_may_not_ask(tiny: Server):
    headers = {"Origin": "https://evil.example"}
    assert tiny.send("/v1/models", headers=headers).status == 403
    assert tiny.send("/v1/models", headers={"Host": "evil.example"}).status == 403
    assert tiny.send("/v1/models", headers={"Host": "localhost:1"}).status == 200
    assert "Access-Control-Allow-Origin" not in tiny.send("/v1/models").headers


def test_a_key_is_asked_for_where_one_is_set(
    start_tiny: Start, guarded_tiny: GuardedTiny, tmp_path: Path
):
    (tmp_path / "key").write_text("sesame\n")
    origin = "http://localhost:3000"
    arguments = ["--api-key", f"@{tmp_path / 'key'}", "--allow-origin", origin]
    server = start_tiny(guarded_tiny.bundle(QUIET), *arguments)
    wrong = [{}, {"Authorization": "Bearer x"}, {"x-api-key": ""}, {"x-api-key": "sésame"}]
    assert [server.send("/v1/models", headers=each).status for each in wrong] == [401] * 4
    right = [{"Authorization": "Bearer sesame"}, {"x-api-key": "sesame"}]
    assert [server.send("/v1/models", headers=each).status for each in right] == [200] * 2
    assert server.send("/health").status == 200
    allowed = server.send("/v1/models", headers={**right[0], "Origin": origin})
    assert allowed.headers["access-control-allow-origin"] == origin
    server.stop()


# -- what it says of itself ------------------------------------------------------------------------


def test_a_server_without_a_guard_says_so_everywhere(start_tiny: Start):
    server = start_tiny(None, "--host", "0.0.0.0")
    assert server.send("/v1/models").json["data"][0]["safesteer"]["guard"] == "off"
    assert server.chat("Hi").headers["x-safesteer-guard"] == "off"
    assert server.chat("Hi", safesteer={"strength": 5.0}).status == 400
    assert server.send("/v1/moderations", {"input": "Hi"}).status == 400
    assert any("NO GUARD" in line for line in server.log)
    assert any("set --api-key" in line for line in server.log)
    server.stop()


def test_a_server_that_only_watches_says_so(start_tiny: Start, guarded_tiny: GuardedTiny):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--guard", "monitor")
    assert server.send("/v1/models").json["data"][0]["safesteer"]["guard"] == "monitor"
    assert server.chat("Hi").headers["x-safesteer-guard"] == "monitor"
    server.stop()


def test_a_language_that_the_guard_was_not_measured_on_is_told_in_a_header_alone(
    start_tiny: Start, guarded_tiny: GuardedTiny, tiny: Server
):
    notice = "This guard was measured on English; it may miss harm asked in Spanish."
    spanish = "¿Cómo hago pan en casa sin levadura?"
    server = start_tiny(guarded_tiny.bundle(QUIET, languages=("en",)))
    for more in ({}, {"stream": True}):
        told = server.chat(spanish, **more)
        assert told.headers["x-safesteer-notice"] == notice
        assert b"measured on" not in told.body
        assert "x-safesteer-notice" not in server.chat("How do I bake bread?", **more).headers
    read = server.send("/v1/moderations", {"input": ["How do I bake bread?", spanish]})
    assert read.headers["x-safesteer-notice"] == notice
    assert "x-safesteer-notice" not in tiny.chat(spanish).headers  # whose bundle does not say
    server.stop()


def test_the_log_has_a_line_a_request_and_no_text_unless_asked_for(
    start_tiny: Start, guarded_tiny: GuardedTiny
):
    for arguments, is_logged in ([], False), (["--log-text"], True):
        server = start_tiny(guarded_tiny.bundle(QUIET), *arguments)
        assert server.chat("A private question").status == 200
        server.stop()
        log = "".join(server.log)
        assert f"POST {CHAT} 200 " in log and "12 written" in log
        assert ("A private question" in log) is is_logged


@pytest.mark.default_model
def test_two_models_answer_side_by_side(start_tiny: Start, guarded_tiny: GuardedTiny):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--also", DEFAULT)
    listed = server.send("/v1/models").json["data"]
    assert [model["id"] for model in listed] == [server.model, DEFAULT]
    assert len({model["safesteer"]["bundle"] for model in listed}) == 2
    first, second = server.chat("Hi"), server.chat("Hi", model=DEFAULT)
    assert (first.status, second.status) == (200, 200)
    assert first.json["choices"] != second.json["choices"]
    server.stop()


def test_metrics_count_tokens_and_requests(tiny: Server):
    before = metrics(tiny)
    assert tiny.chat("Hi").status == 200
    after = metrics(tiny)
    written = 'safesteer_tokens_total{kind="written"}'
    assert after[written] - before.get(written, 0) == 12
    counted = f'safesteer_requests_total{{path="{CHAT}",status="200"}}'
    assert after[counted] - before.get(counted, 0) == 1


def metrics(server: Server) -> dict[str, float]:
    lines = server.send("/metrics").body.decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_a_full_queue_is_429(start_tiny: Start, guarded_tiny: GuardedTiny):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--queue", "1", "--ctx", "2048")
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(server.chat("Hi", max_tokens=1000).status))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2
    server.stop()


def test_a_client_that_goes_before_its_answer_leaves_the_server_free(
    start_tiny: Start, guarded_tiny: GuardedTiny
):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--ctx", "4096")
    messages = said("Hi")
    body = json.dumps({"model": server.model, "messages": messages, "max_tokens": 4000})
    address = server.url.removeprefix("http://")
    connections = [http.client.HTTPConnection(address) for _ in range(3)]
    for connection in connections:  # one is answered, two wait
        connection.request("POST", CHAT, body)
    while metrics(server)["safesteer_waiting"] < 2:
        pass
    for connection in connections:
        connection.close()
    assert server.chat("Hi").status == 200
    server.stop()
    assert sum(f"POST {CHAT} 499 " in line for line in server.log) == 3
    assert "Traceback" not in "".join(server.log)


def test_a_connection_that_rests_is_kept_for_longer_than_the_clients_keep_it(tiny: Server):
    connection = http.client.HTTPConnection(tiny.url.removeprefix("http://"), timeout=60)
    for rest_s in (0, 5.5):  # httpx, which OpenAI's and Ollama's clients use, keeps it for 5 s
        time.sleep(rest_s)
        connection.request("GET", "/health")
        assert connection.getresponse().read()
    connection.close()


def test_it_ends_when_asked_to_and_an_answer_that_is_being_told_comes_to_its_end(
    start_tiny: Start, guarded_tiny: GuardedTiny
):
    server = start_tiny(guarded_tiny.bundle(QUIET), "--ctx", "2048")
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    body = {"model": server.model, "messages": said("Hi"), "max_tokens": 200, "stream": True}
    connection.request("POST", CHAT, json.dumps(body))
    reply = connection.getresponse()
    assert reply.readline().startswith(b"data: ")
    server.process.terminate()
    assert reply.read().endswith(b"data: [DONE]\n\n")
    assert server.process.wait(60) in (0, -signal.SIGTERM)
    assert "Traceback" not in "".join(server.log)
