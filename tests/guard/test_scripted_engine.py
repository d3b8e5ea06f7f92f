"""The scripted engine refuses what llama.cpp could not do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.guard.scripted_engine import ProtocolMisuseError, ScriptedEngine

MISUSES: dict[str, Callable[[ScriptedEngine], object]] = {
    "evaluate before propose": lambda e: e.evaluate(1),
    "candidates before propose": lambda e: e.evaluate_candidates([1, 2]),
    "accept before propose": lambda e: e.accept(1),
    "accept of what was not evaluated": lambda e: (e.propose(), e.evaluate(1), e.accept(2)),
    "accept of the step before's": lambda e: (step(e, 1, 2), e.propose(), e.accept(2)),
    "evaluate after accept": lambda e: (step(e, 1), e.evaluate(1)),
    "evaluate of what was not proposed": lambda e: (e.propose(), e.evaluate(7)),
    "evaluate twice": lambda e: (e.propose(), e.evaluate(1), e.evaluate_candidates([2, 1])),
    "evaluate of nothing": lambda e: (e.propose(), e.evaluate_candidates([])),
    "propose twice": lambda e: (e.propose(), e.propose()),
    "propose after taking back": lambda e: (step(e, 1), e.take_back(1), e.propose()),
    "propose after appending": lambda e: (step(e, 1), e.append([8]), e.propose()),
    "taking back more than there is": lambda e: (step(e, 1), e.take_back(2)),
    "appending more than fits": lambda e: e.append([8] * 5),
    "evaluating more than fits": lambda e: (
        step(e, 1),
        step(e, 1),
        e.propose(),
        e.evaluate_candidates([1, 2, 3]),
    ),
}


def step(engine: ScriptedEngine, *token_ids: int) -> None:
    engine.propose()
    engine.evaluate_candidates(token_ids)
    engine.accept(token_ids[0])


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda _prefix: {1: 0.25, 2: 0.5, 3: 0.25}, n_ctx=4)


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES.keys())
def test_a_misuse_is_refused(engine: ScriptedEngine, misuse: Callable[[ScriptedEngine], object]):
    with pytest.raises(ProtocolMisuseError):
        misuse(engine)


def test_a_proposal_is_sorted_and_normalised_with_ties_in_order(engine: ScriptedEngine):
    proposal = engine.propose()
    assert proposal.token_ids.tolist() == [2, 1, 3]
    assert np.exp(proposal.log_probs) == pytest.approx([0.5, 0.25, 0.25])
    assert (proposal.drawn, proposal.greedy) == (0, True)


def test_taking_back_forgets_pending_candidates_and_keeps_the_rest(engine: ScriptedEngine):
    step(engine, 1, 2)
    engine.propose()
    engine.evaluate(3)
    engine.take_back(0)
    step(engine, 2)
    assert engine.sequence == [1, 2]
    assert (engine.n_free, engine.n_forward_passes, engine.n_evaluated_states) == (2, 3, 4)
