"""Write the reference part of docs/python.md from the docstrings: run this file."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import safesteer_edge

PAGE = Path(__file__).with_name("python.md")
BEGIN = "<!-- Made by docs/make_reference.py from the docstrings: change those. -->\n"


def main() -> None:
    """Replace what stands behind the mark."""
    PAGE.write_text(with_reference(PAGE.read_text("utf-8")), "utf-8")


def with_reference(page: str) -> str:
    """The page with a reference that is up to date."""
    return page.partition(BEGIN)[0] + BEGIN + reference()


def reference() -> str:
    """Functions, then classes, then values, then errors."""
    public = {name: getattr(safesteer_edge, name) for name in safesteer_edge.__all__}
    functions = [_function(name, each) for name, each in public.items() if _is_function(each)]
    classes = {name: each for name, each in public.items() if inspect.isclass(each)}
    errors = {name: each for name, each in classes.items() if issubclass(each, Exception)}
    parts = [_class(name, each) for name, each in classes.items() if name not in errors]
    values = [
        f"- `{name}`: {_named(each)}"
        for name, each in public.items()
        if not _is_function(each) and not inspect.isclass(each)
    ]
    rows = [
        f"- `{name}({each.__mro__[1].__name__})`: {_doc(each)}" for name, each in errors.items()
    ]
    return "\n\n".join(
        [
            "### Functions",
            *functions,
            "### Classes",
            *parts,
            "### Values",
            "\n".join(values),
            "### Errors",
            "\n".join(rows) + "\n",
        ]
    )


def _is_function(value: Any) -> bool:
    return inspect.isfunction(value)


def _function(name: str, function: Any) -> str:
    return f"**`{name}{_signature(function)}`**\n\n{_doc(function)}"


def _class(name: str, kind: Any) -> str:
    lines = [f"**`{name}{_fields(kind)}`**", _doc(kind)]
    members = [
        f"- `{_member(member, value)}`: {_doc(value).partition(chr(10))[0]}"
        for member, value in _members(kind)
    ]
    return "\n\n".join([*lines, "\n".join(members)] if members else lines)


def _members(kind: Any) -> list[tuple[str, Any]]:
    """Public methods and properties that say what they do, as they are declared."""
    names = [name for owner in reversed(kind.__mro__) for name in vars(owner)]
    found = [(name, inspect.getattr_static(kind, name)) for name in dict.fromkeys(names)]
    return [
        (name, getattr(value, "__func__", value))
        for name, value in found
        if not name.startswith("_")
        and (isinstance(value, property | classmethod) or inspect.isfunction(value))
        and inspect.getdoc(getattr(kind, name))
    ]


def _member(name: str, value: Any) -> str:
    return name if isinstance(value, property) else f"{name}{_signature(value)}"


def _fields(kind: Any) -> str:
    return _signature(kind) if dataclasses.is_dataclass(kind) else ""


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls")
    ]
    bare = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return re.sub(r"<function <lambda> at 0x[0-9a-f]+>|<factory>", "…", str(bare))


def _doc(value: Any) -> str:
    return inspect.getdoc(value) or ""


def _named(value: Any) -> str:
    text = str(value)
    return f"`{re.sub(r'safesteer_edge[.a-z_]*[.]|typing[.]', '', text)}`"


if __name__ == "__main__":
    main()
