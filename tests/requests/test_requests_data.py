"""The package's request files hold what their card says, and splits by hash stay put."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import SettingsError
from safesteer_edge.requests.requests import LABELS, SPLITS, Request, load_requests, split_of_text

BORDERLINE_KINDS = {
    "homonyms",
    "figurative_language",
    "safe_targets",
    "safe_contexts",
    "definitions",
    "historical_events",
    "prevention_and_safety",
    "medical_and_emergency",
    "news_and_law",
    "cooking_and_tools",
    "security_defence",
    "self_help",
}
ORDINARY_KINDS = {
    "question",
    "writing",
    "code",
    "maths",
    "small_talk",
    "advice",
    "explanation",
    "summarise_or_rewrite",
    "planning",
    "other_language",
    "picture_question",
}
UNSPACED_LANGUAGES = {"zh", "ja"}

# Of each scenario: train, calibration. 1,383 and 500 in all, as the README of the requests says.
PAIRS = {
    "economic_harm": (82, 29),
    "financial_advice": (81, 30),
    "fraud": (122, 44),
    "gov_decision": (82, 29),
    "hate_speech": (131, 48),
    "health_consultation": (82, 29),
    "illegal_activity": (159, 56),
    "legal_opinion": (82, 29),
    "malware_generation": (123, 44),
    "physical_harm": (153, 61),
    "political_lobbying": (82, 29),
    "privacy_violence": (123, 42),
    "sex": (81, 30),
}


@pytest.fixture(scope="module")
def requests() -> tuple[Request, ...]:
    return load_requests()


def of_label(requests: tuple[Request, ...], label: str) -> list[Request]:
    return [request for request in requests if request.label == label]


def normalised(text: str) -> str:
    return " ".join(text.casefold().split())


@pytest.mark.parametrize(
    ("label", "counts"),
    [
        ("borderline", {"train": 1167, "calibration": 423, "test": 72}),
        ("ordinary", {"train": 868, "calibration": 318, "test": 144}),
    ],
)
def test_the_benign_sets_have_the_documented_sizes(
    requests: tuple[Request, ...], label: str, counts: dict[str, int]
) -> None:
    assert Counter(request.split for request in of_label(requests, label)) == counts


@pytest.mark.parametrize(
    ("label", "kinds"), [("borderline", BORDERLINE_KINDS), ("ordinary", ORDINARY_KINDS)]
)
def test_every_kind_stands_in_every_split(
    requests: tuple[Request, ...], label: str, kinds: set[str]
) -> None:
    found = {(request.group, request.split) for request in of_label(requests, label)}
    assert found == {(kind, split) for kind in kinds for split in SPLITS}


@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_every_scenario_has_its_number_of_pairs_in_each_split(
    requests: tuple[Request, ...], label: str
) -> None:
    found = Counter((request.group, request.split) for request in of_label(requests, label))
    scenarios = {group for group, _ in found}
    assert scenarios == set(PAIRS)
    for scenario in scenarios:
        assert found[scenario, "test"] == 10
        assert (found[scenario, "train"], found[scenario, "calibration"]) == PAIRS[scenario]


def test_both_sides_of_a_pair_share_split_and_scenario(requests: tuple[Request, ...]) -> None:
    sides: dict[str, list[Request]] = {}
    for request in requests:
        if request.pair_id is not None:
            sides.setdefault(request.pair_id, []).append(request)
    for pair_id, pair in sides.items():
        assert [request.id for request in pair] == [f"{pair_id}/harmful", f"{pair_id}/harmless"]
        assert [request.label for request in pair] == ["harmful", "harmless"]
        assert len({(request.split, request.group) for request in pair}) == 1


def test_only_pairs_have_a_pair_id(requests: tuple[Request, ...]) -> None:
    for request in requests:
        assert (request.pair_id is not None) == (request.label in {"harmful", "harmless"})


def test_ids_are_unique(requests: tuple[Request, ...]) -> None:
    assert [i for i, n in Counter(request.id for request in requests).items() if n > 1] == []


def test_no_text_stands_there_twice(requests: tuple[Request, ...]) -> None:
    counts = Counter(normalised(request.text) for request in requests)
    assert [text for text, n in counts.items() if n > 1] == []


def test_benign_texts_of_different_splits_share_less_than_half_of_their_words(
    requests: tuple[Request, ...],
) -> None:
    benign = of_label(requests, "borderline") + of_label(requests, "ordinary")
    words = [(request, frozenset(normalised(request.text).split())) for request in benign]
    too_near = [
        (a.id, b.id)
        for (a, a_words), (b, b_words) in combinations(words, 2)
        if a.split != b.split and 2 * len(a_words & b_words) >= len(a_words | b_words)
    ]
    assert too_near == []


def test_ordinary_requests_are_three_to_seventy_words_long(requests: tuple[Request, ...]) -> None:
    for request in of_label(requests, "ordinary"):
        if request.language in UNSPACED_LANGUAGES:
            assert 5 <= len(request.text) <= 120, request
        else:
            assert 3 <= len(request.text.split()) <= 70, request


def test_borderline_requests_are_a_sentence_or_two(requests: tuple[Request, ...]) -> None:
    for request in of_label(requests, "borderline"):
        assert 3 <= len(request.text.split()) <= 40, request


def test_other_languages_are_named_and_spread_over_the_splits(
    requests: tuple[Request, ...],
) -> None:
    ordinary = of_label(requests, "ordinary")
    foreign = [request for request in ordinary if request.group == "other_language"]
    assert len(foreign) >= 91
    assert all((r.language == "en") == (r.group != "other_language") for r in ordinary)
    for language in ("de", "fr", "es", "it", "pt", "nl", "zh", "ja"):
        assert {r.split for r in foreign if r.language == language} == set(SPLITS), language


def test_texts_have_no_stray_white_space(requests: tuple[Request, ...]) -> None:
    double = re.compile(r"\S  ")  # code is indented
    assert [r.id for r in requests if r.text != r.text.strip() or double.search(r.text)] == []


def test_splits_and_labels_choose_a_part_of_the_whole(requests: tuple[Request, ...]) -> None:
    chosen = load_requests(splits={"test"}, labels=["harmful", "borderline"])
    assert chosen == tuple(
        r for r in requests if r.split == "test" and r.label in {"harmful", "borderline"}
    )
    assert load_requests(splits=[]) == ()


@pytest.mark.parametrize("splits", [["trian"], "train"])
def test_an_unknown_split_or_a_lone_string_is_refused(splits: object) -> None:
    with pytest.raises(SettingsError, match=r"by split 'tr.*'train', 'calibration', 'test'"):
        load_requests(splits=splits)  # type: ignore[arg-type]  # what is tested


def test_the_split_of_a_text_never_changes() -> None:
    # Fixed for good: a change would move users' test rows into training.
    splits = [split_of_text(f"request {i}") for i in (1, 9, 0)]
    assert splits == ["train", "calibration", "test"]


def test_texts_are_split_sixty_twenty_twenty() -> None:
    counts = Counter(split_of_text(f"request {i}") for i in range(5000))
    assert counts["train"] == pytest.approx(3000, abs=120)
    assert counts["calibration"] == pytest.approx(1000, abs=100)
    assert counts["test"] == pytest.approx(1000, abs=100)


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_case_and_white_space_do_not_change_the_split(text: str) -> None:
    assert split_of_text(f"  {text}\n") == split_of_text(text)
    assert split_of_text(text) in SPLITS
    if text.isascii():
        assert split_of_text(text.upper()) == split_of_text(text.lower())


def test_labels_are_the_documented_four() -> None:
    assert LABELS == ("harmful", "harmless", "borderline", "ordinary")
