"""The tokens and text of an answer, split into what is settled and what may be taken back."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.events import Candidate
from safesteer_edge.guard.policy import GuardMode, GuardPolicy, RerankName
from safesteer_edge.guard.protocols import Probe, Proposal, score_prompts
from safesteer_edge.guard.reranking import Choice, likeliest_first


class Transcript:
    """Grows by tokens. `settle` lets text out for good, `drop_unsettled` forgets the rest.

    A token that ends inside a UTF-8 character is settled together with the token that completes
    it: else taking the latter back would leave half a character in the sequence, unseen.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_whole = (0, 0)  # tokens and characters up to the last whole character
        self._n_settled_tokens = 0
        self._n_settled_characters = 0
        self._n_end_tokens = 0

    def add(self, token_id: int, piece: bytes, *, is_end: bool) -> str:
        """Add a token and return the text that it adds; the end token completes the text."""
        if is_end:
            self._n_end_tokens += 1
            added = self._decoder.decode(b"", final=True)
        else:
            self.token_ids.append(token_id)
            added = self._decoder.decode(piece)
        self.text += added
        n_incomplete_bytes = len(self._decoder.getstate()[0])
        if not n_incomplete_bytes:
            self._n_whole = (len(self.token_ids), len(self.text))
        return added

    def begin_with(self, text: str, token_ids: Sequence[int], pieces: Iterable[bytes]) -> None:
        """Start from what was said before: it is settled. pieces: of its tokens, in order."""
        self.text = text
        self.token_ids.extend(token_ids)
        for piece in pieces:  # the last may end inside a character, which the next token completes
            self._decoder.decode(piece)
        self.settle(is_over=True)

    def settle(self, *, is_over: bool = False) -> str:
        """Return the text that became settled just now. is_over: no more tokens will come."""
        if is_over:
            self._n_whole = (len(self.token_ids), len(self.text))
        already_settled = self._n_settled_characters
        self._n_settled_tokens, self._n_settled_characters = self._n_whole
        return self.text[already_settled : self._n_settled_characters]

    def drop_unsettled(self) -> int:
        """Forget the unsettled tail; returns how many tokens of the sequence it was."""
        n_dropped = len(self.token_ids) - self._n_settled_tokens + self._n_end_tokens
        del self.token_ids[self._n_settled_tokens :]
        self.text = self.text[: self._n_settled_characters]
        self._n_whole = (self._n_settled_tokens, self._n_settled_characters)
        self._n_end_tokens = 0
        self._decoder.reset()
        return n_dropped

    def append_refusal(self, text: str, token_ids: Sequence[int]) -> None:
        """Put a refusal at the end."""
        self.text += text
        self.token_ids.extend(token_ids)


# -- an answer that would never end ----------------------------------------------------------------
# Greedy answers of small models fall into saying one thing over and over. A stop changes nothing
# before it, where samplers against repetition (penalties, DRY) change every answer. So long a run
# is seldom meant: a list of thirty zeros is, a sentence four times in a row is not.

_MIN_REPEATS = 4
_MIN_REPEATED_TOKENS = 96
_MAX_PERIOD = 128


def ends_sentence(text: str) -> bool:
    """Whether a sentence ends here."""
    return text.rstrip(" \"'”’)]*").endswith((".", "!", "?", "…", "。", "！", "？", "\n"))


def repeats_itself(token_ids: Sequence[int]) -> bool:
    """Whether the tokens end in one block of up to 128, at least four times and 96 tokens long.

    Takes microseconds.
    """
    if len(token_ids) < _MIN_REPEATED_TOKENS:
        return False
    for period in range(1, min(_MAX_PERIOD, len(token_ids) // _MIN_REPEATS) + 1):
        n_tokens = max(_MIN_REPEATS * period, _MIN_REPEATED_TOKENS)
        if token_ids[-1] == token_ids[-1 - period] and len(token_ids) >= n_tokens:
            tail = token_ids[-n_tokens:]
            if tail[period:] == tail[:-period]:
                return True
    return False


# -- the candidates of one decoding step, as the step's event tells them ---------------------------


def evaluated_candidates(
    proposal: Proposal, choice: Choice, piece: Callable[[int], bytes]
) -> tuple[Candidate, ...]:
    """Those that were evaluated, likeliest first. piece: the bytes of a token."""
    return tuple(
        Candidate(
            tokens[0],
            float(proposal.log_probs[index]),
            float(choice.scores[index]),
            b"".join(map(piece, tokens)).decode("utf-8", "replace"),
        )
        for index in likeliest_first(proposal.log_probs).tolist()
        if np.isfinite(choice.scores[index])
        for tokens in (proposal.candidate(index),)
    )


# -- what the decoding of one answer is given: the guard, the limits, the answer to go on with -----


@dataclass(frozen=True, slots=True)
class ActiveGuard:
    """A guard in force: with mode `off` there is none (None in its place).

    openings: safe beginnings that join the candidates where an answer is steered anew, the
    preferred one first; none does behind a text of which no_opening_in says so. opening_tokens:
    behind one the answer ends with its first sentence of so many; 0: it does not. prompt_probe:
    judges prompts; None: the probe does, by their last states.
    """

    mode: GuardMode
    rerank: RerankName
    policy: GuardPolicy
    probe: Probe
    refusal_text: str
    openings: tuple[str, ...] = ()
    opening_tokens: int = 0
    prompt_probe: Probe | None = None
    no_opening_in: Callable[[str], bool] = lambda _text: False

    @property
    def reads_message(self) -> bool:
        """Whether prompts are judged by the mean state of the message's words, too."""
        judge = self.prompt_probe
        return judge is not None and judge.n_features > self.probe.n_features

    def in_a_form(self) -> ActiveGuard:
        """Of an answer whose form is given: no opening has it, nor what the model likes best."""
        return replace(self, openings=(), policy=replace(self.policy, look_ahead=0))

    def score_prompts(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `protocols.score_prompts`, by the probe that judges prompts."""
        return score_prompts(self.prompt_probe or self.probe, states)


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """max_tokens: at most, given ones aside. n_spare: free context cells a step may need."""

    max_tokens: int
    n_spare: int


@dataclass(frozen=True, slots=True)
class AnswerSoFar:
    """An answer to go on with.

    scores: of its tokens, which are then in the sequence already. None: they are not known and the
    sequence ends before the answer; its tokens are evaluated, and scored, before anything is added.
    prompt_score: of the prompt that it answers, where the sequence does not end with that.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: tuple[float, ...] | None
    prompt_score: float | None = None


# -- A probe that is timed, and whose answers are checked: what guarded decoding asks --------------


class TimedProbe:
    """The probe, with the seconds that its calls took.

    Raises GuardError for anything but one score in [0, 1] for each state.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.n_features = probe.n_features
        self.elapsed_s = 0.0

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        started_s = time.perf_counter()
        scores = self._probe.score(hidden)
        self.elapsed_s += time.perf_counter() - started_s
        # Fail closed here too, whatever the probe's own checks are. NaN fails the comparison.
        in_range = all(0.0 <= score <= 1.0 for score in scores.ravel().tolist())
        if scores.shape != (len(hidden),) or not in_range:
            raise GuardError(
                f"the probe gave {scores.ravel().tolist()[:8]} for {len(hidden)} states, not one "
                "score in [0, 1] for each; verify or rebuild its bundle"
            )
        return scores
