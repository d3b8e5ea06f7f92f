"""What a control vector does to prompts with media: their states, first token and answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.harvest.answers import DecodedAnswer, decode_answer
from safesteer_edge.harvest.carriers import Carrier, carried_items
from safesteer_edge.metrics.refusal_rules import is_refusal
from safesteer_edge.metrics.statistics import log_softmax
from safesteer_edge.requests.requests import Request
from safesteer_edge.requests.wordings import OPENING_KINDS, all_openings

if TYPE_CHECKING:
    from safesteer_edge.session.runtime import Runtime


Directions = NDArray[np.float32]
ScoreStates = Callable[[NDArray[np.floating]], NDArray[np.float64]]  # a probe's scores
_LEAST_LOG_PROBABILITY = -30.0
_MUCH_MORE = 3.0  # times as common among one kind of openings as among the other


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One vector, or none, on some prompts; all arrays are float64 (n_prompts,).

    prompt_scores: of the last prompt position. kl: of the first token's distribution from the one
    without a vector, nats. refusal_lean: log of the chance that it opens a refusal, less that of
    an agreeing opening. found: 1 where the answer refuses, else the mean of its tokens' scores;
    prompts that were not answered have NaN there. refused: 1 where it refuses.
    """

    prompt_scores: NDArray[np.float64]
    kl: NDArray[np.float64]
    refusal_lean: NDArray[np.float64]
    found: NDArray[np.float64]
    mean_scores: NDArray[np.float64]
    refused: NDArray[np.float64]

    def at(self, index: NDArray[np.integer]) -> Trial:
        """The trial on these prompts, in this order."""
        return Trial(*(getattr(self, name)[index] for name in Trial.__slots__))

    def where(self, is_on: NDArray[np.bool_], other: Trial) -> Trial:
        """This trial's values where the vector is on, the other's elsewhere."""
        return Trial(
            *(
                np.where(is_on, getattr(self, name), getattr(other, name))
                for name in Trial.__slots__
            )
        )


def try_vectors(
    runtime: Runtime,
    score: ScoreStates,
    prompts: Sequence[tuple[Request, Carrier]],
    vectors: Sequence[Directions],
    *,
    n_tokens: int,
    on_prompt: Callable[[], None] = lambda: None,
) -> tuple[Trial, list[Trial]]:
    """The trial without a vector, and that of each vector.

    runtime: opened with the layers that `score` reads. A prompt is evaluated once, and its last
    token again for each vector; n_tokens: of answers, 0 for none.
    """
    openings = opening_tokens(runtime)
    rows: list[list[tuple[float, ...]]] = []
    for request, carrier in prompts:
        items = carried_items(request, carrier, runtime)
        plain = decode_answer(runtime, items, n_tokens=n_tokens)
        reference = log_softmax(plain.first_logits)
        row = [_measures(plain, reference, score, openings)]
        for directions in vectors:
            answer = decode_answer(runtime, items, n_tokens=n_tokens, control_vector=directions)
            row.append(_measures(answer, reference, score, openings))
        rows.append(row)
        on_prompt()
    values = np.array(rows, dtype=np.float64)  # (n_prompts, 1 + n_vectors, n_measures)
    base, *others = (Trial(*values[:, index].T) for index in range(values.shape[1]))
    return base, others


def _measures(
    answer: DecodedAnswer,
    reference: NDArray[np.float64],
    score: ScoreStates,
    openings: tuple[list[int], list[int]],
) -> tuple[float, ...]:
    scores = score(answer.states)
    log_p = log_softmax(answer.first_logits)
    kl = float(np.sum(np.exp(reference) * (reference - log_p)))
    lean = log_mass(log_p, openings[0]) - log_mass(log_p, openings[1])
    if len(scores) == 1:
        return float(scores[0]), kl, lean, np.nan, np.nan, np.nan
    refused = is_refusal(answer.text)
    mean = float(scores[1:].mean())
    return float(scores[0]), kl, lean, 1.0 if refused else mean, mean, float(refused)


def opening_tokens(runtime: Runtime) -> tuple[list[int], list[int]]:
    """First tokens that are much commoner in refusing openings, and those in agreeing ones."""
    counts: list[dict[int, float]] = []
    for kind in OPENING_KINDS:
        texts = (*all_openings(kind, "train"), *all_openings(kind, "calibration"))  # no test split
        firsts = Counter(runtime.model.tokenize_plain(text)[0] for text in texts)
        counts.append({token: n / len(texts) for token, n in firsts.items()})
    refusing, agreeing = (
        sorted(token for token in ours if ours[token] > _MUCH_MORE * others.get(token, 0.0))
        for ours, others in (counts, counts[::-1])
    )
    return refusing, agreeing


def log_mass(log_p: NDArray[np.float64], token_ids: Sequence[int]) -> float:
    """Log of the chance of these tokens together, cut off below; 0 for none."""
    if not token_ids:
        return 0.0
    # Not max(), which takes a NaN for the least.
    return float(np.maximum(_LEAST_LOG_PROBABILITY, np.logaddexp.reduce(log_p[list(token_ids)])))


def known(gain: float) -> float:
    """The gain; one that is no number, from a vector that overflows the model, is below all."""
    return -math.inf if math.isnan(gain) else gain
