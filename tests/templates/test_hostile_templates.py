from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from safesteer_edge.errors import TemplateError
from safesteer_edge.templates.template import ChatTemplate, TemplateLimits

_MESSAGES = [{"role": "user", "content": "hello"}]
# Of what never ends; whatever ends may take its time on a busy machine.
_DEADLINE_S = 2.0
_PATIENCE_S = 120.0
# A doubling, sixty times over, of a thousand characters.
_DOUBLING = (
    "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}STEP{% endfor %}{{ ns.x }}"
)


def _template(source: str, *, render_s: float = _PATIENCE_S, **limits: int) -> ChatTemplate:
    return ChatTemplate(
        source,
        bos_token="",
        eos_token="",
        name="x.gguf",
        limits=TemplateLimits(render_s=render_s, **limits),
    )


def _error(source: str, **limits: int) -> str:
    with _template(source, **limits) as template, pytest.raises(TemplateError) as caught:
        template.render(_MESSAGES)
    return str(caught.value)


_REACHING_OUT = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ (messages|attr('__class__')).__mro__ }}",
    "{{ messages[0]['__class__'].__mro__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception.__globals__['json'].x }}",
    "{{ lipsum.__globals__.x }}",
    "{{ lipsum.__self__.globals.x }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "{{ (messages | map(attribute='__class__') | first).__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]

_TOO_LARGE = [
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** 8 * 'x' }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.center(10 ** 9) }}",
    "{{ 'x'.zfill(10 ** 9) }}",
    "{{ 'x'.ljust(width=10 ** 9) }}",
    "{{ '\\t'.expandtabs(10 ** 9) }}",
    "{{ range(10 ** 9) | list | length }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, '1000000000') }}",
    "{{ ('x' * 9999) | replace('x', 'y' * 999999) }}",
    "{{ ('a' * 99999).translate({97: 'x' * 99999}) }}",
    "{{ range(99999) | map('replace', '1', 'x' * 9999) | join }}",
    "{{ ('\\n' * 99999) | indent(99999) }}",
    "{{ ('x ' * 99999) | wordwrap(1, wrapstring='y' * 99999) }}",
    "{{ [1] | tojson(indent=10 ** 9) }}",
    "{{ [1] | tojson(indent=' ' * 10 ** 6) }}",
    "{{ [1] | tojson(separators=(',', 'x' * 10 ** 6)) }}",
    "{{ lipsum(10 ** 6) }}",
    "{{ lipsum(min=10 ** 7, max=2 * 10 ** 7) }}",
    "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "{{ strftime_now('%1000000000Y') }}",
    _DOUBLING.replace("STEP", "{% set ns.x = ns.x ~ ns.x %}"),
    _DOUBLING.replace("STEP", "{% set ns.x = ns.x + ns.x %}"),
    _DOUBLING.replace("STEP", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
]


@pytest.fixture(scope="module")
def all_of_them() -> Iterator[ChatTemplate]:
    """One template that does what the message's content names, so that one child does all."""
    cases = [
        "{% if messages[0].content == '" + str(index) + "' %}" + source + "{% endif %}"
        for index, source in enumerate(_REACHING_OUT + _TOO_LARGE)
    ]
    with _template("".join(cases)) as template:
        assert template.render(_MESSAGES) == ""
        yield template


@pytest.mark.parametrize("source", _REACHING_OUT)
def test_a_template_reaches_nothing_but_its_variables(
    all_of_them: ChatTemplate, source: str
) -> None:
    number = str(_REACHING_OUT.index(source))
    with pytest.raises(TemplateError, match=r"unsafe|no loader|not safely callable|undefined"):
        all_of_them.render([{"role": "user", "content": number}])


@pytest.mark.parametrize("source", _TOO_LARGE)
def test_an_expression_that_would_take_all_memory_is_not_evaluated(
    all_of_them: ChatTemplate, source: str
) -> None:
    """Said by the template's own checks, which hold where the system has no memory limit."""
    number = str(len(_REACHING_OUT) + _TOO_LARGE.index(source))
    with pytest.raises(TemplateError, match=r"too large"):
        all_of_them.render([{"role": "user", "content": number}])


def test_many_values_may_not_take_all_memory_either() -> None:
    one_more = "{% set ns.x = ns.x + [('y' * 9999999)[1:]] %}"
    assert "too large" in _error(_DOUBLING.replace("'x' * 1000", "[]").replace("STEP", one_more))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
def test_the_system_limits_the_memory_that_the_checks_do_not_see() -> None:
    nested = _DOUBLING.replace("STEP", "{% set ns.x = [ns.x, ns.x] %}")
    assert "too much" in _error(nested, memory_bytes=100 << 20)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source: str) -> None:
    with (
        _template(source, render_s=_DEADLINE_S) as template,
        pytest.raises(TemplateError, match=r"'x\.gguf' took more than 2 s to render"),
    ):
        template.render(_MESSAGES)


def test_a_template_that_outgrows_time_and_memory_is_ended_by_either() -> None:
    """Which limit it meets first is a matter of how fast the machine is."""
    nested = _DOUBLING.replace("STEP", "{% set ns.x = [ns.x, ns.x] %}")
    ended = r"took more than 2 s to render|needs too much|ended its process"
    with (
        _template(nested, render_s=_DEADLINE_S) as template,
        pytest.raises(TemplateError, match=ended),
    ):
        template.render(_MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "{{ " + "-" * 100_000 + "1 }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    ],
)
def test_deep_recursion_ends_in_an_error(source: str) -> None:
    assert "RecursionError" in _error(source)


def test_output_without_end_is_cut_off() -> None:
    source = "{% for a in range(99999) %}0123456789{% endfor %}"
    assert "more than 10000 characters" in _error(source, output_chars=10_000)


def test_the_next_render_works_after_the_child_was_killed() -> None:
    source = "{% if messages %}{% for a in range(99999) %}{% for b in range(99999) %}"
    source += "{% endfor %}{% endfor %}{% endif %}fine"
    with _template(source, render_s=_DEADLINE_S) as template:
        for _ in range(2):
            with pytest.raises(TemplateError, match="took more than"):
                template.render(_MESSAGES)
            assert template.render([]) == "fine"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_a_template_that_broke_out_could_still_open_nothing() -> None:
    """`__import__` through a hole would be the way: here the child's own late import fails."""
    with _template("{{ 'x' | striptags }}{{ [1] | pprint }}") as template:
        assert template.render(_MESSAGES) == "x[1]"
        process = template._process  # pyright: ignore[reportPrivateUsage] - to look at its limits
        assert process is not None
        if sys.platform == "linux":
            import resource

            limits = resource.prlimit(process.process_id, resource.RLIMIT_NOFILE)
            assert limits == (0, 0)
            assert resource.prlimit(process.process_id, resource.RLIMIT_NPROC) == (0, 0)
            assert resource.prlimit(process.process_id, resource.RLIMIT_FSIZE) == (0, 0)
