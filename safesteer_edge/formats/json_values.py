"""Our frozen dataclasses as JSON values and back, checked field by field. Nothing is unpickled."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

Value = TypeVar("Value")


class TypedJsonError(ValueError):
    """A JSON value is not of the type that was asked for."""


def to_json(value: object) -> Any:
    """The value as `json.dumps` takes it: dataclasses become objects, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_json(item) for item in cast("list[object]", value)]
    return value


def from_json(kind: type[Value], value: object) -> Value:
    """A dataclass from what `to_json` made of it.

    Raises TypedJsonError for another shape, and what the dataclass itself raises.
    """
    return cast("Value", _read(kind, value, kind.__name__))


def _read(hint: Any, value: object, where: str) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise TypedJsonError(f"{where} is {value!r}; expected one of {arguments}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypedJsonError(f"{where} is {value!r}; expected a list")
        items = cast("list[object]", value)
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if is_dataclass(hint):
        return _read_dataclass(cast("type[Any]", hint), value, where)
    return _read_plain(hint, value, where)


def _read_union(arguments: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    if len(kinds) != 1:
        raise TypedJsonError(f"{where}: no way to read {arguments}")
    return _read(kinds[0], value, where)


def _read_dataclass(kind: type[Any], value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise TypedJsonError(f"{where} is {value!r}; expected an object")
    given = cast("Mapping[str, object]", value)
    hints = _hints(kind)
    unknown = given.keys() - hints.keys()
    if unknown:
        raise TypedJsonError(f"{where} has no {sorted(unknown)[0]!r}")
    for field in fields(kind):
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if field.name not in given and not has_default:
            raise TypedJsonError(f"{where} lacks {field.name!r}")
    return kind(
        **{name: _read(hints[name], item, f"{where}.{name}") for name, item in given.items()}
    )


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read_plain(hint: Any, value: object, where: str) -> object:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) in (int, float) and _is_finite(cast("float", value)):
        return float(cast("float", value))
    if hint in (str, int, bool) and type(value) is hint:  # JSON's true is an int in Python
        return value
    raise TypedJsonError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # JSON's whole numbers have no end, floats do
        return False


# -- numbers that JSON does not have, and that Python's reader lets through unless told not to -----


def load_finite(
    text: str | bytes,
    *,
    pairs_hook: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> object:
    """As `json.loads`; raises ValueError for NaN and infinities, and for what becomes infinite."""
    return json.loads(
        text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=pairs_hook
    )


def without_nan(value: Any) -> Any:
    """The same JSON value with null for NaN and infinities."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: without_nan(item) for key, item in members.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number
