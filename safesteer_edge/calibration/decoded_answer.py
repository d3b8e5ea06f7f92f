"""One greedy answer, token by token on the decode path, with the state after each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.prompt_items import PromptItem
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.guard.sampling import SamplingSettings

if TYPE_CHECKING:
    from safesteer_edge.runtime import Runtime


@dataclass(frozen=True, slots=True, eq=False)
class DecodedAnswer:
    """states: float32 (n_tokens + 1, n_features); row 0 is the last prompt position.

    first_logits: float32 (n_vocab,), of the first answer token.
    """

    text: str
    token_ids: tuple[int, ...]
    states: NDArray[np.float32]
    first_logits: NDArray[np.float32]


def decode_answer(
    runtime: Runtime,
    items: Sequence[PromptItem],
    *,
    n_tokens: int,
    forced_text: str = "",
    control_vector: NDArray[np.float32] | None = None,
) -> DecodedAnswer:
    """At most n tokens, the first of them those of `forced_text`. Costs a step for each.

    control_vector: float32 (n_layer, n_embd), on from the last prompt token. Raises EngineError.
    """
    engine, model = runtime.engine, runtime.model
    sampler = SamplerChain(SamplingSettings(temperature=0, top_k=1), n_vocab=model.n_vocab)
    forced = model.tokenize_plain(forced_text) if forced_text else []
    token_ids: list[int] = []
    try:
        prefill = engine.prefill(items, sampler, control_vector=control_vector)
        first_logits = engine.next_logits()
        states = [prefill.last_state]
        while len(token_ids) < n_tokens:
            n_done = len(token_ids)
            token_id = forced[n_done] if n_done < len(forced) else _greedy(runtime)
            states.append(engine.evaluate(token_id))
            engine.accept(token_id)
            token_ids.append(token_id)
            if engine.is_end(token_id):
                break
    finally:
        sampler.close()
    text = b"".join(engine.piece(token_id) for token_id in token_ids).decode("utf-8", "replace")
    return DecodedAnswer(text, tuple(token_ids), np.stack(states), first_logits)


def _greedy(runtime: Runtime) -> int:
    return int(runtime.engine.propose().token_ids[0])
