"""JSON into frozen dataclasses and back, refusing whatever was not foreseen.

A setting that is misspelt and silently ignored is the way safety settings get lost, so every
key must be known, every type must fit exactly (an int may stand for a float, nothing else),
and numbers must be finite. Bytes travel as base64.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import difflib
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from safesteer_edge.errors import BundleError, SafeSteerError
from safesteer_edge.formats.json_values import load_finite

T = TypeVar("T")

_MAX_FREE_DEPTH = 16


def parse_json(text: str) -> object:
    """Parse JSON; NaN, infinities, repeated keys and absurd nesting raise BundleError."""
    try:
        return load_finite(text, pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"not valid JSON ({error})") from error


def format_json(value: object) -> str:
    """Return a dataclass (or plain JSON value) as indented JSON text.

    Raises BundleError for what JSON cannot hold: NaN, infinities, NumPy's numbers.
    """
    try:
        text = json.dumps(encode(value), allow_nan=False, ensure_ascii=False, indent=2)
    except (TypeError, ValueError) as error:
        raise BundleError(f"cannot be written as JSON ({error})") from error
    return text + "\n"


def encode(value: object) -> object:
    """Return the plain JSON value of dataclasses, tuples, mappings and bytes, nested at will."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {k: encode(v) for k, v in cast(Mapping[str, object], value).items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in cast(Sequence[object], value)]
    return value


def decode(kind: type[T], value: object, path: str = "") -> T:
    """Return a JSON value as this dataclass.

    path: where the value stands in the file, for messages; '' is the whole file.
    Raises BundleError that names the place, the value and what was expected there. Errors that
    the dataclass raises on construction (ranges) come out as BundleError with the place.
    """
    if not isinstance(value, dict):
        raise _unexpected(value, path, "an object")
    given = cast(dict[str, object], value)
    known = {field.name: field for field in dataclasses.fields(cast(Any, kind)) if field.init}
    hints = get_type_hints(kind)
    for key in given:
        if key not in known:
            raise BundleError(f"unknown key {_at(path, key[:60])!r}{_nearest(key[:60], known)}")
    arguments: dict[str, object] = {}
    for name, field in known.items():
        if name in given:
            arguments[name] = _decode_any(hints[name], given[name], _at(path, name))
        elif _is_required(field):
            raise BundleError(f"the key {_at(path, name)!r} is missing")
    try:
        return kind(**arguments)
    except (SafeSteerError, ValueError) as error:
        raise BundleError(f"{path}: {error}" if path else str(error)) from error


def _decode_any(hint: Any, value: object, path: str) -> object:
    """Return a JSON value as what a type hint asks for."""
    origin = get_origin(hint)
    if origin is Literal:
        return _decode_literal(get_args(hint), value, path)
    if origin in (Union, types.UnionType):
        return _decode_optional(hint, value, path)
    if origin is tuple:
        return _decode_tuple(get_args(hint), value, path)
    if dataclasses.is_dataclass(hint):
        return decode(cast("type[object]", hint), value, path)
    if origin is not None and issubclass(origin, Mapping):
        return _decode_free_object(value, path)
    return _SCALARS[hint](value, path)


def _decode_literal(choices: tuple[object, ...], value: object, path: str) -> object:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    raise _unexpected(value, path, " or ".join(repr(choice) for choice in choices))


def _decode_optional(hint: Any, value: object, path: str) -> object:
    """Decode `X | None`; other unions are not used in the schema."""
    (inner,) = (choice for choice in get_args(hint) if choice is not type(None))
    return None if value is None else _decode_any(inner, value, path)


def _decode_tuple(hints: tuple[Any, ...], value: object, path: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise _unexpected(value, path, "a list")
    items = cast(list[object], value)
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(items)
    if len(items) != len(hints):
        raise _unexpected(items, path, f"a list of {len(hints)}")
    return tuple(
        _decode_any(hint, item, f"{path}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, items, strict=True))
    )


def _decode_free_object(value: object, path: str) -> object:
    if not isinstance(value, dict):
        raise _unexpected(value, path, "an object")
    _check_free(cast(object, value), path, depth=0)
    return cast(object, value)


def _check_free(value: object, path: str, depth: int) -> None:
    """Check the nesting and the texts of a value that the schema leaves open."""
    if depth > _MAX_FREE_DEPTH:
        raise BundleError(f"{path!r} is nested deeper than {_MAX_FREE_DEPTH} levels")
    if isinstance(value, str):
        _decode_str(value, path)
    elif isinstance(value, dict):
        for key, item in cast(dict[str, object], value).items():
            _decode_str(key, path)
            _check_free(item, f"{path}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[object], value)):
            _check_free(item, f"{path}[{index}]", depth + 1)


def _decode_str(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise _unexpected(value, path, "a text")
    # A lone surrogate cannot be written; a control character can rewrite the user's terminal.
    if any(_is_unprintable(character) for character in value):
        raise _unexpected(value, path, "a text without control characters")
    return value


def _is_unprintable(character: str) -> bool:
    code = ord(character)
    control = (code < 0x20 and character not in "\n\t") or 0x7F <= code < 0xA0
    return control or 0xD800 <= code < 0xE000


def _decode_int(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _unexpected(value, path, "a whole number")
    return value


def _decode_float(value: object, path: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _unexpected(value, path, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _unexpected(value, path, "a finite number")
    return number


def _decode_bool(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise _unexpected(value, path, "true or false")
    return value


def _decode_bytes(value: object, path: str) -> bytes:
    try:
        return base64.b64decode(_decode_str(value, path), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _unexpected(value, path, "base64") from error


_SCALARS: Mapping[Any, Callable[[object, str], object]] = {
    str: _decode_str,
    int: _decode_int,
    float: _decode_float,
    bool: _decode_bool,
    bytes: _decode_bytes,
}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _nearest(key: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _unexpected(value: object, path: str, expected: str) -> BundleError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return BundleError(f"{path or 'the file'!r} is {shown}; expected {expected}")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique: dict[str, object] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the key {key[:60]!r} stands there twice")
        unique[key] = value
    return unique
