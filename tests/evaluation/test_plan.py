"""What a run asks under which defence, and that a folder holds one run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.evaluation.case import PictureStore
from safesteer_edge.evaluation.defences import (
    DEFENCES,
    HALVES,
    SAFETY_PROMPT,
    curve_defences,
    parse_defence,
    parse_defences,
)
from safesteer_edge.evaluation.plan import (
    PROFILES,
    SuiteChoice,
    choose_suites,
    default_defences,
    keep_plan,
    plan_items,
)
from safesteer_edge.evaluation.suites import BUILTIN_SUITES
from safesteer_edge.harvest.run import workers_that_fit
from tests.guarded_tiny import POLICY


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory):
    pictures = PictureStore(tmp_path_factory.mktemp("pictures"))
    return choose_suites([SuiteChoice("quick"), SuiteChoice("decoding-grid", 1)], pictures, seed=0)


def test_every_profile_names_suites_that_there_are():
    for sizes in PROFILES.values():
        assert set(sizes) <= set(BUILTIN_SUITES)


def test_a_defence_is_run_only_where_it_may_differ(quick):
    defences = parse_defences(list(DEFENCES))
    planned = plan_items(quick, defences, with_curve=False)
    n_by = Counter((defence.name, case.suite) for defence, case in planned)
    assert n_by["off", "text-harmful"] == n_by["safesteer", "text-harmful"] == 6
    assert n_by["probe-only", "text-harmful"] == 0 < n_by["probe-only", "typographic"]
    assert n_by["eager", "text-harmful"] == 2 and n_by["eager", "jailbreaks"] == 0
    assert n_by["off", "decoding-grid"] == 49 and n_by["safety-prompt", "decoding-grid"] == 0
    order = [defence.name for defence, _ in planned]
    assert order == sorted(order, key=list(dict.fromkeys(order)).index)  # one after the other


def test_a_curve_adds_points_on_half_of_the_cases(quick):
    planned = plan_items(quick, parse_defences(["safesteer"]), with_curve=True)
    names = {defence.name for defence, _ in planned}
    assert {defence.name for defence in curve_defences()} <= names
    point = [case for defence, case in planned if defence.name == "safesteer:shift=2"]
    assert Counter(case.suite for case in point) == {
        "text-harmful": 3,
        "borderline": 3,
        "ordinary-text": 3,
    }


def test_points_near_the_calibrated_one_are_run_on_other_attacks_too(tmp_path: Path):
    names = ("text-harmful", "jailbreaks", "wrapped-ordinary", "picture-question", "typographic")
    suites = choose_suites([SuiteChoice(name, 4) for name in names], PictureStore(tmp_path), seed=0)
    planned = plan_items(suites, parse_defences(["safesteer"]), with_curve=True)
    n_by = Counter((defence.name, case.suite, case.attack) for defence, case in planned)
    for point in ("safesteer:shift=1", "safesteer:shift=-0.5", "safesteer:shift=-1"):
        assert n_by[point, "text-harmful", "none"] == n_by[point, "typographic", "figstep"] == 2
        assert n_by[point, "jailbreaks", "base64"] == n_by[point, "jailbreaks", "prefill-5"] == 2
        assert n_by[point, "wrapped-ordinary", "base64"] == 2
        assert n_by[point, "picture-question", "beside-a-picture"] == 1
        assert n_by[point, "picture-question", "half-in-the-picture"] == 1
    for point in ("safesteer:shift=2", "refusal-direction:scale=2"):
        assert {suite for name, suite, _ in n_by if name == point} == {"text-harmful"}


def test_a_shift_moves_the_limits_and_a_factor_the_strength():
    stricter = parse_defence("safesteer:shift=-1:strength=2").policy_from(POLICY)
    assert stricter.strength == 2 * POLICY.strength
    assert stricter.threshold < POLICY.threshold
    assert stricter.risk_limit < POLICY.risk_limit
    assert stricter.hard_threshold < POLICY.hard_threshold
    assert DEFENCES["safesteer"].policy_from(POLICY) == POLICY
    never = replace(POLICY, risk_limit=1.0)
    assert parse_defence("safesteer:shift=-1").policy_from(never).risk_limit == 1.0


def test_each_ablation_is_one_part_of_the_guard_and_puts_in_no_fixed_sentence():
    policy = replace(POLICY, retries=2, steer_from=0.2)
    by_name = {name: DEFENCES[name].policy_from(policy) for name in DEFENCES}
    assert not by_name["rerank-only"].refuses and by_name["rerank-only"].strength == 8.0
    openings_alone = by_name["openings-only"]
    assert openings_alone.retries == 2 and not openings_alone.can_steer
    assert (by_name["paper"].retries, by_name["paper"].refuses) == (0, False)
    assert by_name["safesteer"] == policy
    stricter = parse_defence("rerank-only:shift=-1").policy_from(policy)
    assert stricter.steer_from is not None and 0 < stricter.steer_from < 0.2


def test_parts_of_the_guard_are_compared_on_text(quick):
    names = ["prompt-refusal", "rerank-only", "openings-only", "paper"]
    planned = plan_items(quick, parse_defences(names), with_curve=False)
    n_by = Counter((defence.name, case.suite) for defence, case in planned)
    assert {n_by[name, "text-harmful"] for name in names} == {6}
    assert {n_by[name, "typographic"] for name in names} == {0}


@pytest.mark.parametrize(
    "text",
    ["nothing", "off:power=2", "safesteer:shift=x", "safesteer:shift=inf", "safesteer:strength=0"],
)
def test_an_unknown_defence_or_change_is_refused(text: str):
    with pytest.raises(SettingsError):
        parse_defence(text)


def test_off_comes_first_and_each_defence_once():
    names = [d.name for d in parse_defences(["safesteer", "paper", "safesteer", "off"])]
    assert names == ["off", "safesteer", "paper"]
    assert "vector-only" not in default_defences(has_vector=False)
    assert default_defences(has_vector=True) == tuple(d for d in DEFENCES if d != "text-route")
    assert default_defences(has_vector=True, halves_alone=True) == HALVES
    assert default_defences(has_vector=False, halves_alone=True) == ("off", "safesteer")
    assert "picture" in SAFETY_PROMPT


def test_a_folder_holds_one_run(quick, tmp_path: Path):
    facts = {"model": "a", "seed": 1}
    keep_plan(tmp_path / "run", facts, quick)
    keep_plan(tmp_path / "run", facts, quick)
    with pytest.raises(InputError, match=r"holds another run \(seed differ"):
        keep_plan(tmp_path / "run", {**facts, "seed": 2}, quick)
    with pytest.raises(InputError, match="cases_sha256"):
        keep_plan(tmp_path / "run", facts, quick[:1])


def test_fewer_processes_where_memory_is_short():
    gib = 1 << 30
    assert workers_that_fit(4, gib, free_bytes=16 * gib) == 4
    assert workers_that_fit(4, gib, free_bytes=3 * gib) == 2
    assert workers_that_fit(4, 8 * gib, free_bytes=3 * gib) == 1
    assert workers_that_fit(3, 1, free_bytes=None) >= 1


def test_an_unknown_suite_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="profiles"):
        choose_suites([SuiteChoice("nothing")], PictureStore(tmp_path), seed=0)
