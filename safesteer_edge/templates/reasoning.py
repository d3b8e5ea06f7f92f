"""A thinking model's reasoning, told apart from its answer while the text streams in.

Each template has its own marks. Which ones is read from its source; whether the generation prompt
has already opened the reasoning (Qwen3.5, DeepSeek-R1), from what it renders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from safesteer_edge.errors import TemplateError

Part = Literal["answer", "reasoning"]


@dataclass(frozen=True, slots=True)
class ReasoningStyle:
    """The marks of one kind of template.

    opening, closing: around the reasoning, at the answer's beginning and nowhere else.
    channels: marks that may come anywhere, and what follows each; None: nothing that is shown.
        A style has these or the former.
    is_open: an answer begins inside its reasoning.
    """

    opening: str = ""
    closing: str = ""
    channels: Mapping[str, Part | None] | None = None
    is_open: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.channels) if self.channels else (self.opening, self.closing)

    def after(self, prompt: str) -> ReasoningStyle:
        """This style, open where what follows a prompt's last text is reasoning already."""
        is_open = not self.channels and prompt.rfind(self.opening) > prompt.rfind(self.closing)
        return replace(self, is_open=is_open)

    def split(self, text: str, *, is_over: bool = True) -> tuple[str | None, str]:
        """Return the reasoning, None if there is none, and the answer of a whole text.

        is_over: False for one that may go on: what may yet become a mark is in neither.
        """
        splitter = ReasoningSplitter(self)
        pieces = [*splitter.feed(text), *(splitter.finish() if is_over else ())]
        reasoning = "".join(piece.text for piece in pieces if piece.part == "reasoning")
        answer = "".join(piece.text for piece in pieces if piece.part == "answer")
        return reasoning.strip("\n") if splitter.has_reasoning else None, answer

    @property
    def answer_opening(self) -> str:
        """What has to come before words that are meant as an answer: the template's own marks."""
        return f"{self.closing}\n\n" if self.is_open else ""


_HARMONY = ReasoningStyle(
    channels={
        "<|channel|>analysis<|message|>": "reasoning",
        "<|channel|>commentary<|message|>": "reasoning",
        "<|channel|>final<|message|>": "answer",
        "<|end|>": None,
        "<|start|>assistant": None,
    }
)
_THINKING_VARIABLES = ("enable_thinking", "thinking")  # Qwen3 and most; DeepSeek V3.1, Granite
# What the template's source shows, the more special first.
_STYLES: tuple[tuple[str, ReasoningStyle], ...] = (
    ("<|channel|>", _HARMONY),  # gpt-oss
    ("<|channel>thought", ReasoningStyle("<|channel>thought", "<channel|>")),  # Gemma 4
    ("</seed:think>", ReasoningStyle("<seed:think>", "</seed:think>")),
    ("[/THINK]", ReasoningStyle("[THINK]", "[/THINK]")),  # Mistral
    ("<|END_THINKING|>", ReasoningStyle("<|START_THINKING|>", "<|END_THINKING|>")),  # Cohere
    ("</think>", ReasoningStyle("<think>", "</think>")),  # Qwen3, DeepSeek-R1, SmolLM3, LFM2.5 …
)


def reasoning_style(template_source: str) -> ReasoningStyle | None:
    """Return the marks that a template's model writes around its reasoning; None: it has none."""
    return next((style for sign, style in _STYLES if sign in template_source), None)


def thinking_variables(
    template_source: str, thinking: bool | None, *, name: str
) -> dict[str, bool]:
    """Return the template variable that turns thinking on or off; None leaves it to the template.

    name: what messages call the template. Raises TemplateError if it has no such variable.
    """
    if thinking is None:
        return {}
    for variable in _THINKING_VARIABLES:
        if re.search(rf"{{%-?[^%]*\b{variable}\b", template_source):
            return {variable: thinking}
    raise TemplateError(
        f"chat template of {name!r} cannot turn thinking {'on' if thinking else 'off'}: it knows "
        f"neither of {', '.join(_THINKING_VARIABLES)}; leave --think and --no-think out"
    )


def thought_label(reasoning: str) -> str:
    """Return the line that stands for reasoning which is folded away."""
    n_words = len(reasoning.split())
    return f"thought for {n_words:,} word{'' if n_words == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text of one part. start: its place in the text that was fed, marks and all."""

    part: Part
    text: str
    start: int


class ReasoningSplitter:
    """Feed it an answer as it streams; the pieces are the same however the text is cut.

    Marks are left out, and the line breaks behind them. What may yet become a mark is held back.
    """

    def __init__(self, style: ReasoningStyle) -> None:
        self._style = style
        self._part: Part | None = "reasoning" if style.is_open else "answer"
        self._held = ""
        self._start = 0  # of what is held
        self._has_said_answer = False
        self._is_behind_mark = style.is_open
        self.has_reasoning = style.is_open

    def feed(self, text: str) -> list[TextPiece]:
        """Return what is certain now."""
        self._held += text
        pieces: list[TextPiece] = []
        while True:
            found = self._next_mark()
            if found is None:
                self._release(pieces, len(self._held) - self._n_undecided())
                return pieces
            place, mark = found
            if self._style.channels or self._part == "reasoning":
                self._release(pieces, place)
            else:
                self._drop(place)  # white space before an answer's first word
            self._drop(len(mark))
            self._enter(mark)

    def finish(self) -> list[TextPiece]:
        """Return what was held back: no more text will come."""
        pieces: list[TextPiece] = []
        self._release(pieces, len(self._held))
        return pieces

    def _marks_now(self) -> tuple[str, ...]:
        style = self._style
        if style.channels:
            return style.marks
        if self._part == "reasoning":
            return (style.closing,)
        return () if self._has_said_answer or self.has_reasoning else (style.opening,)

    def _next_mark(self) -> tuple[int, str] | None:
        places = [(self._held.find(mark), mark) for mark in self._marks_now()]
        found = min(((place, mark) for place, mark in places if place >= 0), default=None)
        if found is None or self._style.channels or self._part == "reasoning":
            return found
        # An answer that speaks of <think> is no reasoning: the mark must be the first word.
        return found if not self._held[: found[0]].strip() else None

    def _n_undecided(self) -> int:
        """Characters at the end that may be the beginning of a mark, or white space before one."""
        marks = self._marks_now()
        if not marks:
            return 0
        if not self._style.channels and self._part == "answer":
            word = self._held.lstrip()
            return len(self._held) if marks[0].startswith(word) else 0
        longest = min(max(map(len, marks)) - 1, len(self._held))
        for n_characters in range(longest, 0, -1):
            if any(mark.startswith(self._held[-n_characters:]) for mark in marks):
                return n_characters
        return 0

    def _enter(self, mark: str) -> None:
        style = self._style
        if style.channels:
            self._part = style.channels[mark]
        else:
            self._part = "reasoning" if mark == style.opening else "answer"
        self.has_reasoning = self.has_reasoning or self._part == "reasoning"
        self._is_behind_mark = True

    def _release(self, pieces: list[TextPiece], n_characters: int) -> None:
        text = self._held[:n_characters]
        if self._is_behind_mark:
            n_breaks = len(text) - len(text.lstrip("\n"))
            self._drop(n_breaks)
            text = text[n_breaks:]
        if not text:
            return
        self._is_behind_mark = False
        if self._part is not None:
            pieces.append(TextPiece(self._part, text, self._start))
            self._has_said_answer = self._has_said_answer or self._part == "answer"
        self._drop(len(text))

    def _drop(self, n_characters: int) -> None:
        self._held = self._held[n_characters:]
        self._start += n_characters
