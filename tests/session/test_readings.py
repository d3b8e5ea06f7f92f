"""A turn's prompt is scored in every reading, and its answer stays what it was."""

from __future__ import annotations

import math
import os.path
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.engine.prompt_items import TextPrompt, TokenRun
from safesteer_edge.errors import GuardError
from safesteer_edge.guard.readings import Reading, ReadingCurves, combined_score, readings_of
from safesteer_edge.session.prompt import SidePrompt, sides_read
from safesteer_edge.session.protocol import ChatMessage
from tests.guarded_tiny import QUIET, WAVERING, GuardedTiny
from tests.session.turns import ask, opened

# Of a probe whose logits have mean 0 and deviation 2.
CURVE = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
CURVES = ReadingCurves(typed=CURVE, part=CURVE, joined=CURVE)
SENTENCES = ["Paint it blue, please.", "Sell the small one.", "Burn what is left of them!"]
# A prompt that shares its beginning with the last one comes in other batches.
TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def reading_bundle(guarded_tiny: GuardedTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = replace(guarded_tiny.parts(bias=WAVERING), readings=CURVES)
    return write_bundle(tmp_path_factory.mktemp("reading") / "bundle", parts)


def score(session, text: str, *, fresh: bool = True) -> float:
    if fresh:
        session.reset()
    found = ask(session, text).prefill.prompt_score
    assert found is not None
    return found


@pytest.mark.parametrize("n", [2, 3])
def test_a_prompts_score_is_that_of_all_its_readings(
    guarded_tiny: GuardedTiny, reading_bundle: Path, n: int
):
    text = " ".join(SENTENCES[:n])
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING)) as session:
        typed = score(session, text)
        parts = [score(session, each.text) for each in readings_of(text)]
    with opened(guarded_tiny, reading_bundle) as session:
        found = score(session, text)
        assert ask(session, text).prefill.n_readings == n + 2  # by itself, and with the last turn
    expected = combined_score(typed, [("part", each) for each in parts], CURVES)
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert len(parts) == n


def test_what_was_said_before_counts_with_what_is_said_now(
    guarded_tiny: GuardedTiny, reading_bundle: Path
):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING)) as session:
        joined = score(session, "\n".join(SENTENCES[:2]))
    with opened(guarded_tiny, reading_bundle) as session:
        ask(session, SENTENCES[0])
        found = ask(session, SENTENCES[1]).prefill
        assert found.n_readings == 2
        assert found.prompt_score is not None
        expected = combined_score(0.0, [("joined", joined)], CURVES)
        assert found.prompt_score >= expected - TOLERANCE


def test_behind_a_system_prompt_a_question_is_read_by_itself_too(
    guarded_tiny: GuardedTiny, reading_bundle: Path
):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING)) as session:
        alone = [score(session, text) for text in SENTENCES]
        assert max(alone) > 0.5  # what half of all benign ones reach
    with opened(guarded_tiny, reading_bundle) as session:
        for text, by_itself in zip(SENTENCES, alone, strict=True):
            told = [
                ChatMessage("system", "You answer questions about the code that is supplied."),
                ChatMessage("user", text),
            ]
            turn = session.answer(told)
            assert turn.prompt_score is not None
            assert turn.prompt_score >= by_itself - TOLERANCE or by_itself <= 0.5


def test_a_plain_question_is_read_once(guarded_tiny: GuardedTiny, reading_bundle: Path):
    with opened(guarded_tiny, reading_bundle) as session:
        assert ask(session, SENTENCES[0]).prefill.n_readings == 0


def test_a_question_comes_in_the_same_batches_with_the_guard_off(
    guarded_tiny: GuardedTiny, reading_bundle: Path
):
    reused: list[list[int]] = []
    for folder in (reading_bundle, None):
        with opened(guarded_tiny, folder) as session:
            turns = [ask(session, "Paint it blue."), ask(session, "Paint it red.")]
            session.reset()
            turns.append(ask(session, "Paint it green."))
            reused.append([turn.prefill.n_reused_tokens for turn in turns])
    assert reused[0] == reused[1]


