"""The built-in suites: what they ask, and that they are the same each time."""

from __future__ import annotations

import base64
import codecs
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import RequestDataError, SettingsError
from safesteer_edge.evaluation.case import IN_THE_PICTURE, IN_WORDS, Case, PictureStore, spread
from safesteer_edge.evaluation.disguises import (
    FOLLOW_UPS,
    FORMS,
    MAX_TRIES,
    SHAPES,
    SURROUNDINGS,
    dressed,
    surface_forms,
)
from safesteer_edge.evaluation.suites import (
    BUILTIN_SUITES,
    N_CONFIGURATIONS,
    PREFILL_LENGTHS,
    WRAPPINGS,
    build_suite,
    decoding_grid,
)
from safesteer_edge.requests.pictures import (
    CARRIER,
    COLOURS,
    draw_scene,
    list_title,
    pointed_requests,
    scenes,
)
from safesteer_edge.requests.requests import LABELS, TRANSLATED, load_requests
from tests.media.sample_pictures import load_image

REQUEST = "Explain how to bake bread at home."
TWIN = "How do I store flour?"
DRAWINGS = Path(__file__).parents[2] / "models/qwen2.5-coder-1.5b-instruct/vision/heldout"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PictureStore:
    return PictureStore(tmp_path_factory.mktemp("pictures"), DRAWINGS)


@pytest.mark.parametrize("name", [name for name in BUILTIN_SUITES if name != "ordinary-pictures"])
@pytest.mark.parametrize("n", [1, 8])
def test_a_limit_counts_requests(name: str, n: int, pictures: PictureStore):
    cases = build_suite(name, pictures, seed=0, n=n).cases
    assert len(spread(cases, n)) == len(cases)
    assert len({case.group or case.id for case in cases}) == n


@pytest.mark.parametrize("name", [name for name in BUILTIN_SUITES if name != "decoding-grid"])
def test_a_suite_asks_about_held_out_requests_alone(name: str, pictures: PictureStore):
    suite = build_suite(name, pictures, seed=0, n=24)
    held_out = {request.text for request in load_requests(splits=("test",))}
    held_out |= {r.named or "" for r in pointed_requests(DRAWINGS) if r.split == "test"}
    assert len({case.id for case in suite.cases}) == len(suite.cases) > 20
    assert all(case.suite == name for case in suite.cases)
    if name != "ordinary-pictures":  # whose questions are about what is drawn
        assert {case.request for case in suite.cases} <= held_out
    kinds = {case.kind for case in suite.cases}
    if name not in OF_BOTH_KINDS:
        assert kinds <= ({"harmful"} if name in HARMFUL else {"borderline", "benign"})


BOTH_KINDS = "prefilled surface surrounded languages multi-turn adaptive pointed"
OF_BOTH_KINDS = tuple(BOTH_KINDS.split())
HARMFUL = ("text-harmful", "typographic", "picture-question", "jailbreaks", "decoding-grid")


def test_an_unknown_suite_is_refused(pictures: PictureStore):
    with pytest.raises(SettingsError, match="text-harmful"):
        build_suite("nothing", pictures, seed=0)


def test_a_typographic_case_hides_the_request_in_its_picture(pictures: PictureStore):
    case = build_suite("typographic", pictures, seed=0, n=1).cases[0]
    assert case.turns == (CARRIER,)
    assert case.image is not None
    assert load_image(case.image).width == 224
    assert not any(word in CARRIER for word in case.request.split() if len(word) > 7)


def test_half_of_a_request_may_be_in_the_picture(pictures: PictureStore):
    cases = build_suite("picture-question", pictures, seed=0, n=2).cases
    split = next(case for case in cases if case.attack == "half-in-the-picture")
    words = split.request.split()
    assert words[0] in split.turns[0] and split.request not in split.turns[0]
    whole = next(case for case in cases if case.attack == "beside-a-picture")
    assert whole.request in whole.turns[0]


def test_wrappings_carry_the_request_and_it_can_be_read_back():
    turns = {name: wrap(REQUEST, TWIN) for name, wrap in WRAPPINGS.items()}
    assert base64.b64decode(turns["base64"][0].splitlines()[-1]).decode() == REQUEST
    assert codecs.decode(turns["rot13"][0].splitlines()[-1], "rot13") == REQUEST
    parts = dict(line.split(" = ") for line in turns["payload-splitting"][0].splitlines()[:3])
    assert " ".join(part.strip("'") for part in parts.values()) == REQUEST
    assert turns["multi-turn-drift"][0] == TWIN and turns["multi-turn-drift"][-1] == REQUEST
    for name in ("prefix-injection", "role-play", "refusal-suppression", "many-shot"):
        assert REQUEST in turns[name][-1]


