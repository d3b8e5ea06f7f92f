"""Decoding steps on a `llama_cpp.Llama` that somebody else made and goes on using.

It has one sequence: a candidate is evaluated at its end and taken back for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import ContextView
from safesteer_edge.engine.hidden_states import choose_route
from safesteer_edge.engine.native import lib
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import EngineError
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.guard.protocols import Proposal


class GuestLlama:
    """What re-ranking asks of an engine (`guard.protocols`), one candidate a forward pass."""

    candidates_at_once = 1

    def __init__(
        self, llama: Any, architecture: str, layers: Sequence[int], sampling: SamplingSettings
    ) -> None:
        """llama: a `llama_cpp.Llama`; it must outlive this. Raises EngineError if it cannot serve."""
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

    def read(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Evaluate a prompt from its beginning: the state at its last token, (n_features,)."""
        self._tried = None
        self._llama.reset()
        self._route.before_prefill()
        self._llama.eval(token_ids[:-1])
        self._route.before_answer()
        self._llama.eval(token_ids[-1:])  # alone, as a decoding step, as the probe learned it
        return self._route.read(1)[0]

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
