"""Whatever keeps the guard from judging ends the turn closed: no unjudged text is shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.errors import EngineError, GuardError
from safesteer_edge.guard.decoding import GuardedAnswer
from safesteer_edge.guard.events import Refused
from safesteer_edge.guard.policy import GuardMode, RerankName
from safesteer_edge.guard.protocols import Proposal
from tests.guard.plain_probes import BrokenProbe, PlainProbe, by_token
from tests.guard.scripted_answers import (
    END,
    NO_SCORES,
    REFUSAL_TEXT,
    ScriptedAnswer,
    refusal_tokens,
    spelled,
)
from tests.guard.scripted_engine import ScriptedEngine

Fail = Callable[[NDArray[np.float32]], NDArray[np.float32]]

WAYS: list[tuple[GuardMode, RerankName]] = [
    ("steer", "lazy"),
    ("steer", "eager"),
    ("steer", "paper"),
    ("refuse", "lazy"),
    ("monitor", "lazy"),
]


def all_are(value: float) -> Fail:
    return lambda hidden: np.full(len(hidden), value, dtype=np.float32)


def last_is(value: float) -> Fail:
    def scores(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        result = np.zeros(len(hidden), dtype=np.float32)
        result[-1] = value
        return result

    return scores


def raises(error: Exception) -> Fail:
    def fail(_hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        raise error

    return fail


FAILURES: dict[str, Fail] = {
    "nan": all_are(np.nan),
    "nan for one of the candidates": last_is(np.nan),
    "inf": all_are(np.inf),
    "-inf": last_is(-np.inf),
    "above 1": last_is(1.5),
    "below 0": all_are(-1.0),
    "a column": lambda hidden: np.zeros((len(hidden), 1), dtype=np.float32),
    "one score too many": lambda hidden: np.zeros(len(hidden) + 1, dtype=np.float32),
    "one score too few": lambda hidden: np.zeros(len(hidden) - 1, dtype=np.float32),
    "a bare number": lambda _hidden: np.zeros((), dtype=np.float32),
    "GuardError": raises(GuardError("the provider is gone")),
}


def four_steps(mode: GuardMode, rerank: RerankName, *, fails_at: int, fail: Fail) -> ScriptedAnswer:
    """Two settled tokens, one that is held back, a fourth; two candidates at each of them."""
    words = ["Sure", ", here", " is", " how"]
    scores = [0.1, 0.2, 0.8, 0.1, 0.0]
    engine = ScriptedEngine(
        lambda prefix: (
            {len(prefix) + 1: 0.7, len(prefix) + 11: 0.3} if len(prefix) < 4 else {END: 1.0}
        ),
        {i: word.encode() for i, word in enumerate(words, start=1)},
        end_ids={END},
    )
    working = PlainProbe(lambda position, _token_id: scores[position])
    probe = BrokenProbe(working, fails_at=fails_at, fail=fail)
    return ScriptedAnswer(engine, probe, mode=mode, rerank=rerank)


@pytest.mark.parametrize(("mode", "rerank"), WAYS)
@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_probe_that_fails_ends_the_turn_refused(
    mode: GuardMode, rerank: RerankName, fail: Fail, fails_at: int
):
    script = four_steps(mode, rerank, fails_at=fails_at, fail=fail)
    answer = script.decode()
    assert answer.finish_reason == "refused"
    assert answer.refusal is not None
    assert answer.refusal.reason == "guard_failed"
    assert answer.refusal.detail == str(answer.guard_error) != ""
    assert script.events[-1] == answer.refusal
    assert len(script.steps) == fails_at
    # Monitor holds nothing back; the other modes had not let the third token through.
    n_kept = min(fails_at, 3 if mode == "monitor" else 2)
    separator = "\n\n" if n_kept else ""
    kept_text = "".join(["Sure", ", here", " is"][:n_kept])
    assert answer.text == kept_text + separator + REFUSAL_TEXT
    refusal = refusal_tokens(separator + REFUSAL_TEXT)
    assert script.engine.sequence == [1, 2, 3][:n_kept] + refusal


def test_the_failure_at_hand_would_otherwise_be_answered():
    script = four_steps("steer", "lazy", fails_at=99, fail=all_are(np.nan))
    assert script.decode().text == "Sure, here is how"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0, -1.0])
def test_a_failure_at_another_candidate_than_the_draw_counts_too(bad: float):
    engine = ScriptedEngine(lambda _prefix: {1: 0.7, 2: 0.3}, {1: b"Sure", 2: b"Sorry"})
    script = ScriptedAnswer(engine, by_token({1: 0.9, 2: bad}))
    answer = script.decode()
    assert (answer.text, answer.finish_reason) == (REFUSAL_TEXT, "refused")


@pytest.mark.parametrize(("mode", "rerank"), WAYS)
@pytest.mark.parametrize("error", [ValueError("boom"), EngineError("boom"), MemoryError()])
def test_an_unexpected_error_goes_up_and_shows_nothing(
    mode: GuardMode, rerank: RerankName, error: Exception
):
    script = four_steps(mode, rerank, fails_at=3, fail=raises(error))
    answer = script.start()
    seen = shown_until_error(script, answer, type(error))
    assert seen == ("Sure, here is" if mode == "monitor" else "Sure, here")


def shown_until_error(script: ScriptedAnswer, answer: GuardedAnswer, kind: type[Exception]) -> str:
    with pytest.raises(kind):
        for event in answer.events():
            script.events.append(event)
    return script.said


class _SpentEngine(ScriptedEngine):
    """Its sampler finds nothing to propose at the third step."""

    def propose(self) -> Proposal:
        if len(self.sequence) == 2:
            raise GuardError("the sampler left no candidate")
        return super().propose()


def test_a_sampler_that_fails_ends_the_turn_refused():
    engine = _SpentEngine(lambda _prefix: {1: 1.0}, {1: b"a"})
    script = ScriptedAnswer(engine, by_token({}))
    answer = script.decode()
    assert answer.text == f"aa\n\n{REFUSAL_TEXT}"
    assert isinstance(script.events[-1], Refused)


def test_without_a_guard_the_samplers_error_goes_up_as_it_is():
    engine = _SpentEngine(lambda _prefix: {1: 1.0}, {1: b"a"})
    script = ScriptedAnswer(engine, by_token({}), policy=None)
    with pytest.raises(GuardError, match="left no candidate"):
        list(script.start().events())


def test_a_reranker_that_chooses_an_unscored_token_is_stopped(monkeypatch: pytest.MonkeyPatch):
    from safesteer_edge.guard import decoding
    from safesteer_edge.guard.reranking import Choice

    def careless(engine: ScriptedEngine, _probe: object, proposal: Proposal, *_: object) -> Choice:
        engine.evaluate_candidates([int(token_id) for token_id in proposal.token_ids])
        nothing = np.full(len(proposal.token_ids), np.nan)
        return Choice(0, float("nan"), nothing, False, token_scores=(float("nan"),))

    monkeypatch.setitem(decoding.RERANKERS, "lazy", careless)
    script = four_steps("steer", "lazy", fails_at=99, fail=all_are(np.nan))
    answer = script.decode()
    assert (answer.text, answer.finish_reason) == (REFUSAL_TEXT, "refused")


@pytest.mark.parametrize("score", NO_SCORES)
def test_a_prompt_without_a_score_ends_the_turn_before_a_word_is_said(score: float):
    script = spelled(("The", 0.0), (" sky", 0.0))
    script.prompt_score = score
    answer = script.decode()
    assert answer.refusal is not None and answer.refusal.reason == "guard_failed"
    assert answer.text == REFUSAL_TEXT and not script.steps


@pytest.mark.parametrize(("mode", "rerank"), WAYS)
@pytest.mark.parametrize("risk", NO_SCORES)
def test_a_carried_risk_that_is_none_ends_the_turn_before_a_word_is_said(
    mode: GuardMode, rerank: RerankName, risk: float
):
    script = four_steps(mode, rerank, fails_at=99, fail=all_are(np.nan))
    script.carried_risk = risk
    answer = script.decode()
    assert answer.refusal is not None and answer.refusal.reason == "guard_failed"
    assert "carried from earlier turns" in answer.refusal.detail
    assert answer.text == REFUSAL_TEXT and not script.steps
    assert answer.risk is None  # unknown: the next turn starts with the most there can be