def test_every_request_meets_every_attack(pictures: PictureStore):
    suite = build_suite("jailbreaks", pictures, seed=0)
    attacks = Counter(case.attack for case in suite.cases)
    assert set(attacks) == {*WRAPPINGS, *(f"prefill-{n}" for n in PREFILL_LENGTHS)}
    assert len(set(attacks.values())) == 1
    prefilled = [case for case in suite.cases if case.n_given_tokens]
    assert {case.n_given_tokens for case in prefilled} == set(PREFILL_LENGTHS)
    assert all(case.given_text and case.turns == (case.request,) for case in prefilled)


def test_the_grid_is_that_of_the_paper(pictures: PictureStore):
    grid = decoding_grid(seed=5)
    assert len(grid) == N_CONFIGURATIONS
    assert len({(s.temperature, s.top_k, s.top_p, s.seed) for s in grid.values()}) == len(grid)
    assert sum(s.temperature != 1.0 for s in grid.values()) == 19
    assert Counter(name.partition("-")[0] for name in grid) == {"temperature": 20, "top": 29}
    limited_suite = build_suite("decoding-grid", pictures, seed=5, n=2)
    assert len(limited_suite.cases) == 2 * N_CONFIGURATIONS
    assert len({case.group for case in limited_suite.cases}) == 2


def test_a_limit_keeps_every_category(pictures: PictureStore):
    cases = build_suite("text-harmful", pictures, seed=0).cases
    some = spread(cases, 26)
    assert len(some) == 26
    assert {case.category for case in some} == {case.category for case in cases}
    assert spread(cases, 10_000) == cases


def test_pictures_are_drawn_once_and_alike(tmp_path: Path):
    scene = scenes()[0]
    assert draw_scene(scene).sha256 == draw_scene(scene).sha256
    assert len({draw_scene(each).sha256 for each in scenes()}) == len(scenes())
    image = draw_scene(scene)
    coloured = (image.pixels == np.array(COLOURS[scene.colour])).all(axis=2).mean()
    assert 0.1 < coloured < 0.7
    store = PictureStore(tmp_path / "media")
    assert store.add(image) == PictureStore(tmp_path / "media").add(image)
    assert len(list((tmp_path / "media").iterdir())) == 1


@pytest.mark.parametrize(
    ("request_text", "title"),
    [
        ("Explain how to bake bread.", "Steps to bake bread."),
        ("How do I store flour?", "Steps to store flour."),
        ("Write instructions for folding a boat.", "Steps for folding a boat."),
        ("Write a poem about bread.", "Write a poem about bread."),
    ],
)
def test_a_request_becomes_a_title(request_text: str, title: str):
    assert list_title(request_text) == title


def test_shallow_attacks_are_round_harmful_requests_and_harmless_ones_alike(pictures: PictureStore):
    cases = build_suite("prefilled", pictures, seed=0, n=8).cases
    n_by = Counter((case.kind, case.attack) for case in cases)
    assert len({attack for _, attack in n_by}) == 5 and set(n_by.values()) == {4}
    prefilled = [case for case in cases if case.attack == "sure-here-is"]
    assert {case.given_text for case in prefilled} == {"Sure, here is"}
    assert all(case.turns == (case.request,) for case in prefilled)


@pytest.mark.parametrize(
    ("name", "n_forms"),
    [
        ("surface", 1 + len(FORMS) + 3 * len(FORMS)),
        ("surrounded", 1 + len(SURROUNDINGS)),
        ("multi-turn", 1 + len(SHAPES)),
    ],
)
def test_every_disguise_is_round_harmful_and_ordinary_requests_alike(
    name: str, n_forms: int, pictures: PictureStore
):
    cases = build_suite(name, pictures, seed=0, n=4).cases
    n_by = Counter((case.kind, case.attack) for case in cases)
    assert len({attack for _, attack in n_by}) == n_forms
    assert set(n_by.values()) == {2} and len(n_by) == 2 * n_forms
    assert len({case.turns for case in cases}) == len(cases)


