"""llama-cpp-python's own `Llama`: as the outside reference for speed, and guarded as a guest.

`Llama.create_chat_completion(stream=True)` is what a Python program would use without this
package. It gets the same threads, context, batch size, attention kernels and sampling as ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import ContextView
from safesteer_edge.engine.hidden_states import SpanMeans, choose_route
from safesteer_edge.engine.native import (
    lib,
    must_avoid_extra_buffer_types,
    native_facts,
    start_backend,
)
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import EngineError
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.guard.protocols import Proposal

_ALL_LAYERS = -1  # Llama.__init__


@dataclass(frozen=True, slots=True)
class ReferenceSettings:
    """n_gpu_layers: None: all where this llama.cpp can offload. n_batch as `ContextSettings`'.

    flash_attention: off by default in `Llama`; llama.cpp's own choice, as in our sessions, is on.
    """

    path: Path
    n_ctx: int
    n_threads: int
    sampling: SamplingSettings
    max_tokens: int
    n_gpu_layers: int | None = None
    n_batch: int = 512
    flash_attention: bool = True


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """One answer; seconds are counted from the question.

    token_ids: every token that was drawn, the one that ended the answer included. token_times_s:
    when each was drawn. first_text_s: when the first text came, None without any.
    n_forward_passes: evaluations after the prompt's.
    """

    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    token_times_s: tuple[float, ...]
    first_text_s: float | None
    n_prompt_tokens: int
    n_forward_passes: int
    elapsed_s: float


class ReferenceChat:
    """llama-cpp-python's `Llama`. Not thread-safe. Close it, or use it in a `with`."""

    def __init__(self, settings: ReferenceSettings) -> None:
        """Load the file. Run the pre-check (`formats.model_file`) first.

        Raises EngineError if llama-cpp-python cannot load it.
        """
        start_backend()  # before Llama does: the native log then goes to `logging`
        self._settings = settings
        n_gpu_layers = settings.n_gpu_layers
        if n_gpu_layers is None:
            n_gpu_layers = _ALL_LAYERS if native_facts().supports_gpu_offload else 0
        try:
            self._llama = _ObservedLlama(
                str(settings.path),
                n_ctx=settings.n_ctx,
                n_batch=settings.n_batch,
                n_ubatch=settings.n_batch,
                n_threads=settings.n_threads,
                n_threads_batch=settings.n_threads,
                n_gpu_layers=n_gpu_layers,
                flash_attn=settings.flash_attention,
                no_perf=True,
                last_n_tokens_size=settings.sampling.repeat_last_n,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:  # what Llama raises for files and memory
            raise EngineError(
                f"llama-cpp-python cannot load {str(settings.path)!r}: {error}"
            ) from error

    def answer(self, text: str) -> ReferenceAnswer:
        """Answer one user message in a new conversation.

        What the prompt shares with the one before stays in the KV cache, as with a session of ours.
        Raises EngineError if decoding fails.
        """
        llama, settings = self._llama, self._settings
        sampling = settings.sampling
        pieces: list[str] = []
        finish_reason = "length"
        first_text_s: float | None = None
        started_s = time.perf_counter()
        llama.begin_answer(started_s)
        try:
            for chunk in llama.create_chat_completion(
                [{"role": "user", "content": text}],
                stream=True,
                max_tokens=settings.max_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                repeat_penalty=sampling.repeat_penalty,
                frequency_penalty=sampling.frequency_penalty,
                presence_penalty=sampling.presence_penalty,
                seed=sampling.seed,
            ):
                choice: Any = chunk["choices"][0]  # pyright: ignore[reportArgumentType]  # a union
                piece = choice["delta"].get("content")
                if piece:
                    if first_text_s is None:
                        first_text_s = time.perf_counter() - started_s
                    pieces.append(piece)
                finish_reason = choice["finish_reason"] or finish_reason
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"llama-cpp-python failed to answer: {error}") from error
        return ReferenceAnswer(
            text="".join(pieces),
            finish_reason=finish_reason,
            token_ids=tuple(llama.token_ids),
            token_times_s=tuple(llama.token_times_s),
            first_text_s=first_text_s,
            n_prompt_tokens=llama.n_prompt_tokens,
            n_forward_passes=llama.n_forward_passes,
            elapsed_s=time.perf_counter() - started_s,
        )

    def close(self) -> None:
        """Free model and context. Idempotent."""
        self._llama.close()

    def __enter__(self) -> ReferenceChat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ObservedLlama(llama_cpp.Llama):
    """`Llama` that notes when each token was drawn: its chunks may hold none or several."""

    def begin_answer(self, started_s: float) -> None:
        self._started_s = started_s
        self.token_ids: list[int] = []
        self.token_times_s: list[float] = []
        self.n_prompt_tokens = 0
        self.n_forward_passes = 0

    @property
    def model_params(self) -> Any:
        """The native parameters. `Llama` fills them itself and has no option for one we need."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        params.use_extra_bufts = not must_avoid_extra_buffer_types()
        self._model_params = params

    # What Llama passes to its own two methods is none of ours: it goes on as it came.

    def eval(self, *arguments: Any, **options: Any) -> None:
        super().eval(*arguments, **options)
        if self.token_ids:
            self.n_forward_passes += 1

    def sample(self, *arguments: Any, **options: Any) -> int:
        if not self.token_ids:
            self.n_prompt_tokens = self.n_tokens
        token_id = super().sample(*arguments, **options)
        self.token_ids.append(token_id)
        self.token_times_s.append(time.perf_counter() - self._started_s)
        return token_id


class GuestLlama:
    """A `Llama` that somebody else made and goes on using, as re-ranking needs an engine to be.

    It has one sequence: a candidate is evaluated at its end and taken back for the next one.
    """

    candidates_at_once = 1

    def __init__(
        self, llama: Any, architecture: str, layers: Sequence[int], sampling: SamplingSettings
    ) -> None:
        """llama: a `llama_cpp.Llama` that outlives this. Raises EngineError if it cannot serve."""
        model = llama.model
        self._llama = llama
        self._context = ContextView(llama.ctx, n_embd=llama.n_embd(), n_vocab=llama.n_vocab())
        self._route = choose_route(architecture, lib.llama_model_n_layer(model), layers)
        if self._route.name == "eval_callback":
            raise EngineError(
                f"a Llama's states after layers {list(layers)} of {architecture!r} cannot be read; "
                "use open_session for this model"
            )
        if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
            raise EngineError(
                f"a Llama of {architecture!r} cannot take a token back; use open_session for it"
            )
        self._route.attach(self._context)
        self._sampler = SamplerChain(sampling, n_vocab=llama.n_vocab())
        self._tried: int | None = None  # the candidate at the sequence's end

    def read(self, token_ids: Sequence[int], message: range) -> NDArray[np.float32]:
        """Evaluate a prompt from its beginning: float32 (1, 2, n_features).

        The state at its last token, and the mean one over the message's words.
        """
        self._tried = None
        self._llama.reset()
        last = len(token_ids) - 1
        means = SpanMeans([(0, range(message.start, min(message.stop, last)))])
        for start in range(0, last, self._llama.n_batch):
            places = range(start, min(start + self._llama.n_batch, last))
            self._route.before_reading(len(places))
            self._llama.eval(token_ids[places.start : places.stop])
            means.add([0] * len(places), places, self._route.read(len(places)))
        self._route.before_answer()
        self._llama.eval(token_ids[-1:])  # alone, as a decoding step, as the probe learned it
        return means.beside(self._route.read(1))

    def propose(self) -> Proposal:
        """Run the sampler chain on the logits after the last accepted token."""
        return self._sampler.propose(self._context.logits(-1))

    def evaluate(self, token_id: int) -> NDArray[np.float32]:
        """Feed one candidate as the next token, in place of the one before: (n_features,)."""
        if self._tried is not None:
            self._llama.n_tokens -= 1  # what lies behind is removed by the next `eval`
        self._llama.eval([token_id])
        self._tried = token_id
        return self._route.read(1)[0]

    def evaluate_candidates(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed candidates, each as the next token: (n, n_features)."""
        return np.stack([self.evaluate(token_id) for token_id in token_ids])

    def accept(self, token_id: int) -> None:
        """Make a candidate the next token."""
        if self._tried != token_id:
            self.evaluate(token_id)
        self._tried = None
        self._sampler.accept(token_id)

    def close(self) -> None:
        """Free the sampler; the Llama stays its owner's. Idempotent."""
        self._sampler.close()
