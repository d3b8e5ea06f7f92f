"""What a user has set: the settings file, and the environment over it.

What neither knows is refused, with the nearest name that it knows, and so nothing is lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.json_values import BadValueError, load_toml, shown
from safesteer_edge.formats.user_folders import user_config_folder
from safesteer_edge.session.settings_schema import (
    SETTINGS,
    VARIABLE_PREFIX,
    Setting,
    UserSettings,
    value_of,
)

FILE_NAME: Final = "settings.toml"
_MAX_BYTES: Final = 1 << 20
_HEADER: Final = (
    "# Settings of safesteer-edge. 'safesteer-edge settings show' lists all of them;\n"
    "# the program writes this file anew when it changes one, without other comments.\n"
)
_KIND_NAMES: Final[Mapping[Any, str]] = {
    str: "a text in quotes",
    Path: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_Frozen = TypeVar("_Frozen")


def settings_path() -> Path:
    """Where the user's settings file lies, whether there is one or not."""
    return user_config_folder() / FILE_NAME


def user_settings(environment: Mapping[str, str] = os.environ) -> UserSettings:
    """What counts: the environment's settings, the file's, the defaults. Raises SettingsError."""
    return with_environment(read_settings(), environment)


def read_settings(path: Path | None = None) -> UserSettings:
    """The settings of a file; None: the user's own. The defaults where there is none.

    Raises SettingsError that names file, key and value.
    """
    path = path or settings_path()
    where = f"settings {str(path)!r}"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SettingsError(f"{where}: more than {_MAX_BYTES} bytes; shorten it")
        table = load_toml(path.read_bytes())
    except FileNotFoundError:
        return UserSettings()
    except OSError as error:
        raise SettingsError(
            f"cannot read {where}: {error.strerror or error}; make it readable"
        ) from error
    except BadValueError as error:
        raise SettingsError(f"cannot read {where}: {error}; correct it, or move it away") from error
    return _from_table(table, where)


def with_environment(settings: UserSettings, environment: Mapping[str, str]) -> UserSettings:
    """These settings with what variables such as SAFESTEER_SAMPLING_TOP_K say; '' says nothing.

    Raises SettingsError for a value that its setting cannot have, and for an unknown variable.
    """
    known = {each.variable: each for each in SETTINGS}
    for name in environment:
        if name.startswith(VARIABLE_PREFIX) and name not in known:
            raise _unknown(f"there is no environment variable {name!r}", name, list(known))
    given = {each: each.variable for each in SETTINGS if environment.get(each.variable)}
    read = {
        each: _read(each, _typed(each, environment[name]), name) for each, name in given.items()
    }
    for _, section in _by_section(given):
        values = {each: read[each] for each in section}
        settings = with_values(
            _for_its_model(settings, values),
            values,
            where=", ".join(map(given.__getitem__, values)),
        )
    return settings


def with_flags(settings: UserSettings, values: Mapping[Setting, object]) -> UserSettings:
    """These settings with what a command line says. Raises SettingsError."""
    return with_values(_for_its_model(settings, values), values)


def with_setting(settings: UserSettings, key: str, value: str) -> UserSettings:
    """These settings with one changed. value: as a person types it. Raises SettingsError."""
    setting, where = known_setting(key), f"setting {key}"
    return with_values(
        settings, {setting: _read(setting, _typed(setting, value), where)}, where=where
    )


def without_setting(settings: UserSettings, key: str) -> UserSettings:
    """These settings with one back at its default. Raises SettingsError."""
    setting = known_setting(key)
    return with_values(settings, {setting: setting.default}, where=f"setting {key}")


def with_values(
    settings: UserSettings, values: Mapping[Setting, object], *, where: str = ""
) -> UserSettings:
    """These settings with others of their right types, set together. Raises SettingsError."""
    tree: dict[str, Any] = {}
    for setting, value in values.items():
        *parents, last = setting.parts
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    try:
        return _replaced(settings, tree)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}" if where else str(error)) from error


def known_setting(key: str) -> Setting:
    """The setting of that key. Raises SettingsError that names the nearest."""
    known = {each.key: each for each in SETTINGS}
    if key not in known:
        raise _unknown(f"there is no setting {key!r}", key, list(known))
    return known[key]


