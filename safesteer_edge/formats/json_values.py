"""JSON and TOML into frozen dataclasses and back, refusing whatever was not foreseen.

A setting that is misspelt and silently ignored is the way safety settings get lost, so every key
must be known, every type must fit exactly (an int may stand for a float, nothing else), and numbers
must be finite. A dataclass is the schema: its own checks in `__post_init__` count as well. Bytes
travel as base64. The one decoder for files of ours, of the user's and of anyone's: `load_json` or
`load_toml`, then `refuse_control_characters` where people see the texts, then `from_json`. Every
error says where in the file it is.
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
import json
import math
import re
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from safesteer_edge.errors import InputError, SafeSteerError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # Python 3.10 alone

Value = TypeVar("Value")

_MAX_DEPTH = 17
# A control character can rewrite the user's terminal, a lone surrogate cannot be written.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class BadValueError(InputError, ValueError):
    """A text is no JSON or TOML, or a value in it is not what was asked for."""


def load_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises BadValueError for NaN, infinities, what becomes infinite, repeated keys, deep nesting.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
    except (ValueError, RecursionError) as error:
        raise BadValueError(f"not valid JSON ({plain_reason(error)})") from error


def load_toml(text: bytes) -> dict[str, Any]:
    """The table of a TOML text. Raises BadValueError."""
    try:
        return tomllib.loads(text.decode("utf-8-sig"))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # no tomli here
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no TOML
        raise BadValueError(f"not valid TOML ({plain_reason(error)})") from error


def plain_reason(error: Exception) -> str:
    """Why a text cannot be read, for people: some of Python's words are for programmers."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not {error.encoding.upper()}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has too many digits" if "max_str_digits" in str(error) else str(error)