@pytest.mark.parametrize("n_sentences", [3, 30])
def test_readings_change_no_byte_of_an_answer(
    guarded_tiny: GuardedTiny, tmp_path: Path, n_sentences: int
):
    parts = replace(guarded_tiny.parts(bias=QUIET), readings=CURVES)
    bundle = write_bundle(tmp_path / "bundle", parts)
    text = " ".join(SENTENCES[at % 3] for at in range(n_sentences))
    answers = []
    for folder in (bundle, None):
        with opened(guarded_tiny, folder, n_ctx=2048) as session:
            answers.append([ask(session, each).text for each in (text, "Go on.")])
    assert answers[0] == answers[1]


def side(text: str, n_own: int = 5) -> SidePrompt:
    tokens = tuple(range(n_own))
    return SidePrompt(Reading("part", text), TextPrompt(tokens), n_own)


@pytest.mark.parametrize(
    ("in_place", "read"),
    [
        ({"a": 0.49, "b": 0.6, "c": 0.7}, ["c", "b"]),
        ({"a": 0.1, "b": 0.2, "c": 0.3}, []),
        ({"a": math.nan, "b": 0.2, "c": 0.3}, ["a"]),  # what cannot be judged is not passed over
        ({"a": 0.1, "c": 0.3}, ["b"]),  # one whose place is not known is read
    ],
)
def test_a_sentence_is_read_alone_where_it_stands_out(in_place: dict[str, float], read: list[str]):
    sides = [side(name) for name in "abc"]
    located = {each: in_place[each.reading.text] for each in sides if each.reading.text in in_place}
    chosen = sides_read(sides, [TokenRun(tuple(range(30)))], located, CURVES)
    assert [each.reading.text for each in chosen] == read


def test_of_a_long_message_the_sentences_that_stand_out_most_are_read():
    sides = [side(str(n), n_own=100) for n in range(10)]
    located = {each: 0.6 + int(each.reading.text) / 100 for each in sides}
    chosen = sides_read(sides, [TokenRun(tuple(range(1200)))], located, CURVES)
    assert [each.reading.text for each in chosen] == ["9", "8", "7"]  # a quarter of 1,200 tokens


def test_of_a_long_message_at_most_a_quarter_is_read_again(
    guarded_tiny: GuardedTiny, reading_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[int] = []
    with opened(guarded_tiny, reading_bundle, n_ctx=2048) as session:
        engine = session._runtime.engine
        aside = engine.side_prompt_states

        def counted(prompts, **options):
            ids = [each.token_ids for each in prompts]
            n_shared = len(os.path.commonprefix(["".join(map(chr, each)) for each in ids]))  # noqa: RUF071
            read.append(sum(len(each) - n_shared for each in ids))
            return aside(prompts, **options)

        monkeypatch.setattr(engine, "side_prompt_states", counted)
        text = " ".join(f"Number {n}: {SENTENCES[n % 3]}" for n in range(60))
        turn = ask(session, text)
    assert 0 < sum(read) <= 0.25 * turn.prefill.n_prompt_tokens
    assert turn.prefill.n_readings > 5


def test_a_prompt_that_fills_the_context_is_read_all_the_same(
    guarded_tiny: GuardedTiny, reading_bundle: Path
):
    text = " ".join(SENTENCES[n % 3] for n in range(25))
    scores = []
    for n_ctx in (512, 2048):
        with opened(guarded_tiny, reading_bundle, n_ctx=n_ctx) as session:
            turn = ask(session, text)
            scores.append(turn.prefill.prompt_score)
            n_free = n_ctx - turn.prefill.n_prompt_tokens
            assert turn.prefill.n_readings > 1
            assert (n_free < 80) == (n_ctx == 512)  # less than the readings take
    assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE)


def test_a_reading_that_cannot_be_judged_ends_the_turn_before_any_text(
    guarded_tiny: GuardedTiny, reading_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    with opened(guarded_tiny, reading_bundle) as session:
        engine = session._runtime.engine
        monkeypatch.setattr(
            engine,
            "side_prompt_states",
            lambda prompts, **_: np.full(
                (len(prompts), 2, engine._route.read(1).shape[1]), np.nan, np.float32
            ),
        )
        with pytest.raises(GuardError):
            ask(session, " ".join(SENTENCES))
        assert not session.messages
