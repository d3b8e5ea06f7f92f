"""Hidden states at the end of a few prompts, and the residual stream's norms: no labels needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.requests_data import Label, load_requests
from safesteer_edge.engine.hidden_states import RouteName
from safesteer_edge.engine.prompt_items import text_token_ids
from safesteer_edge.prompting import question_items
from safesteer_edge.runtime import Runtime, last_state_of, open_runtime
from safesteer_edge.settings import SessionSettings

N_REQUESTS_PER_LABEL = 8
MEASURED_LABELS: tuple[Label, ...] = ("harmful", "ordinary")


@dataclass(frozen=True, slots=True, eq=False)
class PromptStates:
    """What the model does with the package's own requests (train split).

    token_ids: the prompts, by label. states: float32 (n_prompts, n_features), read at the prompts'
    last token on the decode path. residual_norms: mean L2 norm of each block's output there.
    """

    token_ids: Mapping[Label, Sequence[tuple[int, ...]]]
    states: Mapping[Label, NDArray[np.float32]]
    route: RouteName | None
    residual_norms: tuple[float, ...]


def measure_prompt_states(session: SessionSettings, layers: Sequence[int]) -> PromptStates:
    """Run some 30 short prompts through the model; it is loaded twice.

    session: with its guard off. layers: whose states are wanted, joined in this order.
    Raises ModelFileError, TemplateError, EngineError.
    """
    runtime = open_runtime(session, layers=layers)
    try:
        token_ids: dict[Label, list[tuple[int, ...]]] = {
            label: _prompts(runtime, label) for label in MEASURED_LABELS
        }
        states: dict[Label, NDArray[np.float32]] = {
            label: _last_states(runtime, prompts) for label, prompts in token_ids.items()
        }
        route = runtime.route.name if runtime.route else None
        n_layer = runtime.model.n_layer
    finally:
        runtime.close()
    runtime = open_runtime(session, layers=range(n_layer))
    try:
        prompts = [prompt for label in MEASURED_LABELS for prompt in token_ids[label]]
        blocks = _last_states(runtime, prompts).reshape(len(prompts), n_layer, -1)
    finally:
        runtime.close()
    norms = np.linalg.norm(blocks.astype(np.float64), axis=2).mean(axis=0)
    return PromptStates(token_ids, states, route, tuple(float(norm) for norm in norms))


def _prompts(runtime: Runtime, label: Label) -> list[tuple[int, ...]]:
    requests = load_requests(splits=("train",), labels=(label,))[:N_REQUESTS_PER_LABEL]
    return [
        text_token_ids(question_items(request.text, template=runtime.template, model=runtime.model))
        for request in requests
    ]


def _last_states(runtime: Runtime, prompts: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    return np.stack([last_state_of(runtime.engine, runtime.model, prompt) for prompt in prompts])