def format_json(value: object) -> str:
    """A dataclass, or any JSON value, as indented text.

    Raises BadValueError for what JSON cannot hold: NaN, infinities, NumPy's numbers.
    """
    try:
        return json.dumps(to_json(value), allow_nan=False, ensure_ascii=False, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise BadValueError(f"cannot be written as JSON ({error})") from error


def to_json(value: object) -> Any:
    """The value as `json.dumps` takes it: dataclasses become objects, paths and bytes texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in cast("Sequence[object]", value)]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value) if isinstance(value, Path) else value


def without_nan(value: Any) -> Any:
    """The same JSON value with null for NaN and infinities."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: without_nan(item) for key, item in members.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_control_characters(value: object, path: str = "", *, depth: int = 0) -> None:
    """Raise BadValueError for such a character in any text or key, and for absurd nesting."""
    if depth > _MAX_DEPTH:
        raise BadValueError(f"{path!r} is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str) and _UNPRINTABLE.search(value):
        raise _unexpected(value, path, "a text without control characters")
    if isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            refuse_control_characters(key, path, depth=depth)
            refuse_control_characters(item, _at(path, key[:60]), depth=depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[object]", value)):
            refuse_control_characters(item, f"{path}[{index}]", depth=depth + 1)


def from_json(kind: type[Value], value: object, path: str = "") -> Value:
    """A dataclass from what `to_json` made of it, or from a table of TOML.

    path: where the value stands in the file, for messages; '' is the whole file.
    Raises BadValueError that names the place, the value and what was expected there; also in the
    place of what the dataclass itself raises (ranges).
    """
    given = _object(value, path)
    hints, required = _schema(kind)
    for key in given:
        if key not in hints:
            raise BadValueError(f"unknown key {_at(path, key[:60])!r}{nearest(key, hints)}")
    for key in required:
        if key not in given:
            raise BadValueError(f"the key {_at(path, key)!r} is missing")
    items = {key: _decode(hints[key], item, _at(path, key)) for key, item in given.items()}
    try:
        return kind(**items)
    except (SafeSteerError, ValueError) as error:
        raise BadValueError(f"{path}: {error}" if path else str(error)) from error


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # TOML's hexadecimal numbers may be of any length
        return f"{type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:59]}…"


def nearest(name: str, known: Collection[str]) -> str:
    """A remark in brackets on an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name[:60], known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known here: {', '.join(known)})"


@cache
def _schema(kind: type[Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The type of each key, and the keys that must be there."""
    hints = get_type_hints(kind)
    members = [field for field in dataclasses.fields(kind) if field.init]
    missing = dataclasses.MISSING
    required = (f.name for f in members if f.default is missing and f.default_factory is missing)
    return {field.name: hints[field.name] for field in members}, tuple(required)


def _decode(hint: Any, value: object, path: str) -> object:
    """A JSON value as what a type hint asks for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # `X | None`: others are not used
        (inner,) = (choice for choice in arguments if choice is not type(None))
        return None if value is None else _decode(inner, value, path)
    if origin is Literal:
        return _decode_literal(arguments, value, path)
    if origin is tuple:
        return _decode_tuple(arguments, value, path)
    if dataclasses.is_dataclass(hint):
        return from_json(cast("type[object]", hint), value, path)
    if origin is not None and issubclass(origin, Mapping):
        members = _object(value, path).items()
        return {key: _decode(arguments[1], item, _at(path, key)) for key, item in members}
    return _SCALARS[hint](value, path)


def _decode_literal(choices: tuple[object, ...], value: object, path: str) -> object:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    expected = " or ".join(repr(choice) for choice in choices)
    names = [choice for choice in choices if isinstance(choice, str)]
    close = (
        difflib.get_close_matches(value.casefold()[:60], names) if isinstance(value, str) else ()
    )
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise _unexpected(value, path, f"{expected}{hint}")


def _decode_tuple(hints: tuple[Any, ...], value: object, path: str) -> tuple[object, ...]:
    items = cast("list[object]", _checked(list, value, path, "a list"))
    if len(hints) == 2 and hints[1] is Ellipsis:
        if hints[0] in (str, int, bool) and set(map(type, items)) <= {hints[0]}:
            return tuple(items)  # thousands of token ids, in a tenth of the time
        hints = (hints[0],) * len(items)
    if len(items) != len(hints):
        raise _unexpected(items, path, f"a list of {len(hints)}")
    return tuple(
        _decode(hint, item, f"{path}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, items, strict=True))
    )


def _object(value: object, path: str) -> dict[str, object]:
    return cast("dict[str, object]", _checked(dict, value, path, "an object (keys with values)"))


def _decode_int(value: object, path: str) -> int:
    number = _checked(int, value, path, "a whole number")
    if number.bit_length() > 63:  # JSON's have no end
        raise _unexpected(value, path, "a smaller whole number")
    return number


def _decode_float(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unexpected(value, path, "a number")
    # JSON's whole numbers have no end, floats do.
    if not abs(value) <= sys.float_info.max:
        raise _unexpected(value, path, "a finite number")
    return float(value)


def _decode_bytes(value: object, path: str) -> bytes:
    try:
        return base64.b64decode(_checked(str, value, path, "a text"), validate=True)
    except ValueError as error:
        raise _unexpected(value, path, "base64") from error


_SCALARS: Mapping[Any, Callable[[object, str], object]] = {
    str: lambda value, path: _checked(str, value, path, "a text"),
    int: _decode_int,
    bool: lambda value, path: _checked(bool, value, path, "true or false"),
    float: _decode_float,
    bytes: _decode_bytes,
    Path: lambda value, path: Path(_checked(str, value, path, "a path")),
    object: lambda value, path: value,
}


def _checked(kind: type[Value], value: Any, path: str, expected: str) -> Value:
    """The value, if its type is exactly this: JSON's true is an int in Python."""
    if type(value) is not kind:
        raise _unexpected(value, path, expected)
    return value


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unexpected(value: object, path: str, expected: str) -> BadValueError:
    return BadValueError(f"{repr(path) if path else 'it'} is {shown(value)}; expected {expected}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in unique if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} stands there twice")
    return unique