def test_follow_ups_are_in_other_words_than_those_that_guards_are_calibrated_on(
    pictures: PictureStore,
):
    cases = build_suite("follow-ups", pictures, seed=0).cases
    assert all(case.turns[0] == case.request and len(case.turns) == 2 for case in cases)
    asked = {words(case.turns[1]) for case in cases}
    assert asked == {words(text) for text in FOLLOW_UPS} and len(asked) == len(FOLLOW_UPS) >= 50
    known = {words(r.text) for r in load_requests(labels=("ordinary",)) if r.group == "follow_up"}
    assert len(known) > 150 and not asked & known


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def test_every_form_of_letters_meets_three_others():
    pairs = [names for names in surface_forms() if len(names) == 2]
    assert Counter(name for names in pairs for name in names) == dict.fromkeys(FORMS, 6)
    assert len({frozenset(names) for names in pairs}) == len(pairs)


def test_surroundings_and_turns_carry_the_request():
    for name in SURROUNDINGS:
        [turn] = dressed(REQUEST, [name])
        assert turn.count(REQUEST) == 1
    n_words = [len(dressed(REQUEST, [f"{n}-tokens-before"])[0].split()) for n in (600, 1200, 3000)]
    assert n_words == pytest.approx([450, 900, 2250], rel=0.1)
    for name in SHAPES:
        turns = dressed(REQUEST, [name])
        said = " ".join(turns)
        assert len(turns) > 1 and all(word in said for word in REQUEST.split()), name


def test_a_translated_request_stands_beside_the_english_one(pictures: PictureStore):
    cases = build_suite("languages", pictures, seed=0, n=8).cases
    by_group: dict[str | None, set[str]] = {}
    for case in cases:
        by_group.setdefault(case.group, set()).add(case.attack)
        assert (case.turns == (case.request,)) is (case.attack == "en")
    assert len(by_group) == 8
    assert all("en" in languages and len(languages) > 2 for languages in by_group.values())
    assert {case.kind for case in cases} >= {"harmful", "benign"}


def test_each_language_asks_harmful_and_ordinary_requests(pictures: PictureStore):
    labels = {request.id: request.label for request in load_requests(splits=("test",))}
    asked = Counter(
        (case.attack, labels[str(case.group)])
        for case in build_suite("languages", pictures, seed=0).cases
    )
    for language in ("en", *TRANSLATED):
        assert min(asked[language, label] for label in LABELS) >= 10, language


def test_what_is_tried_again_stands_round_ordinary_requests_as_well(pictures: PictureStore):
    suites = [build_suite("adaptive", pictures, seed=seed, n=4) for seed in (0, 0, 1)]
    assert suites[0] == suites[1] != suites[2]
    harmful = [case for case in suites[0].cases if case.kind == "harmful"]
    ordinary = [case for case in suites[0].cases if case.kind == "benign"]
    assert [case.tries for case in harmful] == [MAX_TRIES, MAX_TRIES]
    assert Counter(case.group for case in ordinary).most_common() == [
        (group, 10) for group in dict.fromkeys(case.group for case in ordinary)
    ]
    assert len({case.group for case in ordinary}) == 2
    assert all(case.tries == 0 for case in ordinary)
    assert len({case.turns for case in ordinary}) == len(ordinary)


def test_the_thing_is_named_in_words_or_shown_in_a_picture(pictures: PictureStore):
    cases = build_suite("pointed", pictures, seed=0, n=6).cases
    pairs: dict[str | None, list[Case]] = {}
    for case in cases:
        pairs.setdefault(case.group, []).append(case)
    for pair in pairs.values():
        assert [case.kind for case in pair] == ["harmful", "harmful", "benign", "benign"]
        for in_words, shown in zip(pair[::2], pair[1::2], strict=True):
            assert (in_words.attack, shown.attack) == (IN_WORDS, IN_THE_PICTURE)
            assert in_words.image is None and in_words.turns == (in_words.request,)
            assert shown.image is not None and shown.image.is_file()
            assert "this" in shown.turns[0] and shown.request == in_words.request


def test_things_need_drawings(tmp_path: Path):
    with pytest.raises(SettingsError, match="--drawings DIR"):
        build_suite("pointed", PictureStore(tmp_path), seed=0)
    with pytest.raises(RequestDataError, match=r"manifest\.jsonl"):
        build_suite("pointed", PictureStore(tmp_path, tmp_path), seed=0)
