"""The variants that the bench compares: our session without and with the guard, and the reference.

Each answers one prompt in a new conversation and measures itself with the same clock.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from safesteer_edge.engine.reference import ReferenceChat, ReferenceSettings
from safesteer_edge.errors import EngineError
from safesteer_edge.guard.events import PrefillDone, Refused, Step, TextDelta, TurnEnded
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.session.isolated_session import open_isolated_session
from safesteer_edge.session.protocol import ChatSession
from safesteer_edge.session.session import open_session
from safesteer_edge.session.settings import DEFAULT_N_CTX, SessionSettings

VariantName = Literal[
    "off", "lazy", "eager", "llama-cpp-python", "llama-cpp-python-flash", "isolated", "served"
]
PromptKind = Literal["benign", "harmful"]

# llama-cpp-python as it is by default, and with flash attention, which llama.cpp itself (and so
# ours) chooses where it can: 8.4 against 7.7 ms a token (SmolLM2-135M Q4_1, one thread).
VARIANTS: Final[tuple[VariantName, ...]] = (
    "off",
    "lazy",
    "eager",
    "llama-cpp-python",
    "llama-cpp-python-flash",
)
PROMPT_KINDS: Final[tuple[PromptKind, ...]] = ("benign", "harmful")


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One question. id: the request's."""

    id: str
    kind: PromptKind
    text: str


@dataclass(frozen=True, slots=True)
class MeasuredAnswer:
    """One answer. Seconds are counted from the question; repeat from 0.

    token_times_s: when each emitted token was decided, tokens included that a refusal took back.
    first_text_s: when the first text that stands came, a refusal's included.
    n_forward_passes: decoding steps' native calls; with a guard each of them is one probe call.
    n_reused_tokens, n_interventions, probe_s: None where the variant does not tell.
    """

    variant: VariantName
    repeat: int
    prompt_id: str
    kind: PromptKind
    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    token_times_s: tuple[float, ...]
    first_text_s: float
    n_prompt_tokens: int
    n_reused_tokens: int | None
    n_forward_passes: int
    n_interventions: int | None
    probe_s: float | None

    @property
    def first_token_s(self) -> float:
        """When the first token was decided; the guard may hold its text back for some more."""
        return self.token_times_s[0] if self.token_times_s else self.first_text_s

    @property
    def is_refused(self) -> bool:
        """The guard ended the turn."""
        return self.finish_reason == "refused"


@dataclass(frozen=True, slots=True)
class Variant:
    """Something that answers prompts: each in a new conversation, with the repeat it is of.

    facts: what it runs with. close: frees everything.
    """

    facts: Mapping[str, str | None]
    answer: Callable[[BenchPrompt, int], MeasuredAnswer]
    close: Callable[[], None]


def open_variant(name: VariantName, session: SessionSettings) -> Variant:
    """Load the model for this variant. session: resolved; its guard is the variant's.

    `isolated` is `lazy` with the engine in a process of its own, `served` behind a server.
    Raises ModelFileError, BundleError, TemplateError, SettingsError, EngineError.
    """
    if name == "llama-cpp-python" or name == "llama-cpp-python-flash":
        reference = ReferenceSettings(
            path=Path(session.model or ""),
            n_ctx=session.n_ctx or DEFAULT_N_CTX,
            n_threads=session.n_threads or n_usable_cores(),
            sampling=session.sampling,
            max_tokens=session.max_tokens,
            n_gpu_layers=session.n_gpu_layers,
            flash_attention=name == "llama-cpp-python-flash",
        )
        chat = ReferenceChat(reference)
        return Variant({}, partial(_reference_answer, name, chat), chat.close)
    if name == "served":
        server = BenchServer(session)
        return Variant({}, server.answer, server.close)
    guard = "off" if name == "off" else "steer"
    rerank = "eager" if name == "eager" else "lazy"
    open_it = open_isolated_session if name == "isolated" else open_session
    opened: ChatSession = open_it(replace(session, guard=guard, rerank=rerank))
    facts = {
        "bundle": opened.info.bundle,
        "hidden_state_route": opened.info.hidden_state_route,
        "probe_provider": opened.info.probe_provider,
    }
    return Variant(facts, partial(_session_answer, name, opened), opened.close)


