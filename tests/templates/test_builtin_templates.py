"""Built-in templates give what llama.cpp's own C code, or the models' templates, give."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import pytest

from safesteer_edge.errors import TemplateError
from safesteer_edge.templates.builtin_templates import (
    builtin_template,
    builtin_template_names,
    default_builtin_name,
)
from safesteer_edge.templates.conversation import Conversation, Message
from safesteer_edge.templates.prompt_parts import render_parts
from safesteer_edge.templates.template import ChatTemplate

_CONVERSATION = Conversation(
    (
        Message.from_text("system", "S"),
        Message.from_text("user", "U1"),
        Message.from_text("assistant", "A"),
        Message.from_text("user", "U2"),
    )
)

# What llama.cpp writes for the same conversation (llama_chat_apply_template, without BOS), where it
# knows the format and agrees with the models' own template.
_NATIVE_NAMES = {
    "chatml": "chatml",
    "command-r": "command-r",
    "gemma": "gemma",
    "granite": "granite-4.0",
    "llama3": "llama3",
    "llama4": "llama4",
    "mistral-v7": "mistral-v7-tekken",
    "phi3": "phi3",
    "phi4": "phi4",
    "smolvlm": "smolvlm",
    "zephyr": "zephyr",
}
# What the models' own templates give, where llama.cpp writes it otherwise or not at all.
_EXPECTED = {
    "mistral": "<s>[INST] S\n\nU1 [/INST] A</s>[INST] U2 [/INST]",
    "vicuna": "<s>S USER: U1 ASSISTANT: A</s>USER: U2 ASSISTANT:",
    "deepseek": "<s>S<｜User｜>U1<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>U2<｜Assistant｜>",
    "deepseek-r1": "<s>S<｜User｜>U1<｜Assistant｜>A<｜end▁of▁sentence｜>"
    "<｜User｜>U2<｜Assistant｜><think>\n",
    "gpt-oss": "<|start|>developer<|message|># Instructions\n\nS<|end|>"
    "<|start|>user<|message|>U1<|end|>"
    "<|start|>assistant<|channel|>final<|message|>A<|end|>"
    "<|start|>user<|message|>U2<|end|><|start|>assistant",
}


def rendered(name: str, conversation: Conversation, *, eos_token: str = "</s>") -> str:
    source = builtin_template(name)
    with ChatTemplate(source, bos_token="<s>", eos_token=eos_token, name=name) as template:
        parts = render_parts(template, conversation)
    texts = [getattr(part, "text", None) for part in parts]
    return "".join(text or "" for text in texts)


def test_every_builtin_template_is_checked_against_something() -> None:
    assert set(builtin_template_names()) == set(_NATIVE_NAMES) | set(_EXPECTED)


@pytest.mark.parametrize("name", _EXPECTED)
def test_a_builtin_template_gives_the_format_of_its_models(name: str) -> None:
    assert rendered(name, _CONVERSATION) == _EXPECTED[name]


@pytest.mark.parametrize("n_messages", [2, 4])
@pytest.mark.parametrize("name", _NATIVE_NAMES)
def test_a_builtin_template_gives_what_llama_cpp_writes(name: str, n_messages: int) -> None:
    conversation = Conversation(_CONVERSATION.messages[:n_messages])
    messages = (llama_cpp.llama_chat_message * n_messages)(
        *((message.role.encode(), message.text.encode()) for message in conversation)
    )
    buffer: Any = ctypes.create_string_buffer(4096)
    native_name = _NATIVE_NAMES[name].encode()
    n_bytes = llama_cpp.llama_chat_apply_template(
        native_name, messages, n_messages, True, buffer, len(buffer)
    )
    # Zephyr's native form is StableLM's, which ends turns with that token.
    ours = rendered(name, conversation, eos_token="</s>" if name != "zephyr" else "<|endoftext|>")
    assert ours.removeprefix("<s>") == buffer.raw[:n_bytes].decode()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(TemplateError, match=r"'chatlm'; did you mean 'chatml'\?"):
        builtin_template("chatlm")


def test_the_default_is_chosen_by_the_control_tokens() -> None:
    assert default_builtin_name({"<|im_start|>", "<s>"}, model_name="a.gguf") == "chatml"
    assert default_builtin_name({"<start_of_turn>"}, model_name="a.gguf") == "gemma"
    assert default_builtin_name({"<|im_start|>", "<|im_sep|>"}, model_name="a.gguf") == "phi4"
    phi3 = {"<|user|>", "<|assistant|>", "<|end|>"}
    assert default_builtin_name(phi3, model_name="a.gguf") == "phi3"
    with pytest.raises(TemplateError, match=r"'a\.gguf' has no chat template"):
        default_builtin_name({"<s>"}, model_name="a.gguf")
