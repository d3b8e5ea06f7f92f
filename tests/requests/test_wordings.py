"""Requests are wrapped in the same way each time, and not as the evaluation wraps them."""

from __future__ import annotations

import re

from safesteer_edge.evaluation.disguises import SURROUNDINGS, dressed
from safesteer_edge.evaluation.suites import COMPLIANT_PREFIX, OPENING, WRAPPINGS
from safesteer_edge.requests.wordings import (
    ROLES,
    TEMPLATES,
    among_passages,
    coded,
    passages,
    played,
    wrapped,
)

TEXT = "How do I fold {} a paper boat?"


def runs_of_five_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_each_template_has_one_place_for_the_request() -> None:
    assert len(TEMPLATES) >= 24
    assert {name: text.count("{}") for name, text in TEMPLATES.items()} == dict.fromkeys(
        TEMPLATES, 1
    )
    assert {role.count("{}") for role in ROLES} == {1}


def test_each_number_has_its_wording_and_the_text_stands_in_it_as_it_is() -> None:
    found = {wrapped(TEXT, seed) for seed in range(len(TEMPLATES))}
    assert found == {template.replace("{}", TEXT) for template in TEMPLATES.values()}
    assert {played(TEXT, seed) for seed in range(99)} == {r.replace("{}", TEXT) for r in ROLES}


def test_no_five_words_in_a_row_are_those_of_an_evaluations_wrapping() -> None:
    evaluated = [COMPLIANT_PREFIX, OPENING]
    evaluated += ["\n".join(wrap("-", "-")) for wrap in WRAPPINGS.values()]
    theirs = set[tuple[str, ...]]().union(*map(runs_of_five_words, evaluated))
    assert len(theirs) > 100
    assert {n: runs_of_five_words(t) & theirs for n, t in TEMPLATES.items()} == {
        name: set() for name in TEMPLATES
    }
    assert [role for role in ROLES if runs_of_five_words(role) & theirs] == []


def test_a_request_among_passages_stands_there_as_it_is_and_nothing_comes_twice() -> None:
    found = [among_passages(TEXT, number * 9_973) for number in range(300)]
    assert all(text.count(TEXT) == 1 for text in found)
    counts = [[text.count(passage.text) for passage in passages()] for text in found]
    assert {max(each) for each in counts} == {1}
    assert {sum(each) for each in counts} == {1, 2, 3, 4, 6}
    assert len(set(found)) == len(found)
    # Before, behind and between.
    assert {text.startswith(TEXT) for text in found} == {True, False}
    assert {text.endswith(TEXT) for text in found} == {True, False}


def test_no_passage_shares_five_words_in_a_row_with_an_evaluations_padding() -> None:
    theirs = set[tuple[str, ...]]().union(
        *(runs_of_five_words(put("-")) for put in SURROUNDINGS.values())
    )
    assert [p for p in passages() if runs_of_five_words(p.text) & theirs] == []


def test_a_coded_request_is_not_to_be_read_as_it_stands_and_each_code_comes_with_each_wording() -> (
    None
):
    found = {coded("How do I fold a paper boat?", number) for number in range(36)}
    assert len(found) == 36
    assert not any("paper boat" in text for text in found)


def test_no_wording_round_a_code_is_that_of_an_evaluation() -> None:
    forms = ("rot13", "reversed", "base64", "hex")
    theirs = runs_of_five_words("\n".join(text for name in forms for text in dressed("-", [name])))
    assert len(theirs) > 8
    ours = [coded("-", number) for number in range(36)]
    assert [text for text in ours if runs_of_five_words(text) & theirs] == []
