"""Files that may go with a message: whether they can, and pictures taken off the clipboard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import kind_of
from safesteer_edge.session.protocol import SessionInfo

_SAMPLE_RATE = 16_000  # any: the projector's own is for the engine

# A picture on the clipboard, which no terminal sends: a tool that can read it is asked.
_TIMEOUT_S: Final = 5.0
# By what is best kept: the first of these that the clipboard offers.
_SUFFIXES: Final = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
}
_XCLIP: Final = ("-selection", "clipboard", "-o", "-t")
# The arguments that list the types, and those before the type to print.
_TOOLS: Final[Mapping[str, tuple[Sequence[str], Sequence[str]]]] = {
    "wl-paste": (("--list-types",), ("--no-newline", "--type")),
    "xclip": ((*_XCLIP, "TARGETS"), _XCLIP),
}
_MAC_PICTURE: Final = re.compile(rb"\xc2\xabdata PNGf([0-9A-F]+)\xc2\xbb")


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


class ClipboardPictures:
    """Takes pictures off the clipboard into files, which go with the program."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._n_taken = 0

    def take(self) -> Path | None:
        """A file with the picture that the clipboard holds; None: it holds text, or nothing.

        Takes up to seconds. Raises MediaError where nothing can tell.
        """
        suffix, data = _read_mac() if sys.platform == "darwin" else _read_by(_find_tool())
        if not data:
            return None
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="safesteer-edge-")
        self._n_taken += 1
        path = Path(self._folder.name) / f"pasted-{self._n_taken}{suffix}"
        path.write_bytes(data)
        return path


def _find_tool() -> str:
    wanted = "wl-paste" if os.environ.get("WAYLAND_DISPLAY") else "xclip"
    if not os.environ.get("WAYLAND_DISPLAY") and not os.environ.get("DISPLAY"):
        raise MediaError(
            "a picture on the clipboard of another machine cannot be taken from there; save it, "
            "and type its path or drop the file"
        )
    if shutil.which(wanted) is None:
        package = "wl-clipboard" if wanted == "wl-paste" else wanted
        raise MediaError(
            f"pictures are taken off the clipboard by {wanted!r}, which is not installed; install "
            f"{package}, or type the picture's path"
        )
    return wanted


def _read_by(tool: str) -> tuple[str, bytes]:
    """The suffix and the bytes of the picture; no bytes: there is none, or text beside it."""
    listing, printing = _TOOLS[tool]
    types = _output_of([tool, *listing]).decode("utf-8", "replace").split()
    if any(each.startswith("text/plain") or each == "UTF8_STRING" for each in types):
        return "", b""
    for media_type, suffix in _SUFFIXES.items():
        if media_type in types:
            return suffix, _output_of([tool, *printing, media_type])
    return "", b""


def _read_mac() -> tuple[str, bytes]:
    shown = _output_of(["osascript", "-e", "the clipboard as «class PNGf»"])
    found = _MAC_PICTURE.search(shown)
    return ".png", bytes.fromhex(found.group(1).decode()) if found else b""


def _output_of(command: Sequence[str]) -> bytes:
    """What it prints; nothing if it fails, which is how these tools say that there is nothing."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MediaError(
            f"{command[0]!r} did not give the clipboard's picture ({error}); save the picture, and "
            "type its path"
        ) from error
    return done.stdout if done.returncode == 0 else b""
