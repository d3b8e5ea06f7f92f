"""The official clients of each dialect, on the embedded default model."""

from __future__ import annotations

import base64
import io
from typing import Any

import anthropic
import numpy as np
import ollama
import openai
import pytest
from PIL import Image

from tests.serve.conftest import DEFAULT, HARMFUL, Server

pytestmark = pytest.mark.default_model

HELLO: Any = [{"role": "user", "content": "Why is the sky blue?"}]
BAD: Any = [{"role": "user", "content": HARMFUL}]


def openai_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0)


@pytest.fixture
def openai_client(server: Server) -> openai.OpenAI:
    return openai_of(server)


@pytest.fixture
def anthropic_client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="anything", max_retries=0)


@pytest.fixture
def ollama_client(server: Server) -> ollama.Client:
    return ollama.Client(server.url)


@pytest.fixture(scope="module")
def picture() -> bytes:
    """A red picture with a green square."""
    pixels = np.zeros((128, 128, 3), dtype=np.uint8)
    pixels[..., 0] = 220
    pixels[32:96, 32:96] = (20, 200, 20)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- OpenAI ----------------------------------------------------------------------------------------


def test_openai_lists_the_model_with_its_guard(openai_client: openai.OpenAI):
    (model,) = openai_client.models.list().data
    assert (model.id, model.object) == (DEFAULT, "model")
    assert openai_client.models.retrieve(DEFAULT).to_dict()["safesteer"]["guard"] == "steer"  # pyright: ignore[reportIndexIssue]


