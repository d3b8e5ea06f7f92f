"""A model's own chat template, rendered in a child process under limits.

A template is a program that came with a downloaded file. What it may do is bounded three times:
by jinja2's immutable sandbox, by the child's resource limits, and by a deadline here. What it may
see is bounded in prompt_parts.py: placeholders, never the words of the conversation.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from safesteer_edge.errors import TemplateError
from safesteer_edge.processes.child import ConfinedChild
from safesteer_edge.templates.conversation import Role
from safesteer_edge.templates.reasoning import ReasoningStyle, reasoning_style

# Ends the message of every template error: what the user can do.
TEMPLATE_ADVICE = "choose a known-good one with --chat-template builtin:chatml"


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What an untrusted template may use."""

    render_s: float = 5.0  # wall-clock time of one render
    start_s: float = 30.0  # of starting the child: a cold disk or a virus scanner may be slow
    memory_bytes: int = 512 << 20
    source_chars: int = 256 << 10
    output_chars: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """The template failed on these messages, and may take others (`raise_exception`, mostly)."""

    message: str


class TemplateProcess(ConfinedChild):
    """One child process that renders one template. Not thread-safe."""

    def __init__(self, load_request: dict[str, Any], *, name: str, limits: TemplateLimits) -> None:
        """Start the child and hand it the template, without waiting for either.

        name: for messages, e.g. the file that the template is from.
        """
        self._name = name
        self._limits = limits
        self._is_loaded = False
        try:
            super().__init__(
                "safesteer_edge.templates.template_worker:TemplateWorker",
                {"render_s": limits.render_s},
                packages=("jinja2", "markupsafe"),
                memory_bytes=limits.memory_bytes,
                max_reply_bytes=4 * limits.output_chars,
            )
        except (OSError, ModuleNotFoundError) as error:
            raise TemplateError(
                f"cannot start the process that renders the chat template: {error}"
            ) from error
        self.send(load_request)

    def request(self, request: dict[str, Any]) -> str | Refusal:
        """Return the rendered text, or the template's refusal.

        Raises TemplateError if the template is broken or breaks a limit; the process may be dead
        then (`is_alive`). May take start_s + 2 render_s the first time, render_s later.
        """
        if not self._is_loaded:
            try:
                self._answer("start", self._limits.start_s)
                self._answer("compile", self._limits.render_s)
            except TemplateError:  # nobody would read the answer to the load request
                self.kill()
                raise
            self._is_loaded = True
        return self._answer("render", self._limits.render_s, request)

    def _answer(
        self, doing: str, limit_s: float, request: dict[str, Any] | None = None
    ) -> str | Refusal:
        """The answer to this request, or to what was sent before."""
        started_s = time.monotonic()
        try:
            if request is None:
                header, text = self.receive(limit_s)
            else:
                header, text = self.ask(request, limit_s=limit_s)
        except TimeoutError:
            raise TemplateError(
                f"chat template of {self._name!r} took more than {limit_s:g} s to {doing}; "
                f"{TEMPLATE_ADVICE}"
            ) from None
        except EOFError:
            elapsed_s = time.monotonic() - started_s
            raise TemplateError(
                f"chat template of {self._name!r} ended its process after {elapsed_s:.1f} s (it "
                f"wanted too much time or memory, more than {self._limits.memory_bytes >> 20} "
                f"MiB); {TEMPLATE_ADVICE}"
            ) from None
        if "broken" in header:
            raise TemplateError(
                f"chat template of {self._name!r} cannot be used: {header['broken']!r}; "
                f"{TEMPLATE_ADVICE}"
            )
        if "refused" in header:
            return Refusal(str(header["refused"]))
        return text.decode("utf-8", "surrogatepass")


# -- what a chat template can take, found out by rendering placeholders with it once ---------------
# Templates of text models want a message's content as a string, most multimodal ones as a list of
# parts, and some know no system role. None of them says so, and many fail silently: a list is
# printed as Python source, a string is walked as if it were parts and comes out empty.

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


_NUMBER = re.compile("N([0-9]{1,9})E")


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
        # By the secret first: a pattern with it would be compiled anew for each prompt.
        first, *others = text.split(self.secret)
        texts, numbers = [first], list[int]()
        for piece in others:
            if found := _NUMBER.match(piece):
                numbers.append(int(found[1]))
                texts.append(piece[found.end() :])
            else:  # the template changed it
                texts[-1] += self.secret + piece
        return texts, numbers


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


class ChatTemplate:
    """One template and its child process, which is started when needed and kept.

    Any thread may render; one at a time does.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        name: str,
        limits: TemplateLimits | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a template's jinja2 source, running nothing yet.

        bos_token, eos_token: their texts, "" where the vocabulary has none.
        name: what messages call it, e.g. the model's file name.
        variables: of every render, e.g. `enable_thinking`; JSON values.
        Raises TemplateError if the source is longer than the limit.
        """
        self.name = name
        self.source = source
        self.sha256 = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        self._variables = dict(variables or {})
        self._limits = limits or TemplateLimits()
        if len(source) > self._limits.source_chars:
            raise TemplateError(
                f"chat template of {name!r} is {len(source)} characters long, more than the "
                f"{self._limits.source_chars} allowed; {TEMPLATE_ADVICE}"
            )
        self._load_request = {
            "source": source,
            "special_tokens": {"bos_token": bos_token, "eos_token": eos_token},
            "max_output": self._limits.output_chars,
        }
        self._lock = threading.Lock()
        self._process: TemplateProcess | None = None
        self._features: TemplateFeatures | None = None

    def start(self) -> None:
        """Start the child without waiting for it (about 0.1 s), to overlap with other loading."""
        with self._lock:
            self._running_process()

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """Return the prompt that the template makes of the messages.

        messages, tools: as transformers takes them, `{"role": …, "content": …}`.
        Raises TemplateError if the template refuses the messages, is broken, or breaks a limit.
        """
        result = self.try_render(messages, add_generation_prompt, tools)
        if isinstance(result, Refusal):
            raise TemplateError(
                f"chat template of {self.name!r} refuses this conversation: {result.message!r}; "
                f"{TEMPLATE_ADVICE}"
            )
        return result

    def try_render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
    ) -> str | Refusal:
        """Do as `render`, and return a refusal of the template as a value."""
        request = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "variables": self._variables | ({"tools": tools} if tools else {}),
        }
        with self._lock:
            return self._running_process().request(request)

    def features(self) -> TemplateFeatures:
        """Return what the template can take, from test renders at the first call.

        Raises TemplateError if it does not give back the user's text in any form.
        """
        if self._features is None:
            features = probe_features(self.try_render)
            if not features.takes_role("user"):
                self.render([{"role": "user", "content": "test"}])  # its own complaint, if any
                raise TemplateError(
                    f"chat template of {self.name!r} does not show what the user says; "
                    f"{TEMPLATE_ADVICE}"
                )
            self._features = features
        return self._features

    def reasoning_style(self) -> ReasoningStyle | None:
        """Return how the model's reasoning is marked, None if the template knows of none.

        Raises TemplateError as `features` does.
        """
        style = reasoning_style(self.source)
        return style.after(self.features().opening) if style is not None else None

    def close(self) -> None:
        """End the child. Safe to call twice; a later render starts a new one."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running_process(self) -> TemplateProcess:
        if self._process is None or not self._process.is_alive:
            if self._process is not None:
                self._process.close()
            self._process = TemplateProcess(self._load_request, name=self.name, limits=self._limits)
        return self._process
