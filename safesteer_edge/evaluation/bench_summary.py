"""What a bench's raw answers come to: paired ratios first, then medians. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from safesteer_edge.evaluation.bench_variants import (
    PROMPT_KINDS,
    VARIANTS,
    MeasuredAnswer,
    PromptKind,
    VariantName,
)
from safesteer_edge.report.document import NOTHING, shown_spread

_Pair = tuple[MeasuredAnswer, MeasuredAnswer]  # of one prompt: a variant's, and another's
RATIOS: Final[tuple[tuple[VariantName, VariantName], ...]] = (
    ("lazy", "off"),
    ("eager", "off"),
    ("lazy", "llama-cpp-python"),
    ("off", "llama-cpp-python"),
    ("lazy", "llama-cpp-python-flash"),
    ("off", "llama-cpp-python-flash"),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repeats."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class VariantRatio:
    """One variant over another, paired within each repeat over the same prompts.

    speed: tokens/s over equally many tokens of each prompt, above 1 is faster; None if no pair of
    answers has two tokens. first_token, first_text: time to it, above 1 is slower; later_ms: how
    much later the first text comes, on average.
    n_tokens: token intervals that each repeat's speed is measured over, the median.
    """

    variant: VariantName
    other: VariantName
    kind: PromptKind
    speed: Spread | None
    first_token: Spread
    first_text: Spread
    later_ms: Spread
    n_tokens: float


@dataclass(frozen=True, slots=True)
class VariantSummary:
    """One variant's figures on one kind of prompt; medians and spreads are over the repeats.

    n_same_text: prompts whose text was that of `off` in every repeat. n_prompt_tokens_differ:
    prompts that had another length in tokens than those of `off`. The guard's figures are None
    where there is none. probe_us_per_token: per emitted token.
    """

    variant: VariantName
    kind: PromptKind
    n_prompts: int
    tokens_per_second: Spread | None
    first_token_s: Spread
    first_text_s: Spread
    n_tokens: float
    passes_per_token: float
    n_interventions: float | None
    n_refused: float | None
    probe_us_per_call: float | None
    probe_us_per_token: float | None
    n_same_text: int
    n_prompt_tokens_differ: int


def summarise_ratios(answers: Sequence[MeasuredAnswer]) -> tuple[VariantRatio, ...]:
    """Every ratio of `RATIOS` on every kind of prompt that was answered by both."""
    found = (ratio_of(answers, *pair, kind) for pair in RATIOS for kind in PROMPT_KINDS)
    return tuple(ratio for ratio in found if ratio is not None)


def summarise_variants(answers: Sequence[MeasuredAnswer]) -> tuple[VariantSummary, ...]:
    """Every variant's figures on every kind of prompt that it answered."""
    found = (summary_of(answers, name, kind) for kind in PROMPT_KINDS for name in VARIANTS)
    return tuple(summary for summary in found if summary is not None)


def ratio_of(
    answers: Sequence[MeasuredAnswer], variant: VariantName, other: VariantName, kind: PromptKind
) -> VariantRatio | None:
    """One ratio; None if the two have no prompt of this kind in common."""
    others = {(a.repeat, a.prompt_id): a for a in answers if (a.variant, a.kind) == (other, kind)}
    by_repeat: dict[int, list[_Pair]] = {}
    for own in answers:
        if (own.variant, own.kind) == (variant, kind) and (own.repeat, own.prompt_id) in others:
            pair = own, others[own.repeat, own.prompt_id]
            by_repeat.setdefault(own.repeat, []).append(pair)
    if not by_repeat:
        return None
    repeats = [by_repeat[repeat] for repeat in sorted(by_repeat)]
    works = [work for pairs in repeats if (work := _equal_work(pairs)) is not None]
    return VariantRatio(
        variant=variant,
        other=other,
        kind=kind,
        speed=spread([other_s / own_s for own_s, other_s, _ in works]) if works else None,
        first_token=spread([_ratio_of_sums(pairs, lambda a: a.first_token_s) for pairs in repeats]),
        first_text=spread([_ratio_of_sums(pairs, lambda a: a.first_text_s) for pairs in repeats]),
        later_ms=spread(
            [
                1e3 * statistics.mean(own.first_text_s - other.first_text_s for own, other in pairs)
                for pairs in repeats
            ]
        ),
        n_tokens=statistics.median(n for _, _, n in works) if works else 0,
    )


