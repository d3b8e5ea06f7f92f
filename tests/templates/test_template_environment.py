"""Every filter, test and global of the environment that transformers gives to chat templates.

The reference is that environment, made anew from its documentation: jinja2's immutable sandbox,
blocks trimmed, loop controls, `tojson` without HTML, `raise_exception` and `strftime_now`.
Source: transformers, docs/source/en/chat_templating_writing.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jinja2 import Template
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from safesteer_edge.templates.template import ChatTemplate

_VALUES = "{% set d = {'b': 'é<', 'a': [1, 2.5, none, true]} %}{% set n = [3, 1, 2, 3] %}"
_FILTERS = {
    "abs": "{{ -3 | abs }}",
    "attr": "{{ 'x' | attr('upper') is callable }}",
    "batch": "{{ n | batch(3, 0) | list }}",
    "capitalize": "{{ 'aB' | capitalize }}",
    "center": "{{ 'a' | center(5) }}|",
    "count": "{{ n | count }}",
    "d": "{{ nothing | d('x') }}",
    "default": "{{ nothing | default('x') ~ ('' | default('y', true)) }}",
    "dictsort": "{{ d | dictsort }}",
    "e": "{{ '<a>' | e }}",
    "escape": "{{ '<a>' | escape }}",
    "filesizeformat": "{{ 123456 | filesizeformat(true) }}",
    "first": "{{ n | first }}",
    "float": "{{ '1.5' | float + ('x' | float(2)) }}",
    "forceescape": "{{ '&' | escape | forceescape }}",
    "format": "{{ '%s-%03d' | format('a', 7) }}",
    "groupby": "{{ messages | groupby('role') | map('first') | list }}",
    "indent": "{{ 'a\nb\n\nc' | indent(2, first=true, blank=true) }}",
    "int": "{{ '0x1f' | int(base=16) + ('x' | int(5)) }}",
    "items": "{{ d | items | list }}{{ nothing | items | list }}",
    "join": "{{ n | join('+') ~ (messages | join(',', attribute='role')) }}",
    "last": "{{ n | last }}",
    "length": "{{ d | length }}",
    "list": "{{ 'ab' | list }}",
    "lower": "{{ 'ÄB' | lower }}",
    "map": "{{ messages | map(attribute='role') | map('upper') | join }}",
    "max": "{{ n | max }}",
    "min": "{{ n | min }}",
    "pprint": "{{ d | pprint }}",
    "random": "{{ [4] | random }}",
    "reject": "{{ n | reject('odd') | list }}",
    "rejectattr": "{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}",
    "replace": "{{ 'aaa' | replace('a', 'b', 2) }}",
    "reverse": "{{ 'abc' | reverse ~ n | reverse | list }}",
    "round": "{{ 2.567 | round(1) ~ 2.1 | round(method='ceil') }}",
    "safe": "{{ '<' | safe }}",
    "select": "{{ n | select('>', 2) | list }}",
    "selectattr": "{{ messages | selectattr('content', 'defined') | list | length }}",
    "slice": "{{ n | slice(3) | list }}",
    "sort": "{{ n | sort(reverse=true) ~ (messages | sort(attribute='content') | length) }}",
    "string": "{{ 1 | string + 'x' }}",
    "striptags": "{{ '<b>a</b>  c' | striptags }}",
    "sum": "{{ n | sum(start=1) }}",
    "title": "{{ 'ab c' | title }}",
    "tojson": "{{ d | tojson }}",
    "trim": "{{ ' a ' | trim ~ 'xax' | trim('x') }}",
    "truncate": "{{ 'a long sentence of words' | truncate(9, leeway=0) }}",
    "unique": "{{ n | unique | list }}",
    "upper": "{{ 'äb' | upper }}",
    "urlencode": "{{ 'a b/ä' | urlencode ~ {'q': 'x y'} | urlencode }}",
    "urlize": "{{ 'see https://example.org now' | urlize(9, nofollow=true) }}",
    "wordcount": "{{ 'a b  c' | wordcount }}",
    "wordwrap": "{{ 'aaa bbb ccc' | wordwrap(5, wrapstring='|') }}",
    "xmlattr": "{{ {'a': '<', 'b': none} | xmlattr }}",
}
_GLOBALS = {
    "cycler": "{% set c = cycler('a', 'b') %}{{ c.next() ~ c.next() ~ c.next() ~ c.current }}",
    "dict": "{{ dict(a=1, **{'b': 2}) }}",
    "joiner": "{% set j = joiner('+') %}{% for i in n %}{{ j() }}{{ i }}{% endfor %}",
    "lipsum": "{{ lipsum(2, html=false, min=3, max=4) | wordcount }}{{ lipsum(1)[:3] }}",
    "namespace": "{% set s = namespace(i=0) %}{% for i in n %}{% set s.i = s.i + i %}"
    "{% endfor %}{{ s.i }}",
    "raise_exception": "{{ raise_exception is callable }}",
    "range": "{{ range(2, 9, 3) | list }}",
    "strftime_now": "{{ strftime_now('%Y-%m') }}",
}
_TESTS = {
    **{
        name: "{{ 3 is " + name + " }}{{ 'a' is " + name + " }}{{ none is " + name + " }}"
        for name in (
            *("boolean", "callable", "defined", "escaped", "false", "float", "integer", "iterable"),
            *("lower", "mapping", "none", "number", "sequence", "string", "true", "undefined"),
            "upper",
        )
    },
    **{
        name: "{{ 3 is " + name + " 3 }}{{ 3 is " + name + " 2 }}"
        for name in ("divisibleby", "eq", "equalto", "ge", "greaterthan", "gt", "le", "lessthan")
    },
    **{
        name: "{{ n | select('" + name + "', 2) | list }}"
        for name in ("!=", "<", "<=", "==", ">", ">=")
    },
    "even": "{{ 3 is even }}",
    "filter": "{{ 'tojson' is filter }}{{ 'nothing' is filter }}",
    "in": "{{ 3 is in([3]) }}",
    "lt": "{{ 3 is lt 2 }}",
    "ne": "{{ 3 is ne 2 }}",
    "odd": "{{ 3 is odd }}",
    "sameas": "{{ none is sameas none }}",
    "test": "{{ 'odd' is test }}{{ 'nothing' is test }}",
}
_OTHERS = {
    "tojson(separators)": "{{ d | tojson(separators=(',', ':')) }}",
    "tojson(sort_keys)": "{{ d | tojson(sort_keys=true, ensure_ascii=true) }}",
    "tojson(indent)": "{{ d | tojson(indent=4) }}{{ d | tojson(indent='-', separators=' =') }}",
    "tojson in order": "{{ d | tojson(true, 2, none, true) }}",
    "tojson of values": "{{ 'a\"</b>' | tojson }}{{ none | tojson }}{{ (2 ** 40) | tojson }}",
    "no tools": "{{ tools is defined }}{{ tools is none }}{{ documents is none }}",
    "tokens": "{{ bos_token ~ eos_token ~ pad_token }}{{ add_generation_prompt }}",
    "loop controls": "{% for i in n %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}"
    "{% if i == 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": " {%- set x = 1 %}\n {% generation %}\n {{ x }}\n{% endgeneration %}\n{{ x }}\n",
    "recursive loop": "{% for m in messages recursive %}{{ loop.index ~ m.role }}{% endfor %}",
    "macro": "{% macro f(a, b=2) %}{{ a ~ b ~ varargs ~ kwargs }}{% endmacro %}{{ f(1, c=5) }}",
    "call": "{% macro g() %}{{ caller(4) }}{% endmacro %}{% call(x) g() %}{{ x }}{% endcall %}",
    "blocks": "{% filter upper %}a{% endfilter %}{% with y = 2 %}{{ y }}{% endwith %}{# no #}",
}
_CASES = {"filter": _FILTERS, "global": _GLOBALS, "test": _TESTS, "other": _OTHERS}
_SOURCE = _VALUES + "".join(
    "{% if messages[-1].content == '" + f"{kind} {name}" + "' %}" + source + "{% endif %}"
    for kind, cases in _CASES.items()
    for name, source in cases.items()
)
_VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment_of_transformers() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = print
    made.globals["strftime_now"] = time.strftime
    return made


_REFERENCE = _environment_of_transformers()
_MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture(scope="module")
def template() -> Iterator[ChatTemplate]:
    """One that does what its last message names, so that one child does all."""
    with ChatTemplate(_SOURCE, bos_token="<s>", eos_token="</s>", name="x") as made:
        yield made


@pytest.fixture(scope="module")
def reference() -> Template:
    # Marks for training alone, which render as a block does.
    source = _SOURCE.replace("{% generation %}", "{% if true %}")
    return _REFERENCE.from_string(source.replace("{% endgeneration %}", "{% endif %}"))


@pytest.mark.parametrize(
    "case", [f"{kind} {name}" for kind, cases in _CASES.items() for name in cases]
)
def test_it_does_what_it_does_in_transformers(
    template: ChatTemplate, reference: Template, case: str
) -> None:
    messages = [*_MESSAGES, {"role": "tool", "content": case}]
    expected = reference.render(
        **_VARIABLES, messages=messages, tools=None, documents=None, add_generation_prompt=True
    )
    assert template.render(messages) == expected != ""


def test_none_is_left_out() -> None:
    assert set(_FILTERS) == set(_REFERENCE.filters)
    assert set(_GLOBALS) == set(_REFERENCE.globals)
    assert set(_TESTS) == set(_REFERENCE.tests)