def _session_answer(
    name: VariantName, session: ChatSession, prompt: BenchPrompt, repeat: int
) -> MeasuredAnswer:
    session.reset()
    token_ids: list[int] = []
    token_times_s: list[float] = []
    first_text_s: float | None = None
    n_reused_tokens = 0
    started_s = time.perf_counter()
    for event in session.ask(prompt.text):
        now_s = time.perf_counter() - started_s
        if isinstance(event, Step):
            token_ids.append(event.token_id)
            token_times_s.append(now_s)
        elif isinstance(event, TextDelta | Refused):
            first_text_s = first_text_s if first_text_s is not None else now_s
        elif isinstance(event, PrefillDone):
            n_reused_tokens = event.n_reused_tokens
        elif isinstance(event, TurnEnded):
            return MeasuredAnswer(
                variant=name,
                repeat=repeat,
                prompt_id=prompt.id,
                kind=prompt.kind,
                text=event.text,
                finish_reason=event.finish_reason,
                token_ids=tuple(token_ids),
                token_times_s=tuple(token_times_s),
                first_text_s=now_s if first_text_s is None else first_text_s,
                n_prompt_tokens=event.usage.prompt_tokens,
                n_reused_tokens=n_reused_tokens,
                n_forward_passes=event.usage.forward_passes,
                n_interventions=None if name == "off" else event.guard.interventions,
                probe_s=None if name == "off" else event.timings.probe_s,
            )
    raise RuntimeError("the session ended a turn without saying so")


def over_whole(answer: MeasuredAnswer) -> MeasuredAnswer:
    """The answer with its tokens spread evenly over all of its time."""
    n, times_s = len(answer.token_times_s), answer.token_times_s
    return replace(answer, token_times_s=tuple(times_s[-1] * (i + 1) / n for i in range(n)))


class BenchServer:
    """`safesteer-edge serve` in a process of its own, and a client that streams its answers.

    Several threads may ask it.
    """

    def __init__(self, session: SessionSettings, n_parallel: int = 1) -> None:
        flags = {
            "--port": 0,
            "--parallel": n_parallel,
            "--model": session.model,
            "--bundle": session.bundle,
            "--ctx": session.n_ctx,
            "--threads": session.n_threads,
            "--gpu-layers": session.n_gpu_layers,
            "--temperature": session.sampling.temperature,
            "--max-tokens": session.max_tokens,
        }
        told = [str(word) for pair in flags.items() if pair[1] is not None for word in pair]
        command = [sys.executable, "-m", "safesteer_edge", "serve", *told]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        log, found = "", None
        for line in self._process.stderr or ():
            log += line
            if found := re.search(r"base URL http://(\S+)/v1, .* model (.+)\n", line):
                break
        if found is None:
            self.close()
            raise EngineError(f"the server did not start: {log.strip()[-400:]!r}")
        self._address, self._model = found[1], found[2]
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        for _ in self._process.stderr or ():  # else it would wait for a reader of its log
            pass

    def answer(self, prompt: BenchPrompt, repeat: int) -> MeasuredAnswer:
        """One answer, streamed; its tokens are all told at its end."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt.text}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        texts: list[str] = []
        first_text_s, usage, finish_reason = 0.0, dict[str, Any](), ""
        started_s = time.perf_counter()
        with closing(http.client.HTTPConnection(self._address, timeout=600)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            for line in connection.getresponse():
                if not line.startswith(b"data: {"):
                    continue
                chunk: dict[str, Any] = json.loads(line[len(b"data: ") :])
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    finish_reason = choice["finish_reason"] or finish_reason
                    if text := choice["delta"].get("content"):
                        first_text_s = first_text_s or time.perf_counter() - started_s
                        texts.append(text)
            elapsed_s = time.perf_counter() - started_s
        n_tokens = int(usage["completion_tokens"])
        return MeasuredAnswer(
            variant="served",
            repeat=repeat,
            prompt_id=prompt.id,
            kind=prompt.kind,
            text="".join(texts),
            finish_reason=finish_reason,
            token_ids=(),
            token_times_s=(elapsed_s,) * n_tokens,
            first_text_s=first_text_s or elapsed_s,
            n_prompt_tokens=int(usage["prompt_tokens"]),
            n_reused_tokens=int(usage["prompt_tokens_details"]["cached_tokens"]),
            n_forward_passes=0,
            n_interventions=None,
            probe_s=None,
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _reference_answer(
    name: VariantName, chat: ReferenceChat, prompt: BenchPrompt, repeat: int
) -> MeasuredAnswer:
    """By llama-cpp-python's chat loop."""
    answer = chat.answer(prompt.text)
    first_text_s = answer.first_text_s
    return MeasuredAnswer(
        variant=name,
        repeat=repeat,
        prompt_id=prompt.id,
        kind=prompt.kind,
        text=answer.text,
        finish_reason=answer.finish_reason,
        token_ids=answer.token_ids,
        token_times_s=answer.token_times_s,
        first_text_s=answer.elapsed_s if first_text_s is None else first_text_s,
        n_prompt_tokens=answer.n_prompt_tokens,
        n_reused_tokens=None,
        n_forward_passes=answer.n_forward_passes,
        n_interventions=None,
        probe_s=None,
    )
