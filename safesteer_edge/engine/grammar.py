"""Answers that must have a form: JSON schemas as llama.cpp's grammars, and their state."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llama_cpp.llama_grammar import SchemaConverter

from safesteer_edge.engine.native import NativeObject, forget_native_errors, lib, native_error_cause
from safesteer_edge.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_CHARACTERS: Final = 1 << 16  # of a schema, and of what it becomes four times as many
_MAX_COUNT: Final = 512  # of items or characters: the converter writes each of them out
_MAX_CHOICES: Final = 2000  # a token takes a second then, where all of them are open
_CHOICES: Final = ("enum", "anyOf", "oneOf")
_COUNTS: Final = ("minItems", "maxItems", "minLength", "maxLength")
_COUNT_IN_PATTERN: Final = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
# A character of a JSON text. llama-cpp-python's lets line breaks through, and quotes by a dot.
_HEX: Final = " [0-9a-fA-F]" * 4
_CHARACTER: Final = rf'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u"{_HEX})'
# What a pattern may not have: it would let a text end, or not be JSON; and the time that llama.cpp
# takes for a row of optional parts doubles with each: at 64 no token came in 40 s.
_UNSAFE_IN_PATTERN: Final = re.compile(r'"|\\\\|\[\^|\[[^\]]*\\|\)\s*\{')
_OPTIONAL: Final = re.compile(r"[?*]|\{\s*[0,]|\|(?=[)|$])|(?<=[(|^])\||\(\)")
_MAX_OPTIONAL: Final = 16
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
# So many of the likeliest tokens are looked at first: looking at all takes 3 to 6 ms of 49,152.
_N_FIRST_LOOK: Final = 1024


@dataclass(frozen=True, slots=True)
class JsonForm:
    """JSON of a schema, between two texts. schema: a JSON value, not changed."""

    schema: object
    before: str = ""
    after: str = ""


def gbnf_of(forms: Sequence[JsonForm]) -> str:
    """The grammar of an answer that has one of these forms.

    Raises InputError for a schema that llama.cpp's converter does not know, and one that is so
    large, or nested so deep, that its grammar would take the engine's memory.
    """
    converter = _Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    forms_told, n_choices = list[str](), 0
    for index, form in enumerate(forms):
        try:
            text = json.dumps(form.schema, allow_nan=False)
            if len(text) > _MAX_CHARACTERS:
                raise InputError(f"the JSON schema is longer than {_MAX_CHARACTERS} characters")
            # A copy: the converter writes into it what references lead to.
            schema, place = json.loads(text), f"schema-{index}"
            objects = list(_objects_in(schema))
            for each in objects:
                _check(each)
            n_choices += sum(len(each.get(name) or ()) for each in objects for name in _CHOICES)
            rule = converter.visit(converter.resolve_refs(schema, place), place)
            converter.format_grammar().encode()  # half a character has no bytes
        except InputError:
            raise
        except Exception as error:  # whatever a schema from outside provokes in it: it asserts
            raise InputError(
                "cannot hold an answer to this JSON schema: "
                f"{str(error)[:200] or type(error).__name__}"
            ) from error
        forms_told.append(f"{_literal(form.before)} {rule} {_literal(form.after)}")
    if n_choices > _MAX_CHOICES:
        raise InputError(f"the JSON schema has {n_choices} choices; the limit is {_MAX_CHOICES}")
    grammar = f"{converter.format_grammar()}\nroot ::= {' | '.join(forms_told)}\n"
    if len(grammar) > 4 * _MAX_CHARACTERS:
        raise InputError("the JSON schema makes too large a grammar; leave something out")
    return grammar


class _Converter(SchemaConverter):
    """llama-cpp-python's, held to texts that are JSON."""

    def _add_rule(self, name: str, rule: str) -> str:
        return super()._add_rule(name, _CHARACTER if name in ("char", "dot") else rule)

    def _resolve_ref(self, ref: str) -> str:
        """The rule of a definition; the converter's own takes those of one name for the same."""
        name = f"ref-{[*self._refs].index(ref)}"
        if name not in self._rules and ref not in self._refs_being_resolved:
            self._refs_being_resolved.add(ref)
            name = self.visit(self._refs[ref], name)
            self._refs_being_resolved.remove(ref)
        return name

    def _format_literal(self, literal: str) -> str:
        """A JSON text as a literal; the converter's own leaves backslashes to mean something."""
        return _literal(json.dumps(json.loads(literal), ensure_ascii=False))


