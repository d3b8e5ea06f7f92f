"""What a chat goes on from once it is summed up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from safesteer_edge.chats.chat_log import ChatEntry

# A question that sums up: what is before it leaves the conversation, and stays in the file.
SUMMARY_QUESTION: Final = (
    "Sum up our conversation so far, so that we can go on from your summary alone: what I asked, "
    "what you answered, and all names, numbers and decisions. Write nothing but the summary."
)
FIRST_WORDS: Final = "What was said so far, in the first words of each question and answer:"

# What tells what a question is about: numbers, longer words, any two characters without spaces.
_TELLING = re.compile(r"(?=([\u3040-\ud7ff]{2}))|(\d{2,}|[^\W\d_\u3040-\ud7ff]{5,})")
_SENTENCE_ENDS = re.compile(r"[.!?](?=\s)|[。！？]")
_MOST_BYTES, _FEWEST_BYTES = 300, 12
_MARK_BYTES = 13  # of "- asked: ", the line break and "…"
_GREETING = 20  # characters; a shorter first sentence tells nothing


def is_summed_up(branch: Sequence[ChatEntry]) -> bool:
    """Whether it begins with that question and a summary."""
    if len(branch) < 2 or branch[0].text != SUMMARY_QUESTION:
        return False
    end = branch[1].end
    return bool(branch[1].text) and end is not None and end.reason in ("stop", "length", "loop")


def tells_enough(summary: str, branch: Sequence[ChatEntry]) -> bool:
    """Whether a summary has something of a third of the questions.

    The embedded default's has not: after ten turns it repeats its last answer, however it is asked.
    """
    questions = [_TELLING.findall(question.text.casefold()) for question, _ in _turns(branch)]
    told = [
        any((pair or word) in summary.casefold() for pair, word in telling)
        for telling in questions
        if telling
    ]
    return 3 * sum(told) >= len(told)


def first_words(branch: Sequence[ChatEntry], n_ctx: int) -> str:
    """Questions and answers by their first words, fewer the more there are.

    Takes half as many bytes as the context has tokens: so much fits in any language. Where not
    even a few words of each do, the oldest are left out.
    """
    turns, n_bytes = _turns(branch), n_ctx // 4  # for questions, and as many for answers
    newest = turns[-max(1, n_bytes // (_FEWEST_BYTES + _MARK_BYTES)) :]
    n_each = min(_MOST_BYTES, n_bytes // max(1, len(newest)) - _MARK_BYTES)
    lines = [FIRST_WORDS]
    if len(newest) < len(turns):
        lines.append(f"({len(turns) - len(newest)} before these are left out)")
    for question, answer in newest:
        names = "".join(f"[{item.kind} {item.name!r}] " for item in question.media)
        sentence = _SENTENCE_ENDS.search(answer.text, _GREETING)
        said = answer.text[: sentence.end()] if sentence else answer.text
        lines.append(f"- asked: {_cut(names + question.text, n_each)}")
        lines.append(f"  said: {_cut(said, n_each)}")
    return "\n".join(lines)


def _turns(branch: Sequence[ChatEntry]) -> list[tuple[ChatEntry, ChatEntry]]:
    """Questions and answers, without those that summed up."""
    return [
        (question, answer)
        for question, answer in pairwise(branch)
        if question.role == "user" and answer.role == "assistant"
        if answer.text and question.text != SUMMARY_QUESTION
    ]


def _cut(text: str, n_bytes: int) -> str:
    line = " ".join(text.split())
    kept = line.encode()[:n_bytes].decode(errors="ignore")
    return kept if kept == line else f"{kept.rstrip()}…"
