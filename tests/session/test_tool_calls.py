"""Tools in prompts and calls of them in answers, by the templates' own rendering."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.session.answer_form import (
    ToolCall,
    ToolCallSplitter,
    ToolFormat,
    tool_format,
)
from safesteer_edge.templates.conversation import (
    Conversation,
    Message,
    TextContent,
    Tool,
    ToolResult,
)
from safesteer_edge.templates.prompt_parts import ScaffoldPart, render_parts
from safesteer_edge.templates.template import ChatTemplate
from tests.tiny_models import CHATML, QWEN25

# What matters here of Llama 3.1's: tools in the user's message, results as JSON texts.
LLAMA31 = """\
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
<|start_header_id|>ipython<|end_header_id|>\n\n{{ message.content | tojson }}<|eot_id|>
{%- else -%}
<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n
{%- if tools is not none and loop.last -%}
Respond with {"name": function name, "parameters": dictionary}.
{% for t in tools -%}{{ t | tojson(indent=4) }}\n\n{% endfor -%}
{%- endif -%}
{{ message.content }}<|eot_id|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>\n\n{%- endif -%}"""
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": 'as in "Oslo"'}},
    "required": ["city"],
}
WEATHER = Tool("weather", 'Say "how" it\nis <|im_end|> outside', json.dumps(PARAMETERS))
CALL = ToolCall("weather", '{"city": "Oslo"}')


def hermes() -> ToolFormat:
    found = tool_format(QWEN25)
    assert found is not None
    return found


def llama() -> ToolFormat:
    found = tool_format(LLAMA31)
    assert found is not None
    return found


def test_a_prompt_with_tools_is_what_the_template_makes_of_them_and_keeps_them_apart() -> None:
    function = {"name": "weather", "description": WEATHER.description, "parameters": PARAMETERS}
    messages = [
        {"role": "user", "content": "How is Oslo?"},
        {"role": "assistant", "content": hermes().write(CALL)},
        {"role": "tool", "content": "4 degrees"},
        {"role": "tool", "content": '"rain" <|im_start|>'},
    ]
    conversation = Conversation(
        (
            Message.from_text("user", "How is Oslo?"),
            Message.from_text("assistant", hermes().write(CALL)),
            Message(
                "user",
                (ToolResult("4 degrees"), ToolResult('"rain" <|im_start|>'), TextContent("")),
            ),
        ),
        (WEATHER, Tool("now")),
    )
    now = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": each} for each in (function, now)]
    with ChatTemplate(QWEN25, bos_token="", eos_token="", name="qwen") as template:
        parts = render_parts(template, conversation)
        plain = template.render(messages, True, tools)
        said = template.render([*messages[:2], {"role": "user", "content": "no"}], True, tools)
    assert "".join(part.text for part in parts if hasattr(part, "text")) == plain  # type: ignore[union-attr]
    scaffold = "".join(part.text for part in parts if isinstance(part, ScaffoldPart))
    assert "weather" not in scaffold and "Oslo" not in scaffold and "rain" not in scaffold
    assert scaffold.count("<|im_end|>") == plain.count("<|im_end|>") - 1  # that of the description
    assert hermes().write(CALL) in said


def test_texts_of_tools_are_escaped_where_the_template_has_them_in_json() -> None:
    conversation = Conversation(
        (
            Message.from_text("user", "How is Oslo?"),
            Message.from_text("assistant", llama().write(CALL)),
            Message("user", (ToolResult('it is "cold"\n'), TextContent("And now?"))),
        ),
        (WEATHER,),
    )
    with ChatTemplate(LLAMA31, bos_token="", eos_token="", name="llama") as template:
        parts = render_parts(template, conversation)
    told = "".join(part.text for part in parts if hasattr(part, "text"))  # type: ignore[union-attr]
    assert json.dumps('it is "cold"\n') in told
    assert json.dumps(WEATHER.description) in told
    assert told.index("ipython") < told.index("And now?")
    shown = told[told.index('{\n    "type": "function"') :].partition("\n\n")[0]
    assert json.loads(shown)["function"]["parameters"] == PARAMETERS


def test_results_are_the_users_words_where_a_template_knows_no_tools() -> None:
    content = (ToolResult("4 degrees"), TextContent("And now?"))
    for said, shown in ((content, "4 degrees\nAnd now?"), (content[:1], "4 degrees")):
        with ChatTemplate(CHATML, bos_token="", eos_token="", name="chatml") as template:
            parts = render_parts(template, Conversation((Message("user", said),)))
        told = "".join(part.text for part in parts if hasattr(part, "text"))  # type: ignore[union-attr]
        assert told.startswith(f"<|im_start|>user\n{shown}<|im_end|>")


def test_a_template_without_tools_has_no_form_of_calls() -> None:
    assert tool_format(CHATML) is None
    assert tool_format(QWEN25.replace("<tool_call>", "<call>")) is None


def split(style: ToolFormat, pieces: list[str], *, is_refused: bool = False) -> list[Any]:
    splitter = ToolCallSplitter(style, ["weather", "a", "b"])
    told = [each for piece in pieces for each in splitter.feed(piece)]
    told += splitter.finish(is_refused=is_refused)
    joined: list[Any] = []
    for each in told:
        if isinstance(each, str) and joined and isinstance(joined[-1], str):
            joined[-1] += each
        else:
            joined.append(each)
    return joined


def test_calls_come_out_whole_and_text_around_them_without_their_marks() -> None:
    style = hermes()
    two = f"Let me look.\n{style.write(CALL)}\n{style.write(CALL)}\n"
    assert split(style, [two]) == ["Let me look.", CALL, CALL]
    assert split(style, [f"\n\n{style.write(CALL)} done"]) == [CALL, " done"]
    assert split(style, ['<tool_call>[{"name": "a"}, {"name": "b"}]</tool_call>']) == [
        ToolCall("a", "{}"),
        ToolCall("b", "{}"),
    ]
    assert split(style, ["a < b and <tool_"]) == ["a < b and <tool_"]


@pytest.mark.parametrize("body", ["no JSON", '"a"', "{}", '{"name": 3}', "[1]", '{"name": "a"'])
def test_what_is_no_call_stays_text(body: str) -> None:
    text = f"<tool_call>{body}</tool_call> and more"
    assert split(hermes(), [text]) == [text]
    assert split(hermes(), [f"<tool_call>{body}"]) == [f"<tool_call>{body}"]


def test_a_fenced_object_is_a_call_only_where_it_names_a_tool() -> None:
    fenced = '```json\n{"name": "weather", "arguments": {"city": "Oslo"}}\n```'
    other = fenced.replace("weather", "Mary")
    assert split(hermes(), [f"So:\n{fenced}\n"]) == ["So:", CALL]
    assert split(hermes(), [f"So:\n{other} she said"]) == [f"So:\n{other} she said"]
    assert split(hermes(), ['```json\n{"a": 1}']) == ['```json\n{"a": 1}']
    assert split(hermes(), ["```python\nprint()\n```"]) == ["```python\nprint()\n```"]


def test_a_text_is_open_while_a_call_in_it_is() -> None:
    whole = hermes().write(CALL)
    assert [hermes().is_open(text) for text in ("", "So", whole[:-1], whole, whole * 2)] == [
        *(False, False, True, False, False)
    ]
    assert hermes().is_open("```json\n{") and not hermes().is_open("```json\n{}\n```")
    assert llama().is_open(' {"name": "w') and not llama().is_open('So {"name": "w')


def test_a_call_that_was_begun_in_a_refused_answer_is_dropped() -> None:
    text = '<tool_call>\n{"name": "weather"'
    assert split(hermes(), ["So: ", text], is_refused=True) == ["So:"]
    assert split(llama(), ['{"name": "weather", "par'], is_refused=True) == []


def test_a_call_without_marks_is_the_whole_answer() -> None:
    style = llama()
    assert split(style, [style.write(CALL)]) == [CALL]
    assert split(style, ["As in ", style.write(CALL)]) == [f"As in {style.write(CALL)}"]
    assert split(style, ['{"name": 3} is no call']) == ['{"name": 3} is no call']
    assert split(style, ['{"answer": 3}']) == ['{"answer": 3}']


TEXTS = st.text(alphabet='<>tol_ca/{}"name: \n`json', max_size=30)


@given(before=TEXTS, after=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_what_comes_out_does_not_depend_on_how_the_text_was_cut(
    before: str, after: str, cuts: list[int]
) -> None:
    for style in (hermes(), llama()):
        text = before + style.write(CALL) + after
        edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
        pieces = [text[a:b] for a, b in pairwise(edges)]
        assert split(style, pieces) == split(style, [text]) == split(style, list(text))
