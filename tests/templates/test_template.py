from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from safesteer_edge.errors import TemplateError
from safesteer_edge.templates.template import ChatTemplate, Refusal, TemplateLimits

_HELLO = [{"role": "user", "content": "hello"}]


def _template(source: str, **limits: float) -> ChatTemplate:
    return ChatTemplate(
        source,
        bos_token="<s>",
        eos_token="</s>",
        name="x.gguf",
        limits=TemplateLimits(**limits),  # pyright: ignore[reportArgumentType] - ints and floats
    )


def _rendered(source: str, messages: list[dict[str, str]] | None = None) -> str:
    with _template(source) as template:
        return template.render(_HELLO if messages is None else messages)


def test_the_default_models_template_renders_with_its_own_system_prompt(
    default_template_source: str,
) -> None:
    assert _rendered(default_template_source) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>hello</s>"),
        ("{% if tools %}T{% endif %}{{ documents }}|", "None|"),
        ("{% if add_generation_prompt %}\n  go\n{% endif %}\n", "  go\n"),
        ("  {% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'b': 'é<', 'a': [1]} | tojson }}", '{"b": "é<", "a": [1]}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}", "hello"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ 'a</think>b'.split('</think>')[-1] ~ 'abc'[1:] ~ 'x' * 3 }}", "bbcxxx"),
        ("{{ '%s-%d' % ('a', 2) }}{{ '{}'.format('b') }}{{ ['a', 'b'] | join('+') }}", "a-2ba+b"),
        ("{{ messages[::-1] | map(attribute='role') | list | length }}", "1"),
        ("{%- macro m(x) -%}<{{ x }}>{%- endmacro -%}{{ m('a') ~ m('b') }}", "<a><b>"),
    ],
)
def test_templates_mean_what_they_mean_in_transformers(source: str, text: str) -> None:
    assert _rendered(source) == text


def test_the_date_is_todays() -> None:
    assert _rendered("{{ strftime_now('%Y') }}") in {time.strftime("%Y"), str(time.gmtime()[0])}


def test_variables_reach_the_template() -> None:
    source = "{{ enable_thinking }}"
    variables = {"enable_thinking": False}
    with ChatTemplate(source, bos_token="", eos_token="", name="x", variables=variables) as made:
        assert made.render(_HELLO) == "False"


def test_a_refusal_is_an_error_with_the_templates_words() -> None:
    with _template("{{ raise_exception('roles must alternate') }}") as template:
        assert template.try_render(_HELLO) == Refusal("roles must alternate")
        with pytest.raises(TemplateError, match=r"'x\.gguf' refuses .*'roles must alternate'"):
            template.render(_HELLO)


def test_control_characters_of_a_refusal_do_not_reach_the_message() -> None:
    with (
        _template("{{ raise_exception('\x1b]0;title\x07\n') }}") as template,
        pytest.raises(TemplateError) as caught,
    ):
        template.render(_HELLO)
    assert str(caught.value).isprintable()


def test_a_syntax_error_names_its_line_each_time() -> None:
    with _template("{{ 1 }}\n{% if %}") as template:
        for _ in range(2):
            with pytest.raises(TemplateError, match="syntax error in line 2"):
                template.render(_HELLO)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupted_render_does_not_answer_the_next_one() -> None:
    endless = "{% for a in range(99999) if messages[0] %}{% for b in range(99999) %}{% endfor %}"
    with _template(endless + "{% endfor %}{{ messages | length }}", render_s=120.0) as template:
        assert template.render([]) == "0"
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            template.render(_HELLO)
        assert template.render([]) == "0"


def test_too_long_a_source_is_refused_before_anything_runs() -> None:
    with pytest.raises(TemplateError, match="1001 characters long, more than the 1000 allowed"):
        _template("x" * 1001, source_chars=1000)


def test_the_hash_is_of_the_source() -> None:
    assert _template("é").sha256 == hashlib.sha256("é".encode()).hexdigest()


def test_starting_does_not_wait_for_the_child() -> None:
    with _template("x", start_s=0.0) as template:  # to wait for it would be an error
        template.start()
        template.start()


def test_a_closed_template_starts_again_when_asked() -> None:
    template = _template("x")
    assert template.render(_HELLO) == "x"
    template.close()
    template.close()
    assert template.render(_HELLO) == "x"
    template.close()


def test_closing_a_template_that_never_started_is_safe() -> None:
    _template("x").close()


_PARENT = """
    import sys
    from safesteer_edge.templates.template import ChatTemplate
    template = ChatTemplate({source!r}, bos_token="", eos_token="", name="x")
    template.render([])
    print(template._process.process_id, flush=True)
    {after}
"""


def _run_parent(source: str, after: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(_PARENT).format(source=source, after=after)
    folder = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=folder
    )


def _wait_until_gone(process_id: int, limit_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        try:
            os.kill(process_id, 0)
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":  # dead, and nobody has asked yet
            return
        time.sleep(0.02)
    pytest.fail(f"process {process_id} is still there after {limit_s} s")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_the_child_does_not_outlive_a_killed_parent() -> None:
    with _run_parent("x", "sys.stdin.read()") as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    _wait_until_gone(process_id)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_parent_may_end_without_closing() -> None:
    with _run_parent("x", "") as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        assert parent.wait(60) == 0
    _wait_until_gone(process_id)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_the_child_leaves_ctrl_c_to_its_parent() -> None:
    with _template("{{ messages[0].content }}") as template:
        template.render(_HELLO)
        process = template._process  # pyright: ignore[reportPrivateUsage] - to send it a signal
        assert process is not None
        os.kill(process.process_id, signal.SIGINT)
        assert template.render(_HELLO) == "hello"
        assert template._process is process  # pyright: ignore[reportPrivateUsage] - as above
