"""What a bundle records of the model itself: self-tests, and the residual stream's norms."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.canaries import Canaries, EngineCanary, ProbeCanary
from safesteer_edge.engine.prompt_items import text_token_ids
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.vector_trial import ScoreStates
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.prompt import question_items
from safesteer_edge.session.runtime import Runtime, last_state_of, open_runtime
from safesteer_edge.session.settings import SessionSettings

N_PROBE_CANARIES: Final = 8
N_ENGINE_CANARIES: Final = 2
N_NORM_REQUESTS: Final = 16


def make_canaries(
    runtime: Runtime,
    score: ScoreStates,
    answers: Sequence[HarvestedAnswer],
    requests: Sequence[Request],
) -> Canaries:
    """States that span the range of scores, and prompts whose state the engine must give again.

    answers: the model's own, with the states that `score` and the runtime read.
    """
    states = np.stack([answer.states[-1] for answer in answers])
    order = np.argsort(score(states.astype(np.float64)), kind="stable")
    picked = order[np.linspace(0, len(order) - 1, N_PROBE_CANARIES).astype(int)]
    engine_canaries: list[EngineCanary] = []
    for request in _ordinary_text(requests)[:N_ENGINE_CANARIES]:
        token_ids = _prompt_token_ids(runtime, request)
        state = last_state_of(runtime.engine, runtime.model, token_ids)
        canary = _probe_canary(state, score)
        engine_canaries.append(
            EngineCanary(canary.hidden_state, canary.harmful_score, token_ids=token_ids)
        )
    probe_canaries = tuple(_probe_canary(states[index], score) for index in picked)
    return Canaries(probe=probe_canaries, engine=tuple(engine_canaries))


def residual_norms(session: SessionSettings, requests: Sequence[Request]) -> tuple[float, ...]:
    """Mean L2 norm of every block's output at the last prompt position, over a few requests."""
    info = open_runtime(session)
    n_layer = info.info.n_layer
    info.close()
    with closing(open_runtime(session, layers=range(n_layer))) as runtime:
        norms: list[NDArray[np.float32]] = []
        for request in requests[:: max(1, len(requests) // N_NORM_REQUESTS)]:
            state = last_state_of(
                runtime.engine, runtime.model, _prompt_token_ids(runtime, request)
            )
            norms.append(np.linalg.norm(state.reshape(n_layer, -1), axis=1))
    return tuple(float(norm) for norm in np.mean(norms, axis=0))


def _ordinary_text(requests: Sequence[Request]) -> list[Request]:
    return [r for r in requests if r.label == "ordinary" and r.image is None]


def _probe_canary(state: NDArray[np.floating], score: ScoreStates) -> ProbeCanary:
    wide = state.astype("<f4")
    harmful_score = float(score(wide[np.newaxis, :].astype(np.float64))[0])
    return ProbeCanary(hidden_state=wide.tobytes(), harmful_score=harmful_score)


def _prompt_token_ids(runtime: Runtime, request: Request) -> tuple[int, ...]:
    items = question_items(request.text, template=runtime.template, model=runtime.model)
    return text_token_ids(items)
