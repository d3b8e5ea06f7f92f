"""A decoding engine without a model: a function of the prefix stands in for the network.

It keeps the promises of `DecodingEngine` and insists that its caller keeps the other half: a call
out of order raises ProtocolMisuseError, which no code under test catches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.guard.protocols import Block, Proposal

Prefix = tuple[int, ...]
NextTokens = Callable[[Prefix], Mapping[int, float]]

N_FEATURES = 2


class ProtocolMisuseError(AssertionError):
    """The code under test called the engine in an order that llama.cpp could not follow."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the engine. token_ids: those it was given."""

    name: str
    token_ids: Prefix = ()


@dataclass
class ScriptedEngine:
    """One answer being decoded. `sequence` is what the KV cache would hold after the prompt.

    next_tokens: prefix → probability of each candidate; they need not sum to 1, and the order of
    equally probable ones is kept.
    pieces: token → bytes; a token that is not there stands for none.
    n_ctx: tokens that fit after the prompt. n_candidates: side sequences.
    candidates_at_once: as a GPU's engine would have it; 1 is a CPU's.
    given: tokens that the answer begins with; they alone are evaluated without a proposal.
    A hidden state is (position, token id), float32 (2,), so that a probe can be any function of
    both; see `plain_probes`.
    """

    next_tokens: NextTokens
    pieces: Mapping[int, bytes] = field(default_factory=dict[int, bytes])
    end_ids: Collection[int] = ()
    greedy: bool = True
    seed: int = 0
    n_ctx: int = 4096
    n_candidates: int = 64
    candidates_at_once: int = 3
    given: Prefix = ()
    sequence: list[int] = field(default_factory=list[int])
    calls: list[Call] = field(default_factory=list[Call])

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._proposed: Prefix | None = None
        self._evaluated: set[int] = set()
        self._evaluated_blocks: set[Block] = set()
        self._has_logits = True
        self._is_ahead = False

    @property
    def n_free(self) -> int:
        return self.n_ctx - len(self.sequence)

    @property
    def n_forward_passes(self) -> int:
        return sum(call.name in ("evaluate", "evaluate_candidates") for call in self.calls)

    @property
    def n_evaluated_states(self) -> int:
        return sum(
            len(call.token_ids)
            for call in self.calls
            if call.name in ("evaluate", "evaluate_candidates")
        )

    def propose(self) -> Proposal:
        _require(self._has_logits, "propose after tokens were taken back or appended")
        _require(self._proposed is None or self._is_ahead, "propose twice in one step")
        self._is_ahead = False
        proposal = self._make_proposal(self.next_tokens(tuple(self.sequence)))
        self._proposed = tuple(int(token_id) for token_id in proposal.token_ids)
        self.calls.append(Call("propose"))
        return proposal

    def evaluate(self, token_id: int) -> NDArray[np.float32]:
        return self._evaluate("evaluate", (token_id,))[0]

    def evaluate_candidates(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._evaluate("evaluate_candidates", tuple(token_ids))

    def evaluate_blocks(self, blocks: Sequence[Block]) -> list[NDArray[np.float32]]:
        _require(self._proposed is not None, "evaluate_blocks without propose")
        again = self._evaluated_blocks.intersection(blocks)
        _require(not again and len(set(blocks)) == len(blocks), f"evaluate_blocks twice of {again}")
        self._evaluated_blocks.update(blocks)
        n_cells = len(self._evaluated) + sum(map(len, self._evaluated_blocks))
        _require(n_cells <= self.n_free, "no cells left for the blocks")
        self.calls.extend(Call("evaluate_block", block) for block in blocks)
        start = len(self.sequence)
        return [np.array([*enumerate(block, start)], dtype=np.float32) for block in blocks]

    def look_ahead(self, n_tokens: int) -> tuple[Proposal, list[NDArray[np.float32]]]:
        _require(self._has_logits, "look_ahead after tokens were taken back or appended")
        _require(self._proposed is None, "look_ahead in the middle of a step")
        proposal = replace(self._make_proposal(self.next_tokens(tuple(self.sequence))), drawn=0)
        ahead: list[Block] = []
        for token_id in proposal.token_ids.tolist():
            block: Block = (token_id,)
            while len(block) < n_tokens and not self.is_end(block[-1]):
                probs = self.next_tokens((*self.sequence, *block))
                block = (*block, max(probs, key=lambda token: probs[token]))
            ahead.append(block)
        _require(sum(map(len, ahead)) <= self.n_free, "no cells left to look ahead")
        self.calls.append(Call("look_ahead", tuple(proposal.token_ids.tolist())))
        self._proposed = tuple(proposal.token_ids.tolist())  # as good as proposed, for its blocks
        self._is_ahead = True
        start = len(self.sequence)
        states = [np.array([*enumerate(block, start)], dtype=np.float32) for block in ahead]
        return replace(proposal, ahead=tuple(ahead)), states

    def accept(self, token_id: int) -> None:
        self.accept_block((token_id,))

    def accept_block(self, block: Block) -> None:
        is_block = block in self._evaluated_blocks
        is_evaluated = is_block or (len(block) == 1 and block[0] in self._evaluated)
        _require(is_evaluated, f"accept of {block}, which was not evaluated")
        self.sequence.extend(block)
        self._end_step()
        self.calls.append(Call("accept_block" if is_block else "accept", block))

    def rewind(self, n_tokens: int) -> None:
        has_logits = self._has_logits
        self.take_back(n_tokens)
        self.calls[-1] = Call("rewind")
        self._has_logits = has_logits or n_tokens > 0

    def take_back(self, n_tokens: int) -> None:
        _require(0 <= n_tokens <= len(self.sequence), f"take_back of {n_tokens} tokens")
        if n_tokens:
            del self.sequence[-n_tokens:]
            self._has_logits = False
        self._end_step()
        self.calls.append(Call("take_back"))

    def append(self, token_ids: Sequence[int]) -> None:
        _require(len(token_ids) <= self.n_free, f"append of {len(token_ids)} to a full context")
        self.sequence.extend(token_ids)
        self._has_logits = False
        self._end_step()
        self.calls.append(Call("append", tuple(token_ids)))

    def is_end(self, token_id: int) -> bool:
        return token_id in self.end_ids

    def piece(self, token_id: int) -> bytes:
        return self.pieces.get(token_id, b"")

    def _make_proposal(self, probs_by_token: Mapping[int, float]) -> Proposal:
        probs = np.array(list(probs_by_token.values()), dtype=np.float64)
        order = np.argsort(-probs, kind="stable")
        token_ids = np.array(list(probs_by_token), dtype=np.int32)[order]
        probs = probs[order] / probs.sum()
        drawn = 0 if self.greedy else int(self._rng.choice(len(probs), p=probs))
        return Proposal(token_ids, np.log(probs), drawn, self.greedy)

    def _evaluate(self, name: str, token_ids: Prefix) -> NDArray[np.float32]:
        n_done = len(self.sequence)
        is_given = name == "evaluate" and token_ids == self.given[n_done : n_done + 1]
        _require(is_given or self._proposed is not None, f"{name} without propose")
        _require(len(token_ids) > 0, f"{name} of nothing")
        again = self._evaluated.intersection(token_ids)
        _require(not again and len(set(token_ids)) == len(token_ids), f"{name} twice of {again}")
        strangers = set(token_ids).difference(token_ids if is_given else self._proposed or ())
        _require(not strangers, f"{name} of {strangers}, which were not proposed")
        self._evaluated.update(token_ids)
        _require(len(self._evaluated) <= self.n_candidates, "more candidates than side sequences")
        _require(len(self._evaluated) <= self.n_free, "no cells left for the candidates")
        self.calls.append(Call(name, token_ids))
        position = len(self.sequence)
        return np.array([(position, token_id) for token_id in token_ids], dtype=np.float32)

    def _end_step(self) -> None:
        self._proposed, self._is_ahead = None, False
        self._evaluated.clear()
        self._evaluated_blocks.clear()


def _require(is_met: bool, what: str) -> None:
    if not is_met:
        raise ProtocolMisuseError(what)
