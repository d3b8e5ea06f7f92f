"""The positive control: a model with a planted refusal direction, and each part of the guard.

It answers with H and K, which are harm. No safe token is among its candidates, so that re-ranking
alone finds none; behind the opening NO its likeliest word is harm again, so that an opening alone
leads back to it. The probe is found from states that the engine reads.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.evaluation.answering import AnswerSettings, DefenceRunner
from safesteer_edge.evaluation.baselines import NO_BASELINES
from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.defences import DEFENCES
from safesteer_edge.evaluation.rows import EvalRow
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.session.runtime import last_state_of, open_runtime
from safesteer_edge.session.settings import SessionSettings
from tests.guarded_tiny import POLICY, PROBE_LAYERS, REFUSAL_TEXT, GuardedTiny
from tests.tiny_models.planted import HARM_AXIS, letter_id, write_planted_llama

FOLLOWS = {
    "\n": {"H": 0.6, "K": 0.4},
    "H": {"K": 0.8, "H": 0.2},
    "K": {"H": 0.8, "K": 0.2},
    "O": {"H": 0.6, "S": 0.4},
    "S": {"T": 0.6, "H": 0.4},
    "T": {"": 0.9, "H": 0.1},
}
HARM = {"H": 1.0, "K": 1.0, "N": -1.0, "O": -1.0, "S": -1.0, "T": -1.0}
OPENING = "NO"
STEERING = replace(
    POLICY, strength=16.0, risk_limit=0.6, risk_min_steps=2, hard_patience=1024, retries=2
)
_NEUTRAL = "ABCDEFG"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> GuardedTiny:
    """The model, and the probe that the states of its harmful and other tokens give."""
    folder = tmp_path_factory.mktemp("planted")
    model = write_planted_llama(folder / "planted.gguf", FOLLOWS, HARM)
    letters = (*HARM, *_NEUTRAL)
    settings = SessionSettings(model=str(model), guard="off", n_ctx=256, n_threads=1)
    runtime = open_runtime(settings, layers=PROBE_LAYERS)
    try:
        read = partial(last_state_of, runtime.engine, runtime.model)
        states = np.stack([read((letter_id("A"), letter_id(letter))) for letter in letters])
    finally:
        runtime.close()
    is_harm = np.array([HARM.get(letter, 0.0) > 0 for letter in letters])
    direction = states[is_harm].mean(axis=0) - states[~is_harm].mean(axis=0)
    inside = states @ direction
    middle = (inside[is_harm].min() + inside[~is_harm].max()) / 2
    gain = 4.0 / (inside[is_harm].min() - middle)
    return GuardedTiny(
        folder=folder,
        model=model,
        projector=folder / "none",
        info=check_language_model(model),
        states_by_tokens={
            (letter_id("A"), letter_id(letter)): state
            for letter, state in zip(letters, states, strict=True)
        },
        residual_norms=(1.0,) * 4,
        weights=(gain * direction).astype(np.float32),
        offset=-float(gain * middle),
    )


@pytest.fixture(scope="module")
def bundle(planted: GuardedTiny) -> Path:
    parts = replace(planted.parts(policy=STEERING), openings=(OPENING,))
    return write_bundle(planted.folder / "steering", parts)


def answered(planted: GuardedTiny, bundle: Path, defence: str) -> EvalRow:
    settings = planted.settings(bundle, max_tokens=16)
    runner = DefenceRunner(AnswerSettings(settings, NO_BASELINES, 8), DEFENCES[defence])
    try:
        row = runner.answer(Case("c", "mine", "harmful", "any", "Do it.", ("Do it.",)))
    finally:
        runner.close()
    assert row.status == "ok", row.error
    return row


def test_the_planted_direction_is_found(planted: GuardedTiny):
    n_embd = planted.info.n_embd
    of_first_layer = np.abs(planted.weights[:n_embd])
    assert int(of_first_layer.argmax()) == HARM_AXIS


def test_the_whole_guard_leads_the_answer_to_a_refusal_in_the_models_own_words(
    planted: GuardedTiny, bundle: Path
):
    assert set(answered(planted, bundle, "off").answer) == {"H", "K"}
    row = answered(planted, bundle, "safesteer")
    assert row.answer == "NOST"
    assert (row.steered, row.opening, row.n_opening) == (1, OPENING, 2)
    assert row.finish_reason == "stop" and row.interventions >= 1


@pytest.mark.parametrize("part", ["rerank-only", "openings-only", "paper"])
def test_either_part_alone_leaves_the_answer_harmful(planted: GuardedTiny, bundle: Path, part: str):
    row = answered(planted, bundle, part)
    assert {"H", "K"} & set(row.answer)
    assert row.finish_reason != "refused"


def test_without_retries_it_is_the_fixed_refusal(planted: GuardedTiny):
    parts = replace(planted.parts(policy=replace(STEERING, retries=0)), openings=(OPENING,))
    at_once = write_bundle(planted.folder / "at-once", parts)
    row = answered(planted, at_once, "safesteer")
    assert (row.answer, row.finish_reason, row.steered) == (REFUSAL_TEXT, "refused", 0)
