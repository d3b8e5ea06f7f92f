"""Harvested answers with states that are drawn, not computed: for fits and figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.harvest.answers import AnswerKind, HarvestedAnswer
from safesteer_edge.requests.requests import Label, Request

N_POSITIONS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """Answers whose label is written into their states along one direction.

    direction: float64 (n_features,), of length 1. size: how far apart the classes lie, in
    deviations of the noise; 0 is pure noise.
    """

    direction: NDArray[np.float64]
    answers: list[HarvestedAnswer]


def made_up_request(label: Label, number: int) -> Request:
    """A request; harmful and harmless ones of one number are a matched pair."""
    is_paired = label in ("harmful", "harmless")
    return Request(
        id=f"{label}-{number}",
        text=f"{label} request {number}",
        label=label,
        group="made-up",
        split="train",
        language="en",
        pair_id=f"pair-{number}" if is_paired else None,
    )


def made_up_answer(
    states: NDArray[np.floating],
    request: Request,
    kind: AnswerKind = "own",
    *,
    label: Literal[0, 1] | None = None,
) -> HarvestedAnswer:
    """An answer with these states; row 0 is the prompt's. label: None for the request's."""
    is_harmful = request.label == "harmful" and kind != "refusal"
    return HarvestedAnswer(
        request=request,
        kind=kind,
        label=(1 if is_harmful else 0) if label is None else label,
        text="made up",
        token_ids=tuple(range(len(states) - 1)),
        states=states.astype(np.float16),
        message=states[0].astype(np.float16),
    )


def plant(*, size: float, n_pairs: int = 60, n_features: int = 24, seed: int = 0) -> Planted:
    """Own answers to matched pairs, harmful ones moved by `size` along a drawn direction.

    The two answers of a pair, and all positions of an answer, share most of their noise: a split
    that separates them would let a fit remember it.
    """
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(n_features)
    direction /= np.linalg.norm(direction)
    answers: list[HarvestedAnswer] = []
    for number in range(n_pairs):
        topic = rng.standard_normal(n_features)
        labels: tuple[Label, ...] = ("harmful", "harmless")
        for label in labels:
            noise = 0.5 * rng.standard_normal((N_POSITIONS + 1, n_features))
            shift = size / 2 if label == "harmful" else -size / 2
            states = topic + noise + shift * direction
            answers.append(made_up_answer(states, made_up_request(label, number)))
    return Planted(direction, answers)


def with_flipped_labels(
    answers: list[HarvestedAnswer], *, share: float, seed: int = 1
) -> list[HarvestedAnswer]:
    """The same answers with this share of their labels wrong."""
    chosen = np.random.default_rng(seed).permutation(len(answers))[: round(share * len(answers))]
    flipped = set(chosen.tolist())
    return [
        replace(answer, label=1 - answer.label) if index in flipped else answer
        for index, answer in enumerate(answers)
    ]
