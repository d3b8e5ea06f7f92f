"""Laws of guarded decoding, over random answers: the rules are worked out a second time here."""

from __future__ import annotations

import codecs
from dataclasses import replace
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.guard.events import Step
from safesteer_edge.guard.policy import GuardMode, GuardPolicy, RerankName
from safesteer_edge.guard.risk import RunningRisk
from tests.guard.scripted_answers import (
    END,
    REFUSAL_TEXT,
    ScriptedAnswer,
    policy_with,
    random_answer,
    refusal_tokens,
)

seeds = st.integers(0, 2**32 - 1)
modes = st.sampled_from(["steer", "refuse", "monitor"])
reranks = st.sampled_from(["lazy", "eager", "paper"])
levels = st.sampled_from([(0.1, 0.4), (0.1, 0.4, 0.6, 0.97), (0.6, 0.9, 0.97)])
policies = st.builds(
    policy_with,
    strength=st.sampled_from([0.5, 8.0]),
    hard_patience=st.integers(1, 4),
    risk_limit=st.sampled_from([0.3, 0.6, 1.0]),
    risk_min_steps=st.integers(1, 6),
    risk_gain=st.sampled_from([0.0, 3.0]),
)
_LAZY_AND_EAGER: tuple[RerankName, ...] = ("lazy", "eager")


def is_whole(pieces: list[bytes]) -> bool:
    """True unless the bytes end inside a UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(b"".join(pieces))
    return not decoder.getstate()[0]


def decoded(pieces: list[bytes], *, final: bool = False) -> str:
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(pieces), final=final)


@given(seeds, st.booleans(), levels, modes, reranks, policies, st.floats(0.0, 0.9))
@settings(max_examples=500, deadline=None)
def test_what_is_shown_and_kept_is_what_the_rules_say(
    seed: int,
    greedy: bool,
    score_levels: tuple[float, ...],
    mode: GuardMode,
    rerank: RerankName,
    policy: GuardPolicy,
    carried_risk: float,
):
    script = random_answer(seed, greedy=greedy, score_levels=score_levels)
    script.mode, script.rerank, script.policy = mode, rerank, policy
    script.carried_risk = carried_risk
    answer = script.decode()

    # The rules once more, over the tokens that were emitted: hold back, settle, refuse.
    risk = RunningRisk(policy, carried=carried_risk)
    pieces: list[bytes] = []
    n_settled = 0
    shown: list[str] = [""]
    reason = None
    for step in script.steps:
        assert reason is None, "no token follows a refusal"
        assert step.score is not None
        if step.token_id != END:
            pieces.append(script.engine.piece(step.token_id))
        risk.add(step.score)
        assert step.risk == risk.value
        reason = risk.refusal_reason() if mode != "monitor" else None
        is_safe = step.score <= policy.threshold and risk.is_calm
        if reason is None and step.token_id != END and (is_safe or mode == "monitor"):
            n_settled = max(n for n in range(len(pieces) + 1) if is_whole(pieces[:n]))
            shown.append(decoded(pieces[:n_settled]))
    if reason is not None:
        assert answer.finish_reason == "refused"
        assert answer.refusal is not None
        assert answer.refusal.reason == reason
        n_emitted = len(script.steps)
        assert answer.refusal.n_tokens_taken_back == n_emitted - n_settled
        separator = "\n\n" if shown[-1] else ""
        assert answer.text == shown[-1] + separator + REFUSAL_TEXT
        emitted = [step.token_id for step in script.steps]
        refusal = refusal_tokens(separator + REFUSAL_TEXT)
        assert list(answer.token_ids) == emitted[:n_settled] + refusal
    else:
        has_ended = script.steps[-1].token_id == END
        assert answer.finish_reason == ("stop" if has_ended else "length")
        shown.append(decoded(pieces, final=has_ended))
        assert answer.text == shown[-1]
    seen = list(accumulate(script.deltas, initial=""))
    assert seen == sorted(set(shown), key=len)


@given(seeds, st.booleans(), levels, policies)
@settings(max_examples=150, deadline=None)
def test_lazy_and_eager_give_the_same_answer(
    seed: int, greedy: bool, score_levels: tuple[float, ...], policy: GuardPolicy
):
    scripts: list[ScriptedAnswer] = []
    for rerank in _LAZY_AND_EAGER:
        script = random_answer(seed, greedy=greedy, score_levels=score_levels)
        script.rerank, script.policy = rerank, policy
        script.decode()
        scripts.append(script)
    lazy, eager = scripts
    without_candidates = [
        [replace(e, candidates=()) if isinstance(e, Step) else e for e in script.events]
        for script in scripts
    ]
    assert without_candidates[0] == without_candidates[1]
    assert lazy.engine.n_evaluated_states <= eager.engine.n_evaluated_states


@given(seeds, st.booleans(), levels)
@settings(max_examples=60, deadline=None)
def test_monitor_and_off_emit_the_samplers_own_tokens(
    seed: int, greedy: bool, score_levels: tuple[float, ...]
):
    watched = random_answer(seed, greedy=greedy, score_levels=score_levels)
    watched.mode = "monitor"
    watched.policy = policy_with(risk_limit=0.0, hard_patience=1, risk_min_steps=1)
    watched_answer = watched.decode()
    off = random_answer(seed, greedy=greedy, score_levels=score_levels)
    off.policy = None
    off_answer = off.decode()
    assert watched_answer.token_ids == off_answer.token_ids
    assert watched_answer.finish_reason == off_answer.finish_reason != "refused"
    assert watched.deltas == off.deltas
    assert watched_answer.n_interventions == 0
    assert watched.engine.calls == off.engine.calls
    assert off.engine.n_evaluated_states == len(off.steps)
    assert all((step.score, step.risk, step.accepted) == (None, None, True) for step in off.steps)
    assert (off_answer.risk, off_answer.conversation_risk, off_answer.scores) == (None, None, ())
    assert len(watched_answer.scores) == len(watched.steps)


@given(seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_safe_answer_costs_one_evaluation_per_token(seed: int, greedy: bool):
    script = random_answer(seed, greedy=greedy, score_levels=(0.0, 0.25, 0.5))
    answer = script.decode()
    assert script.engine.n_forward_passes == answer.n_steps
    assert script.engine.n_evaluated_states == answer.n_steps == answer.n_evaluated_candidates
    assert (answer.n_interventions, answer.refusal) == (0, None)
