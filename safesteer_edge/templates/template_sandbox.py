"""A chat template as a jinja2 program that can only make text. Imported by the child alone.

jinja2's immutable sandbox keeps a template away from Python's internals. It does not bound work:
one expression such as `'x' * 10 ** 10` takes all memory. The operating system's limits (see
template_worker.py) do so on Linux; the checks here do it everywhere, before the work is done.
They are cheap because a template never sees what people wrote, only short placeholders.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sized
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
import jinja2.debug  # imported by jinja2 at the first exception: files cannot be opened by then
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import generate_lorem_ipsum

# Characters or list items that one expression may make, and one render in all: fifty times what
# the dearest of 70 known templates takes for a hundred turns (2.4 million), and at most 0.5 GiB.
_MAX_VALUE_LENGTH = 1 << 24
_MAX_TOTAL_LENGTH = 1 << 27
_MAX_INTEGER_BITS = 4096
_GROWING_FILTERS = frozenset({"center", "format", "indent", "join", "replace", "wordwrap"})
# Characters between two values of a JSON text.
_MAX_FILLING = 99
_LONGEST_LOREM_WORD = 16
# A width or precision of five digits or more, and one that is itself computed.
_LARGE_FORMAT = re.compile(r"\d{5,}|\{[^{}]*\{")


class TooMuchOutputError(Exception):
    """The rendered text is longer than allowed."""


class TemplateSandbox:
    """One compiled template."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], max_output: int) -> None:
        """Compile it. Raises jinja2.TemplateSyntaxError, RecursionError, MemoryError.

        special_tokens: variables such as bos_token. max_output: characters.
        """
        self._environment = _environment()
        self._template = self._environment.from_string(source)
        self._special_tokens = dict(special_tokens)
        self._max_output = max_output

    def render(
        self, messages: list[Any], *, add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        """Render as transformers does. Raises whatever the template provokes, or
        TooMuchOutputError."""
        self._environment.spent = 0
        pieces: list[str] = []
        length = 0
        for piece in self._template.generate(
            {
                "tools": None,  # there, and none: many templates ask no more than that
                "documents": None,
                **self._special_tokens,
                **variables,
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
            }
        ):
            length += len(piece)
            if length > self._max_output:
                raise TooMuchOutputError(f"more than {self._max_output} characters")
            pieces.append(piece)
        return "".join(pieces)


class _GenerationExtension(Extension):
    """`{% generation %}…{% endgeneration %}`: marks for training, plain text for us."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line_number = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line_number)


class _BoundedCodeGenerator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Compile `a ~ b` to a call of the environment, which bounds it."""
        self.write("environment.concat((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """Compile `a[1:]` so that the environment counts the copy."""
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.counted(")
        self.visit(node.node, frame)
        self.write(")[")
        self.visit(node.arg, frame)
        self.write("]")


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox that also counts how much is made, before it is made."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _BoundedCodeGenerator
    spent = 0  # characters and items of this render

    def spend(self, length: int) -> None:
        """Count what an operation may make at most. Raises SecurityError."""
        self.spent += length
        if length > _MAX_VALUE_LENGTH or self.spent > _MAX_TOTAL_LENGTH:
            raise SecurityError("a value in the template becomes too large")

    def spend_product(self, operands: Iterable[Any]) -> None:
        """Count what an operation makes at most whose operands multiply each other."""
        bound = 1
        for operand in operands:
            bound *= max(1, _size(operand))
            if bound > _MAX_VALUE_LENGTH:
                break
        self.spend(bound)

    def counted(self, value: Any) -> Any:
        """Return a value of which a copy is about to be made."""
        self.spend(_size(value))
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, (str, bytes)) and operator == "%":
            _check_format(left)
            _check_integers(right if isinstance(right, tuple) else [right])
            self.spend_product([left, right])
        elif isinstance(left, int) and isinstance(right, int):
            factor = abs(right) if operator == "**" else 1
            if left.bit_length() * factor + right.bit_length() > _MAX_INTEGER_BITS:
                raise SecurityError("a number in the template becomes too large")
        elif operator == "*":
            self.spend_product([left, right])
        elif operator == "+":
            self.spend(sum(len(value) for value in (left, right) if isinstance(value, Sized)))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps str.format in a function that keeps the method it stands for.
        method = getattr(__obj, "__wrapped__", __obj)
        _check_integers([*args, *kwargs.values()])
        if isinstance(method, BuiltinMethodType) and isinstance(method.__self__, (str, bytes)):
            if method.__name__ in ("format", "format_map"):
                _check_format(method.__self__)
            if method.__name__ == "join" and args:
                args = (list(args[0]), *args[1:])
            __self.spend_product([method.__self__, *args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)

    def concat(self, pieces: Iterable[Any]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - jinja2 declares "".join
        """Join what a macro, a block or `~` made."""
        texts: list[str] = []
        for piece in pieces:
            texts.append(str(piece))
            self.spend(len(texts[-1]))
        return "".join(texts)

    # Methods, for the sandbox hides what a method belongs to.

    def to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers: not jinja2's own filter, which escapes for HTML."""
        if any(_size(each) > _MAX_FILLING for each in (indent, *(separators or ()))):
            raise SecurityError("what stands between the values of a JSON text is too large")
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        self.spend(_size(value) if isinstance(value, Sized) else 1)
        return self.concat(encoder.iterencode(value))

    def lorem_ipsum(self, n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
        """As jinja2's own, which knows no bounds."""
        self.spend_product([n, max, _LONGEST_LOREM_WORD])
        return generate_lorem_ipsum(n, html, min, max)


def _environment() -> _BoundedEnvironment:
    environment = _BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # nothing is computed while compiling
        extensions=[LoopControlExtension, _GenerationExtension],
    )
    for name, function in list(environment.filters.items()):
        environment.filters[name] = _bounded_filter(environment, name, function)
    environment.filters["tojson"] = environment.to_json
    environment.globals["lipsum"] = environment.lorem_ipsum
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _bounded_filter(
    environment: _BoundedEnvironment, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    # `wraps` carries over the mark by which jinja2 knows that a filter wants its context first.
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_integers([*args, *kwargs.values()])
        if name == "format":
            _check_format(args[0])
        if name in _GROWING_FILTERS:
            args = tuple(list(value) if _is_generator(value) else value for value in args)
            environment.spend_product([*args, *kwargs.values()])
        else:
            environment.spend(sum(_size(value) for value in args if isinstance(value, Sized)))
        return function(*args, **kwargs)

    return bounded


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _strftime_now(pattern: str) -> str:
    _check_format(pattern)
    return datetime.datetime.now().strftime(pattern)


def _check_integers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_VALUE_LENGTH:
            raise SecurityError("a number in the template is too large")


def _check_format(pattern: Any) -> None:
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else str(pattern)
    if _LARGE_FORMAT.search(text):
        raise SecurityError("a format in the template has too large or a computed width")


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, int):
        return abs(value)
    items: Iterable[Any] = ()
    if isinstance(value, (list, tuple, set)):
        items = value
    elif isinstance(value, Mapping):
        items = value.values()
    return sum(len(item) if isinstance(item, (str, bytes)) else 1 for item in items)


def _is_generator(value: Any) -> bool:
    return hasattr(value, "__next__")
