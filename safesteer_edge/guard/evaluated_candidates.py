"""The candidates of one decoding step, as the step's event tells them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from safesteer_edge.guard.engine_protocol import Proposal
from safesteer_edge.guard.events import Candidate
from safesteer_edge.guard.reranking import Choice


def evaluated_candidates(
    proposal: Proposal, choice: Choice, piece: Callable[[int], bytes]
) -> tuple[Candidate, ...]:
    """Those that were evaluated, likeliest first. piece: the bytes of a token."""
    return tuple(
        Candidate(
            int(token_id),
            float(logprob),
            float(score),
            piece(int(token_id)).decode("utf-8", "replace"),
        )
        for token_id, logprob, score in zip(
            proposal.token_ids, proposal.log_probs, choice.scores, strict=True
        )
        if np.isfinite(score)
    )
