"""Whether a file can go with a message: it is read as it will be, before anything is sent."""

from __future__ import annotations

from pathlib import Path

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import kind_of
from safesteer_edge.session_info import SessionInfo

_SAMPLE_RATE = 16_000  # any: the projector's own is for the engine


def check_attachable(path: Path, info: SessionInfo | None) -> None:
    """Raise MediaError with the reason if it cannot. Takes 0.1 s, for large files seconds.

    info: of the model that is to get it; None: it is not known yet.
    """
    # Deferred: Pillow and NumPy, which the first frame must not wait for.
    from safesteer_edge.media.decoder import MediaDecoder

    if not path.is_file():
        reason = "it is a folder; choose a file" if path.is_dir() else "there is no such file"
        raise MediaError(f"cannot attach {str(path)!r}: {reason}; check the path")
    kind = kind_of(path)
    if info is not None and kind == "sound" and not info.hears:
        raise MediaError(f"{info.model_name} does not hear; choose a model that does (/models)")
    if info is not None and kind == "image" and not info.sees:
        raise MediaError(
            f"{info.model_name} does not see as it is loaded; choose a model that does (/models)"
        )
    with MediaDecoder() as decoder:
        if kind == "image":
            decoder.load_image(path)
        elif kind == "sound":
            decoder.load_sound(path, sample_rate=_SAMPLE_RATE)
        else:
            decoder.load_document(path, name=path.name, sees=info is None or info.sees)
