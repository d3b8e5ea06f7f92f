"""WAV, MP3 and FLAC of every width and rate become mono float32 at the rate a projector hears.

tone.mp3 and tone.flac: half a second of 440 Hz at 22,050 Hz, made with libsndfile.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.errors import MediaError
from safesteer_edge.media import decoder as decoder_module
from safesteer_edge.media.decoder import DecodedSound, MediaDecoder

pytest.importorskip("miniaudio", reason="an installation from before it was needed")

Frames = NDArray[np.float64]
Load = Callable[..., DecodedSound]

DATA = Path(__file__).parent / "data"
HEADER_BYTES = 44
N_FILES = round(150 * float(os.environ.get("SAFESTEER_FUZZ_SCALE", "1")))


@pytest.fixture(scope="module")
def load_sound() -> Iterator[Load]:
    """One decoding process for all of these tests."""
    with MediaDecoder() as decoder:
        yield decoder.load_sound


def to_8_bits(frames: Frames) -> bytes:
    return np.round(frames * 127 + 128).astype(np.uint8).tobytes()


def to_16_bits(frames: Frames) -> bytes:
    return np.round(frames * 32767).astype("<i2").tobytes()


def to_32_bits(frames: Frames) -> bytes:
    return np.round(frames * (2**31 - 1)).astype("<i4").tobytes()


def sine(hertz: float, *, rate: int, seconds: float = 0.25, size: float = 0.5) -> Frames:
    return size * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write_wav(
    path: Path, data: bytes, *, width: int = 2, rate: int = 16000, n_channels: int = 1
) -> Path:
    with wave.open(str(path), "wb") as stream:
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.setnchannels(n_channels)
        stream.writeframes(data)
    return path


def loudest_hertz(samples: NDArray[np.float32], rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


@pytest.mark.parametrize(
    ("width", "encode", "tolerance"),
    [(1, to_8_bits, 0.01), (2, to_16_bits, 1e-4), (4, to_32_bits, 1e-6)],
)
def test_each_width_gives_the_wave_that_was_written(
    load_sound: Load,
    tmp_path: Path,
    width: int,
    encode: Callable[[Frames], bytes],
    tolerance: float,
):
    expected = sine(440, rate=16000)
    path = write_wav(tmp_path / "a.wav", encode(expected), width=width)
    sound = load_sound(path, sample_rate=16000)
    assert (sound.sample_rate, sound.name, sound.samples.dtype) == (16000, "a.wav", np.float32)
    np.testing.assert_allclose(sound.samples, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("width", "data"), [(1, b"\0\xff"), (2, b"\0\x80\xff\x7f"), (4, b"\0\0\0\x80\xff\xff\xff\x7f")]
)
def test_the_loudest_samples_stay_within_one(
    load_sound: Load, tmp_path: Path, width: int, data: bytes
):
    path = write_wav(tmp_path / "a.wav", data, width=width)
    low, high = load_sound(path, sample_rate=16000).samples
    assert low == -1.0
    assert 0.99 < high <= 1.0


def test_channels_are_averaged(load_sound: Load, tmp_path: Path):
    left, right = sine(440, rate=16000), sine(880, rate=16000)
    stereo = np.stack([left, right], axis=1)
    path = write_wav(tmp_path / "a.wav", to_16_bits(stereo), n_channels=2)
    samples = load_sound(path, sample_rate=16000).samples
    np.testing.assert_allclose(samples, (left + right) / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_the_length_and_the_pitch(load_sound: Load, tmp_path: Path, rate: int):
    path = write_wav(tmp_path / "a.wav", to_16_bits(sine(440, rate=rate)), rate=rate)
    samples = load_sound(path, sample_rate=16000).samples
    assert abs(len(samples) / 16000 - 0.25) < 1e-3
    assert loudest_hertz(samples, 16000) == pytest.approx(440, abs=4)  # one bin of 0.25 s
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.02)


def test_the_hash_knows_the_samples_and_the_rate(load_sound: Load, tmp_path: Path):
    path = write_wav(tmp_path / "a.wav", to_16_bits(sine(440, rate=16000)))
    other = write_wav(tmp_path / "b.wav", to_16_bits(sine(441, rate=16000)))
    sha256 = load_sound(path, sample_rate=16000).sha256
    assert load_sound(path, sample_rate=16000).sha256 == sha256
    assert load_sound(path, sample_rate=24000).sha256 != sha256
    assert load_sound(other, sample_rate=16000).sha256 != sha256


def test_a_sound_without_samples_is_refused(load_sound: Load, tmp_path: Path):
    path = write_wav(tmp_path / "a.wav", b"")
    with pytest.raises(MediaError, match="is empty"):
        load_sound(path, sample_rate=16000)


@pytest.mark.parametrize("n_kept", [0, 1])
def test_a_file_cut_off_before_its_first_frame_is_empty(
    load_sound: Load, tmp_path: Path, n_kept: int
):
    path = write_wav(tmp_path / "a.wav", to_16_bits(sine(440, rate=16000)), n_channels=2)
    path.write_bytes(path.read_bytes()[: HEADER_BYTES + n_kept])
    with pytest.raises(MediaError, match="is empty"):
        load_sound(path, sample_rate=8000)


def test_a_file_cut_off_within_a_frame_gives_the_frames_before(load_sound: Load, tmp_path: Path):
    path = write_wav(tmp_path / "a.wav", to_16_bits(sine(440, rate=16000)), n_channels=2)
    path.write_bytes(path.read_bytes()[: HEADER_BYTES + 4 * 10 + 3])
    assert len(load_sound(path, sample_rate=16000).samples) == 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF",
        b"hello, hello",
        b"OggS" + bytes(60),
        b"ID3\x04 an mp3",
        b"RIFF\0\0\0\0WAVEjunk",
    ],
)
def test_what_is_no_sound_is_refused_by_name(load_sound: Load, tmp_path: Path, content: bytes):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(MediaError, match=r"a\.wav"):
        load_sound(tmp_path / "a.wav", sample_rate=16000)


def test_floating_point_samples_are_read_and_kept_within_one(load_sound: Load, tmp_path: Path):
    frames = np.array([0.25, -0.5, 4.0, -np.inf, np.nan], dtype="<f4")
    path = write_wav(tmp_path / "a.wav", frames.tobytes(), width=4)
    data = bytearray(path.read_bytes())
    data[20:22] = struct.pack("<H", 3)  # WAVE_FORMAT_IEEE_FLOAT
    path.write_bytes(data)
    samples = load_sound(path, sample_rate=16000).samples
    np.testing.assert_allclose(samples[:3], [0.25, -0.5, 1.0])
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1


@pytest.mark.parametrize("name", ["tone.mp3", "tone.flac"])
def test_compressed_sound_keeps_its_pitch_and_length(load_sound: Load, name: str):
    sound = load_sound(DATA / name, sample_rate=16000)
    assert loudest_hertz(sound.samples, 16000) == pytest.approx(440, abs=2)
    assert sound.seconds == pytest.approx(0.5, abs=0.06)  # an MP3 has whole frames
    assert np.abs(sound.samples).max() == pytest.approx(0.5, abs=0.03)


def test_the_lossless_formats_give_the_same_samples(load_sound: Load, tmp_path: Path):
    expected = load_sound(DATA / "tone.flac", sample_rate=22050)
    wav = write_wav(tmp_path / "a.wav", to_16_bits(expected.samples.astype(np.float64)), rate=22050)
    np.testing.assert_allclose(
        load_sound(wav, sample_rate=22050).samples, expected.samples, rtol=0, atol=1e-4
    )


def test_more_than_ten_minutes_are_refused(load_sound: Load, tmp_path: Path):
    path = write_wav(tmp_path / "a.wav", b"\x80" * 601 * 8000, width=1, rate=8000)
    with pytest.raises(MediaError, match="lasts more than 600 s"):
        load_sound(path, sample_rate=16000)


@pytest.mark.parametrize("n_samples", [2**36 - 1, 2**34, 1])
def test_a_length_that_a_header_claims_is_not_believed(
    load_sound: Load, tmp_path: Path, n_samples: int
):
    data = bytearray((DATA / "tone.flac").read_bytes())
    word = int.from_bytes(data[18:26], "big")  # the last 36 bits: samples in the stream
    data[18:26] = ((word >> 36 << 36) | n_samples).to_bytes(8, "big")
    (tmp_path / "a.flac").write_bytes(data)
    try:
        sound = load_sound(tmp_path / "a.flac", sample_rate=16000)
    except MediaError as error:
        assert "a.flac" in str(error)
    else:
        assert sound.seconds < 1


def test_a_file_over_the_limit_is_refused_unread(
    load_sound: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_wav(tmp_path / "a.wav", to_16_bits(sine(440, rate=16000)))
    monkeypatch.setattr(decoder_module, "MAX_SOUND_BYTES", 100)
    with pytest.raises(MediaError, match="the limit is 100"):
        load_sound(path, sample_rate=16000)


def test_what_is_no_file_is_refused(load_sound: Load, tmp_path: Path):
    with pytest.raises(MediaError, match="No such file"):
        load_sound(tmp_path / "missing.wav", sample_rate=16000)
    with pytest.raises(MediaError, match="not a file"):
        load_sound(tmp_path, sample_rate=16000)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_and_not_waited_for(load_sound: Load, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(MediaError, match="not a file"):
        load_sound(tmp_path / "pipe.wav", sample_rate=16000)


@pytest.mark.parametrize("name", ["a.wav", "tone.mp3", "tone.flac"])
def test_damaged_files_end_in_samples_or_a_media_error(load_sound: Load, tmp_path: Path, name: str):
    write_wav(tmp_path / "a.wav", to_16_bits(sine(440, rate=8000)), rate=8000)
    folder = tmp_path if name == "a.wav" else DATA
    whole = (folder / name).read_bytes()
    rng = random.Random(name)
    path = tmp_path / "damaged"
    for _ in range(N_FILES):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(rng.choice((HEADER_BYTES, len(data))))
            data[place] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            samples = load_sound(path, sample_rate=16000).samples
        except MediaError as error:
            assert "\n" not in str(error)
            assert "ended the process" not in str(error)  # the decoder itself has not crashed
        else:
            assert len(samples)
            assert np.abs(samples).max() <= 1.0
