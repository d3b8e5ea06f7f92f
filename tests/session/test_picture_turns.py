"""Pictures over several turns: each answer is about the right one, and none is encoded twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safesteer_edge.engine.projector import Projector
from safesteer_edge.errors import MediaError
from safesteer_edge.guard.events import MediaPrepared
from safesteer_edge.session import runtime as runtime_module
from safesteer_edge.session.prompt import media_line
from safesteer_edge.session.session import Session
from tests.guarded_tiny import WAVERING, GuardedTiny
from tests.session.turns import Turn, ask, opened
from tests.tiny_models.families.projectors import write_projector

# A prompt in one batch and in several has other rounding.
LOGPROB_TOLERANCE = 1e-2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A, B and C: of other sizes and colours."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / name for name in ("a.png", "b.png", "c.png")]
    for seed, (path, size) in enumerate(zip(paths, [(56, 56), (300, 90), (80, 640)], strict=True)):
        small = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(path)
    return paths


def forget_cache(session: Session) -> None:
    """Let the next prompt be evaluated from its beginning."""
    session._runtime.engine._sequence.forget()


def chat(session: Session, pictures: list[Path], *, afresh: bool) -> list[Turn]:
    """A question about each picture, and one about none of them."""
    turns: list[Turn] = []
    for images in ([pictures[0]], [pictures[1]], [pictures[2]], []):
        if afresh:
            forget_cache(session)
        turns.append(ask(session, "What is this?" if images else "And now?", images=images))
    return turns


def test_a_b_c_and_then_text_are_each_answered_as_if_nothing_had_been_kept(
    guarded_tiny: GuardedTiny, pictures: list[Path]
):
    bundle = guarded_tiny.bundle(WAVERING)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        turns = chat(session, pictures, afresh=False)
        session.reset()
        expected = chat(session, pictures, afresh=True)
        session.reset()
        others = chat(session, [pictures[0]] * 3, afresh=False)
    assert all(turn.prefill.n_reused_tokens == 0 for turn in expected)
    assert all(turn.prefill.n_reused_tokens > 8 for turn in turns[1:])
    for turn, wanted in zip(turns, expected, strict=True):
        assert turn.text == wanted.text
        assert turn.prefill.prompt_score == pytest.approx(wanted.prefill.prompt_score, abs=5e-3)
        for step, wanted_step in zip(turn.steps, wanted.steps, strict=True):
            assert step.logprob == pytest.approx(wanted_step.logprob, abs=LOGPROB_TOLERANCE)
    assert turns[0].text == others[0].text
    for turn, other in zip(turns[1:3], others[1:3], strict=True):  # the picture makes a difference
        assert abs(turn.steps[0].logprob - other.steps[0].logprob) > 5 * LOGPROB_TOLERANCE


def test_a_second_question_about_a_picture_neither_encodes_nor_reads_it_again(
    guarded_tiny: GuardedTiny, pictures: list[Path]
):
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        first = ask(session, "What is this?", images=pictures[:1])
        second = ask(session, "And what colour?")
    assert (first.prefill.n_media_encoded, second.prefill.n_media_encoded) == (1, 0)
    assert second.media == ()
    assert second.prefill.n_media_tokens == 4
    assert second.prefill.n_reused_tokens >= first.prefill.n_prompt_tokens


def test_a_new_chat_with_a_known_picture_does_not_encode_it_again(
    guarded_tiny: GuardedTiny, pictures: list[Path], tmp_path: Path
):
    copy = tmp_path / "renamed.bmp"
    Image.open(pictures[0]).save(copy)
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        first = ask(session, "What is this?", images=pictures[:2])
        session.reset()
        again = ask(session, "What is this?", images=[copy, pictures[1], pictures[2]])
    assert [event.from_cache for event in first.media] == [False, False]
    assert [event.from_cache for event in again.media] == [True, True, False]
    assert again.media[0].name == "renamed.bmp"
    assert [event.encode_s == 0 for event in again.media] == [True, True, False]
    assert (first.prefill.n_media_encoded, again.prefill.n_media_encoded) == (2, 1)


def test_what_became_of_each_picture_is_told_in_order(
    guarded_tiny: GuardedTiny, pictures: list[Path]
):
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        turn = ask(session, "Compare.", images=[pictures[2], pictures[0], pictures[2]])
    assert [event.name for event in turn.media] == ["c.png", "a.png", "c.png"]
    assert [event.from_cache for event in turn.media] == [False, False, True]
    for event, size in zip(turn.media, [(80, 640), (56, 56), (80, 640)], strict=True):
        assert (event.kind, event.n_tokens) == ("image", 4)  # one tile, whatever its shape
        assert (event.original_width, event.original_height) == size
        assert (event.width, event.height) == (56, 56)
    assert turn.ended.usage.media_tokens == 12


def test_a_line_says_what_became_of_a_file():
    photo = MediaPrepared("image", "photo.jpg", 4032, 3024, 224, 224, 0.0, 64, 0.2149, False)
    assert media_line(photo) == "photo.jpg 4032×3024 → 224×224, 64 tokens, 0.21 s"
    cached = MediaPrepared("image", "a.png", 224, 224, 224, 224, 0.0, 64, 0.0, True)
    assert media_line(cached) == "a.png 224×224, 64 tokens, from the cache"
    sound = MediaPrepared("audio", "a.mp3", 0, 0, 0, 0, 12.34, 320, 1.0, False)
    assert media_line(sound) == "a.mp3 12.3 s of sound, 320 tokens, 1.00 s"


def test_a_batch_holds_the_largest_picture_that_must_not_be_cut(
    guarded_tiny: GuardedTiny,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """llama.cpp ends the process where an image of such a projector is cut in two."""
    mmproj = write_projector(tmp_path / "mmproj.gguf", "gemma3")
    monkeypatch.setattr(runtime_module, "DEFAULT_N_BATCH", 2)
    with opened(guarded_tiny, None, mmproj=mmproj) as session:
        turn = ask(session, "What is this?", images=pictures[:1])
        assert (turn.media[0].n_tokens, session._runtime.context.n_batch) == (4, 4)
    monkeypatch.setattr(Projector, "largest_indivisible_chunk", lambda *_: 2)
    with (
        opened(guarded_tiny, None, mmproj=mmproj) as session,
        pytest.raises(MediaError, match="does not fit into one batch of 2"),
    ):
        ask(session, "What is this?", images=pictures[:1])


def test_a_picture_that_may_be_cut_leaves_the_batch_as_it_is(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        assert session._runtime.context.n_batch == runtime_module.DEFAULT_N_BATCH
