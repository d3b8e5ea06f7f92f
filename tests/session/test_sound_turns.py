"""Sound in a conversation with a model that hears: WAV, MP3 and FLAC through llama.cpp's mtmd."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import MediaError
from safesteer_edge.session.choice import require_projector
from tests.guarded_tiny import GuardedTiny
from tests.session.turns import ask, opened
from tests.tiny_models.hearing_projector import write_tiny_hearing_projector

pytest.importorskip("miniaudio", reason="an installation from before it was needed")

DATA = Path(__file__).parents[1] / "media" / "data"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A WAV, an MP3 and a FLAC file."""
    wav = tmp_path_factory.mktemp("sounds") / "noise.wav"
    noise = np.random.default_rng(0).integers(-9000, 9000, 8000, dtype=np.int16)
    with wave.open(str(wav), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16000)
        stream.writeframes(noise.tobytes())
    return [wav, DATA / "tone.mp3", DATA / "tone.flac"]


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hearing_projector(tmp_path_factory.mktemp("hearing") / "mmproj.gguf")


def test_each_format_is_heard_and_told_about(
    guarded_tiny: GuardedTiny, hearing: Path, sounds: list[Path]
):
    with opened(guarded_tiny, None, mmproj=hearing, n_ctx=2048) as session:
        turns = []
        for path in sounds:
            session.reset()
            turns.append(ask(session, "What do you hear?", sounds=[path]))
        again = ask(session, "And now?")
    for turn, path in zip(turns, sounds, strict=True):
        (event,) = turn.media
        assert (event.kind, event.name, event.from_cache) == ("audio", path.name, False)
        assert event.seconds == pytest.approx(0.5, abs=0.06)
        assert event.n_tokens == turn.ended.usage.media_tokens > 0
    assert (again.prefill.n_media_encoded, again.media) == (0, ())
    # What is heard makes a difference: noise against a tone.
    assert abs(turns[0].steps[0].logprob - turns[2].steps[0].logprob) > 1e-3


def test_a_known_sound_is_not_encoded_again(
    guarded_tiny: GuardedTiny, hearing: Path, sounds: list[Path]
):
    with opened(guarded_tiny, None, mmproj=hearing, n_ctx=2048) as session:
        first = ask(session, "What do you hear?", sounds=sounds[:1])
        session.reset()
        again = ask(session, "What do you hear?", sounds=sounds[:1])
    assert [turn.media[0].from_cache for turn in (first, again)] == [False, True]
    assert again.text == first.text


def test_a_projector_that_only_hears_is_given_no_picture(
    guarded_tiny: GuardedTiny, hearing: Path, sounds: list[Path]
):
    settings = guarded_tiny.settings(None, mmproj=hearing)
    require_projector(settings, images=False, sounds=True)
    with pytest.raises(MediaError, match=r"cannot (see|take pictures)"):
        require_projector(settings, images=True, sounds=False)
