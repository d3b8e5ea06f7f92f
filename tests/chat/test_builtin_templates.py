from __future__ import annotations

import pytest

from safesteer_edge.chat.builtin_templates import (
    builtin_template,
    builtin_template_names,
    default_builtin_name,
)
from safesteer_edge.chat.conversation import Conversation, Message
from safesteer_edge.chat.prompt_parts import render_parts
from safesteer_edge.chat.template import ChatTemplate
from safesteer_edge.errors import TemplateError

_CONVERSATION = Conversation(
    (
        Message.from_text("system", "S"),
        Message.from_text("user", "U1"),
        Message.from_text("assistant", "A"),
        Message.from_text("user", "U2"),
    )
)

_EXPECTED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<s><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] S\n\nU1 [/INST] A</s>[INST] U2 [/INST]",
}


@pytest.mark.parametrize("name", builtin_template_names())
def test_a_builtin_template_gives_the_format_of_its_models(name: str) -> None:
    source = builtin_template(name)
    with ChatTemplate.from_source(source, bos_token="<s>", eos_token="</s>", name=name) as template:
        parts = render_parts(template, _CONVERSATION)
    texts = [getattr(part, "text", None) for part in parts]
    assert "".join(text or "" for text in texts) == _EXPECTED[name]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(TemplateError, match=r"'chatlm'; did you mean 'chatml'\?"):
        builtin_template("chatlm")


def test_the_default_is_chosen_by_the_control_tokens() -> None:
    assert default_builtin_name({"<|im_start|>", "<s>"}, model_name="a.gguf") == "chatml"
    assert default_builtin_name({"<start_of_turn>"}, model_name="a.gguf") == "gemma"
    with pytest.raises(TemplateError, match=r"'a\.gguf' has no chat template"):
        default_builtin_name({"<s>"}, model_name="a.gguf")
