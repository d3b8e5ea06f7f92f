"""What a bench's raw answers come to: paired ratios first, then medians. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from safesteer_edge.evaluation.bench_variants import (
    PROMPT_KINDS,
    VARIANTS,
    MeasuredAnswer,
    PromptKind,
    VariantName,
)

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
    answers has two tokens. first_token, first_text: time to it, above 1 is slower.
    n_tokens: token intervals that each repeat's speed is measured over, the median.
    """

    variant: VariantName
    other: VariantName
    kind: PromptKind
    speed: Spread | None
    first_token: Spread
    first_text: Spread
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
    speeds: list[float] = []
    first_tokens: list[float] = []
    first_texts: list[float] = []
    n_tokens: list[int] = []
    for repeat in _repeats(answers):
        pairs = _pairs(answers, variant, other, kind, repeat)
        if not pairs:
            continue
        first_tokens.append(_ratio_of_sums(pairs, lambda a: a.first_token_s))
        first_texts.append(_ratio_of_sums(pairs, lambda a: a.first_text_s))
        own_s, other_s, n_compared = _equal_work(pairs)
        if n_compared:
            speeds.append(other_s / own_s)
            n_tokens.append(n_compared)
    if not first_texts:
        return None
    return VariantRatio(
        variant=variant,
        other=other,
        kind=kind,
        speed=spread(speeds) if speeds else None,
        first_token=spread(first_tokens),
        first_text=spread(first_texts),
        n_tokens=statistics.median(n_tokens) if n_tokens else 0,
    )


def summary_of(
    answers: Sequence[MeasuredAnswer], variant: VariantName, kind: PromptKind
) -> VariantSummary | None:
    """One variant's figures; None if it answered no prompt of this kind."""
    rows = [a for a in answers if a.variant == variant and a.kind == kind]
    if not rows:
        return None
    by_repeat = [[a for a in rows if a.repeat == repeat] for repeat in _repeats(rows)]
    rates = [rate for group in by_repeat if (rate := tokens_per_second(group)) is not None]
    n_tokens = sum(len(a.token_ids) for a in rows)
    n_passes = sum(a.n_forward_passes for a in rows)
    is_guarded = any(a.probe_s is not None for a in rows)
    probe_us = 1e6 * sum(a.probe_s or 0.0 for a in rows)
    return VariantSummary(
        variant=variant,
        kind=kind,
        n_prompts=len({a.prompt_id for a in rows}),
        tokens_per_second=spread(rates) if rates else None,
        first_token_s=spread([_median_of(group, lambda a: a.first_token_s) for group in by_repeat]),
        first_text_s=spread([_median_of(group, lambda a: a.first_text_s) for group in by_repeat]),
        n_tokens=_median_sum(by_repeat, lambda a: len(a.token_ids)),
        passes_per_token=n_passes / n_tokens if n_tokens else 0.0,
        n_interventions=_median_sum(by_repeat, lambda a: a.n_interventions or 0)
        if is_guarded
        else None,
        n_refused=_median_sum(by_repeat, lambda a: a.is_refused) if is_guarded else None,
        probe_us_per_call=probe_us / n_passes if is_guarded and n_passes else None,
        probe_us_per_token=probe_us / n_tokens if is_guarded and n_tokens else None,
        n_same_text=_n_prompts_where(answers, rows, lambda own, off: own.text == off.text),
        n_prompt_tokens_differ=len({a.prompt_id for a in rows})
        - _n_prompts_where(
            answers, rows, lambda own, off: own.n_prompt_tokens == off.n_prompt_tokens
        ),
    )


def tokens_per_second(answers: Iterable[MeasuredAnswer]) -> float | None:
    """Tokens after each answer's first, over the seconds between first and last; None of none."""
    n_intervals, elapsed_s = 0, 0.0
    for answer in answers:
        n_intervals += max(0, len(answer.token_times_s) - 1)
        elapsed_s += _seconds_for(answer, len(answer.token_times_s))
    return n_intervals / elapsed_s if elapsed_s > 0 else None


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), tuple(values))


def _equal_work(pairs: Sequence[tuple[MeasuredAnswer, MeasuredAnswer]]) -> tuple[float, float, int]:
    """Seconds that both took for as many tokens as the shorter answer has, and how many intervals.

    Later tokens cost more, as the context grows: an answer that was cut short is compared with
    the beginning of the other.
    """
    own_s = other_s = 0.0
    n_intervals = 0
    for own, other in pairs:
        n_common = min(len(own.token_times_s), len(other.token_times_s))
        own_s += _seconds_for(own, n_common)
        other_s += _seconds_for(other, n_common)
        n_intervals += max(0, n_common - 1)
    return own_s, other_s, n_intervals if own_s > 0 and other_s > 0 else 0


def _seconds_for(answer: MeasuredAnswer, n_tokens: int) -> float:
    """Seconds from the first token to the n-th."""
    return answer.token_times_s[n_tokens - 1] - answer.token_times_s[0] if n_tokens > 1 else 0.0


def _pairs(
    answers: Sequence[MeasuredAnswer],
    variant: VariantName,
    other: VariantName,
    kind: PromptKind,
    repeat: int,
) -> list[tuple[MeasuredAnswer, MeasuredAnswer]]:
    rows = [a for a in answers if a.kind == kind and a.repeat == repeat]
    others = {a.prompt_id: a for a in rows if a.variant == other}
    return [
        (a, others[a.prompt_id]) for a in rows if a.variant == variant and a.prompt_id in others
    ]


def _ratio_of_sums(
    pairs: Sequence[tuple[MeasuredAnswer, MeasuredAnswer]],
    figure: Callable[[MeasuredAnswer], float],
) -> float:
    return sum(figure(own) for own, _ in pairs) / sum(figure(other) for _, other in pairs)


def _n_prompts_where(
    answers: Sequence[MeasuredAnswer],
    rows: Sequence[MeasuredAnswer],
    holds: Callable[[MeasuredAnswer, MeasuredAnswer], bool],
) -> int:
    """Prompts for which a comparison with `off` holds in every repeat."""
    off = {(a.prompt_id, a.repeat): a for a in answers if a.variant == "off"}
    failed = {
        own.prompt_id
        for own in rows
        if (own.prompt_id, own.repeat) not in off or not holds(own, off[own.prompt_id, own.repeat])
    }
    return len({own.prompt_id for own in rows} - failed)


def _repeats(answers: Sequence[MeasuredAnswer]) -> list[int]:
    return sorted({answer.repeat for answer in answers})


def _median_of(
    answers: Sequence[MeasuredAnswer], figure: Callable[[MeasuredAnswer], float]
) -> float:
    return statistics.median(figure(answer) for answer in answers)


def _median_sum(
    groups: Sequence[Sequence[MeasuredAnswer]], figure: Callable[[MeasuredAnswer], float]
) -> float:
    return statistics.median(sum(figure(answer) for answer in group) for group in groups)
