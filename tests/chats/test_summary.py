"""Which summaries tell enough, and what stands in the place of those that do not."""

from __future__ import annotations

import pytest

from safesteer_edge.chats.chat_log import (
    FIRST_WORDS,
    SUMMARY_QUESTION,
    ChatEntry,
    first_words,
    tells_enough,
)


def branch(*texts: str) -> list[ChatEntry]:
    return [
        ChatEntry(f"m{i}", None, "assistant" if i % 2 else "user", 0.0, text)
        for i, text in enumerate(texts)
    ]


TRIP = branch(
    "I have 24 pupils. Which aquarium is near?",
    "The one in Porto.",
    "How do octopuses hide?",
    "By their colour. They can also squeeze into cracks.",
    "好的。章鱼吃什么？",
    "螃蟹和贝类。",
    "And then?",
    "That is all.",
)


@pytest.mark.parametrize(
    ("summary", "tells"),
    [
        ("You asked for an aquarium in Porto and how octopuses hide.", True),
        ("24 of you go.", True),  # one of three: the last question has nothing to go by
        ("章鱼。", True),
        ("I am glad that you asked. I am glad.", False),
        ("", False),
    ],
)
def test_a_summary_tells_something_of_a_third_of_the_questions(summary: str, tells: bool):
    assert tells_enough(summary, TRIP) is tells
    assert tells_enough("Anything.", branch(SUMMARY_QUESTION, "An earlier one.", "Hm?", "Yes."))


def test_first_words_are_whole_questions_and_first_sentences():
    assert first_words(TRIP, 4096).splitlines() == [
        FIRST_WORDS,
        "- asked: I have 24 pupils. Which aquarium is near?",
        "  said: The one in Porto.",
        "- asked: How do octopuses hide?",
        "  said: By their colour. They can also squeeze into cracks.",
        "- asked: 好的。章鱼吃什么？",
        "  said: 螃蟹和贝类。",
        "- asked: And then?",
        "  said: That is all.",
    ]


@pytest.mark.parametrize("n_turns", [1, 30, 500])
@pytest.mark.parametrize("word", ["word ", "章鱼"])
def test_first_words_take_half_as_many_bytes_as_the_context_has_tokens(n_turns: int, word: str):
    turns = branch(*[word * 400] * 2 * n_turns)
    text = first_words(turns, 4096)
    assert len(text.encode()) < 2048 + 150
    assert text.count("- asked:") == min(n_turns, 40)
    assert ("460 before these are left out" in text) is (n_turns == 500)
