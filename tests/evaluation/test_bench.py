"""The bench on a tiny guarded model: every variant really answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.errors import BundleError, SettingsError
from safesteer_edge.evaluation.bench import (
    BenchResult,
    BenchSettings,
    choose_prompts,
    run_bench,
    variant_order,
)
from safesteer_edge.evaluation.bench_report import bench_to_json, bench_to_text
from safesteer_edge.evaluation.bench_variants import VARIANTS, MeasuredAnswer, VariantName
from safesteer_edge.requests.requests import load_requests
from tests.guarded_tiny import PATIENT_POLICY, WAVERING, GuardedTiny, make_guarded_tiny

N_PROMPTS, N_REPEATS, MAX_TOKENS = 1, 2, 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GuardedTiny:
    return make_guarded_tiny(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def narration() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(tiny: GuardedTiny, narration: list[str]) -> BenchResult:
    """A whole bench with a guard that steers and never refuses."""
    bundle = tiny.bundle(WAVERING, PATIENT_POLICY)
    return run_bench(bench_settings(tiny, bundle), narrate=narration.append)


def bench_settings(tiny: GuardedTiny, bundle: Path | None) -> BenchSettings:
    return BenchSettings(
        model=str(tiny.model),
        bundle=bundle,
        n_prompts=N_PROMPTS,
        max_tokens=MAX_TOKENS,
        n_repeats=N_REPEATS,
        n_threads=1,
        n_ctx=1024,
    )


def answers_of(result: BenchResult, variant: VariantName) -> list[MeasuredAnswer]:
    return [answer for answer in result.answers if answer.variant == variant]


def test_every_variant_answers_every_prompt_in_every_repeat(result: BenchResult):
    asked = Counter((a.variant, a.repeat, a.prompt_id) for a in result.answers)
    assert set(asked.values()) == {1}
    assert len(asked) == len(VARIANTS) * N_REPEATS * 2 * N_PROMPTS
    assert {a.kind for a in result.answers} == {"benign", "harmful"}


def test_the_outside_reference_draws_our_own_tokens(result: BenchResult):
    off = answers_of(result, "off")
    reference = {(a.repeat, a.prompt_id): a for a in answers_of(result, "llama-cpp-python-flash")}
    for own in off:
        other = reference[own.repeat, own.prompt_id]
        assert other.n_prompt_tokens == own.n_prompt_tokens
        assert other.token_ids == own.token_ids


def test_times_grow_and_lie_after_the_question(result: BenchResult):
    for answer in result.answers:
        assert 1 <= len(answer.token_ids) <= MAX_TOKENS
        assert len(answer.token_times_s) == len(answer.token_ids)
        assert list(answer.token_times_s) == sorted(answer.token_times_s)
        assert 0 < answer.first_token_s <= answer.first_text_s


def test_only_the_guarded_variants_have_guard_figures(result: BenchResult):
    assert all(a.probe_s and a.n_interventions is not None for a in answers_of(result, "lazy"))
    assert all(a.probe_s and a.n_interventions is not None for a in answers_of(result, "eager"))
    for name in ("off", "llama-cpp-python", "llama-cpp-python-flash"):
        assert all(a.probe_s is None for a in answers_of(result, name))


def test_the_guard_of_the_bundle_is_the_one_that_steers(result: BenchResult):
    assert result.model.bundle == "tiny+0"
    assert sum(a.n_interventions or 0 for a in answers_of(result, "eager")) > 0


def test_lazy_and_eager_emit_the_same_tokens(result: BenchResult):
    lazy = {(a.repeat, a.prompt_id): a.token_ids for a in answers_of(result, "lazy")}
    eager = {(a.repeat, a.prompt_id): a.token_ids for a in answers_of(result, "eager")}
    assert lazy == eager


def test_peak_memory_is_measured_for_each_variant(result: BenchResult):
    assert set(result.peak_memory) == set(VARIANTS)
    assert all(size is None or size > 1 << 20 for size in result.peak_memory.values())


def test_what_begins_is_told_in_the_order_in_which_it_is_done(
    result: BenchResult, narration: list[str]
):
    assert narration[: len(VARIANTS)] == [f"memory of {name}" for name in VARIANTS]
    assert narration[len(VARIANTS) :] == [
        f"repeat {repeat + 1} of {N_REPEATS}: {name}"
        for repeat in range(N_REPEATS)
        for name in variant_order(repeat)
    ]


def test_the_text_begins_with_ratios_and_ends_with_the_machine(result: BenchResult):
    text = bench_to_text(result)
    places = [
        text.index(part)
        for part in ("lazy / off", "off / llama-cpp-python", "Medians", "Peak", "machine ")
    ]
    assert places == sorted(places)
    assert result.machine.cpu in text
    assert str(result.model.path) in text
    assert "Note:" not in text


def test_the_json_holds_every_raw_answer(result: BenchResult):
    value = json.loads(json.dumps(bench_to_json(result), allow_nan=False))
    assert next(iter(value)) == "ratios"
    assert len(value["answers"]) == len(result.answers)
    assert value["settings"]["n_repeats"] == N_REPEATS
    assert {row["variant"] for row in value["variants"]} == set(VARIANTS)


def test_a_model_without_a_bundle_is_refused_before_the_work(tiny: GuardedTiny):
    with pytest.raises(BundleError, match="--bundle"):
        run_bench(bench_settings(tiny, None))


def test_each_variant_stands_in_each_place_in_turn():
    orders = [variant_order(repeat) for repeat in range(len(VARIANTS))]
    assert orders[0] == VARIANTS
    for place in range(len(VARIANTS)):
        assert {order[place] for order in orders} == set(VARIANTS)
    assert variant_order(len(VARIANTS)) == VARIANTS


def test_prompts_are_as_many_of_each_kind_and_take_turns():
    prompts = choose_prompts(8)
    assert [prompt.kind for prompt in prompts] == ["benign", "harmful"] * 8
    assert len({prompt.id for prompt in prompts}) == 16
    assert choose_prompts(8) == prompts


def test_prompts_are_spread_over_the_groups():
    group_by_id = {r.id: r.group for r in load_requests(splits=("test",))}
    harmful = [group_by_id[p.id] for p in choose_prompts(13) if p.kind == "harmful"]
    assert len(set(harmful)) == 13


def test_more_prompts_than_there_are_is_an_error():
    with pytest.raises(SettingsError, match="there are"):
        choose_prompts(100_000)


@pytest.mark.parametrize(
    "changes",
    [{"n_prompts": 0}, {"n_repeats": 0}, {"n_threads": 0}, {"max_tokens": 1}],
)
def test_a_setting_out_of_range_is_an_error(changes: dict[str, Any]):
    with pytest.raises(SettingsError, match="expected"):
        BenchSettings(**changes)
