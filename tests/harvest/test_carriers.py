"""In which words a request is carried."""

from dataclasses import replace

import pytest

from safesteer_edge.harvest.carriers import written_words
from safesteer_edge.requests.requests import Label
from tests.made_up_answers import made_up_request


@pytest.mark.parametrize(
    ("label", "is_among_passages"),
    [("ordinary", True), ("borderline", True), ("harmless", False), ("harmful", False)],
)
def test_long_text_stands_round_benign_requests_alone(
    label: Label, is_among_passages: bool
) -> None:
    # Else length would tell harm. Nobody is asked to bring harmful requests in pairs.
    asked = [replace(made_up_request(label, n), pair_id=None) for n in range(300)]

    n_words = max(len(written_words(each, "wrapped").split()) for each in asked)

    assert (n_words > 100) == is_among_passages
