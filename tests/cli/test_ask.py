"""`safesteer-edge ask`: stdout is the answer, stderr the narration, and the exit code says how."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.cli.options import BAD_INPUT, OK, REFUSED, RUNTIME_ERROR
from tests.brittle_bundle import limit_within_answer, write_brittle_bundle
from tests.cli.conftest import Ask, StartAsk
from tests.guarded_tiny import ALARMED, PATIENT_POLICY, QUIET, REFUSAL_TEXT, WAVERING, GuardedTiny
from tests.media.sample_documents import write_pdf
from tests.session.turns import ask as asked
from tests.session.turns import opened, texts
from tests.tiny_models import write_tiny_llama
from tests.tiny_models.families import templates

KEYS = {
    "": {"text", "reasoning", "finish_reason", "model", "guard", "media", "usage", "timings"},
    "model": {"name", "path", "architecture", "quantization"},
    "guard": {
        *("mode", "rerank", "bundle", "interventions", "evaluated_candidates", "max_score"),
        *("mean_score", "risk", "refused", "vector_active", "calibrated"),
        *("steered", "opening"),
    },
    "usage": {"prompt_tokens", "media_tokens", "completion_tokens"},
    "timings": {"load_s", "prefill_s", "ttft_s", "decode_s", "tokens_per_second"},
}
STEP_KEYS = {
    "step",
    "proposed_token_id",
    "token_id",
    "text",
    "logprob",
    "score",
    "accepted",
    "risk",
    "given",
    "opening",
}


@pytest.fixture(scope="module")
def answer(guarded_tiny: GuardedTiny) -> str:
    """What the tiny model says to "Hello there"."""
    return texts(guarded_tiny, guarded_tiny.bundle(QUIET), ["Hello there"])[0]


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_stdout_is_the_answer_alone(ask: Ask, answer: str):
    ran = ask("Hello there")
    assert ran.exit_code == OK
    assert ran.out == f"{answer}\n"


def test_stderr_tells_what_ran_and_how_it_went(ask: Ask, guarded_tiny: GuardedTiny):
    first, last = ask("Hello there").err.splitlines()
    assert first.startswith(f"[{guarded_tiny.model.stem} F32, guard tiny-30, loaded in ")
    assert last.startswith("[12 tokens, ")
    assert "steer: 0 tokens steered; nothing noticed; cut off at the token limit" in last


def test_quiet_is_silent(ask: Ask, answer: str):
    ran = ask("Hello there", "--quiet")
    assert (ran.out, ran.err) == (f"{answer}\n", "")


def test_json_is_one_object_of_the_documented_shape(
    ask: Ask, answer: str, guarded_tiny: GuardedTiny
):
    ran = ask("Hello there", "--json", "--quiet")
    assert ran.exit_code == OK
    assert ran.out.count("\n") == 1
    value = json.loads(ran.out)
    assert value.keys() == KEYS[""]
    for part in ("model", "guard", "usage", "timings"):
        assert value[part].keys() == KEYS[part], part
    assert (value["text"], value["finish_reason"]) == (answer, "length")
    assert value["model"] == {
        "name": guarded_tiny.model.stem,
        "path": str(guarded_tiny.model),
        "architecture": "llama",
        "quantization": "F32",
    }
    guard = value["guard"]
    assert (guard["mode"], guard["rerank"], guard["bundle"]) == ("steer", "lazy", "tiny-30")
    assert (guard["refused"], guard["vector_active"], guard["interventions"]) == (False, False, 0)
    assert 0 <= guard["mean_score"] <= guard["max_score"] < 1e-6
    assert value["usage"]["media_tokens"] == 0
    assert value["usage"]["completion_tokens"] == 12
    assert all(seconds > 0 for seconds in value["timings"].values())


def test_json_says_that_the_guard_refused(ask: Ask):
    ran = ask("Hello there", "--json", bias=ALARMED)
    value = json.loads(ran.out)
    assert ran.exit_code == OK
    assert (value["text"], value["finish_reason"]) == (REFUSAL_TEXT, "refused")
    assert (value["guard"]["refused"], value["guard"]["risk"]) == (True, 1.0)
    assert value.keys() == KEYS[""]


def test_json_without_a_guard_has_nulls_in_place_of_scores(ask: Ask):
    value = json.loads(ask("Hello there", "--json", "--guard", "off").out)
    assert value["guard"] == {
        "mode": "off",
        "rerank": None,
        "bundle": None,
        "interventions": 0,
        "evaluated_candidates": 0,
        "max_score": None,
        "mean_score": None,
        "risk": None,
        "refused": False,
        "vector_active": False,
        "calibrated": None,
        "steered": 0,
        "opening": "",
    }


def test_a_trace_has_one_line_per_step(ask: Ask, answer: str, tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    ran = ask("Hello there", "--trace", str(trace), "--json")
    rows = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == json.loads(ran.out)["usage"]["completion_tokens"] == 12
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert "".join(row["text"] for row in rows) == answer
    for row in rows:
        assert row.keys() == STEP_KEYS
        assert isinstance(row["token_id"], int)
        assert row["logprob"] <= 0
        assert row["accepted"] is True
        assert 0 <= row["score"] < 1e-6
        assert 0 <= row["risk"] < 1e-6


def test_a_trace_lists_candidates_where_they_were_evaluated(
    ask: Ask, tmp_path: Path, guarded_tiny: GuardedTiny
):
    trace = tmp_path / "trace.jsonl"
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    value = json.loads(ask("Hello", "--trace", str(trace), "--json", bundle=bundle).out)
    rows = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    listed = [row for row in rows if row.keys() != STEP_KEYS]
    assert listed
    for row in listed:
        assert row.keys() == {*STEP_KEYS, "candidates"}
        assert len(row["candidates"]) > 1
        for candidate in row["candidates"]:
            assert candidate.keys() == {"token_id", "logprob", "score", "text"}
        scores = {item["token_id"]: item["score"] for item in row["candidates"]}
        assert scores[row["token_id"]] == row["score"]
    assert sum(not row["accepted"] for row in rows) == value["guard"]["interventions"]
    n_evaluated = sum(len(row.get("candidates", [None])) for row in rows)
    assert n_evaluated == value["guard"]["evaluated_candidates"]


def test_a_trace_without_a_guard_has_no_scores(ask: Ask, tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    ask("Hello there", "--trace", str(trace), "--guard", "off")
    rows = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert {(row["score"], row["risk"], row["accepted"]) for row in rows} == {(None, None, True)}


def test_a_dash_reads_the_prompt_from_stdin(ask: Ask, answer: str, monkeypatch: pytest.MonkeyPatch):
    type_in(monkeypatch, b"Hello there\n")  # the end of the line is no part of the question
    assert ask("-").out == f"{answer}\n"
    type_in(monkeypatch, b"Hello\nthere")
    assert ask("-").out != f"{answer}\n"


@pytest.mark.parametrize("data", [b"", b"\n", b"caf\xe9"])
def test_a_prompt_that_cannot_be_read_from_stdin_is_bad_input(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, data: bytes
):
    type_in(monkeypatch, data)
    ran = ask("-")
    assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
    assert len(ran.err.splitlines()) == 1


def test_a_refusal_fails_only_where_that_is_asked_for(ask: Ask):
    refused = ask("Hello there", bias=ALARMED)
    assert (refused.exit_code, refused.out) == (OK, f"{REFUSAL_TEXT}\n")
    assert "refused by the guard: every continuation looked harmful" in refused.err
    assert ask("Hello there", "--fail-on-refusal", bias=ALARMED).exit_code == REFUSED
    assert ask("Hello there", "--fail-on-refusal").exit_code == OK
    assert ask("Hello there", "--fail-on-refusal", "--json", bias=ALARMED).exit_code == REFUSED


def test_a_guard_that_cannot_judge_ends_the_answer_and_fails(
    ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path
):
    limit, n_judged = limit_within_answer(guarded_tiny, "Hello there", n_tokens=40)
    bundle = write_brittle_bundle(guarded_tiny, tmp_path / "bundle", limit=limit)
    ran = ask("Hello there", "--quiet", "--max-tokens", "40", bundle=bundle)
    unguarded = texts(guarded_tiny, None, ["Hello there"], max_tokens=n_judged)[0]
    assert ran.exit_code == RUNTIME_ERROR
    assert ran.out == f"{unguarded}\n\n{REFUSAL_TEXT}\n"
    (line,) = ran.err.splitlines()
    assert "not in [0, 1]" in line


def test_options_reach_the_session(ask: Ask, guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    plain = json.loads(ask("Hello", "--json", bundle=bundle).out)
    stronger = json.loads(ask("Hello", "--json", "--strength", "60", bundle=bundle).out)
    lower = json.loads(ask("Hello", "--json", "--threshold", "0.1", bundle=bundle).out)
    eager = json.loads(ask("Hello", "--json", "--rerank", "eager", bundle=bundle).out)
    system = json.loads(ask("Hello", "--json", "--system", "Be brief.", bundle=bundle).out)
    short = json.loads(ask("Hello", "--json", "--max-tokens", "3", bundle=bundle).out)
    assert stronger["text"] != plain["text"]
    assert lower["guard"]["evaluated_candidates"] > plain["guard"]["evaluated_candidates"]
    assert eager["guard"]["evaluated_candidates"] == 12 * 8
    assert eager["guard"]["rerank"] == "eager"
    assert system["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert short["usage"]["completion_tokens"] == 3
    monitor = json.loads(ask("Hello", "--json", "--guard", "monitor", bundle=bundle).out)
    assert (monitor["guard"]["mode"], monitor["guard"]["rerank"]) == ("monitor", None)


def test_short_options_are_the_long_ones(ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path):
    from PIL import Image

    model, picture = tmp_path / "other.gguf", tmp_path / "a.png"
    shutil.copy(guarded_tiny.model, model)
    Image.new("RGB", (56, 56), "teal").save(picture)
    options = {"--model": str(model), "--image": str(picture), "--system": "Be brief."}
    usual = ("Hello", "--json", "--mmproj", str(guarded_tiny.projector))
    values = []
    for quiet, names in (("--quiet", options), ("-q", ("-m", "-i", "-s"))):
        pairs = zip(names, options.values(), strict=True)
        ran = ask(*usual, quiet, *(each for pair in pairs for each in pair))
        assert (ran.exit_code, ran.err) == (OK, "")
        values.append(json.loads(ran.out))
    short = values[1]
    assert (short["text"], short["usage"]) == (values[0]["text"], values[0]["usage"])
    assert (short["model"]["name"], len(short["media"])) == ("other", 1)


@pytest.mark.parametrize("is_isolated", [False, True])
def test_a_picture_comes_from_a_file_from_stdin_or_from_a_data_uri(
    ask: Ask,
    guarded_tiny: GuardedTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_isolated: bool,
):
    from PIL import Image

    picture = tmp_path / "a b.png"
    Image.new("RGB", (56, 56), "teal").save(picture)
    data = picture.read_bytes()
    usual = ["What is it?", "--json", "--quiet", "--mmproj", str(guarded_tiny.projector)]
    if is_isolated:
        usual.append("--isolate")
    plain = json.loads(ask(*usual, "-i", str(picture)).out)
    assert plain["usage"]["media_tokens"] == 4
    type_in(monkeypatch, data)
    piped = json.loads(ask(*usual, "-i", "-").out)
    encoded = base64.b64encode(data).decode()
    uris = [f"data:image/png;base64,{encoded}", f"DATA:image/png,{quote(data)}", picture.as_uri()]
    for answer in (piped, *(json.loads(ask(*usual, "-i", uri).out) for uri in uris)):
        assert (answer["text"], answer["usage"]) == (plain["text"], plain["usage"])


def test_a_picture_is_asked_about(ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path):
    from PIL import Image

    picture = tmp_path / "a\x1b[2Jb\n.png"
    Image.new("RGB", (560, 280), "teal").save(picture)
    bundle = guarded_tiny.bundle(QUIET, has_vector=True)
    arguments = (
        "--mmproj",
        str(guarded_tiny.projector),
        "--image",
        str(picture),
    )
    ran = ask("What is this?", *arguments, "--json", bundle=bundle)
    value = json.loads(ran.out)
    assert value["usage"]["media_tokens"] == 4
    assert value["guard"]["vector_active"] is True
    (medium,) = value["media"]
    assert (medium["name"], medium["n_tokens"], medium["from_cache"]) == ("ab .png", 4, False)
    assert (medium["original_width"], medium["original_height"]) == (560, 280)
    assert (medium["width"], medium["height"]) == (56, 56)
    assert f"[ab .png 560×280 → 56×56, 4 tokens, {medium['encode_s']:.2f} s]\n" in ran.err


def test_files_of_any_kind_go_along(ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path):
    from PIL import Image

    (tmp_path / "notes.txt").write_text("some words")
    Image.new("RGB", (56, 56), "teal").save(tmp_path / "a.png")
    report = write_pdf(tmp_path / "report.pdf", ("Sales", 200.0))
    alone = json.loads(ask("What is this?", "--json").out)
    files = [
        argument
        for name in ("notes.txt", "a.png", report.name)
        for argument in ("--file", str(tmp_path / name))
    ]
    value = json.loads(
        ask("What is this?", "--mmproj", str(guarded_tiny.projector), *files, "--json").out
    )
    assert [medium["name"] for medium in value["media"]] == ["a.png", "report.pdf, page 1"]
    assert value["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] + 8


def test_a_model_without_a_guard_says_so_every_time(ask: Ask):
    err = ask("Hello there", "--guard", "off").err
    assert "NO GUARD" in err
    assert "[warning: the guard is off" in err


def test_no_escape_sequence_of_a_files_name_reaches_the_terminal(
    ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path
):
    hostile = tmp_path / "a\x1b]0;owned\x07b.gguf"
    shutil.copy(guarded_tiny.model, hostile)
    ran = ask("Hello there", "--model", str(hostile))
    missing = ask("Hello there", "--model", str(hostile.with_name("c\x1b[2Jd.gguf")))
    assert (ran.exit_code, missing.exit_code) == (OK, BAD_INPUT)
    assert "[ab F32" in ran.err
    assert "\x1b" not in ran.err + missing.err


def test_a_guard_that_nobody_measured_is_called_so(
    guarded_tiny: GuardedTiny, tmp_path: Path, ask: Ask
):
    parts = replace(guarded_tiny.parts(bias=QUIET), figures={"calibrated": True})
    bundle = write_bundle(tmp_path / "bundle", parts)
    refused = ask("Hello there", "--bundle", str(bundle))
    assert (refused.exit_code, refused.out, refused.err.count("\n")) == (BAD_INPUT, "", 1)
    assert "is UNCALIBRATED" in refused.err
    assert "--guard monitor" in refused.err
    ran = ask("Hello there", "--bundle", str(bundle), "--json", "--guard", "monitor")
    assert "guard tiny-30, UNCALIBRATED, loaded in" in ran.err
    assert "[warning: guard bundle 'tiny-30' is UNCALIBRATED" in ran.err
    assert json.loads(ran.out)["guard"]["calibrated"] is False
    measured = ask("Hello there", "--json")
    assert "UNCALIBRATED" not in measured.err
    assert json.loads(measured.out)["guard"]["calibrated"] is True


def test_a_language_that_the_guard_was_not_measured_on_is_told_in_a_line(
    guarded_tiny: GuardedTiny, ask: Ask
):
    bundle = guarded_tiny.bundle(QUIET, languages=("en", "de"))
    notice = "[This guard was measured on English and German; it may miss harm asked in Spanish.]"
    spanish = "¿Cómo hago pan en casa sin levadura?"
    told = ask(spanish, "--bundle", str(bundle))
    assert told.err.splitlines().count(notice) == 1
    assert told.out == ask(spanish).out
    for question in ("Wie backe ich zu Hause ein Brot?", "How do I bake bread at home?"):
        assert "measured on" not in ask(question, "--bundle", str(bundle)).err
    assert ask(spanish, "--bundle", str(bundle), "--quiet").err == ""
    assert "measured on" not in ask(spanish, "--bundle", str(bundle), "--guard", "off").err
    assert "measured on" not in ask(spanish).err  # whose bundle does not say


def test_an_answer_in_any_script_reaches_an_ascii_terminal(
    guarded_tiny: GuardedTiny, tmp_path: Path, start_ask: StartAsk
):
    parts = replace(guarded_tiny.parts(bias=ALARMED), refusal_text="Nein – не могу, 抱歉.")
    bundle = write_bundle(tmp_path / "bundle", parts)
    for arguments in ([], ["--json"]):
        running = start_ask(
            "Hello there",
            *("--bundle", str(bundle), *arguments),
            environment={"PYTHONIOENCODING": "ascii"},
        )
        out, err = running.finish()
        assert running.process.returncode == OK, err
        assert b"Traceback" not in err
        if arguments:
            assert json.loads(out)["text"] == parts.refusal_text
        else:
            assert out.startswith(b"Nein \\u2013 \\u043d")


def test_the_interrupt_handler_is_as_it_was(ask: Ask):
    def mine(_signal: int, _frame: object) -> None: ...

    previous = signal.signal(signal.SIGINT, mine)
    try:
        for arguments in (["Hello there"], [" "]):
            ask(*arguments)
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_trace_that_cannot_be_written_is_bad_input(ask: Ask, tmp_path: Path):
    for place in (tmp_path, tmp_path / "missing" / "trace.jsonl", Path(os.devnull) / "x"):
        ran = ask("Hello there", "--trace", str(place))
        assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
        (line,) = ran.err.splitlines()
        assert str(place) in line


def test_an_engine_of_its_own_process_answers_the_same(ask: Ask):
    here, there = (ask("Hello there", "--json", *more) for more in (("--no-isolate",), ()))
    assert there.exit_code == OK
    values = [json.loads(ran.out) for ran in (here, there)]
    for value in values:
        del value["timings"]
    assert values[0] == values[1]
    assert "loaded in" in there.err


def test_an_error_in_the_engines_process_is_told_as_ever(ask: Ask):
    ran = ask("word " * 600)
    assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
    assert ran.err.startswith("safesteer-edge: ") and ran.err.count("\n") == 1


def test_reasoning_goes_to_stderr_and_into_the_json(ask: Ask, tmp_path: Path):
    model = write_tiny_llama(tmp_path / "thinking.gguf", chat_template=templates.QWEN35)
    ran = ask("Hello there", "--model", str(model))
    assert ran.out == "\n"
    assert len(ran.err.splitlines()) >= 2
    value = json.loads(ask("Hello there", "--model", str(model), "--json", "--quiet").out)
    assert value["text"] == ""
    assert value["reasoning"] != ""
    value = json.loads(
        ask("Hello there", "--model", str(model), "--json", "--quiet", "--no-think").out
    )
    assert value["reasoning"] is None
    assert value["text"] != ""


def test_a_model_whose_template_cannot_turn_thinking_off_is_refused(ask: Ask):
    ran = ask("Hello there", "--no-think")
    assert ran.exit_code == BAD_INPUT
    assert ran.err.count("\n") == 1
    assert "cannot turn thinking off" in ran.err


def test_an_answer_under_a_schema_is_json_and_a_refusal_is_not_in_it(
    ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path
):
    path = tmp_path / "schema.json"
    path.write_text(
        '{"type": "object", "properties": {"a": {"enum": ["x", "yes"]}}, "required": ["a"]}'
    )
    flags = ["--json-schema", str(path), "--max-tokens", "60"]
    ran = ask("Hello there", "--bundle", str(guarded_tiny.bundle(QUIET)), *flags)
    assert ran.exit_code == OK and json.loads(ran.out)["a"] in ("x", "yes")
    ran = ask("Hello there", "--bundle", str(guarded_tiny.bundle(ALARMED)), *flags)
    assert REFUSAL_TEXT not in ran.out and "refused by the guard" in ran.err


def test_a_saved_chat_goes_on_with_a_question(
    ask: Ask, guarded_tiny: GuardedTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert "no chat to continue" in ask("-c", "And then?").err
    bundle = guarded_tiny.bundle(QUIET)
    with opened(guarded_tiny, bundle) as session:
        expected = [asked(session, text).text for text in ("Hello there", "And then?", "Why?")]
        session.reset()
        chat = RecordedChat(session, ChatStore())
        assert list(chat.ask("Hello there"))
        chat.close()
    (kept,) = ChatStore().list()
    assert ask("-c", "And then?").out == f"{expected[1]}\n"
    assert ask("--resume", kept.id, "Why?").out == f"{expected[2]}\n"
    branch = ChatStore().read(kept.id).branch()
    assert [entry.text for entry in branch][1::2] == expected
    ran = ask("-c", "-s", "Be brief.", "Hm?")
    assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
    assert "its own system prompt" in ran.err
    assert len(ChatStore().list()) == 1
