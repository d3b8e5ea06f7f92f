"""Whether a model finds its own way out: what its likely beginnings lead to on harmful requests.

A model that is aligned, and shallowly so, has a refusal among its likeliest first words even where
somebody has told it how to begin. Tried on the model itself, on wrapped harmful requests: the
probe's choice among its beginnings goes on for some words, and what it says is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.guard.policy import GuardPolicy, SamplingSettings
from safesteer_edge.guard.protocols import Block, Probe
from safesteer_edge.guard.reranking import choose_by_odds
from safesteer_edge.harvest.carriers import carried_items
from safesteer_edge.harvest.run import Progress
from safesteer_edge.metrics.refusal_rules import is_refusal
from safesteer_edge.requests.requests import Request, spread
from safesteer_edge.session.runtime import Runtime

N_TRIED: Final = 48
# Tokens: one says little about where an answer goes, three or more say much. How many serves best
# is the model's: a probe tells most at the words that its refusals are made of.
N_AHEAD: Final = (3, 4, 6, 8)
_N_JUDGED_TOKENS: Final = 16  # of a beginning and what follows: enough to tell a refusal
# Below the limit so many of the beginnings decline; fewer than so many are chance.
_LEAST_DECLINED: Final = 0.75
_LEAST_FOUND: Final = 6


@dataclass(frozen=True, slots=True)
class Beginning:
    """What re-ranking chose where a harmful request was to be answered. score: of the choice."""

    score: float
    declined: bool


@dataclass(frozen=True, slots=True)
class LookAheadFit:
    """look_ahead, look_ahead_limit: see `GuardPolicy`; 0 where this model finds no way of its own.

    n, declined: beginnings that were tried, and that declined; taken, taken_declined: of those
    within the limit. The numbers of the best of those tried.
    """

    look_ahead: int
    look_ahead_limit: float
    n: int
    declined: int
    taken: int
    taken_declined: int

    def applied_to(self, policy: GuardPolicy) -> GuardPolicy:
        """The policy with what was found."""
        limit = self.look_ahead_limit
        return replace(policy, look_ahead=self.look_ahead, look_ahead_limit=limit)

    def to_json(self) -> dict[str, Any]:
        """The same, for a bundle's figures."""
        return asdict(self)


def fit_look_ahead(
    runtime: Runtime, probe: Probe, requests: Sequence[Request], progress: Progress
) -> LookAheadFit:
    """Try it on this model. runtime: reads the states that the probe scores.

    Costs some 80 forward passes for each of 48 requests. Raises GuardError, EngineError.
    """
    tried = spread([r for r in requests if r.pair_id is not None], {"harmful": N_TRIED})
    found: dict[int, list[Beginning]] = {n_ahead: [] for n_ahead in N_AHEAD}
    for n_done, request in enumerate(tried):
        progress("looking ahead", n_done, len(tried))
        for n_ahead, beginning in _beginnings(runtime, probe, request).items():
            found[n_ahead].append(beginning)
    progress("looking ahead", len(tried), len(tried))
    fits = (choose_limit(n_ahead, beginnings) for n_ahead, beginnings in found.items())
    return max(fits, key=lambda fit: fit.taken_declined)


def choose_limit(n_ahead: int, found: Sequence[Beginning]) -> LookAheadFit:
    """Up to the last that declines of those within which most do; none where too few do."""
    ordered = sorted(found, key=lambda beginning: beginning.score)
    declined = np.array([beginning.declined for beginning in ordered], dtype=bool)
    n_taken = np.arange(1, len(ordered) + 1)
    n_declined = np.cumsum(declined)
    is_reliable = (n_declined >= _LEAST_DECLINED * n_taken) & (n_declined >= _LEAST_FOUND)
    serving = np.flatnonzero(declined & is_reliable)
    if not len(serving):
        return LookAheadFit(0, 0.0, len(ordered), int(declined.sum()), 0, 0)
    last = int(serving[-1])
    return LookAheadFit(
        n_ahead,
        ordered[last].score,
        len(ordered),
        int(declined.sum()),
        last + 1,
        int(n_declined[last]),
    )


def _beginnings(runtime: Runtime, probe: Probe, request: Request) -> dict[int, Beginning]:
    """By how far it looks ahead: the choice, and whether what it leads to declines."""
    engine, rng = runtime.engine, np.random.default_rng(0)  # greedy: nothing is drawn
    sampling = SamplingSettings(temperature=0, top_k=1)
    declines: dict[int, bool] = {}
    found: dict[int, Beginning] = {}
    with closing(SamplerChain(sampling, n_vocab=runtime.model.n_vocab)) as sampler:
        engine.prefill(carried_items(request, "wrapped", runtime), sampler)
        proposal, states = engine.look_ahead(max(N_AHEAD))
        for n_ahead in N_AHEAD:
            choice = choose_by_odds(probe, proposal, [each[:n_ahead] for each in states], rng)
            if choice.index not in declines:
                said = _go_on(runtime, proposal.candidate(choice.index))
                declines[choice.index] = is_refusal(said, request.text)
            found[n_ahead] = Beginning(choice.score, declines[choice.index])
    return found


def _go_on(runtime: Runtime, block: Block) -> str:
    """What a beginning becomes; the sequence is left as it was."""
    engine, said = runtime.engine, [*block]
    engine.evaluate_blocks([block])
    engine.accept_block(block)
    while len(said) < _N_JUDGED_TOKENS and not engine.is_end(said[-1]):
        said.append(int(engine.propose().token_ids[0]))
        engine.evaluate(said[-1])
        engine.accept(said[-1])
    engine.rewind(len(said))
    return b"".join(map(engine.piece, said)).decode("utf-8", "replace")
