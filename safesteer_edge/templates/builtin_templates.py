"""Known-good chat templates, for models that carry none, or one that is not to be trusted.

They lie in `builtin/`, render text and add nothing of their own: no tools, no dates, no default
system prompt. Where the name does not tell: `mistral-v7` is Mistral from the end of 2024 on, with
control tokens and no space inside them (Small 3, Pixtral Large); `vicuna`, of Vicuna 1.1 and LLaVA
1.5, marks turns by words; `deepseek` is of V2.5 and V3, `deepseek-r1` of R1 and its distillations,
which open the reasoning and drop it from the history; with `gpt-oss` (Harmony) the model opens its
own channels, `analysis` for reasoning and `final` for the answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Container
from pathlib import Path

from safesteer_edge.errors import TemplateError

_FOLDER = Path(__file__).with_name("builtin")

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
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))


def builtin_template(name: str) -> str:
    """Return the source of a built-in template. Raises TemplateError for an unknown name."""
    names = builtin_template_names()
    if name in names:
        return (_FOLDER / f"{name}.jinja").read_text("utf-8")
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise TemplateError(
        f"there is no built-in chat template {name!r}; did you mean {nearest!r}? "
        f"(there are {', '.join(names)})"
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
