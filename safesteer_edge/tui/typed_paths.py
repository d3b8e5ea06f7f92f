r"""Paths of files in what a person typed, pasted or dropped.

Terminals drop a file as its path: in quotes, with `\ ` for spaces, or as a file:// URL. A path that
was sent as words would be answered with contents that the model makes up: what looks like one is
attached, or refused. In `backquotes` it is words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import IMAGE_SUFFIXES, SOUND_SUFFIXES, kind_of
from safesteer_edge.session.protocol import Document

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
    """The text without the files that it names, and those files.

    typed: it is to be sent. Then files that are not there are among them, for `require_files`, and
    a document's name stays in the text. Else it was dropped or pasted.
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
                f"cannot attach {str(path)!r}: there is no such file; check the path, or write it "
                "in `backquotes` to send it as words"
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
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, a null byte
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
