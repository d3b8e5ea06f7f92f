"""Reading and writing the settings file. What it does not know it refuses, and so never loses."""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, Union, cast, get_args, get_origin

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.user_folders import user_config_folder
from safesteer_edge.session.settings_schema import UserSettings, all_settings, section_type

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # Python 3.10 alone

FILE_NAME: Final = "settings.toml"
_MAX_BYTES: Final = 1 << 20
_HEADER: Final = (
    "# Settings of safesteer-edge. 'safesteer-edge settings show' lists all of them;\n"
    "# the program writes this file anew when it changes one, without other comments.\n"
)
_KIND_NAMES: Final[Mapping[Any, str]] = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def settings_path() -> Path:
    """Where the user's settings file lies, whether there is one or not."""
    return user_config_folder() / FILE_NAME


def read_settings(path: Path | None = None) -> UserSettings:
    """The settings of a file; None: the user's own. The defaults where there is none.

    Raises SettingsError that names file, key and value.
    """
    path = path or settings_path()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SettingsError(f"settings {str(path)!r}: more than {_MAX_BYTES} bytes; shorten it")
        text = path.read_bytes().decode("utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError:
        return UserSettings()
    except OSError as error:
        raise SettingsError(
            f"cannot read settings {str(path)!r}: {error.strerror or error}; make it readable"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(
            f"cannot read settings {str(path)!r}: not TOML ({error}); correct it, or move it away"
        ) from error
    return _from_table(table, where=f"settings {str(path)!r}")


def write_settings(settings: UserSettings, path: Path | None = None) -> Path:
    """Write what differs from the defaults; returns the path. Raises SettingsError."""
    if path is None:
        path = user_config_folder(create=True) / FILE_NAME
    try:
        with atomic_write(path, "w") as stream:
            stream.write(settings_to_toml(settings))
    except OSError as error:
        raise SettingsError(
            f"cannot write settings {str(path)!r}: {error.strerror or error}; make the folder "
            "writable"
        ) from error
    return path


def settings_to_toml(settings: UserSettings) -> str:
    """What differs from the defaults, as TOML."""
    lines = [_HEADER]
    for section in fields(UserSettings):
        values = getattr(settings, section.name)
        changed = [
            f"{each.name} = {_to_toml(getattr(values, each.name))}\n"
            for each in fields(values)
            if getattr(values, each.name) != each.default
        ]
        if changed:
            lines += [f"\n[{section.name}]\n", *changed]
    return "".join(lines)


def with_setting(settings: UserSettings, key: str, value: str) -> UserSettings:
    """These settings with one changed. value: as a person types it. Raises SettingsError."""
    section, name = _known_key(key)
    hint = _hints(section)[name]
    changed = {name: _read(hint, _typed(hint, value), f"setting {key}")}
    return _with_values(settings, section, changed, where=f"setting {key}")


def without_setting(settings: UserSettings, key: str) -> UserSettings:
    """These settings with one back at its default. Raises SettingsError."""
    section, name = _known_key(key)
    default = next(each.default for each in all_settings() if each.key == key)
    return _with_values(settings, section, {name: default}, where=f"setting {key}")


def setting_value(settings: UserSettings, key: str) -> str | int | float | bool | None:
    """The value of one setting. Raises SettingsError."""
    section, name = _known_key(key)
    return getattr(getattr(settings, section), name)


def value_to_text(value: str | int | float | bool | None) -> str:
    """A value as the file has it; `unset` for None."""
    return "unset" if value is None else _to_toml(value)


# -- private --------------------------------------------------------------------------------------


def _from_table(table: Mapping[str, object], *, where: str) -> UserSettings:
    settings = UserSettings()
    known = [section.name for section in fields(UserSettings)]
    for section, values in table.items():
        if section not in known:
            raise _unknown(f"{where}: there is no section [{section}]", section, known)
        if not isinstance(values, dict):
            raise SettingsError(f"{where}: {section} is {values!r}; expected a section [{section}]")
        hints = _hints(section)
        changed: dict[str, object] = {}
        for name, value in cast("dict[str, object]", values).items():
            if name not in hints:
                raise _unknown(f"{where}: there is no {section}.{name}", name, list(hints))
            changed[name] = _read(hints[name], value, f"{where}: {section}.{name}")
        settings = _with_values(settings, section, changed, where=f"{where}: [{section}]")
    return settings


def _with_values(
    settings: UserSettings, section: str, values: Mapping[str, Any], *, where: str
) -> UserSettings:
    try:
        changed = replace(getattr(settings, section), **values)
        return replace(settings, **cast("dict[str, Any]", {section: changed}))
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error


def _known_key(key: str) -> tuple[str, str]:
    known = {each.key: (each.section, each.name) for each in all_settings()}
    if key not in known:
        raise _unknown(f"there is no setting {key!r}", key, list(known))
    return known[key]


def _unknown(what: str, name: str, known: list[str]) -> SettingsError:
    near = get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return SettingsError(f"{what}; {hint}")


def _hints(section: str) -> dict[str, Any]:
    return typing.get_type_hints(section_type(section))


def _plain_kind(hint: Any) -> Any:
    """The type without `None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _read(hint: Any, value: object, where: str) -> object:
    kind = _plain_kind(hint)
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        weaker = (
            " (weaker guards are asked for each time: --guard)" if "guard.mode" in where else ""
        )
        raise SettingsError(f"{where} is {value!r}; expected one of {get_args(kind)}{weaker}")
    if value is None and kind is not hint:
        return None
    if kind is float and type(value) is int:
        try:
            return float(cast("int", value))
        except OverflowError as error:
            raise SettingsError(
                f"{where} is {str(value)[:20]}…; expected a smaller number"
            ) from error
    if type(value) is not kind:  # TOML's true is an int in Python
        raise SettingsError(f"{where} is {value!r}; expected {_KIND_NAMES[kind]}")
    return value


def _typed(hint: Any, value: str) -> object:
    """What a person typed, as the file would have it; text needs no quotes."""
    kind = _plain_kind(hint)
    if value == "unset" and kind is not hint:
        return None
    if kind is str or get_origin(kind) is Literal:
        return value
    try:
        table = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return table["value"] if len(table) == 1 else value


def _to_toml(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings escape as JSON's do, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)
