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

_TEMPLATES = {"chatml": _CHATML, "gemma": _GEMMA, "llama3": _LLAMA3, "mistral": _MISTRAL}

# The control token that shows which of the formats a vocabulary was trained with. `mistral` has
# none: its [INST] is plain text in the older vocabularies.
_MARKERS = {
    "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama3",
    "<start_of_turn>": "gemma",
}


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
    for marker, name in _MARKERS.items():
        if marker in special_tokens:
            return name
    raise TemplateError(
        f"{model_name!r} has no chat template, and its vocabulary does not show which to use; "
        "choose one with --chat-template builtin:chatml"
    )
