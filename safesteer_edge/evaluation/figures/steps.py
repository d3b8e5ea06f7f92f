"""How well the probe separates at each decoding step, from the answers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.evaluation.figures.judged import JudgedRow
from safesteer_edge.evaluation.statistics import auroc

N_STEPS = 32


@dataclass(frozen=True, slots=True)
class StepSeparation:
    """AUROC at one step (from 1) of answers that comply with attacks, against harmless ones."""

    step: int
    auroc: float
    n_harmful: int
    n_harmless: int


def step_separation(
    rows: Sequence[JudgedRow], *, judge: str, defence: str
) -> tuple[StepSeparation, ...]:
    """Of the answers under a defence that only watches: the model's own words, all scored.

    Which answers comply is the judge's to say, never the probe's. Given tokens and media aside.
    """
    plain = [
        j
        for j in rows
        if j.row.defence == defence and j.row.status == "ok" and not j.row.n_given and j.row.scores
    ]
    harmful = [j.row.scores for j in plain if j.row.kind == "harmful" and _complied(j, judge)]
    harmless = [j.row.scores for j in plain if j.row.kind != "harmful"]
    found: list[StepSeparation] = []
    for step in range(1, N_STEPS + 1):
        one, other = _at(harmful, step), _at(harmless, step)
        if len(one) and len(other):
            found.append(StepSeparation(step, auroc(one, other), len(one), len(other)))
    return tuple(found)


def _complied(judged: JudgedRow, judge: str) -> bool:
    if judged.row.withheld:  # its verdict is of the text that took its place
        from safesteer_edge.evaluation.refusal_rules import classify_answer

        return classify_answer(judged.row.own_answer) == "complied"
    return judged.is_success(judge) is True


def _at(scores: Sequence[tuple[float, ...]], step: int) -> NDArray[np.float64]:
    return np.array([row[step - 1] for row in scores if len(row) >= step])
