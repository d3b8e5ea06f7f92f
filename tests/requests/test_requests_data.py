"""The package's request files hold what their card says, and splits by hash stay put."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from importlib import resources
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import RequestDataError, SettingsError
from safesteer_edge.requests.requests import (
    LABELS,
    SPLITS,
    TRANSLATED,
    Request,
    load_requests,
    load_translated,
    split_of_text,
)

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
# From `borderline-1663` on; none of them is in the test split, which stayed as it was.
NEW_BORDERLINE_KINDS = {
    "sensitive_topics",
    "offensive_language",
    "copyright",
    "public_people",
    "misinformation",
    "deception",
    "harassment",
    "harmful",
    "hate",
    "illegal",
    "privacy",
    "self_harm",
    "sexual",
    "unethical",
    "violence",
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
# By other hands, from `others.jsonl`: none of them is in the test split either.
OTHERS_KINDS = {"role_play", "self_instruct", "word_problem", "code_task"}
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


@pytest.fixture(scope="module")
def translations() -> tuple[Request, ...]:
    return load_translated()


def of_label(requests: tuple[Request, ...], label: str) -> list[Request]:
    return [request for request in requests if request.label == label]


def longer_ordinary(requests: tuple[Request, ...]) -> list[Request]:
    """Those that say by themselves what they ask for."""
    return [r for r in of_label(requests, "ordinary") if r.group != "follow_up"]


def normalised(text: str) -> str:
    return " ".join(text.casefold().split())


@pytest.mark.parametrize(
    ("label", "counts"),
    [
        ("borderline", {"train": 1464, "calibration": 541, "test": 72}),
        ("ordinary", {"train": 1524, "calibration": 561, "test": 144}),
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
    untested = NEW_BORDERLINE_KINDS if label == "borderline" else {"follow_up", *OTHERS_KINDS}
    newer = {(kind, split) for kind in untested for split in ("train", "calibration")}
    assert found == {(kind, split) for kind in kinds for split in SPLITS} | newer


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
    # Of "Go on." and "Go on, please" neither says what the other does not.
    benign = [*of_label(requests, "borderline"), *longer_ordinary(requests)]
    words = [(request, frozenset(normalised(request.text).split())) for request in benign]
    too_near = [
        (a.id, b.id)
        for (a, a_words), (b, b_words) in combinations(words, 2)
        if a.split != b.split and 2 * len(a_words & b_words) >= len(a_words | b_words)
    ]
    assert too_near == []


def test_ordinary_requests_are_three_to_ninety_words_long(requests: tuple[Request, ...]) -> None:
    for request in longer_ordinary(requests):
        if request.language in UNSPACED_LANGUAGES:
            assert 5 <= len(request.text) <= 120, request
        else:
            assert 3 <= len(request.text.split()) <= 90, request


def test_follow_ups_are_short_and_stand_in_no_test_split(requests: tuple[Request, ...]) -> None:
    follow_ups = [r for r in of_label(requests, "ordinary") if r.group == "follow_up"]
    assert len(follow_ups) == 164
    assert all(len(r.text.split()) <= 8 and r.split != "test" for r in follow_ups)


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


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_language_has_pairs_borderline_and_ordinary_requests(
    translations: tuple[Request, ...], language: str
) -> None:
    found = [request for request in translations if request.language == language]
    counts = Counter(request.label for request in found)
    assert counts["harmful"] == counts["harmless"] >= 150
    assert min(counts["borderline"], counts["ordinary"]) >= 100
    pairs = Counter(request.pair_id for request in found if request.pair_id is not None)
    assert set(pairs.values()) == {2}


def test_a_translation_is_placed_as_the_request_that_it_translates(
    requests: tuple[Request, ...], translations: tuple[Request, ...]
) -> None:
    english = {request.id: request for request in requests}
    for request in translations:
        language, _, of = request.id.partition("/")
        source = english[of]
        assert request.language == language
        assert (request.label, request.group, request.split) == (
            source.label,
            source.group,
            source.split,
        )
        assert request.pair_id == (source.pair_id and f"{language}/{source.pair_id}")


def test_no_translation_stands_under_two_labels_or_in_two_splits(
    requests: tuple[Request, ...], translations: tuple[Request, ...]
) -> None:
    places: dict[str, set[tuple[str, str]]] = {}
    for request in (*requests, *translations):
        places.setdefault(normalised(request.text), set()).add((request.label, request.split))
    assert {text: found for text, found in places.items() if len(found) > 1} == {}


def test_translations_are_chosen_by_language_split_and_label(
    translations: tuple[Request, ...],
) -> None:
    chosen = load_translated(["ja", "de"], splits=["train"], labels=["ordinary"])
    assert chosen == tuple(
        r
        for r in translations
        if r.language in {"de", "ja"} and r.split == "train" and r.label == "ordinary"
    )
    with pytest.raises(SettingsError, match="by language 'xx'; give a collection of 'de', 'es'"):
        load_translated(["xx"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"of": "ordinary-9999", "text": "Hallo"}', "no request has the id 'ordinary-9999'"),
        ('{"of": "ordinary-001", "text": "Hallo"}', "line 1 translates 'ordinary-001' too"),
        ('{"of": "ordinary-002"}', "the key 'text' is missing"),
        ('{"of": "ordinary-002", "text": " "}', "'text' is ' '; expected a text with a word"),
    ],
)
def test_a_damaged_file_of_translations_is_refused_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    installed = Path(str(resources.files("safesteer_edge.requests"))) / "data"
    copied = Path(shutil.copytree(installed, tmp_path / "data"))
    file = copied / "languages" / "de.jsonl"
    file.write_text(f'{{"of": "ordinary-001", "text": "Guten Tag"}}\n{line}\n', "utf-8")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(
        RequestDataError, match=r"^the package's 'languages/de.jsonl', line 2: "
    ) as (caught):
        load_translated(["de"])
    assert message in str(caught.value)


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
