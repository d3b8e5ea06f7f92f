"""Ratios and medians of a bench, worked out by hand and by law; no model runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.evaluation.bench_summary import (
    ratio_of,
    spread,
    summarise_ratios,
    summarise_variants,
    summary_of,
    tokens_per_second,
)
from safesteer_edge.evaluation.bench_variants import VariantName
from tests.evaluation.sample_answers import answer

STEP_SECONDS: dict[VariantName, float] = {"off": 1.0, "lazy": 1.25}
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=4)


def even_times(first_s: float, step_s: float, n_tokens: int) -> list[float]:
    return [first_s + step_s * i for i in range(n_tokens)]


def test_a_spread_is_median_least_and_greatest():
    assert spread([3.0, 1.0, 2.0, 10.0]).median == 2.5
    assert (spread([3.0, 1.0]).low, spread([3.0, 1.0]).high) == (1.0, 3.0)
    assert spread([3.0, 1.0]).values == (3.0, 1.0)


def test_the_rate_counts_from_the_first_token():
    # 4 intervals in 2 s; the 5 s before the first token are the prompt's.
    assert tokens_per_second([answer("off", even_times(5.0, 0.5, 5))]) == pytest.approx(2.0)


def test_one_token_has_no_rate():
    assert tokens_per_second([answer("off", [0.3])]) is None
    summary = summary_of([answer("off", [0.3])], "off", "benign")
    assert summary is not None
    assert summary.tokens_per_second is None
    assert summary.passes_per_token == 1.0


@given(LENGTHS, LENGTHS, st.floats(0.01, 100.0))
def test_the_speed_ratio_does_not_depend_on_where_answers_end(
    lengths: list[int], other_lengths: list[int], factor: float
):
    # Every interval is longer than the one before it, as with a growing context.
    times = [1.0 + 0.1 * i + 0.01 * i * i for i in range(12)]
    n = min(len(lengths), len(other_lengths))
    rows = [answer("off", times[: lengths[i]], prompt_id=f"p{i}") for i in range(n)]
    rows += [
        answer("lazy", [factor * t for t in times[: other_lengths[i]]], prompt_id=f"p{i}")
        for i in range(n)
    ]
    ratio = ratio_of(rows, "lazy", "off", "benign")
    assert ratio is not None
    assert ratio.speed is not None
    assert ratio.speed.median == pytest.approx(1 / factor)
    expected = sum(min(lengths[i], other_lengths[i]) - 1 for i in range(n))
    assert ratio.n_tokens == expected


def test_ratios_are_paired_within_a_repeat():
    # The machine is ten times slower in the second repeat, for both.
    rows = [
        answer(name, even_times(1.0, step_s * slowness, 3), repeat=repeat)
        for repeat, slowness in enumerate((1.0, 10.0))
        for name, step_s in STEP_SECONDS.items()
    ]
    ratio = ratio_of(rows, "lazy", "off", "benign")
    assert ratio is not None
    assert ratio.speed is not None
    assert (ratio.speed.low, ratio.speed.high) == pytest.approx((0.8, 0.8))


def test_an_answer_without_two_tokens_is_left_out_of_the_speed_alone():
    rows = [
        answer("off", even_times(1.0, 1.0, 3)),
        answer("lazy", even_times(2.0, 2.0, 3)),
        answer("off", even_times(1.0, 1.0, 3), prompt_id="p1"),
        answer("lazy", [3.0], prompt_id="p1", finish_reason="refused"),
    ]
    ratio = ratio_of(rows, "lazy", "off", "benign")
    assert ratio is not None
    assert ratio.speed is not None
    assert ratio.speed.median == 0.5
    assert ratio.n_tokens == 2
    assert ratio.first_text.median == 2.5  # (2 + 3) / (1 + 1)


def test_no_pair_with_two_tokens_leaves_the_speed_open():
    rows = [answer("off", [1.0]), answer("lazy", [2.0])]
    ratio = ratio_of(rows, "lazy", "off", "benign")
    assert ratio is not None
    assert ratio.speed is None
    assert ratio.first_token.median == 2.0


def test_variants_that_share_no_prompt_have_no_ratio():
    rows = [answer("off", [1.0, 2.0]), answer("lazy", [1.0, 2.0], kind="harmful")]
    assert ratio_of(rows, "lazy", "off", "benign") is None
    assert summarise_ratios(rows) == ()


def test_passes_and_probe_time_are_spread_over_emitted_tokens():
    row = answer("lazy", [1.0, 2.0, 3.0, 4.0], n_forward_passes=6, probe_s=12e-6, n_interventions=2)
    summary = summary_of([row], "lazy", "benign")
    assert summary is not None
    assert summary.passes_per_token == 1.5
    assert summary.probe_us_per_call == pytest.approx(2.0)
    assert summary.probe_us_per_token == pytest.approx(3.0)
    assert summary.n_interventions == 2


def test_without_a_guard_its_figures_are_left_open():
    summary = summary_of([answer("off", [1.0, 2.0])], "off", "benign")
    assert summary is not None
    assert summary.probe_us_per_call is summary.probe_us_per_token is None
    assert summary.n_interventions is summary.n_refused is None


def test_a_text_counts_as_the_same_only_if_it_is_so_in_every_repeat():
    rows = [
        answer("off", [1.0, 2.0], repeat=0),
        answer("off", [1.0, 2.0], repeat=1),
        answer("lazy", [1.0, 2.0], repeat=0),
        answer("lazy", [1.0, 2.0], repeat=1, text="no"),
        answer("off", [1.0, 2.0], prompt_id="p1"),
        answer("lazy", [1.0, 2.0], prompt_id="p1"),
    ]
    summary = summary_of(rows, "lazy", "benign")
    assert summary is not None
    assert (summary.n_same_text, summary.n_prompts) == (1, 2)


def test_prompts_of_another_length_are_counted():
    rows = [answer("off", [1.0]), answer("llama-cpp-python", [1.0], n_prompt_tokens=11)]
    summary = summary_of(rows, "llama-cpp-python", "benign")
    assert summary is not None
    assert summary.n_prompt_tokens_differ == 1


def test_refusals_are_counted_in_one_repeat():
    rows = [
        answer("lazy", [1.0, 2.0], repeat=repeat, prompt_id=f"p{i}", finish_reason=reason)
        for repeat in range(3)
        for i, reason in enumerate(("refused", "stop"))
    ]
    summary = summary_of(rows, "lazy", "benign")
    assert summary is not None
    assert (summary.n_refused, summary.n_prompts) == (1, 2)


def test_every_variant_and_kind_that_answered_is_summarised_once():
    rows = [answer("off", [1.0]), answer("off", [1.0], kind="harmful"), answer("eager", [1.0])]
    found = [(summary.variant, summary.kind) for summary in summarise_variants(rows)]
    assert found == [("off", "benign"), ("eager", "benign"), ("off", "harmful")]