def test_openai_chat_answers_whole_and_in_a_stream_alike(openai_client: openai.OpenAI):
    asked: dict[str, Any] = {"model": DEFAULT, "messages": HELLO, "temperature": 0}
    whole = openai_client.chat.completions.create(**asked, max_completion_tokens=24)
    stream = list(
        openai_client.chat.completions.create(
            **asked, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
    )
    text = whole.choices[0].message.content
    assert text and text == "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert whole.choices[0].finish_reason == stream[-2].choices[0].finish_reason == "length"
    assert whole.id and whole.created and len({chunk.id for chunk in stream}) == 1
    usage, told = stream[-1].usage, whole.usage
    assert usage is not None and told is not None and stream[-1].choices == []
    assert (usage.prompt_tokens, usage.completion_tokens) == (told.prompt_tokens, 24)
    assert usage.total_tokens == told.total_tokens == told.prompt_tokens + 24


def test_openai_chat_tells_a_refusal_in_its_standard_fields(refusing_server: Server):
    openai_client = openai_of(refusing_server)
    asked: dict[str, Any] = {"model": DEFAULT, "messages": BAD, "max_tokens": 60}
    whole = openai_client.chat.completions.create(**asked)
    stream = list(openai_client.chat.completions.create(**asked, stream=True))
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == stream[-1].choices[0].finish_reason == "content_filter"
    assert message.refusal and (message.content or "").endswith(message.refusal)
    assert message.refusal in [chunk.choices[0].delta.refusal for chunk in stream]
    assert "safesteer" not in whole.to_dict()


def test_each_of_ten_turns_with_two_pictures_costs_its_new_tokens_alone(
    openai_client: openai.OpenAI, picture: bytes
):
    url = f"data:image/png;base64,{base64_of(picture)}"
    messages: list[Any] = []
    n_before = 0  # tokens of the last prompt and its answer
    for turn in range(10):
        content: list[Any] = [{"type": "text", "text": f"Question {turn}: what do you see?"}]
        if turn in (1, 5):
            content.append({"type": "image_url", "image_url": {"url": url}})
        messages.append({"role": "user", "content": content})
        answer = openai_client.chat.completions.create(
            model=DEFAULT, messages=messages, max_tokens=8, temperature=0
        )
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        usage = answer.usage
        assert usage is not None and usage.prompt_tokens_details is not None
        n_cached = usage.prompt_tokens_details.cached_tokens or 0
        # The tokens that end an answer, and open the next one, are the template's.
        assert n_cached >= n_before - 8
        assert usage.prompt_tokens - n_cached < (120 if turn in (1, 5) else 40)
        n_before = usage.prompt_tokens + usage.completion_tokens
    assert n_before > 2 * 64 + 10 * 12


def test_a_stop_text_ends_the_answer_and_is_not_in_it(openai_client: openai.OpenAI):
    asked: dict[str, Any] = {"model": DEFAULT, "messages": HELLO, "temperature": 0}
    whole = openai_client.chat.completions.create(**asked, max_tokens=40).choices[0].message.content
    assert whole is not None
    stop = whole.split()[5]
    expected = whole[: whole.index(stop)]
    cut = openai_client.chat.completions.create(**asked, max_tokens=40, stop=[stop])
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (expected, "stop")
    stream = openai_client.chat.completions.create(**asked, max_tokens=40, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected


def test_a_cancelled_stream_leaves_the_server_free(openai_client: openai.OpenAI, server: Server):
    stream = openai_client.chat.completions.create(
        model=DEFAULT, messages=HELLO, max_tokens=3000, stream=True
    )
    next(iter(stream))
    stream.close()
    answer = openai_client.chat.completions.create(model=DEFAULT, messages=HELLO, max_tokens=2)
    assert answer.choices[0].message.content
    assert any("/v1/chat/completions 499 " in line for line in server.log)


def test_openai_responses_answer_whole_and_in_a_stream_alike(openai_client: openai.OpenAI):
    asked: dict[str, Any] = {"model": DEFAULT, "input": "Why is the sky blue?", "temperature": 0}
    whole = openai_client.responses.create(**asked, max_output_tokens=24)
    events = list(openai_client.responses.create(**asked, max_output_tokens=24, stream=True))
    assert whole.status == "incomplete" and whole.usage is not None
    assert whole.output_text == "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    )
    assert [event.type for event in events][:3] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert events[-1].type == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == whole.output_text


def test_openai_responses_tell_a_refusal_as_a_part_of_its_own(refusing_server: Server):
    openai_client = openai_of(refusing_server)
    asked: dict[str, Any] = {"model": DEFAULT, "input": HARMFUL, "max_output_tokens": 60}
    whole = openai_client.responses.create(**asked)
    events = list(openai_client.responses.create(**asked, stream=True))
    part: Any = whole.output[0].content[-1]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalSubscript]  # a message
    assert part.type == "refusal"
    assert "response.refusal.done" in [event.type for event in events]
    assert "".join(e.delta for e in events if e.type == "response.refusal.delta") == part.refusal


def test_openai_moderation_flags_what_the_probe_finds_harmful(openai_client: openai.OpenAI):
    bad, good = openai_client.moderations.create(input=[HARMFUL, "Why is the sky blue?"]).results
    assert (bad.flagged, good.flagged) == (True, False)
    parts: Any = [{"type": "text", "text": HARMFUL}]
    (parted,) = openai_client.moderations.create(input=parts).results
    assert parted.category_scores == bad.category_scores


# -- Anthropic -------------------------------------------------------------------------------------


def test_anthropic_answers_whole_and_in_a_stream_alike(anthropic_client: anthropic.Anthropic):
    asked: dict[str, Any] = {"model": DEFAULT, "messages": HELLO, "max_tokens": 24}
    asked |= {"system": "Be brief.", "extra_body": {"temperature": 0}}
    whole = anthropic_client.messages.create(**asked)
    with anthropic_client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text" and whole.content[0].text == text
    assert whole.stop_reason == final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 24
    counted = anthropic_client.messages.count_tokens(
        model=DEFAULT, messages=HELLO, system="Be brief."
    )
    cached = whole.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == whole.usage.input_tokens + cached


def test_anthropic_sees_a_picture_and_tells_a_refusal(refusing_server: Server, picture: bytes):
    anthropic_client = anthropic.Anthropic(base_url=refusing_server.url, api_key="anything")
    source = {"type": "base64", "media_type": "image/png", "data": base64_of(picture)}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    seen = anthropic_client.messages.create(
        model=DEFAULT, messages=[{"role": "user", "content": content}], max_tokens=8
    )
    assert seen.usage.input_tokens + (seen.usage.cache_read_input_tokens or 0) > 64
    asked: dict[str, Any] = {"model": DEFAULT, "messages": BAD, "max_tokens": 60}
    assert anthropic_client.messages.create(**asked).stop_reason == "refusal"
    with anthropic_client.messages.stream(**asked) as stream:
        assert stream.get_final_message().stop_reason == "refusal"


# -- Ollama ----------------------------------------------------------------------------------------


def test_ollama_answers_whole_and_in_a_stream_alike(ollama_client: ollama.Client):
    options = {"temperature": 0, "num_predict": 24}
    whole = ollama_client.chat(f"{DEFAULT}:latest", HELLO, options=options)
    stream = list(ollama_client.chat(DEFAULT, HELLO, options=options, stream=True))
    assert whole.message.content == "".join(chunk.message.content or "" for chunk in stream)
    assert (whole.done_reason, stream[-1].done_reason) == ("length", "length")
    assert whole.eval_count == stream[-1].eval_count == 24


def test_ollama_sees_a_picture_and_tells_a_refusal(refusing_server: Server, picture: bytes):
    ollama_client = ollama.Client(refusing_server.url)
    message = {"role": "user", "content": "What is this?", "images": [picture]}
    seen = ollama_client.chat(DEFAULT, [message], options={"num_predict": 8})
    assert (seen.prompt_eval_count or 0) > 64
    assert ollama_client.chat(DEFAULT, BAD).done_reason == "content_filter"


def test_ollama_lists_and_shows_the_model(ollama_client: ollama.Client):
    assert [model.model for model in ollama_client.list().models] == [DEFAULT]
    shown = ollama_client.show(DEFAULT)
    assert "vision" in (shown.capabilities or [])
    with pytest.raises(ollama.ResponseError, match="there is no model"):
        ollama_client.show("another")
