"""Answers that must be JSON of a schema, or call a tool, guarded as any: on the real engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Refused, Steered, Step, TextDelta, TurnEnded
from safesteer_edge.session.isolated_session import open_isolated_session
from tests.guarded_tiny import (
    ALARMED,
    GREEDY,
    PATIENT_POLICY,
    POLICY,
    QUIET,
    WAVERING,
    GuardedTiny,
)
from tests.session.turns import ask, opened

QUESTION = "Hello there"
# Short enough that a random model comes to its end.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["apple", "pear"]},
        "n": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3},
    },
    "required": ["kind", "n"],
}
TOOLS: list[dict[str, Any]] = [
    {"name": "weather", "description": "How it is", "parameters": SCHEMA},
    {"name": "now"},
]
OPENING = "Sorry, I would rather not."


def check(text: str) -> None:
    told = json.loads(text)
    assert list(told) == ["kind", "n"]
    assert told["kind"] in ("apple", "pear")
    assert [type(each) for each in told["n"]] == [bool] * 3


def test_an_answer_under_a_schema_is_json_of_it_and_ends(guarded_tiny: GuardedTiny):
    for bundle in (None, guarded_tiny.bundle(QUIET), guarded_tiny.bundle(WAVERING, PATIENT_POLICY)):
        with opened(guarded_tiny, bundle, max_tokens=100) as session:
            turn = ask(session, QUESTION, json_schema=SCHEMA)
            check(turn.text)
            assert turn.ended.finish_reason == "stop"
            # The next one is free again.
            assert not ask(session, QUESTION).text.startswith("{")


def test_it_is_the_same_in_a_process_of_its_own(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    with opened(guarded_tiny, bundle, max_tokens=100) as session:
        expected = ask(session, QUESTION, json_schema=SCHEMA).text
    with open_isolated_session(guarded_tiny.settings(bundle, max_tokens=100)) as isolated:
        assert isolated.answer(QUESTION, json_schema=SCHEMA).text == expected
        with pytest.raises(InputError, match="cannot call tools"):
            isolated.answer(QUESTION, tools=TOOLS)


def test_a_refused_one_stops_inside_its_json_and_no_opening_joins(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    policy = replace(POLICY, retries=2)
    parts = guarded_tiny.parts(bias=ALARMED, policy=policy)
    write_bundle(tmp_path / "bundle", replace(parts, openings=(OPENING,)))
    with opened(guarded_tiny, tmp_path / "bundle", max_tokens=100) as session:
        events = list(session.ask(QUESTION, json_schema=SCHEMA))
        steered = [event for event in events if isinstance(event, Steered)]
        (refused,) = [event for event in events if isinstance(event, Refused)]
        assert len(steered) == 2
        assert not any(event.opening for event in events if isinstance(event, Step))
        assert isinstance(events[-1], TurnEnded)
        assert events[-1].text.endswith(refused.text.strip())
        assert events[-1].finish_reason == "refused"
        # Without a form the opening does join.
        session.reset()
        assert any(event.opening for event in session.ask(QUESTION) if isinstance(event, Step))


def test_an_answer_that_was_steered_anew_is_still_json_of_its_schema(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    n_steered = n_taken_back = 0
    for risk_limit in (0.4, 0.5, 0.6, 0.7):
        policy = replace(
            POLICY, risk_limit=risk_limit, risk_min_steps=2, hard_patience=1024, retries=8
        )
        folder = tmp_path / f"bundle-{risk_limit}"
        write_bundle(folder, guarded_tiny.parts(bias=-1.0, policy=replace(policy, strength=2.0)))
        for seed in range(6):
            sampling = replace(GREEDY, temperature=1.0, seed=seed)
            with opened(guarded_tiny, folder, max_tokens=100, sampling=sampling) as session:
                events = list(session.ask(f"{QUESTION} {seed}", json_schema=SCHEMA))
            taken_back = [e.n_tokens_taken_back for e in events if isinstance(e, Steered)]
            ended = events[-1]
            assert isinstance(ended, TurnEnded)
            if ended.refusal is None:
                check(ended.text)
                n_steered += bool(taken_back)
                n_taken_back += sum(taken_back)
            shown = "".join(event.text for event in events if isinstance(event, TextDelta))
            assert ended.text.startswith(shown)
    assert n_steered and n_taken_back  # else nothing is shown by this


# -- tools -----------------------------------------------------------------------------------------


def test_a_call_that_is_required_is_one_of_the_tools_in_the_templates_form(
    calling_tiny: GuardedTiny,
):
    with opened(calling_tiny, calling_tiny.bundle(QUIET), max_tokens=100, n_ctx=2048) as session:
        tool_format = session.info.tool_format
        assert tool_format is not None
        for choice in ("required", "weather", "now"):
            told = ask(session, QUESTION, tools=TOOLS, tool_choice=choice).text
            assert told.startswith("<tool_call>\n") and told.endswith("\n</tool_call>")
            (call,) = tool_format.read(told[12:-13])
            assert call.name in ("weather", "now") if choice == "required" else choice
            if call.name == "weather":
                check(call.arguments)


def test_an_answer_may_be_json_or_a_call(calling_tiny: GuardedTiny):
    with opened(calling_tiny, calling_tiny.bundle(QUIET), max_tokens=100, n_ctx=2048) as session:
        told = ask(session, QUESTION, tools=TOOLS, json_schema=SCHEMA).text
        if not told.startswith("<tool_call>\n"):
            check(told)


def test_a_prompt_offers_the_tools_of_its_own_question_alone(calling_tiny: GuardedTiny):
    with opened(calling_tiny, None, n_ctx=2048) as session:
        without = ask(session, QUESTION).prefill.n_prompt_tokens
        session.reset()
        turn = ask(session, QUESTION, tools=TOOLS)
        assert turn.prefill.n_prompt_tokens > without + 300
        session.reset()
        assert ask(session, QUESTION).prefill.n_prompt_tokens == without


def test_what_cannot_be_asked_is_named(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        asked: list[tuple[Any, str]] = [
            ({"tools": TOOLS}, "cannot call tools"),
            ({"json_schema": {"type": "strange"}}, "JSON schema"),
            ({"json_schema": SCHEMA, "answer_prefix": "{"}, "given words"),
            ({"json_schema": {"const": {1}}}, "no JSON value"),
            ({"tools": [*TOOLS, {"name": "now"}]}, "one name"),
            ({"tools": TOOLS, "tool_choice": "then"}, "'then'"),
            ({"tools": [{"nam": "now"}]}, "did you mean 'name'"),
        ]
        for options, named in asked:
            with pytest.raises(InputError, match=named):
                list(session.ask(QUESTION, **options))
        assert session.messages == ()