def _literal(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(character, character) for character in text) + '"'


def _objects_in(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _objects_in(each)


def _check(schema: Mapping[str, Any]) -> None:
    """Raise InputError for what would take the grammar's memory or time."""
    if not str(schema.get("$ref", "#/")).startswith("#/"):
        raise InputError("the JSON schema has a $ref to another one; copy it in, as #/$defs/…")
    counts = [schema.get(name) for name in _COUNTS]
    if isinstance(pattern := schema.get("pattern"), str):
        if _UNSAFE_IN_PATTERN.search(pattern) or len(_OPTIONAL.findall(pattern)) > _MAX_OPTIONAL:
            raise InputError(
                f"cannot hold an answer to the pattern {pattern[:80]!r}: quotes, backslashes in "
                f"classes, negated classes, counted groups and more than {_MAX_OPTIONAL} optional "
                "parts are not supported"
            )
        counts += [int(n) for pair in _COUNT_IN_PATTERN.findall(pattern) for n in pair if n]
    for count in counts:
        if isinstance(count, int) and count > _MAX_COUNT:
            raise InputError(f"the JSON schema counts to {count}; the limit is {_MAX_COUNT}")


class Grammar(NativeObject):
    """llama.cpp's grammar sampler: where an answer is in its form, and which tokens go on so."""

    _what = "the grammar"

    def __init__(self, gbnf: str, vocab_handle: Any) -> None:
        """vocab_handle: of the model, which outlives this. Raises InputError."""
        forget_native_errors()
        handle = lib.llama_sampler_init_grammar(vocab_handle, gbnf.encode(), b"root")
        if not handle:
            raise InputError(f"llama.cpp cannot use this JSON schema: {native_error_cause()}")
        self._own(handle, lib.llama_sampler_free)
        self._accepted: list[int] = []

    def rule_out_inplace(self, buffer: NDArray[np.void], n_wanted: int) -> None:
        """Set the logits of tokens that do not go on as they must to −inf.

        buffer: of llama_token_data, a token each by id. n_wanted: the best that fit, which are
        looked for; if so many are among the likeliest, the others are ruled out unseen.
        """
        logits = buffer["logit"]
        if len(buffer) > _N_FIRST_LOOK:
            likeliest = np.argpartition(logits, -_N_FIRST_LOOK)[-_N_FIRST_LOOK:]
            looked_at = buffer[likeliest]
            self._apply(looked_at)
            if np.isfinite(looked_at["logit"]).sum() >= n_wanted:
                logits[:] = -np.inf
                logits[likeliest] = looked_at["logit"]
                return
        self._apply(buffer)

    def _apply(self, buffer: NDArray[np.void]) -> None:
        data = buffer.ctypes.data_as(lib.llama_token_data_p)
        array = lib.llama_token_data_array(data=data, size=len(buffer), selected=-1, sorted=False)
        lib.llama_sampler_apply(self.handle, ctypes.byref(array))

    def accept(self, token_id: int) -> None:
        """Go on by a token that was not ruled out: llama.cpp ends the process for any other."""
        self._accepted.append(token_id)
        lib.llama_sampler_accept(self.handle, token_id)

    def take_back(self, n_tokens: int) -> None:
        """Go back by so many tokens."""
        if n_tokens:
            del self._accepted[-n_tokens:]
            lib.llama_sampler_reset(self.handle)
            for token_id in self._accepted:
                lib.llama_sampler_accept(self.handle, token_id)
