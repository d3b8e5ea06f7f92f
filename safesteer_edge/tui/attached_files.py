"""Files that go with a message: found in what was typed, pasted or dropped, or on the clipboard.

A path that was sent as words would be answered with contents that the model makes up: what looks
like one is attached, or refused. In `backquotes` it is words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import IMAGE_SUFFIXES, SOUND_SUFFIXES, kind_of
from safesteer_edge.session.protocol import Document, SessionInfo

TEXT_SUFFIXES = frozenset(
    {".txt", ".md", ".markdown", ".rst", ".csv", ".tsv", ".json", ".yaml", ".yml", ".toml"}
    | {".ini", ".cfg", ".log", ".xml", ".html", ".tex"}
)
# Nobody writes such a name for anything but a file to look at; the last ones are told to convert.
_FILE_SUFFIXES = (
    IMAGE_SUFFIXES
    | SOUND_SUFFIXES
    | {".pdf", ".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".xls", ".xlsx", ".ods", ".epub"}
    | {".svg", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4a", ".ogg", ".opus", ".aac"}
)
_SIGNS = {"image": "▣", "sound": "♪", "document": "≡"}
_TOKEN = re.compile(r"'[^'\n]+'|\"[^\"\n]+\"|(?:\\.|[^\s\\])+")
_ROOTED = re.compile(r"['\"]?(file://|~\w*/|\.{0,2}/)")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_NESTED = re.compile(r"/[^/]+/.+")  # no slash command
_PLAIN = re.compile(r"(['\"]?)[\w./~+@-]+\1")  # no code, no pattern, no URL
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,7}")
_SENTENCE_ENDS = ".,;:!?)"
_MAX_TYPED_CHARACTERS = 20_000  # a longer paste is a text


def sign_of(path: Path) -> str:
    """A letter that says what kind of file it is."""
    return _SIGNS[kind_of(path)]


def has_known_name(path: Path) -> bool:
    """True for names of pictures, sounds, PDFs and texts: those that a list of files shows."""
    return path.suffix.lower() in IMAGE_SUFFIXES | SOUND_SUFFIXES | TEXT_SUFFIXES | {".pdf"}


def sorted_by_kind(
    paths: Iterable[Path], known: Iterable[Document] = ()
) -> tuple[tuple[Path, ...], tuple[Path, ...], tuple[Document, ...]]:
    """Images, sounds and documents. known: documents that have names of their own already."""
    files, named = list(paths), {document.path: document for document in known}
    return (
        tuple(path for path in files if kind_of(path) == "image"),
        tuple(path for path in files if kind_of(path) == "sound"),
        tuple(named.get(p, Document.at(p)) for p in files if kind_of(p) == "document"),
    )


def split_media_paths(text: str, *, typed: bool = False) -> tuple[str, list[Path]]:
    r"""The text without the files that it names, and those files.

    Terminals drop a file as its path: in quotes, with `\ ` for spaces, or as a file:// URL.
    typed: it is to be sent. Then files that are not there are among them, for `require_files`, and
    a document's name stays in the text. Else it was dropped or pasted.
    Raises MediaError for what is typed and leads to a file elsewhere, as by https://.
    """
    if len(text) > _MAX_TYPED_CHARACTERS:
        return text, []
    stripped = text.strip()
    whole = _unquoted(stripped)  # a path with bare spaces, as some terminals drop it
    if _is_file(whole) and (_ROOTED.match(stripped) or whole.suffix.lower() in _FILE_SUFFIXES):
        return "", [whole]
    paths: list[Path] = []
    without, named, position = "", "", 0
    for token in _TOKEN.finditer(text):
        word = token.group()
        if not _exists(_unquoted(word)):
            word = word.rstrip(_SENTENCE_ENDS)
        path = _unquoted(word)
        if typed and "\n" not in stripped and _REMOTE.match(word):
            _refuse_remote(word, path)
        if not word or not _is_meant(word, path, token, text, typed=typed):
            continue
        before = text[position : token.start()]
        without += before.rstrip(" \t")
        is_named = typed and kind_of(path) == "document"
        named += before + path.name if is_named else before.rstrip(" \t")
        position = token.start() + len(word)
        paths.append(path)
    rest = text[position:]
    if not paths:
        return text, []
    return (named + rest).strip() if (without + rest).strip() else "", paths


def require_files(paths: Iterable[Path]) -> None:
    """Raise MediaError for the first path in a message that leads to no file."""
    for path in paths:
        if not _is_file(path):
            raise MediaError(
                f"cannot attach {str(path)!r}: there is no such file; check the path, or put it in "
                "`backquotes` to send it as text"
            )


def _refuse_remote(url: str, path: Path) -> None:
    if path.suffix.lower() in _FILE_SUFFIXES and not url.lower().startswith("file:"):
        raise MediaError(
            f"cannot attach {url[:200]!r}: nothing is fetched from the network; download it and "
            "attach the file, or write it in `backquotes` to send it as words"
        )


def begins_with_path(text: str) -> bool:
    """True if the first word is a path, there or not: `/etc/hosts` is no slash command."""
    found = _TOKEN.match(text.strip())
    return found is not None and (
        _exists(_unquoted(found.group())) or bool(split_media_paths(found.group(), typed=True)[1])
    )


def _is_meant(word: str, path: Path, token: re.Match[str], text: str, *, typed: bool) -> bool:
    """Whether this word means the file. A missing one may be a mistake in what is typed alone."""
    is_rooted = _ROOTED.match(word) is not None
    is_file_name = path.suffix.lower() in _FILE_SUFFIXES
    has_suffix = _SUFFIX.fullmatch(path.suffix) is not None
    before, behind = text[: token.start()], text[token.end() :]
    is_first = not before.strip()
    begins_line, ends_line = (
        not before.rpartition("\n")[2].strip(),
        not behind.partition("\n")[0].strip(),
    )
    # Else it is one of many lines: of a program, or a log.
    is_said = "\n" not in text.strip() or is_first or (begins_line and ends_line)
    if _is_file(path):
        return is_file_name or (is_said and (is_rooted or (typed and has_suffix)))
    if not typed or not is_said or _exists(path):
        return False
    if _PLAIN.fullmatch(word) is None:
        return is_rooted and is_file_name
    is_all = is_first and not behind.strip()
    return (
        is_file_name
        or (is_rooted and has_suffix)
        or (is_all and path.suffix.lower() in TEXT_SUFFIXES)
        or (is_first and _NESTED.fullmatch(word) is not None)
    )


def _unquoted(token: str) -> Path:
    if len(token) > 1 and token[0] == token[-1] and token[0] in "'\"":
        token = token[1:-1]
    elif token.startswith("file://"):
        token = unquote(urlsplit(token).path)
    else:
        token = re.sub(r"\\(.)", r"\1", token)
    path = Path(token)
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody who is not there
        return path


def _is_file(path: Path) -> bool:
    return _exists(path) and path.is_file()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, a null byte
        return False


# -- whether a file can go along: it is read as it will be, before anything is sent ----------------

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
        raise MediaError(f"{info.model_name} cannot take sound; choose a model that can")
    if info is not None and kind == "image" and not info.sees:
        raise MediaError(
            f"{info.model_name} cannot take pictures as it is set up; choose a model that can"
        )
    with MediaDecoder() as decoder:
        if kind == "image":
            decoder.load_image(path)
        elif kind == "sound":
            decoder.load_sound(path, sample_rate=_SAMPLE_RATE)
        else:
            decoder.load_document(path, name=path.name, sees=info is None or info.sees)


# -- a picture on the clipboard, which no terminal sends: a tool that can read it is asked ---------

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
            "pictures on your clipboard cannot be read from this machine; save the picture as a "
            "file, and type its path"
        )
    if shutil.which(wanted) is None:
        package = "wl-clipboard" if wanted == "wl-paste" else wanted
        raise MediaError(
            f"pasting a picture needs {wanted!r}, which is not installed; install {package}, or "
            "type the picture's path"
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
            f"{command[0]!r} could not read the picture on the clipboard ({error}); save it as a "
            "file, and type its path"
        ) from error
    return done.stdout if done.returncode == 0 else b""
