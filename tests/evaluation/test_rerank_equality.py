"""Lazy against eager on the real engine: equal, or different within the noise that is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safesteer_edge.evaluation.heldout import (
    Divergence,
    RerankEquality,
    compare_lazy_with_eager,
)
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.requests.requests import load_requests
from tests.guarded_tiny import PATIENT_POLICY, POLICY, WAVERING, GuardedTiny
from tests.made_up_answers import made_up_request
from tests.session.turns import opened

REQUESTS = [made_up_request(label, n) for n in range(4) for label in ("harmful", "ordinary")]
# A nat is a factor of 2.7: the noise of batch shapes must stay far below what steering decides.
MAX_NOISE = 0.05


@pytest.mark.parametrize("policy", [PATIENT_POLICY, POLICY], ids=["steering", "refusing"])
def test_lazy_and_eager_differ_only_within_the_noise(
    guarded_tiny: GuardedTiny, policy: GuardPolicy
):
    bundle = guarded_tiny.bundle(WAVERING, policy)
    n_done: list[int] = []
    with (
        opened(guarded_tiny, bundle, rerank="lazy") as lazy,
        opened(guarded_tiny, bundle, rerank="eager") as eager,
    ):
        result = compare_lazy_with_eager(REQUESTS, lazy, eager, policy, progress=n_done.append)
    assert n_done == list(range(1, 9))
    assert result.n_prompts == 8
    assert result.n_identical + len(result.divergences) == 8
    assert result.n_identical >= 7
    assert result.n_interventions > 8
    assert result.n_steps_compared > 50
    assert result.noise < MAX_NOISE
    assert result.unexplained == ()


def test_a_real_difference_is_not_explained_away(guarded_tiny: GuardedTiny):
    # Two probes that disagree stand for an error in one of the two forms.
    with (
        opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as lazy,
        opened(
            guarded_tiny, guarded_tiny.bundle(WAVERING + 4, PATIENT_POLICY), rerank="eager"
        ) as eager,
    ):
        result = compare_lazy_with_eager(REQUESTS, lazy, eager, PATIENT_POLICY)
    assert result.n_identical < 8
    assert result.divergences


def test_a_divergence_is_explained_up_to_twice_the_noise():
    divergences = (
        Divergence("inside", step=1, gap=0.0199),
        Divergence("outside", step=2, gap=0.0201),
        Divergence("unseen", step=3, gap=float("inf")),
        Divergence("unknown", step=4, gap=float("nan")),
    )
    result = RerankEquality(4, 0, 10, 2, noise=0.01, divergences=divergences)
    unexplained = [item.request_id for item in result.unexplained]
    assert unexplained == ["outside", "unseen", "unknown"]
    assert len(replace(result, noise=float("nan")).unexplained) == 4


@pytest.mark.default_model
@pytest.mark.parametrize(
    "n_each",
    [3, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
    ids=["6 prompts", "50 prompts"],
)
def test_lazy_is_eager_on_the_default_model(n_each: int):
    from safesteer_edge.guard.policy import SamplingSettings
    from safesteer_edge.session.session import open_session
    from safesteer_edge.session.settings import SessionSettings

    settings = SessionSettings(
        sampling=SamplingSettings(temperature=0.0, top_k=8),
        max_tokens=24 if n_each < 25 else 64,
        n_threads=1 if n_each < 25 else None,
    )
    requests = [
        request
        for label in ("harmful", "ordinary")
        for request in load_requests(splits=("test",), labels=(label,))[:n_each]
    ]
    with (
        open_session(settings) as lazy,
        open_session(replace(settings, rerank="eager")) as eager,
    ):
        assert lazy.policy is not None
        result = compare_lazy_with_eager(requests, lazy, eager, lazy.policy)
    assert result.n_prompts == 2 * n_each
    assert result.n_identical + len(result.divergences) == result.n_prompts
    assert result.unexplained == (), result.divergences
