"""Known-good chat templates, for models that carry none, or one that is not to be trusted.

They render text and add nothing of their own: no tools, no dates, no default system prompt.
"""

from __future__ import annotations

import difflib
from collections.abc import Container

from safesteer_edge.errors import TemplateError

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""

_GEMMA = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ raise_exception('System role not supported') }}
{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' -%}{{ ' ' + message['content'] | trim + eos_token }}
{%- else -%}{{ raise_exception('System role not supported') }}
{%- endif -%}
{%- endfor -%}
"""

# Mistral from the end of 2024 on: control tokens, no space inside them (Small 3, Pixtral Large).
_MISTRAL_V7 = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
{%- elif message['role'] == 'user' -%}{{ '[INST]' + message['content'] + '[/INST]' }}
{%- else -%}{{ message['content'] + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

_PHI3 = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
"""

_PHI4 = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant<|im_sep|>' }}{%- endif -%}
"""

# Vicuna 1.1 and LLaVA 1.5. Turns are marked by words, not by control tokens.
_VICUNA = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + ' ' }}
{%- elif message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + message['content'] + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
"""

# DeepSeek V2.5 and V3; R1 and its distillations open the reasoning, and drop it from the history.
_DEEPSEEK = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] }}
{%- elif message['role'] == 'user' -%}{{ '<｜User｜>' + message['content'] }}
{%- else -%}{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜>' }}{%- endif -%}
"""
_DEEPSEEK_R1 = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] }}
{%- elif message['role'] == 'user' -%}{{ '<｜User｜>' + message['content'] }}
{%- else -%}
{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}
"""

_SMOLVLM = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}
{%- else -%}
{{ message['role'] | capitalize + ': ' + message['content'] + '<end_of_utterance>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

_GRANITE = """\
{%- for message in messages -%}
{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}
{{- '<|end_of_text|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif -%}
"""

# Harmony: the model opens its own channels, `analysis` for reasoning and `final` for the answer.
_GPT_OSS = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|start|>assistant<|channel|>final<|message|>' + message['content'] + '<|end|>' }}
{%- elif message['role'] == 'system' -%}
{{ '<|start|>developer<|message|># Instructions\\n\\n' + message['content'] + '<|end|>' }}
{%- else -%}
{{ '<|start|>user<|message|>' + message['content'] + '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}
"""

_COMMAND_R = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} -%}
{{ '<|START_OF_TURN_TOKEN|><|' + names[message['role']] + '_TOKEN|>' }}
{{- message['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif -%}
"""

_LLAMA4 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
{{- message['content'] | trim + '<|eot|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif -%}
"""

_TEMPLATES = {
    "chatml": _CHATML,
    "command-r": _COMMAND_R,
    "deepseek": _DEEPSEEK,
    "deepseek-r1": _DEEPSEEK_R1,
    "gemma": _GEMMA,
    "gpt-oss": _GPT_OSS,
    "granite": _GRANITE,
    "llama3": _LLAMA3,
    "llama4": _LLAMA4,
    "mistral": _MISTRAL,
    "mistral-v7": _MISTRAL_V7,
    "phi3": _PHI3,
    "phi4": _PHI4,
    "smolvlm": _SMOLVLM,
    "vicuna": _VICUNA,
    "zephyr": _ZEPHYR,
}

# Control tokens that show which of the formats a vocabulary was trained with: all of one entry,
# the more special entries first. `mistral` and `vicuna` mark turns with words, and `zephyr` and
# `deepseek-r1` share their tokens with others: these are for --chat-template alone.
_MARKERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|im_sep|>", "<|im_start|>"), "phi4"),
    (("<end_of_utterance>", "<|im_start|>"), "smolvlm"),
    (("<|im_start|>",), "chatml"),
    (("<|start_header_id|>",), "llama3"),
    (("<|header_start|>",), "llama4"),
    (("<start_of_turn>",), "gemma"),
    (("<|channel|>", "<|message|>"), "gpt-oss"),
    (("<|start_of_role|>",), "granite"),
    (("<|START_OF_TURN_TOKEN|>",), "command-r"),
    (("<｜User｜>", "<｜Assistant｜>"), "deepseek"),
    (("[SYSTEM_PROMPT]", "[INST]"), "mistral-v7"),
    (("<|user|>", "<|assistant|>", "<|end|>"), "phi3"),
)


def builtin_template_names() -> tuple[str, ...]:
    """Return the names that `builtin_template` takes."""
    return tuple(_TEMPLATES)


def builtin_template(name: str) -> str:
    """Return the source of a built-in template. Raises TemplateError for an unknown name."""
    if name in _TEMPLATES:
        return _TEMPLATES[name]
    nearest = difflib.get_close_matches(name, _TEMPLATES, n=1, cutoff=0.0)[0]
    raise TemplateError(
        f"there is no built-in chat template {name!r}; did you mean {nearest!r}? "
        f"(there are {', '.join(_TEMPLATES)})"
    )


def default_builtin_name(special_tokens: Container[str], *, model_name: str) -> str:
    """Return the built-in template for a model that has none, chosen by its control tokens.

    special_tokens: the texts of the vocabulary's control tokens.
    Raises TemplateError if none of them tells.
    """
    for tokens, name in _MARKERS:
        if all(token in special_tokens for token in tokens):
            return name
    raise TemplateError(
        f"{model_name!r} has no chat template, and its vocabulary does not show which to use; "
        "choose one with --chat-template builtin:chatml"
    )
