"""A chat as its records tell it: messages in a tree, the branch that is shown, and its summary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Final

from safesteer_edge.chats.records import (
    AnswerEnded,
    ChatHeader,
    HeadMoved,
    MessageAdded,
    MessageDropped,
    ModelChanged,
    ModelUsed,
    Record,
    TextAdded,
    Titled,
)
from safesteer_edge.errors import ChatFileError
from safesteer_edge.templates.conversation import Role

MAX_TITLE_CHARACTERS: Final = 200  # of one that a user gives
_MAX_TITLE_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True)
class ChatEntry(MessageAdded):
    """One message, with what came after it was added.

    end: of an answer; None while it is told, or if it was cut off. reasoning: what a thinking model
    wrote before its answer; it is no part of the conversation.
    """

    end: AnswerEnded | None = None
    reasoning: str = ""


class ChatLog:
    """Grows by records. `apply` refuses what does not follow from what is there.

    header: as it was created. model: what answers now. updated_at: of the latest record.
    """

    def __init__(self, header: ChatHeader) -> None:
        self.header = header
        self.model: ModelUsed | None = header.model
        self.updated_at = header.at
        self.head: str | None = None
        self._title: str | None = None
        self._entries: dict[str, ChatEntry] = {}
        # Texts of answers in pieces: joining them at every piece would be quadratic.
        self._pieces: dict[str, list[TextAdded]] = {}

    @classmethod
    def of(cls, records: Iterable[Record]) -> ChatLog:
        """The chat of records, the first of which is the header. Raises ChatFileError."""
        numbered = enumerate(records, 1)
        _, header = next(numbered, (0, None))
        if not isinstance(header, ChatHeader):
            raise ChatFileError("it does not begin with a header")
        log = cls(header)
        for number, record in numbered:
            try:
                log.apply(record)
            except ChatFileError as error:
                raise ChatFileError(f"record {number}: {error}") from error
        return log

    @property
    def title(self) -> str:
        """The user's title, else the beginning of the first question."""
        if self._title is not None:
            return self._title
        first = next((entry for entry in self.entries if entry.role == "user"), None)
        if first is None:
            return "new chat"
        words = " ".join(first.text.split()) or ", ".join(item.name for item in first.media)
        if len(words) <= _MAX_TITLE_CHARACTERS:
            return words
        return words[: _MAX_TITLE_CHARACTERS - 1].rstrip() + "…"

    @property
    def entries(self) -> tuple[ChatEntry, ...]:
        """All messages of all branches, oldest first."""
        return tuple(self.entry(entry_id) for entry_id in self._entries)

    def entry(self, entry_id: str) -> ChatEntry:
        """One message. Raises ChatFileError if there is none of this id."""
        if entry_id not in self._entries:
            raise ChatFileError(f"there is no message {entry_id!r}")
        pieces = self._pieces.get(entry_id)
        if pieces:
            entry = self._entries[entry_id]
            self._entries[entry_id] = replace(
                entry,
                text=entry.text + "".join(p.text for p in pieces if p.part == "answer"),
                reasoning=entry.reasoning
                + "".join(p.text for p in pieces if p.part == "reasoning"),
            )
            pieces.clear()
        return self._entries[entry_id]

    def branch(self, end: str | None = None) -> tuple[ChatEntry, ...]:
        """The messages from the first to `end`, or to the head."""
        found: list[ChatEntry] = []
        entry_id = self.head if end is None else end
        while entry_id is not None:
            found.append(self.entry(entry_id))
            entry_id = found[-1].parent
        return tuple(reversed(found))

    def siblings(self, entry_id: str) -> tuple[ChatEntry, ...]:
        """The message and those that stand beside it: edits of a question, other answers."""
        parent = self.entry(entry_id).parent
        return tuple(entry for entry in self.entries if entry.parent == parent)

    def newest_leaf(self, entry_id: str) -> str:
        """The end of the newest branch that goes through a message."""
        while True:
            children = [entry.id for entry in self._entries.values() if entry.parent == entry_id]
            if not children:
                return entry_id
            entry_id = children[-1]

    def new_id(self) -> str:
        """An id that no message has."""
        numbers = count(len(self._entries) + 1)
        return next(name for n in numbers if (name := f"m{n}") not in self._entries)

    def apply(self, record: Record) -> None:
        """Add a record. Raises ChatFileError if it contradicts what is there."""
        match record:
            case MessageAdded():
                self._add(record)
            case TextAdded(id=entry_id):
                self._check_answer(entry_id)
                self._pieces.setdefault(entry_id, []).append(record)
            case AnswerEnded(id=entry_id):
                self._check_answer(entry_id)
                self._entries[entry_id] = replace(self.entry(entry_id), end=record)
            case MessageDropped(id=entry_id):
                self._drop(entry_id)
            case HeadMoved(id=head):
                self.head = None if head is None else self.entry(head).id
            case Titled(title=title):
                self._title = " ".join(title.split())[:MAX_TITLE_CHARACTERS] or None
            case ModelChanged(model=model):
                self.model = model
            case ChatHeader():
                raise ChatFileError("a second header")
        self.updated_at = max(self.updated_at, getattr(record, "at", self.updated_at))

    def _add(self, record: MessageAdded) -> None:
        if record.id in self._entries:
            raise ChatFileError(f"a second message {record.id!r}")
        parent = self.entry(record.parent).role if record.parent is not None else None
        allowed: dict[Role, tuple[Role | None, ...]] = {
            "system": (None,),
            "user": (None, "system", "assistant"),
            "assistant": ("user",),
        }
        if parent not in allowed[record.role]:
            raise ChatFileError(f"a {record.role} message after {parent or 'nothing'}")
        self._entries[record.id] = ChatEntry(
            record.id, record.parent, record.role, record.at, record.text, record.media
        )
        self.head = record.id

    def _check_answer(self, entry_id: str) -> None:
        if entry_id not in self._entries or self._entries[entry_id].role != "assistant":
            raise ChatFileError(f"there is no answer {entry_id!r}")

    def _drop(self, entry_id: str) -> None:
        dropped = self.entry(entry_id)
        if any(entry.parent == entry_id for entry in self._entries.values()):
            raise ChatFileError(f"message {entry_id!r} has answers and cannot go")
        del self._entries[entry_id]
        self._pieces.pop(entry_id, None)
        if self.head == entry_id:
            self.head = dropped.parent


# -- what a chat goes on from once it is summed up -------------------------------------------------

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
