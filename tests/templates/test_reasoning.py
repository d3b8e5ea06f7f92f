"""Reasoning is told apart from the answer, whatever the marks and however the text is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import TemplateError
from safesteer_edge.templates.reasoning import (
    ReasoningSplitter,
    ReasoningStyle,
    reasoning_style,
    thinking_variables,
)
from tests.tiny_models.families import templates

THINK = ReasoningStyle("<think>", "</think>")
HARMONY = reasoning_style(templates.GPT_OSS) or THINK
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nwhy\n</think>\n\nso", "why", "so"),
        ("\n <think>why</think>so", "why", "so"),
        ("<think>\n\n</think>\n\nso", "", "so"),
        ("<think>cut in the mid", "cut in the mid", ""),
        ("so", None, "so"),
        (" so\n", None, " so\n"),
        ("", None, ""),
        ("the tag <think> opens, </think> closes", None, "the tag <think> opens, </think> closes"),
        ("<think>a</think>then <think>b</think>", "a", "then <think>b</think>"),
        ("<thin", None, "<thin"),
        ("<think>a</thin", "a</thin", ""),
    ],
)
def test_tags_around_reasoning(text: str, reasoning: str | None, answer: str) -> None:
    assert THINK.split(text) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("why\n</think>\n\nso", "why", "so"),
        ("</think>so", "", "so"),
        ("cut in the mid", "cut in the mid", ""),
        ("", "", ""),
    ],
)
def test_a_prompt_that_opens_the_reasoning(text: str, reasoning: str, answer: str) -> None:
    assert replace(THINK, is_open=True).split(text) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        (f"{ANALYSIS}why{NEXT}{FINAL}so", "why", "so"),
        (f"{ANALYSIS}why{NEXT}{ANALYSIS} still{NEXT}{FINAL}so", "why still", "so"),
        (f"{FINAL}so", None, "so"),
        ("so", None, "so"),
        (f"{ANALYSIS}cut", "cut", ""),
    ],
)
def test_channels(text: str, reasoning: str | None, answer: str) -> None:
    assert HARMONY.split(text) == (reasoning, answer)


ALPHABET = ["<think>", "</think>", "<", "think", ">", "</", "\n", " ", "a", ANALYSIS, FINAL, NEXT]


@given(
    words=st.lists(st.sampled_from([*ALPHABET, "<|", "channel", "|>"]), max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    style=st.sampled_from([THINK, HARMONY]),
    is_open=st.booleans(),
)
def test_the_pieces_are_the_same_however_the_text_is_cut(
    words: list[str], cuts: list[int], style: ReasoningStyle, is_open: bool
) -> None:
    text = "".join(words)
    style = replace(style, is_open=is_open and style is THINK)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    splitter = ReasoningSplitter(style)
    pieces = [piece for start, end in pairwise(places) for piece in splitter.feed(text[start:end])]
    pieces += splitter.finish()
    reasoning = "".join(piece.text for piece in pieces if piece.part == "reasoning")
    answer = "".join(piece.text for piece in pieces if piece.part == "answer")
    expected_reasoning, expected_answer = style.split(text)
    assert (reasoning.strip("\n"), answer) == (expected_reasoning or "", expected_answer)
    for piece in pieces:
        assert text[piece.start : piece.start + len(piece.text)] == piece.text


@given(
    words=st.lists(st.sampled_from([*ALPHABET, "<|", "channel", "|>"]), max_size=12),
    cut=st.integers(0, 60),
    style=st.sampled_from([THINK, HARMONY]),
)
def test_a_cut_answer_and_what_goes_on_with_it_say_what_the_whole_says(
    words: list[str], cut: int, style: ReasoningStyle
) -> None:
    text = "".join(words)
    first = style.split(text[:cut], is_over=False)
    splitter = ReasoningSplitter(style)
    splitter.feed(text[:cut])
    more = [*splitter.feed(text[cut:]), *splitter.finish()]
    answer = "".join(piece.text for piece in more if piece.part == "answer")
    assert first[1] + answer == style.split(text)[1]


@pytest.mark.parametrize(
    ("source", "opening"),
    [
        (templates.QWEN3, "<think>"),
        (templates.QWEN35, "<think>"),
        ("{{ '[THINK]' + x + '[/THINK]' }}", "[THINK]"),
        ("{{ '<|channel>thought\n' + x + '<channel|>' }}", "<|channel>thought"),
        ("{{ '<|START_THINKING|>' + x + '<|END_THINKING|>' }}", "<|START_THINKING|>"),
        (templates.LFM2, None),
        (templates.GEMMA3, None),
    ],
)
def test_the_marks_are_read_from_the_template(source: str, opening: str | None) -> None:
    style = reasoning_style(source)
    assert (style.opening if style else None) == opening


def test_whether_a_prompt_ends_inside_reasoning() -> None:
    assert THINK.after("<|im_start|>assistant\n<think>\n").is_open
    assert not THINK.after("<|im_start|>assistant\n<think>\n\n</think>\n\n").is_open
    assert not THINK.after("<|im_start|>assistant\n").is_open
    assert not HARMONY.after("<|start|>assistant").is_open


@pytest.mark.parametrize(
    ("source", "variable"),
    [
        (templates.QWEN3, "enable_thinking"),
        ("{% if thinking %}<think>{% endif %}", "thinking"),
        ("{%- if not thinking is defined %}{% endif %}", "thinking"),
    ],
)
def test_the_variable_that_turns_thinking_off_is_the_templates(source: str, variable: str) -> None:
    assert thinking_variables(source, False, name="a") == {variable: False}
    assert thinking_variables(source, True, name="a") == {variable: True}
    assert thinking_variables(source, None, name="a") == {}


@pytest.mark.parametrize("source", [templates.GPT_OSS, "{{ 'I am thinking' }}"])
def test_a_template_without_such_a_variable_is_named(source: str) -> None:
    with pytest.raises(TemplateError, match="'a' cannot turn thinking on"):
        thinking_variables(source, True, name="a")
