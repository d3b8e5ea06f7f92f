from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.errors import TemplateError
from safesteer_edge.templates.builtin_templates import builtin_template
from safesteer_edge.templates.conversation import Conversation, MediaContent, Message, TextContent
from safesteer_edge.templates.prompt_parts import (
    ContentPart,
    MediaPart,
    PromptPart,
    ScaffoldPart,
    TokensPart,
    render_parts,
)
from safesteer_edge.templates.template import ChatTemplate

_IMAGE = "1" * 64
_SOUND = "2" * 64

# Llama 2's: system text inside the first user message, both trimmed, a space before the answer.
_LLAMA2 = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}
{%- set content = (system if loop.first else '') + message['content'] -%}
{%- if message['role'] == 'user' -%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else -%}{{ ' ' + content.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}"""

# SmolVLM's and Qwen2-VL's: content as parts, one with no other way and one with both.
_PARTS_ONLY = """\
{%- for message in messages -%}
{{ message['role'] | capitalize }}{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}
{%- elif part['type'] == 'image' -%}<image>{%- endif -%}
{%- endfor -%}<end>
{% endfor -%}{%- if add_generation_prompt -%}Assistant:{%- endif -%}"""
_BOTH = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] -%}
{%- if 'image' in part -%}<|image_pad|>{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

# Mistral Nemo's: the system text goes to the last user message.
_SYSTEM_LAST = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}[INST]
{%- if loop.last and messages[0].role == 'system' -%}
{{ messages[0].content ~ '\\n\\n' }}{%- endif -%}
{{ message.content }}[/INST]
{%- elif message.role == 'assistant' -%}{{ message.content }}</s>{%- endif -%}
{%- endfor -%}"""


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", name="x.gguf")


def _conversation(*messages: Message) -> Conversation:
    return Conversation(messages)


def _said(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    messages = [Message.from_text(roles[index % 2], text) for index, text in enumerate(texts)]
    return Conversation(tuple(messages))


def _parts(source: str, conversation: Conversation) -> tuple[PromptPart, ...]:
    with _template(source) as template:
        return render_parts(template, conversation)


def _text(parts: tuple[PromptPart, ...]) -> str:
    media = {"image": "🖼", "audio": "🔊"}
    return "".join(media[p.kind] if isinstance(p, MediaPart) else p.text for p in parts)


@pytest.fixture(scope="module")
def chatml() -> Iterator[ChatTemplate]:
    with _template(builtin_template("chatml")) as template:
        yield template


@pytest.fixture(scope="module", params=["chatml", "llama2", "both", "system last"])
def any_template(request: pytest.FixtureRequest) -> Iterator[ChatTemplate]:
    sources = {
        "chatml": builtin_template("chatml"),
        "llama2": _LLAMA2,
        "both": _BOTH,
        "system last": _SYSTEM_LAST,
    }
    with _template(sources[request.param]) as template:
        yield template


def test_what_people_wrote_is_kept_apart_from_what_the_template_wrote(
    chatml: ChatTemplate,
) -> None:
    assert render_parts(chatml, _said("Hi <|im_end|>", "Hello")) == (
        ScaffoldPart("<|im_start|>user\n"),
        ContentPart("Hi <|im_end|>", 0),
        ScaffoldPart("<|im_end|>\n<|im_start|>assistant\n"),
        ContentPart("Hello", 1),
        ScaffoldPart("<|im_end|>\n<|im_start|>assistant\n"),
    )


_SAID = st.text().filter(lambda text: not text.isspace() and text != "")


# An odd number: the last word is the user's, as in every prompt for an answer. No deadline: the
# first example may wait for the child to start.
@settings(deadline=None)
@given(
    st.lists(_SAID, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1),
    st.none() | _SAID,
)
def test_the_parts_say_what_the_template_says_of_the_text_itself(
    any_template: ChatTemplate, texts: list[str], system: str | None
) -> None:
    conversation = _said(*texts)
    if system is not None:
        messages = (Message.from_text("system", system), *conversation.messages)
        conversation = Conversation(messages)
    whole = any_template.render(
        [{"role": message.role, "content": message.text} for message in conversation]
    )
    assert _text(render_parts(any_template, conversation)) == whole


def test_the_template_does_not_see_what_is_said() -> None:
    poisoned = "{{ messages[0].content }}{% if 'bank' in messages[0].content %}<s>evil{% endif %}"
    assert _parts(poisoned, _said("my bank account")) == (ContentPart("my bank account", 0),)


def test_placeholders_are_drawn_anew_for_each_prompt() -> None:
    source = "{% if messages[3] %}{{ raise_exception(messages[0].content) }}{% endif %}"
    source += "{% for message in messages %}{{ message.content }}|{% endfor %}"
    placeholders: set[str] = set()
    with _template(source) as template:
        for _ in range(3):
            with pytest.raises(TemplateError) as caught:
                render_parts(template, _said("a", "b", "c", "d"))
            placeholders.add(str(caught.value))
    assert len(placeholders) == 3


@pytest.mark.parametrize(
    "content",
    [
        "{{ message.content | upper }}",
        "{{ message.content[:-1] }}",
        "{{ message.content ~ message.content }}",
        "{{ message.content if loop.first }}",
        "{{ messages[-1].content if loop.first else messages[0].content }}",
        "{{ message.content if not loop.first }}",
    ],
)
def test_a_template_that_drops_changes_or_moves_what_is_said_is_refused(content: str) -> None:
    source = "{% for message in messages %}<" + content + ">{% endfor %}"
    with pytest.raises(TemplateError, match=r"chat template of 'x\.gguf'.*builtin:chatml"):
        _parts(source, _said("one", "two", "three"))


def test_a_template_that_shows_no_user_text_is_refused() -> None:
    with pytest.raises(TemplateError, match="does not show what the user says"):
        _parts("hello", _said("one"))


def test_a_template_that_refuses_everything_is_quoted() -> None:
    with pytest.raises(TemplateError, match="refuses this conversation: 'never'"):
        _parts("{{ raise_exception('never') }}", _said("one"))


def test_a_refused_conversation_is_an_error() -> None:
    conversation = _conversation(Message.from_text("user", "a"), Message.from_text("user", "b"))
    with pytest.raises(TemplateError, match="roles must alternate"):
        _parts(_LLAMA2, conversation)


@pytest.mark.parametrize(
    "system",
    [
        "{{ raise_exception('System role not supported') }}",
        "",  # dropped without a word
    ],
)
def test_a_system_message_that_the_template_does_not_know_goes_before_the_users(
    system: str,
) -> None:
    source = "{% for m in messages %}{% if m.role == 'system' %}" + system
    source += "{% else %}<{{ m.role }}>{{ m.content | trim }}{% endif %}{% endfor %}"
    conversation = _conversation(
        Message.from_text("system", "Be brief."), Message.from_text("user", " Hi ")
    )
    assert _parts(source, conversation) == (
        ScaffoldPart("<user>"),
        ContentPart("Be brief.", 0),
        ScaffoldPart("\n\n "),
        ContentPart("Hi", 1),
    )


def test_a_system_message_with_no_user_message_behind_it_cannot_be_merged() -> None:
    source = builtin_template("gemma")
    conversation = _said("Hi").with_message(Message.from_text("system", "Be brief."))
    with pytest.raises(TemplateError, match="knows no system messages"):
        _parts(source, conversation)


def test_a_system_text_may_stand_elsewhere() -> None:
    conversation = Conversation(
        (Message.from_text("system", "S"), *_said("one", "two", "three").messages)
    )
    expected = "[INST]one[/INST]two</s>[INST]S\n\nthree[/INST]"
    assert _text(_parts(_SYSTEM_LAST, conversation)) == expected


_PICTURE_QUESTION = Message(
    "user",
    (TextContent("What is"), MediaContent("image", _IMAGE), TextContent("this?")),
)


def test_media_keep_their_places_where_the_template_takes_parts() -> None:
    for source in (_PARTS_ONLY, _BOTH):
        parts = _parts(source, _conversation(_PICTURE_QUESTION))
        assert "What is🖼this?" in _text(parts)
        assert "image" not in _text(parts)  # the runtime writes its own marks around the image
        assert MediaPart("image", _IMAGE, 0) in parts


def test_media_come_first_where_the_template_takes_strings(chatml: ChatTemplate) -> None:
    sound = MediaContent("audio", _SOUND)
    message = Message("user", (*_PICTURE_QUESTION.content, sound))
    text = _text(render_parts(chatml, _conversation(message)))
    assert "<|im_start|>user\n🖼🔊What is\nthis?<|im_end|>" in text


def test_text_reaches_a_template_that_takes_parts_alone() -> None:
    conversation = Conversation(
        (Message.from_text("system", "S"), *_said("one", "two", "three").messages)
    )
    expected = "System: S<end>\nUser: one<end>\nAssistant: two<end>\nUser: three<end>\nAssistant:"
    assert _text(_parts(_PARTS_ONLY, conversation)) == expected


def test_a_list_that_is_printed_as_source_does_not_pass_for_parts(chatml: ChatTemplate) -> None:
    printing = "{% for m in messages %}{{ m.content | tojson if m.content is not string "
    printing += "else m.content }}{% endfor %}"
    with _template(printing) as template:
        assert template.features().parts_roles == frozenset()
        assert template.features().string_roles == {"user", "system", "assistant"}
    assert chatml.features().parts_roles == frozenset()


def test_a_message_without_content_is_an_empty_text(chatml: ChatTemplate) -> None:
    parts = render_parts(chatml, _conversation(Message("user", ())))
    assert parts[1] == ContentPart("", 0)


def _with_answer(text: str, token_ids: tuple[int, ...]) -> Conversation:
    return _conversation(
        Message.from_text("user", "Hi"),
        Message.from_text("assistant", text, token_ids=token_ids),
        Message.from_text("user", "Bye"),
    )


def test_a_known_answer_comes_back_as_its_tokens(chatml: ChatTemplate) -> None:
    parts = render_parts(chatml, _with_answer(" Hello \n", (7, 8)))
    assert parts[3] == TokensPart((7, 8), " Hello \n", 1)


def test_a_prompt_and_its_answer_begin_the_next_prompt(any_template: ChatTemplate) -> None:
    conversation = _with_answer("Hello", (7, 8))
    first = render_parts(any_template, Conversation(conversation.messages[:1]))
    assert render_parts(any_template, conversation)[: len(first)] == first


def test_an_answer_stays_as_it_was_shown_whatever_the_template_looks_for(
    chatml: ChatTemplate,
) -> None:
    """It would take the answer's own words for the end of its reasoning."""
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}|{% endfor %}"
    said = "It writes <think>, then </think>, then the answer."
    with _template(source) as template:
        assert _text(render_parts(template, _with_answer(said, (7, 8)))) == f"Hi|{said}|Bye|"
    assert said in _text(render_parts(chatml, _with_answer(said, (7, 8))))


def test_tokens_that_say_more_than_the_answer_are_not_used(chatml: ChatTemplate) -> None:
    hi, answer, bye = _with_answer("Hello", (7, 8))
    parts = render_parts(chatml, _conversation(hi, replace(answer, reasoning=""), bye))
    assert parts[3] == ContentPart("Hello", 1)
