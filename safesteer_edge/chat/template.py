"""A model's own chat template, rendered in a child process under limits.

A template is a program that came with a downloaded file. What it may do is bounded three times:
by jinja2's immutable sandbox, by the child's resource limits, and by a deadline here. What it may
see is bounded in prompt_parts.py: placeholders, never the words of the conversation.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from safesteer_edge.chat.reasoning import ReasoningFormat, reasoning_style
from safesteer_edge.chat.template_features import TemplateFeatures, probe_features
from safesteer_edge.chat.template_process import (
    TEMPLATE_ADVICE,
    Refusal,
    TemplateLimits,
    TemplateProcess,
)
from safesteer_edge.errors import TemplateError


class ChatTemplate:
    """One template and its child process, which is started when needed and kept.

    Any thread may render; one at a time does.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        name: str,
        limits: TemplateLimits,
        variables: Mapping[str, Any],
    ) -> None:
        self.name = name
        self._variables = dict(variables)
        self.source = source
        self.sha256 = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        self._limits = limits
        self._load_request = {
            "source": source,
            "special_tokens": dict(special_tokens),
            "max_output": limits.output_chars,
        }
        self._lock = threading.Lock()
        self._process: TemplateProcess | None = None
        self._features: TemplateFeatures | None = None

    @classmethod
    def from_source(
        cls,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        name: str,
        limits: TemplateLimits | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> ChatTemplate:
        """Make a template from its jinja2 source, running nothing yet.

        bos_token, eos_token: their texts, "" where the vocabulary has none.
        name: what messages call it, e.g. the model's file name.
        variables: of every render, e.g. `enable_thinking`; JSON values.
        Raises TemplateError if the source is longer than the limit.
        """
        limits = limits or TemplateLimits()
        if len(source) > limits.source_chars:
            raise TemplateError(
                f"chat template of {name!r} is {len(source)} characters long, more than the "
                f"{limits.source_chars} allowed; {TEMPLATE_ADVICE}"
            )
        special_tokens = {"bos_token": bos_token, "eos_token": eos_token}
        return cls(
            source,
            special_tokens=special_tokens,
            name=name,
            limits=limits,
            variables=variables or {},
        )

    def start(self) -> None:
        """Start the child without waiting for it (about 0.1 s), to overlap with other loading."""
        with self._lock:
            self._running_process()

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        *,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt that the template makes of the messages.

        messages: as transformers takes them, `{"role": …, "content": …}`.
        variables: as in `from_source`, for this render, before the others.
        Raises TemplateError if the template refuses the messages, is broken, or breaks a limit.
        """
        result = self.try_render(messages, add_generation_prompt, variables=variables)
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
        *,
        variables: Mapping[str, Any] | None = None,
    ) -> str | Refusal:
        """Do as `render`, and return a refusal of the template as a value."""
        request = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "variables": {**self._variables, **(variables or {})},
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

    def reasoning_format(self) -> ReasoningFormat | None:
        """Return how the model's reasoning is marked, None if the template knows of none.

        Raises TemplateError as `features` does.
        """
        style = reasoning_style(self.source)
        if style is None:
            return None
        return ReasoningFormat(style, is_open=style.is_open_after(self.features().opening))

    def close(self) -> None:
        """End the child. Safe to call twice; a later render starts a new one."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _running_process(self) -> TemplateProcess:
        if self._process is None or not self._process.is_alive:
            if self._process is not None:
                self._process.close()
            self._process = TemplateProcess(self._load_request, name=self.name, limits=self._limits)
        return self._process
