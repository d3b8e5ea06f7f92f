"""The form of `catalogue.toml`: which keys an entry has, checked one by one.

An unknown key is an error that names the nearest known one: a misspelt key would otherwise be an
option that is silently not there.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safesteer_edge.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # Python 3.10 alone

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REQUIRED = ("name", "title", "architecture", "licence")
_MODALITIES = ("images", "sound")


@dataclass(frozen=True, slots=True)
class QuantizedFile:
    """One file of a repository. size_bytes, sha256: None where only the hub knows."""

    quantization: str
    file: str
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """One entry as it is written. See the head of catalogue.toml for what the keys mean."""

    name: str
    title: str
    architecture: str
    licence: str
    package: str = ""
    install: str = ""
    file: str = ""
    mmproj: str = ""
    repository: str = ""
    quantization: str = ""
    files: tuple[QuantizedFile, ...] = ()
    projector: str = ""
    parameters_b: float | None = None
    context: int | None = None
    takes: tuple[str, ...] = ()
    bundle: str = ""
    source: Path = field(default=Path(), compare=False)


def read_catalogue_file(path: Path) -> tuple[CatalogueRow, ...]:
    """All entries of a catalogue file. Raises SettingsError naming file, entry and key."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise SettingsError(f"catalogue {str(path)!r} is larger than 1 MiB; make it smaller")
        table = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"catalogue {str(path)!r} is not TOML: {error}; mend it") from error
    except OSError as error:
        raise SettingsError(
            f"cannot read the catalogue {str(path)!r}: {error.strerror or error}; "
            "check that it is there and readable"
        ) from error
    _check_keys(table, ("model",), f"catalogue {str(path)!r}")
    rows = table.get("model", [])
    if not isinstance(rows, list):
        raise SettingsError(f"catalogue {str(path)!r}: 'model' is not a list of [[model]] tables")
    parsed = tuple(_parse(row, number, path) for number, row in enumerate(rows, 1))
    seen: set[str] = set()
    for row in parsed:
        if row.name in seen:
            raise SettingsError(f"catalogue {str(path)!r} has {row.name!r} twice; rename one")
        seen.add(row.name)
    return parsed


def _parse(row: Any, number: int, path: Path) -> CatalogueRow:
    if not isinstance(row, dict):
        raise SettingsError(f"catalogue {str(path)!r}: entry {number} is not a table")
    what = f"catalogue {str(path)!r}, entry {row.get('name', number)!r}"
    known = tuple(key for key in CatalogueRow.__dataclass_fields__ if key != "source")
    _check_keys(row, known, what)
    for key in _REQUIRED:
        if not row.get(key):
            raise SettingsError(f"{what}: key {key!r} is missing or empty; add it")
    values: dict[str, Any] = {key: _value(row, key, what) for key in row}
    parsed = CatalogueRow(**values, source=path)
    _check_together(parsed, what)
    return parsed


def _value(row: dict[str, Any], key: str, what: str) -> Any:
    value = row[key]
    if key == "parameters_b":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e5:
            raise SettingsError(f"{what}: {key!r} is {value!r}; expected billions of parameters")
        return float(value)
    if key == "context":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise SettingsError(f"{what}: {key!r} is {value!r}; expected a number of tokens")
        return value
    if key == "takes":
        if not isinstance(value, list) or any(each not in _MODALITIES for each in value):
            raise SettingsError(f"{what}: {key!r} is {value!r}; expected some of {_MODALITIES}")
        return tuple(value)
    if key == "files":
        if not isinstance(value, dict):
            raise SettingsError(f"{what}: 'files' is {value!r}; expected a table per quantization")
        return tuple(_file(name, entry, what) for name, entry in value.items())
    if not isinstance(value, str):
        raise SettingsError(f"{what}: {key!r} is {value!r}; expected a text")
    return value


def _file(quantization: str, entry: Any, what: str) -> QuantizedFile:
    what = f"{what}, file of {quantization!r}"
    if isinstance(entry, str):
        entry = {"file": entry}
    if not isinstance(entry, dict):
        raise SettingsError(f"{what} is {entry!r}; expected a file name or a table")
    _check_keys(entry, ("file", "size_bytes", "sha256"), what)
    name, size, sha256 = entry.get("file"), entry.get("size_bytes"), entry.get("sha256")
    if not isinstance(name, str) or not name:
        raise SettingsError(f"{what}: 'file' is {name!r}; expected a file name")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size <= 0):
        raise SettingsError(f"{what}: 'size_bytes' is {size!r}; expected a number of bytes")
    if sha256 is not None and (not isinstance(sha256, str) or not _SHA256.fullmatch(sha256)):
        raise SettingsError(f"{what}: 'sha256' is {sha256!r}; expected 64 lower-case hex digits")
    return QuantizedFile(quantization, name, size, sha256)


def _check_together(row: CatalogueRow, what: str) -> None:
    if not _NAME.fullmatch(row.name):
        raise SettingsError(
            f"{what}: 'name' is {row.name!r}; expected lower-case letters, digits, '.', '_', '-'"
        )
    if bool(row.package) == bool(row.repository):
        raise SettingsError(f"{what}: give either 'package' or 'repository', and not both")
    if row.package and not row.file:
        raise SettingsError(f"{what}: key 'file' is missing beside 'package'; add it")
    if row.repository and not _REPOSITORY.fullmatch(row.repository):
        raise SettingsError(f"{what}: 'repository' is {row.repository!r}; expected OWNER/NAME")
    if row.repository and not row.quantization:
        raise SettingsError(f"{what}: key 'quantization' is missing beside 'repository'; add it")


def _check_keys(table: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in table:
        if key in known:
            continue
        near = get_close_matches(key, known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {known}"
        raise SettingsError(f"{what}: unknown key {key!r}; {hint}")
