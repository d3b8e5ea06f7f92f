"""Made-up measured answers, for summaries that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safesteer_edge.evaluation.bench_variants import MeasuredAnswer, VariantName

_PATTERN = MeasuredAnswer(
    variant="off",
    repeat=0,
    prompt_id="p0",
    kind="benign",
    text="yes",
    finish_reason="length",
    token_ids=(),
    token_times_s=(),
    first_text_s=0.0,
    n_prompt_tokens=10,
    n_reused_tokens=0,
    n_forward_passes=0,
    n_interventions=None,
    probe_s=None,
)


def answer(
    variant: VariantName,
    token_times_s: Sequence[float],
    *,
    repeat: int = 0,
    prompt_id: str = "p0",
    **changes: object,
) -> MeasuredAnswer:
    """An answer whose tokens came at these times, each by one forward pass."""
    times = tuple(token_times_s)
    values: dict[str, object] = {
        "token_ids": tuple(range(len(times))),
        "token_times_s": times,
        "first_text_s": times[0] if times else 0.0,
        "n_forward_passes": len(times),
        "n_interventions": 0 if variant in ("lazy", "eager") else None,
        "probe_s": 0.0 if variant in ("lazy", "eager") else None,
        **changes,
    }
    made = replace(_PATTERN, variant=variant, repeat=repeat, prompt_id=prompt_id)
    return replace(made, **values)  # pyright: ignore[reportArgumentType]  # fields of every type
