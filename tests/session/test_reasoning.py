"""Thinking models: reasoning is told apart, guarded, left out of the next prompt, and optional."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from safesteer_edge.errors import TemplateError
from safesteer_edge.guard.events import Event, Refused, Step, TextDelta, TurnEnded
from safesteer_edge.session.protocol import ChatMessage
from safesteer_edge.session.session import Session, open_session
from safesteer_edge.session.turn import TurnPlan
from tests.families.family_files import FamilyFiles
from tests.guarded_tiny import ALARMED, QUIET, REFUSAL_TEXT, GuardedTiny
from tests.tiny_models import write_tiny_llama
from tests.tiny_models.families import templates
from tests.tiny_models.families.table import family_named


@contextmanager
def session_of(folder: Path, family: str, **changes: object) -> Iterator[Session]:
    files = FamilyFiles(family_named(family), folder)
    with open_session(files.settings(**{"mmproj": None, "max_tokens": 6, **changes})) as session:
        yield session


def told(events: list[Event], part: str) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta) and e.part == part)


def ended(events: list[Event]) -> TurnEnded:
    assert isinstance(events[-1], TurnEnded)
    return events[-1]


def said_by_steps(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Step))


def test_reasoning_comes_apart_from_the_answer(tmp_path: Path) -> None:
    with session_of(tmp_path, "qwen3") as session:
        events = list(session.ask("Why?", answer_prefix="<think>\nlet me see\n</think>\n\nWell"))
        turn = ended(events)
        assert turn.reasoning == "let me see"
        assert turn.text.startswith("Well")
        assert "think>" not in turn.text
        assert told(events, "reasoning").strip() == "let me see"
        assert told(events, "answer") == turn.text
        assert session.messages[-1].text == turn.text
        written = said_by_steps(events)
        for event in events:
            if isinstance(event, TextDelta):
                assert event.start is not None
                assert written[event.start :].startswith(event.text)
        message = session.conversation.messages[-1]
        assert message.reasoning == "let me see"


def test_the_next_prompt_holds_the_answer_and_not_its_reasoning(tmp_path: Path) -> None:
    with session_of(tmp_path, "qwen3") as session:
        list(session.ask("Why?", answer_prefix="<think>\nlet me see\n</think>\n\nWell"))
        pieces = map(session._runtime.model.piece, session.prompt_token_ids("Really?"))
        prompt = b"".join(pieces).decode()
        assert session.messages[-1].text in prompt
        assert "let me see" not in prompt
        assert ended(list(session.ask("Really?"))).usage.reused_tokens > 0


@pytest.mark.parametrize(
    ("family", "written", "shown"),
    [
        ("qwen3", "It writes <think>, then </think>, then so.", None),
        ("qwen3", "<think>a</think>b <think>c</think> d", "b <think>c</think> d"),
        ("qwen3", "<think>a<think>b</think>c</think> d", "c</think> d"),
        ("qwen3", "<think>a</think>\n\n<think>b</think> c", "<think>b</think> c"),
        ("qwen3", "</think> first", None),
        ("qwen35", "It writes <think>, then </think>, then so.", None),
        ("gemma3", "It writes <think>, then </think>, then so.", None),
    ],
)
def test_the_next_prompt_holds_exactly_what_was_shown(
    tmp_path: Path, family: str, written: str, shown: str | None
) -> None:
    with session_of(tmp_path, family) as session:
        events = list(session.ask("Why?", answer_prefix=written))
        text = told(events, "answer")
        assert text.strip().startswith(shown or written)
        assert ended(events).text == session.messages[-1].text == text
        pieces = map(session._runtime.model.piece, session.prompt_token_ids("Really?"))
        assert said_between(b"".join(pieces).decode("utf-8", "replace")) == text.strip()
        restored = session.messages
        session.reset()
        session.restore(restored)
        pieces = map(session._runtime.model.piece, session.prompt_token_ids("Really?"))
        assert said_between(b"".join(pieces).decode("utf-8", "replace")) == text.strip()


def said_between(prompt: str) -> str:
    """What stands between the two questions, without the words of the template."""
    between = prompt.partition("Why?")[2].partition("Really?")[0]
    words = re.split("user|assistant|model", between)
    return "".join(words).strip()


def test_an_answer_that_is_cut_within_a_mark_shows_and_keeps_what_is_certain(
    tmp_path: Path,
) -> None:
    with session_of(tmp_path, "qwen3") as session:
        events: list[Event] = []
        for event in session.ask("Why?", answer_prefix="<thin"):
            events.append(event)
            if said_by_steps(events) == "<thin":
                session.cancel()
        assert ended(events).finish_reason == "cancelled"
        assert told(events, "answer") == ended(events).text == session.messages[-1].text == ""
        events = list(session.continue_answer())
        assert ended(events).text == told(events, "answer") == session.messages[-1].text
        assert ended(events).text.startswith("<thin")


def test_an_answer_without_reasoning_keeps_its_tokens(tmp_path: Path) -> None:
    with session_of(tmp_path, "qwen3") as session:
        first = ended(list(session.ask("Why?")))
        assert first.reasoning is None
        second = ended(list(session.ask("Really?")))
        n_first = first.usage.prompt_tokens + first.usage.completion_tokens
        assert second.usage.reused_tokens == n_first


def test_a_prompt_that_opens_the_reasoning_makes_all_of_it_reasoning_until_closed(
    tmp_path: Path,
) -> None:
    with session_of(tmp_path, "qwen35") as session:
        events = list(session.ask("Why?"))
        turn = ended(events)
        assert turn.text == told(events, "answer") == ""
        assert turn.reasoning == told(events, "reasoning").strip("\n") != ""
        session.reset()
        prefixed = ended(list(session.ask("Why?", answer_prefix="Well")))
        assert prefixed.text.startswith("Well")
        assert prefixed.reasoning == ""


def test_thinking_is_turned_off_through_the_template(tmp_path: Path) -> None:
    with session_of(tmp_path, "qwen35", thinking=False) as session:
        turn = ended(list(session.ask("Why?")))
    assert turn.reasoning is None
    assert turn.text != ""


def test_a_preference_is_followed_where_the_template_can(tmp_path: Path) -> None:
    with session_of(tmp_path, "qwen35", prefers_thinking=False) as session:
        assert ended(list(session.ask("Why?"))).reasoning is None
    with session_of(tmp_path, "qwen35", prefers_thinking=False, thinking=True) as session:
        assert ended(list(session.ask("Why?"))).reasoning is not None
    with session_of(tmp_path, "gemma3", prefers_thinking=False) as session:
        assert ended(list(session.ask("Why?"))).text


def test_a_template_that_cannot_turn_it_off_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(TemplateError, match="cannot turn thinking off: it knows neither of"),
        session_of(tmp_path, "gemma3", thinking=False),
    ):
        pass


def test_channels_are_control_tokens_and_never_shown(tmp_path: Path) -> None:
    with session_of(tmp_path, "gpt-oss") as session:
        model = session._runtime.model
        opened = "<|channel|>analysis<|message|>let me see<|end|>"
        given = model.tokenize_trusted(f"{opened}<|start|>assistant<|channel|>final<|message|>Well")
        asked = session._with_question(ChatMessage("user", "Why?"), None)
        items, _ = session._to_items(asked.conversation)
        plan = TurnPlan(asked, asked.conversation, items, [], {}, time.perf_counter(), tuple(given))
        events = list(session._run(plan))
        turn = ended(events)
        assert turn.reasoning == told(events, "reasoning") == "let me see"
        assert turn.text.startswith("Well")
        assert "<|" not in turn.text
        pieces = map(model.piece, session.prompt_token_ids("Really?"))
        assert "let me see" not in b"".join(pieces).decode()


@pytest.mark.parametrize("is_restored", [False, True])
def test_a_cut_answer_goes_on_in_its_own_part(tmp_path: Path, is_restored: bool) -> None:
    with session_of(tmp_path, "qwen35") as session:
        first = ended(list(session.ask("Why?", answer_prefix="Well")))
        if is_restored:
            question, answer = session.messages
            session.reset()
            session.restore([question, replace(answer)])
        events = list(session.continue_answer())
        assert ended(events).text == first.text + told(events, "answer")
        assert told(events, "reasoning") == ""


def test_cut_reasoning_goes_on_as_reasoning(tmp_path: Path) -> None:
    with session_of(tmp_path, "qwen35") as session:
        first = ended(list(session.ask("Why?")))
        events = list(session.continue_answer())
        assert first.reasoning is not None
        assert ended(events).reasoning == (first.reasoning + told(events, "reasoning"))
        assert told(events, "answer") == ""


@pytest.fixture
def thinking_tiny(guarded_tiny: GuardedTiny, tmp_path: Path) -> Path:
    """The guarded tiny model, with a template that opens the reasoning; its bundles fit it."""
    return write_tiny_llama(tmp_path / "thinking.gguf", chat_template=templates.QWEN35)


def test_reasoning_is_guarded_as_the_answer_is(
    guarded_tiny: GuardedTiny, thinking_tiny: Path
) -> None:
    settings = guarded_tiny.settings(guarded_tiny.bundle(ALARMED), model=str(thinking_tiny))
    with open_session(settings) as session:
        events = list(session.ask("Why?"))
        turn = ended(events)
        refusals = [event for event in events if isinstance(event, Refused)]
        assert len(refusals) == 1
        assert turn.finish_reason == "refused"
        assert turn.text == REFUSAL_TEXT
        assert session.messages[-1] == ChatMessage("assistant", REFUSAL_TEXT, risk=turn.guard.risk)
        pieces = map(session._runtime.model.piece, session.prompt_token_ids("Really?"))
        assert REFUSAL_TEXT in b"".join(pieces).decode()


def test_every_token_of_the_reasoning_is_scored(
    guarded_tiny: GuardedTiny, thinking_tiny: Path
) -> None:
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET), model=str(thinking_tiny))
    with open_session(settings) as session:
        events = list(session.ask("Why?"))
    steps = [event for event in events if isinstance(event, Step)]
    assert steps
    assert all(step.score is not None for step in steps)
    assert ended(events).reasoning
