"""The members of a zip file, read under limits that are checked before anything is unpacked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safesteer_edge.errors import InputError

MAX_BYTES: Final = 512 << 20  # a 4096-wide probe has 16 KiB, a 70B model's full PCA 256 MiB
_MAX_MEMBERS = 4096


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file in the zip. is_stored: it is not compressed."""

    data: bytes
    is_stored: bool


def read_zip_members(path: Path) -> Mapping[str, ZipMember]:
    """Return all members by name.

    Raises InputError for what is no zip, is damaged, encrypted or larger than 512 MiB unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check(path, entries)
            return {
                entry.filename: ZipMember(
                    archive.read(entry), entry.compress_type == zipfile.ZIP_STORED
                )
                for entry in entries
            }
    except FileNotFoundError as error:
        raise unreadable(path, "there is no such file", "check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        # RuntimeError: encrypted; also NotImplementedError, for methods that zipfile lacks
        raise unreadable(path, f"it is not a whole zip file ({error})") from error


def unreadable(path: Path, problem: str, remedy: str = "save it again") -> InputError:
    """Return the error for a source file that cannot be read."""
    return InputError(f"cannot read {str(path)!r}: {problem[:300]}; {remedy}")


def _check(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > _MAX_MEMBERS:
        raise unreadable(path, f"it has {len(entries)} members; expected at most {_MAX_MEMBERS}")
    if len({entry.filename for entry in entries}) != len(entries):
        raise unreadable(path, "two of its members have the same name")
    size_bytes = sum(entry.file_size for entry in entries)
    if size_bytes > MAX_BYTES:
        raise unreadable(
            path,
            f"it unpacks to {size_bytes} bytes; expected at most {MAX_BYTES}",
            "save the probe alone",
        )
