"""Requests whose thing is in the picture, and whose words point at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.harvest.carriers import carriers_of, written_words
from safesteer_edge.requests.pictures import pointed_requests
from safesteer_edge.requests.requests import SPLITS, Request


@pytest.fixture(scope="module")
def pointed() -> tuple[Request, ...]:
    models = Path(__file__).parents[2] / "models"
    return pointed_requests(models / "qwen2.5-coder-1.5b-instruct" / "vision" / "heldout")


def test_each_pointed_pair_differs_by_the_thing_alone(pointed: tuple[Request, ...]):
    assert len(pointed) >= 1000
    pairs = [pointed[index : index + 2] for index in range(0, len(pointed), 2)]
    for harmful, harmless in pairs:
        assert (harmful.label, harmless.label) == ("harmful", "harmless")
        assert harmful.pair_id == harmless.pair_id and harmful.text == harmless.text
        assert harmful.named != harmless.named
        for request in (harmful, harmless):
            assert request.image is not None and request.image.is_file()
            assert "this" in request.text and request.named and "{" not in request.named


def test_no_wording_of_a_pointed_request_is_in_two_splits(pointed: tuple[Request, ...]):
    splits_of: dict[str, set[str]] = {}
    for request in pointed:
        splits_of.setdefault(request.text, set()).add(request.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert {split for splits in splits_of.values() for split in splits} == set(SPLITS)


def test_a_pointed_request_is_asked_in_words_with_the_name_of_the_thing(
    pointed: tuple[Request, ...],
):
    request = pointed[0]
    assert carriers_of(request, sees=True, hears=False, is_drawn=True, is_beside=True) == (
        "text",
        "picture",
    )
    assert written_words(request, "text") == request.named
    assert written_words(request, "picture") == request.text