def summary_of(
    answers: Sequence[MeasuredAnswer], variant: VariantName, kind: PromptKind
) -> VariantSummary | None:
    """One variant's figures; None if it answered no prompt of this kind."""
    rows = [a for a in answers if a.variant == variant and a.kind == kind]
    if not rows:
        return None
    repeats = [[a for a in rows if a.repeat == n] for n in sorted({a.repeat for a in rows})]
    rates = [rate for group in repeats if (rate := tokens_per_second(group)) is not None]
    n_tokens = sum(len(a.token_ids) for a in rows)
    n_passes = sum(a.n_forward_passes for a in rows)
    n_prompts = len({a.prompt_id for a in rows})
    is_guarded = any(a.probe_s is not None for a in rows)
    probe_us = 1e6 * sum(a.probe_s or 0.0 for a in rows)
    off = {(a.prompt_id, a.repeat): a for a in answers if a.variant == "off"}

    def median_sum(figure: Callable[[MeasuredAnswer], float]) -> float:
        return statistics.median(sum(map(figure, group)) for group in repeats)

    def spread_of(figure: Callable[[MeasuredAnswer], float]) -> Spread:
        return spread([statistics.median(map(figure, group)) for group in repeats])

    def n_prompts_as_off(figure: Callable[[MeasuredAnswer], object]) -> int:
        """Prompts of which every repeat is as that of `off`."""
        unlike = {
            own.prompt_id
            for own in rows
            if (own.prompt_id, own.repeat) not in off
            or figure(own) != figure(off[own.prompt_id, own.repeat])
        }
        return n_prompts - len(unlike)

    return VariantSummary(
        variant=variant,
        kind=kind,
        n_prompts=n_prompts,
        tokens_per_second=spread(rates) if rates else None,
        first_token_s=spread_of(lambda a: a.first_token_s),
        first_text_s=spread_of(lambda a: a.first_text_s),
        n_tokens=median_sum(lambda a: len(a.token_ids)),
        passes_per_token=n_passes / n_tokens if n_tokens else 0.0,
        n_interventions=median_sum(lambda a: a.n_interventions or 0) if is_guarded else None,
        n_refused=median_sum(lambda a: a.is_refused) if is_guarded else None,
        probe_us_per_call=probe_us / n_passes if is_guarded and n_passes else None,
        probe_us_per_token=probe_us / n_tokens if is_guarded and n_tokens else None,
        n_same_text=n_prompts_as_off(lambda a: a.text),
        n_prompt_tokens_differ=n_prompts - n_prompts_as_off(lambda a: a.n_prompt_tokens),
    )


def tokens_per_second(answers: Sequence[MeasuredAnswer]) -> float | None:
    """Tokens after each answer's first, over the seconds between first and last; None of none."""
    n_intervals = sum(max(0, len(a.token_times_s) - 1) for a in answers)
    elapsed_s = sum(_seconds_for(a, len(a.token_times_s)) for a in answers)
    return n_intervals / elapsed_s if elapsed_s > 0 else None


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), tuple(values))


def shown_ratio(value: Spread | None) -> str:
    """Median (least–greatest)."""
    return NOTHING if value is None else shown_spread(value.median, (value.low, value.high))


def _equal_work(pairs: Sequence[_Pair]) -> tuple[float, float, int] | None:
    """Seconds that both took for as many tokens as the shorter answer has, and how many intervals;
    None: there are none.

    Later tokens cost more, as the context grows: an answer that was cut short is compared with
    the beginning of the other.
    """
    common = [min(len(own.token_times_s), len(other.token_times_s)) for own, other in pairs]
    own_s, other_s = (
        sum(_seconds_for(pair[side], n) for pair, n in zip(pairs, common, strict=True))
        for side in (0, 1)
    )
    n_intervals = sum(max(0, n - 1) for n in common)
    return (own_s, other_s, n_intervals) if own_s > 0 and other_s > 0 else None


def _seconds_for(answer: MeasuredAnswer, n_tokens: int) -> float:
    """Seconds from the first token to the n-th."""
    return answer.token_times_s[n_tokens - 1] - answer.token_times_s[0] if n_tokens > 1 else 0.0


def _ratio_of_sums(pairs: Sequence[_Pair], figure: Callable[[MeasuredAnswer], float]) -> float:
    return sum(figure(own) for own, _ in pairs) / sum(figure(other) for _, other in pairs)
