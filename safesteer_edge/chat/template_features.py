"""What a chat template can take, found out by rendering placeholders with it once.

Templates of text models want a message's content as a string, most multimodal ones as a list of
parts, and some know no system role. None of them says so, and many fail silently: a list is
printed as Python source, a string is walked as if it were parts and comes out empty.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safesteer_edge.chat.conversation import Role
from safesteer_edge.chat.template_process import Refusal

# (messages, add_generation_prompt) -> text
RenderMessages = Callable[[list[dict[str, Any]], bool], "str | Refusal"]


@dataclass(frozen=True, slots=True)
class TemplateFeatures:
    """What came out of the test renders.

    string_roles: roles whose content may be a string; parts_roles: a list of parts. A system role
        that is in neither is not known to the template.
    answer_padding: white space that the template puts in front of an answer in the history, but
        not at the end of the generation prompt (Llama 2: one space).
    opening: what the generation prompt has behind the last text, up to where an answer begins.
    """

    string_roles: frozenset[Role]
    parts_roles: frozenset[Role]
    answer_padding: str
    opening: str

    def takes_role(self, role: Role) -> bool:
        """Whether a message of that role comes out, in one form or the other."""
        return role in self.string_roles or role in self.parts_roles

    def takes_string(self, role: Role) -> bool:
        """Whether that role's content is given as a string unless it has to be parts."""
        return role in self.string_roles or role not in self.parts_roles


@dataclass(frozen=True, slots=True)
class Placeholders:
    """Words that nobody can guess, one for each number."""

    secret: str

    @classmethod
    def new(cls) -> Placeholders:
        """Draw a new secret of 128 bits."""
        return cls(secrets.token_hex(16))

    def word(self, number: int) -> str:
        """Return the placeholder of that number: letters and digits alone."""
        return f"{self.secret}N{number}E"

    def split(self, text: str) -> tuple[list[str], list[int]]:
        """Return the n + 1 texts around the n placeholders found, and their numbers."""
        pieces = re.split(self.secret + "N([0-9]{1,9})E", text)
        return pieces[::2], [int(number) for number in pieces[1::2]]


def probe_features(render: RenderMessages) -> TemplateFeatures:
    """Find out what a template takes, with up to eight renders (about a millisecond each)."""
    string_roles: set[Role] = set()
    parts_roles: set[Role] = set()
    words = Placeholders.new()
    user_content: str | list[dict[str, str]] = words.word(9)
    roles: tuple[Role, ...] = ("user", "system", "assistant")
    for role in roles:
        for content, accepted in ((words.word(0), string_roles), (_two_parts(words), parts_roles)):
            messages = _test_messages(role, content, user_content)
            if _comes_back(render(messages, False), words, is_parts=isinstance(content, list)):
                accepted.add(role)
        if role == "user" and "user" not in string_roles:
            user_content = [{"type": "text", "text": words.word(9)}]
    opening = _opening(render, words, user_content)
    padding = ""
    if "assistant" in string_roles:
        padding = _answer_padding(render, words, user_content, opening)
    return TemplateFeatures(frozenset(string_roles), frozenset(parts_roles), padding, opening)


def _two_parts(words: Placeholders) -> list[dict[str, str]]:
    return [{"type": "text", "text": words.word(number)} for number in (0, 1)]


def _test_messages(role: Role, content: Any, user_content: Any) -> list[dict[str, Any]]:
    tested = {"role": role, "content": content}
    user = {"role": "user", "content": user_content}
    if role == "user":
        return [tested]
    return [tested, user] if role == "system" else [user, tested, user]


def _comes_back(rendered: str | Refusal, words: Placeholders, *, is_parts: bool) -> bool:
    if isinstance(rendered, Refusal):
        return False
    texts, numbers = words.split(rendered)
    found = [number for number in numbers if number != 9]
    if not is_parts:
        return found == [0]
    # Between two parts stands nothing, unless the list was printed as it is: "'}, {'type': …".
    return found == [0, 1] and not texts[numbers.index(0) + 1].strip()


def _opening(render: RenderMessages, words: Placeholders, user_content: Any) -> str:
    prompt = render([{"role": "user", "content": user_content}], True)
    return "" if isinstance(prompt, Refusal) else words.split(prompt)[0][-1]


def _answer_padding(
    render: RenderMessages, words: Placeholders, user_content: Any, opening: str
) -> str:
    history = render(_test_messages("assistant", words.word(0), user_content), False)
    if not opening or isinstance(history, Refusal):
        return ""
    before_answer = words.split(history)[0][1]
    padding = before_answer[len(opening) :]
    is_padding = before_answer.startswith(opening) and padding.isspace()
    return padding if is_padding else ""
