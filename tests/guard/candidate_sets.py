"""Strategies: candidates of one decoding step with their scores, and tilts to put on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from safesteer_edge.guard.protocols import Proposal
from safesteer_edge.guard.reranking import Tilt
from tests.guard.plain_probes import PlainProbe, by_token
from tests.guard.scripted_engine import ScriptedEngine

_FIRST_TOKEN_ID = 100


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """weights: relative probabilities. scores: what the probe says, exact in float32."""

    weights: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def token_scores(self) -> dict[int, float]:
        return {_FIRST_TOKEN_ID + i: score for i, score in enumerate(self.scores)}

    def proposed_by(self, *, greedy: bool) -> tuple[ScriptedEngine, Proposal]:
        """An engine that has just proposed these candidates."""
        weights = {_FIRST_TOKEN_ID + i: weight for i, weight in enumerate(self.weights)}
        engine = ScriptedEngine(lambda _prefix: weights, greedy=greedy)
        return engine, engine.propose()

    def probe(self) -> PlainProbe:
        return by_token(self.token_scores)

    def scores_in_order(self, proposal: Proposal) -> NDArray[np.float64]:
        """The scores in the proposal's order, which is by descending probability."""
        return np.array([self.token_scores[int(token_id)] for token_id in proposal.token_ids])


# Few values, so that ties are common, beside any values at all.
scores = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0.0, 1.0, width=32)
_weights = st.sampled_from([1.0, 2.0, 3.0]) | st.floats(1e-12, 1.0)
thresholds = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0.0, 1.0)
strengths = st.sampled_from([1.0, 4.0]) | st.floats(1e-6, 50.0) | st.floats(1e3, 1e9)
tilts = st.builds(Tilt, strengths, thresholds)


def candidate_sets(max_size: int = 8) -> st.SearchStrategy[CandidateSet]:
    """One to `max_size` candidates."""
    pairs = st.lists(st.tuples(_weights, scores), min_size=1, max_size=max_size)
    return pairs.map(lambda rows: CandidateSet(*map(tuple, zip(*rows, strict=True))))
