"""A real engine on a tiny model, opened for one test, and what the tests ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from safesteer_edge.engine.context import ContextSettings, NativeContext
from safesteer_edge.engine.hidden_states import EvalCallbackRoute, RouteName, choose_route
from safesteer_edge.engine.llama_engine import LlamaEngine, PrefillStats
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import PromptItem, TokenRun
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.guard.policy import MAX_TOP_K, SamplingSettings
from safesteer_edge.guard.protocols import Proposal
from tests.tiny_models import FIRST_BYTE_ID

Float32Array = NDArray[np.float32]

GREEDY = SamplingSettings(temperature=0, top_k=MAX_TOP_K)

N_LAYER, N_EMBD, N_VOCAB = 4, 64, 320

# Logits here reach ±10. Batches of 1 and of k tokens, and our sums and NumPy's, come in another
# order: the largest difference seen is 2e-5.
F32_TOLERANCE = 1e-4


class RecordingChain(SamplerChain):
    """llama.cpp's chain, which also keeps the logits that it was given last."""

    logits: Float32Array

    def propose(self, logits: Float32Array) -> Proposal:
        self.logits = logits.copy()
        return super().propose(logits)


@dataclass(slots=True)
class OpenEngine:
    """An engine with its model and context, all closed at the end of `open_engine`'s block."""

    engine: LlamaEngine
    model: NativeModel
    context: NativeContext
    projector: Projector | None
    owned: ExitStack
    sampler: RecordingChain | None = None

    def prefill(
        self,
        prompt: Sequence[int] | Sequence[PromptItem],
        *,
        control_vector: Float32Array | None = None,
        steers_prompt: bool = False,
        sampling: SamplingSettings = GREEDY,
        spans: Sequence[range] = (),
    ) -> PrefillStats:
        """Bring the engine to a prompt of token ids, or of prompt items, with a new sampler."""
        items: list[PromptItem] = [
            TokenRun((item,)) if isinstance(item, int) else item for item in prompt
        ]
        self.sampler = RecordingChain(sampling, n_vocab=self.model.n_vocab)
        self.owned.callback(self.sampler.close)
        return self.engine.prefill(
            items,
            self.sampler,
            control_vector=control_vector,
            steers_prompt=steers_prompt,
            spans=spans,
        )

    def next_logits(self) -> Float32Array:
        """The logits that the engine proposes from: float32 (n_vocab,), a copy."""
        assert self.sampler is not None
        self.engine.propose()
        return self.sampler.logits

    def feed(self, token_ids: Sequence[int]) -> Float32Array:
        """Evaluate and accept tokens one by one; their states, (n_tokens, n_features)."""
        states: list[Float32Array] = []
        for token_id in token_ids:
            states.append(self.engine.evaluate(token_id))
            self.engine.accept(token_id)
        return np.stack(states)


@contextmanager
def open_engine(
    path: Path,
    *,
    layers: Sequence[int] = (),
    route_name: RouteName | None = None,
    n_candidates: int = 8,
    n_ctx: int = 256,
    n_batch: int = 512,
    kv_type: int = lib.GGML_TYPE_F32,
    mmproj: Path | None = None,
    cache_bytes: int = 1 << 28,
) -> Iterator[OpenEngine]:
    """An engine on one thread. layers: none means no hidden states."""
    with ExitStack() as owned:
        model = owned.enter_context(NativeModel(path))
        projector = None
        if mmproj is not None:
            projector = Projector(mmproj, model, n_threads=1, cache_bytes=cache_bytes)
            owned.callback(projector.close)
        route = None
        if layers:
            route = choose_route(
                read_gguf(path).architecture, model.n_layer, layers, wanted=route_name
            )
        context = NativeContext(
            model,
            ContextSettings(
                n_ctx=n_ctx,
                n_candidates=n_candidates,
                n_threads=1,
                n_batch=n_batch,
                kv_type=kv_type,
            ),
            eval_callback=route.callback if isinstance(route, EvalCallbackRoute) else None,
        )
        owned.callback(context.close)
        engine = LlamaEngine(context, route, projector=projector)
        yield OpenEngine(engine, model, context, projector, owned)


def random_prompt(rng: np.random.Generator, n_tokens: int) -> list[int]:
    """Text tokens, no control token among them."""
    return rng.integers(FIRST_BYTE_ID, N_VOCAB, n_tokens).tolist()


def random_vector(seed: int = 1, *, scale: float = 1.0) -> Float32Array:
    """A control vector on every block that llama.cpp can steer: (n_layer, n_embd), row 0 zero."""
    rng = np.random.default_rng(seed)
    vector = scale * rng.standard_normal((N_LAYER, N_EMBD), dtype=np.float32)
    vector[0] = 0
    return vector
