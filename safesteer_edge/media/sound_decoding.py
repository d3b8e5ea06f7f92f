"""Bytes of a sound file to mono samples, by miniaudio, under limits.

miniaudio is what llama.cpp's mtmd decodes sound with; here it runs in a decoding process, so
that a file that crashes it ends no chat. It is read in pieces, and what a header says about the
length is not believed: mtmd allocates as much as the header asks for, and ends the process when
that fails (mtmd-helper.cpp, decode_audio_from_buf).
"""

from __future__ import annotations

from array import array
from typing import Any

import miniaudio

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import Answer, answers

FORMATS = ("WAV", "MP3", "FLAC")
MAX_SECONDS = 600
_PIECE_FRAMES = 16_384


def sound_decoder(_: dict[str, Any]) -> Answer:
    """What decodes in a process of its own."""
    return answers(
        lambda asked, data: (
            {},
            decode_sound(data, name=asked["name"], sample_rate=asked["sample_rate"]).tobytes(),
        )
    )


def decode_sound(data: bytes, *, name: str, sample_rate: int) -> array[float]:
    """Decode to float32 samples in [-1, 1], mono, at this rate.

    Raises MediaError if it is too long, empty, damaged or no sound.
    """
    if not _is_known(data):
        raise MediaError(
            f"cannot use {name} as sound: it is none of {', '.join(FORMATS)}; convert it to WAV"
        )
    samples = array("f")
    try:
        for piece in miniaudio.stream_memory(
            data,
            output_format=miniaudio.SampleFormat.FLOAT32,
            nchannels=1,
            sample_rate=sample_rate,
            frames_to_read=_PIECE_FRAMES,
        ):
            samples.extend(piece)
            if len(samples) > MAX_SECONDS * sample_rate:
                raise MediaError(
                    f"sound {name} lasts more than {MAX_SECONDS} s, the limit; cut it first"
                )
    except miniaudio.MiniaudioError as error:
        raise MediaError(
            f"cannot decode sound {name}: it is damaged or incomplete; get it or save it again"
        ) from error
    if not samples:
        raise MediaError(f"sound {name} is empty; record it again")
    return samples


def _is_known(data: bytes) -> bool:
    """By magic bytes, as mtmd does: RIFF/WAVE, an ID3 tag, an MPEG frame, fLaC."""
    return (
        (data[:4] == b"RIFF" and data[8:12] == b"WAVE")
        or data[:3] == b"ID3"
        or data[:4] == b"fLaC"
        or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0)
    )
