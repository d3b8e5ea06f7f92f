"""What guarded decoding needs of an engine: the seam that keeps llama.cpp out of the guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Block = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """The sampler's distribution over its candidates at one decoding step.

    token_ids: int32 (k,). log_probs: float64 (k,), normalised over the candidates, descending.
    drawn: index of the candidate that was drawn (the likeliest at temperature 0).
    greedy: temperature is 0, so that the guarded choice is an argmax and not a draw.
    sampled: index of the sampler's own draw, where openings joined and another may be `drawn`.
    blocks: openings, each of some tokens, that stand behind the single tokens as candidates of the
        same law: log_probs is then (k + n_blocks,), and descending over the tokens alone.
    ahead: where the engine looked ahead, each token with those that the model goes on with.
    """

    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float64]
    drawn: int
    greedy: bool
    blocks: tuple[Block, ...] = ()
    sampled: int | None = None
    ahead: tuple[Block, ...] = ()

    def candidate(self, index: int) -> Block:
        """The tokens that the candidate of this index stands for."""
        if self.ahead:
            return self.ahead[index]
        n_tokens = len(self.token_ids)
        return self.blocks[index - n_tokens] if index >= n_tokens else (int(self.token_ids[index]),)


class DecodingEngine(Protocol):
    """One sequence being decoded, and the means to look one token ahead.

    A step is: `propose`; `evaluate`, `evaluate_candidates` and `evaluate_blocks`, any number of
    times; `accept` of one token, or `accept_block` of one block, that was evaluated. Until then
    the sequence is unchanged. A token that the caller gives needs no proposal: `evaluate` and
    `accept`.
    """

    @property
    def n_free(self) -> int:
        """Tokens that still fit into the context."""
        ...

    @property
    def candidates_at_once(self) -> int:
        """Candidates that are worth one batch when a bound may spare the next ones, ≥ 1."""
        ...

    @property
    def n_forward_passes(self) -> int:
        """Native decode calls of decoding steps so far, over the engine's life."""
        ...

    def propose(self) -> Proposal:
        """Candidates for the next token, from the logits of the last accepted one."""
        ...

    def evaluate(self, token_id: int) -> NDArray[np.float32]:
        """Feed one candidate to the model as the next token: its state, float32 (n_features,)."""
        ...

    def evaluate_candidates(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed candidates, each as the next token, in one batch: float32 (n, n_features)."""
        ...

    def accept(self, token_id: int) -> None:
        """Make an evaluated candidate the next token; forget the other candidates."""
        ...

    def evaluate_blocks(self, blocks: Sequence[Block]) -> list[NDArray[np.float32]]:
        """Feed blocks of tokens, each as the next ones, in one batch.

        Returns the states of each one's tokens, float32 (len(block), n_features).
        """
        ...

    def look_ahead(self, n_tokens: int) -> tuple[Proposal, list[NDArray[np.float32]]]:
        """What the likeliest next tokens lead to: each goes on as the model most likely would.

        They are `N_LOOKED_AHEAD` at temperature 1, which no filter has cut. n_tokens: of each in
        all, or fewer where it ends the answer. Returns the states of each one's tokens, float32
        (n_tokens, n_features), and leaves nothing behind: `propose` and the rest may follow.
        """
        ...

    def accept_block(self, block: Block) -> None:
        """Make an evaluated block the next tokens; forget the other candidates."""
        ...

    def take_back(self, n_tokens: int) -> None:
        """Remove the last n accepted tokens from the sequence: nothing is proposed after it."""
        ...

    def rewind(self, n_tokens: int) -> None:
        """Remove the last n accepted tokens, as if they had never been, and be ready to propose."""
        ...

    def append(self, token_ids: Sequence[int]) -> None:
        """Put tokens that were not sampled (a refusal) at the end of the sequence."""
        ...

    def is_end(self, token_id: int) -> bool:
        """True for tokens that end the answer."""
        ...

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for; nothing for control tokens."""
        ...


# -- what the guard needs from a probe, so that its rules can be tested with plain Python ----------


class Probe(Protocol):
    """A Decoding-Probe: hidden states in, harmful scores out. Source: SafeSteer, §3."""

    @property
    def n_features(self) -> int:
        """The width of one state: n_embd times the number of layers that the probe reads."""
        ...

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score hidden states.

        hidden: float32 (n, n_features), n >= 1. Not changed.
        Returns float32 (n,), harmful scores in [0, 1], same order.
        Raises GuardError where it cannot judge: a score is never made up.
        """
        ...


def score_prompts(probe: Probe, states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score prompts by a probe that reads their last states alone, or their messages' as well.

    states: float32 (n, 2, n_features): at the last token, and the mean over the message's words.
    """
    last, message = states[:, 0], states[:, 1]
    if probe.n_features == 2 * last.shape[1]:
        return probe.score(np.concatenate([last, message], axis=1))
    return probe.score(np.ascontiguousarray(last))