def save_setting(key: str, settings: UserSettings) -> None:
    """Write one of these settings into the user's file and leave the others. Raises SettingsError.

    What else is in `settings` may come from the environment, which the file does not keep.
    """
    setting = known_setting(key)
    write_settings(with_values(read_settings(), {setting: value_of(settings, setting)}))


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
    changed = [each for each in SETTINGS if value_of(settings, each) != each.default]
    for section, members in _by_section(changed):
        lines.append(f"\n[{section}]\n")
        lines += [f"{each.name} = {_to_toml(value_of(settings, each))}\n" for each in members]
    return "".join(lines)


def value_to_text(value: str | int | float | bool | Path | None) -> str:
    """A value as the file has it; `unset` for None."""
    return "unset" if value is None else _to_toml(value)


# -- private --------------------------------------------------------------------------------------


def _from_table(table: Mapping[str, object], where: str) -> UserSettings:
    settings = UserSettings()
    known = {each.key: each for each in SETTINGS}
    sections = [name for name, _ in _by_section(SETTINGS)]
    for section, values in table.items():
        if section not in sections:
            raise _unknown(f"{where}: there is no section [{section}]", section, sections)
        if not isinstance(values, dict):
            raise SettingsError(
                f"{where}: {section} is {shown(values)}; expected a section [{section}]"
            )
        changed: dict[Setting, object] = {}
        for name, value in cast("dict[str, object]", values).items():
            setting = known.get(f"{section}.{name}")
            if setting is None:
                names = [each.name for each in SETTINGS if each.section == section]
                raise _unknown(f"{where}: there is no {section}.{name}", name, names)
            changed[setting] = _read(setting, value, f"{where}: {section}.{name}")
        settings = with_values(settings, changed, where=f"{where}: [{section}]")
    return settings


def _by_section(settings: Any) -> list[tuple[str, list[Setting]]]:
    groups = groupby(settings, key=lambda each: each.section)
    return [(section, list(members)) for section, members in groups]


def _for_its_model(settings: UserSettings, values: Mapping[Setting, object]) -> UserSettings:
    """A projector and a bundle belong to the model beside them, and not to another."""
    if not any(each.key == "model.name" for each in values):
        return settings
    return replace(settings, session=replace(settings.session, mmproj=None, bundle=None))


def _replaced(value: _Frozen, tree: Mapping[str, Any]) -> _Frozen:
    """A frozen dataclass with other values, in the dataclasses that it holds as well."""
    changed: dict[str, Any] = {
        name: _replaced(getattr(value, name), cast("dict[str, Any]", item))
        if isinstance(item, dict)
        else item
        for name, item in tree.items()
    }
    return replace(cast("Any", value), **changed)


def _unknown(what: str, name: str, known: list[str]) -> SettingsError:
    near = get_close_matches(name, known, n=1, cutoff=0.3)
    what = what.replace(name, f"{name[:60]}…") if len(name) > 60 else what
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return SettingsError(f"{what}; {hint}")


def _read(setting: Setting, value: object, where: str) -> object:
    """A value of a file, checked, as its setting has it."""
    choices = setting.kept or setting.choices
    if choices:
        if value in choices:
            return value
        weaker = " (weaker guards are asked for each time: --guard)" if setting.kept else ""
        raise SettingsError(f"{where} is {shown(value)}; expected one of {choices}{weaker}")
    if value is None and setting.is_optional:
        return None
    if setting.kind is Path and type(value) is str:
        return _home_expanded(Path(value)) if value else None
    if type(value) is int and value.bit_length() > 63:
        raise SettingsError(f"{where} is {shown(value)}; expected a smaller number")
    if setting.kind is float and type(value) is int:
        return float(value)
    if type(value) is not setting.kind:  # TOML's true is an int in Python
        raise SettingsError(f"{where} is {shown(value)}; expected {_KIND_NAMES[setting.kind]}")
    return value


def _home_expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody who is not there
        return path


def _typed(setting: Setting, value: str) -> object:
    """What a person typed, as the file would have it; text needs no quotes."""
    if value == "unset" and setting.is_optional:
        return None
    if setting.kind in (str, Path):
        return value
    try:
        table = load_toml(f"value = {value}".encode())
    except BadValueError:
        return value
    return table["value"] if len(table) == 1 else value


def _to_toml(value: str | int | float | bool | Path) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        # TOML's basic strings escape as JSON's do, but for DEL, which JSON leaves as it is.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)
