"""Harvesting: the model's own tokens and forced ones, each with the state of the decode path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.harvest.answers import HarvestedAnswer, HarvestPlan, answers_to
from safesteer_edge.requests.requests import LABELS, SPLITS, Label, Request, Split
from safesteer_edge.requests.wordings import OPENING_KINDS, OpeningKind, all_openings, openings
from safesteer_edge.session.prompt import question_items
from safesteer_edge.session.runtime import Runtime, last_state_of, open_runtime
from tests.guarded_tiny import PROBE_LAYERS, WAVERING, GuardedTiny
from tests.made_up_answers import made_up_request
from tests.session.turns import ask, opened

PLAN = HarvestPlan(n_own_tokens=10, n_forced_tokens=6)
F16_TOLERANCE = 0.02  # states reach ±10, and float16 keeps 11 bits of them


@pytest.fixture(scope="module")
def runtime(guarded_tiny: GuardedTiny) -> Iterator[Runtime]:
    """The tiny model without a guard, its probe's layers read."""
    opened_runtime = open_runtime(guarded_tiny.settings(None), layers=PROBE_LAYERS)
    yield opened_runtime
    opened_runtime.close()


def harvest(runtime: Runtime, *requests: Request) -> list[HarvestedAnswer]:
    return [answer for each in requests for answer in answers_to(each, runtime, PLAN)]


@pytest.mark.parametrize(
    ("label", "kinds"),
    [
        ("harmful", {"own": 1, "refusal": 0, "compliance": 1}),
        ("harmless", {"own": 0, "compliance": 0}),
        ("borderline", {"own": 0, "compliance": 0}),
        ("ordinary", {"own": 0}),
    ],
)
def test_answers_are_labelled_by_what_is_asked_and_what_is_answered(
    runtime: Runtime, label: Label, kinds: dict[str, int]
):
    answers = harvest(runtime, made_up_request(label, 1))
    assert {answer.kind: answer.label for answer in answers} == kinds


def test_each_answer_has_a_state_for_the_prompt_and_one_per_token(runtime: Runtime):
    for answer in harvest(runtime, *(made_up_request(label, 1) for label in LABELS)):
        n_tokens = PLAN.n_own_tokens if answer.kind == "own" else PLAN.n_forced_tokens
        assert len(answer.token_ids) == n_tokens
        assert answer.states.shape == (n_tokens + 1, 2 * 64)
        assert answer.states.dtype == np.float16
        pieces = [runtime.model.piece(token_id) for token_id in answer.token_ids]
        assert answer.text == b"".join(pieces).decode("utf-8", "replace")


def test_the_own_answer_is_what_the_session_says_without_a_guard(
    runtime: Runtime, guarded_tiny: GuardedTiny
):
    request = made_up_request("ordinary", 1)
    (answer,) = harvest(runtime, request)
    with opened(guarded_tiny, None, max_tokens=PLAN.n_own_tokens) as session:
        steps = ask(session, request.text).steps
    assert answer.token_ids == tuple(step.token_id for step in steps)


def test_the_states_are_those_that_a_guarded_session_scores(
    runtime: Runtime, guarded_tiny: GuardedTiny
):
    request = made_up_request("ordinary", 1)
    (answer,) = harvest(runtime, request)
    logits = guarded_tiny.logits(answer.states.astype(np.float32))
    with opened(
        guarded_tiny,
        guarded_tiny.bundle(WAVERING),
        guard="monitor",
        max_tokens=PLAN.n_own_tokens,
    ) as session:
        turn = ask(session, request.text)
    scores = [turn.prefill.prompt_score, *turn.scores]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, rtol=0, atol=0.01)


def test_every_state_is_read_as_a_single_decoding_step(runtime: Runtime):
    # The prompt and the answer so far, with the last token held out and evaluated alone.
    request = made_up_request("harmful", 1)
    answer = harvest(runtime, request)[1]  # a forced refusal
    items = question_items(request.text, template=runtime.template, model=runtime.model)
    prompt = [
        token_id for item in items if isinstance(item, TokenRun) for token_id in item.token_ids
    ]
    for n_tokens in (0, 1, len(answer.token_ids)):
        token_ids = [*prompt, *answer.token_ids[:n_tokens]]
        state = last_state_of(runtime.engine, runtime.model, token_ids)
        np.testing.assert_allclose(answer.states[n_tokens], state, rtol=0, atol=F16_TOLERANCE)


@pytest.mark.parametrize("split", SPLITS)
def test_requests_are_opened_in_the_words_of_their_split(runtime: Runtime, split: Split):
    plan = replace(PLAN, n_openings=3)
    for number in range(4):
        request = replace(made_up_request("harmful", number), split=split)
        answers = answers_to(request, runtime, plan)
        assert [a.kind for a in answers] == ["own", *3 * ["refusal"], *3 * ["compliance"]]
        begun = {
            text
            for answer in answers[1:]
            for text in all_openings("refusal" if answer.kind == "refusal" else "compliance", split)
            if text.startswith(answer.text) or answer.text.startswith(text)
        }
        assert len(begun) >= 6


def test_no_split_begins_as_another_one_does():
    starts = [
        {
            " ".join(text.lower().split()[:3])
            for kind in OPENING_KINDS
            for text in all_openings(kind, split)
        }
        for split in SPLITS
    ]
    assert sum(map(len, starts)) == len(set.union(*starts))


@pytest.mark.parametrize("kind", OPENING_KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_one_request_never_gets_an_opening_twice(kind: OpeningKind, split: Split):
    n_all = len(all_openings(kind, split))
    assert n_all > 10
    for index in range(n_all):
        drawn = openings(kind, index, split=split, n=1000)
        assert len(set(drawn)) == len(drawn) == n_all


def test_a_forced_opening_is_continued_by_the_model(runtime: Runtime):
    plan = HarvestPlan(n_own_tokens=1, n_forced_tokens=60)
    *_, answer = answers_to(made_up_request("harmful", 1), runtime, plan)
    assert len(answer.token_ids) == 60
    known = all_openings("compliance", "train")
    begun = next(text for text in known if answer.text.startswith(text))
    assert len(answer.text) > len(begun)


def test_an_opening_depends_on_the_request_alone(runtime: Runtime):
    first, second = made_up_request("harmless", 1), made_up_request("harmless", 2)
    together = harvest(runtime, first, second)[2:]
    alone = harvest(runtime, second)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
