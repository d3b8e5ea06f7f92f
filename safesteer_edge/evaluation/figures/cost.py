"""What answers took: speed, the first text, passes, interventions, memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from safesteer_edge.evaluation.figures.judged import JudgedRow


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one defence on one kind of case. peak_memory_bytes: the largest of its processes.

    Rates are of a run that may share the machine with other workers: `bench` measures overheads.
    """

    defence: str
    kind: str
    n: int
    tokens_per_second: float | None
    ttft_s: float | None
    passes_per_token: float | None
    interventions_per_answer: float
    n_withheld_or_refused: int
    peak_memory_bytes: int | None


def cost_of(rows: Sequence[JudgedRow], defence: str, kind: str) -> Cost | None:
    """The cost of a defence on harmful, borderline or benign cases; None: it has no answers."""
    answered = [
        j.row
        for j in rows
        if j.row.defence == defence and j.row.kind == kind and j.row.status == "ok"
    ]
    if not answered:
        return None
    n_tokens = sum(row.n_tokens + row.n_given for row in answered)
    decode_s = sum(row.decode_s for row in answered)
    memory = [row.peak_memory_bytes for row in answered if row.peak_memory_bytes is not None]
    return Cost(
        defence=defence,
        kind=kind,
        n=len(answered),
        tokens_per_second=n_tokens / decode_s if decode_s > 0 else None,
        ttft_s=statistics.median(row.ttft_s for row in answered),
        passes_per_token=sum(row.passes for row in answered) / n_tokens if n_tokens else None,
        interventions_per_answer=sum(row.interventions for row in answered) / len(answered),
        n_withheld_or_refused=sum(
            row.withheld or row.finish_reason == "refused" for row in answered
        ),
        peak_memory_bytes=max(memory, default=None),
    )
