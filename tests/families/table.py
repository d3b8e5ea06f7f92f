"""The table of docs/families.md: written from proofs, and read back."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from safesteer_edge.engine.hidden_states import LAYER_INPUT_ARCHITECTURES
from tests.families.engine_proofs import (
    prove_control_vector,
    prove_hidden_states,
    prove_loading,
    prove_reranking,
    prove_roll_back,
    prove_shorter_prompts,
    prove_side_prompt,
)
from tests.families.family_files import FamilyFiles
from tests.families.media_proofs import prove_images
from tests.families.session_proofs import prove_cancelling, prove_reuse, prove_template
from tests.tiny_models.families.table import FAMILIES

Proof = Callable[[FamilyFiles], str]
Results = Mapping[tuple[str, str], str]
"""What a proof said, by the family's name and the column's."""

TABLE_PATH: Final = Path(__file__).parents[2] / "docs" / "families.md"

PROOFS: Final[Mapping[str, Proof]] = {
    "loads": prove_loading,
    "chat template": prove_template,
    "hidden states": prove_hidden_states,
    "roll-back": prove_roll_back,
    "shorter prompt": prove_shorter_prompts,
    "side prompt": prove_side_prompt,
    "control vector": prove_control_vector,
    "lazy ≡ eager": prove_reranking,
    "images": prove_images,
    "prefix reuse": prove_reuse,
    "cancelling": prove_cancelling,
}

_HEAD = """\
# Model families

What is proven of the engine for each family of models. A family is a graph of llama.cpp's: the
proofs run on tiny random models with that graph's real tensors, metadata, tokenizer and projector,
through the product's own code and the pinned llama.cpp, on every run of the test suite. They say
that the engine computes and remembers correctly there, not that a model of the family is good or
that a guard bundle for it exists.

This page is written by `python -m tests.families`; a test fails where it does not say what is
proven.

"""

_NOTES = """
- **loads**: the pure-Python checks accept the files, llama.cpp loads what they describe.
- **chat template**: every text arrives, control strings in it stay plain text, and an image without
  a projector is refused in one line.
- **hidden states**: the routes that the family has, each equal to llama.cpp's whole-sequence
  evaluation (and to NumPy) at the prompt's end, while decoding and for candidates, with logits.
- **roll-back**: candidates tried singly and in batches, accepted, taken back over 20 tokens, then
  others appended: as a straight run. A recurrent state has no cells to remove: what is missing is
  evaluated again, from a checkpoint behind the question.
- **shorter prompt**: prompts that share a part with the one before: how much of it is kept.
- **side prompt**: words beside a picture are looked at alone, on a sequence of their own: the state
  at their end is llama.cpp's, and the next prompt finds all of the last one.
- **control vector**: `direction.L` is added to the output of block L, and no block before it
  changes; block 0 cannot be steered.
- **lazy ≡ eager**: the same tokens at temperature 0.
- **images**: logits after two images and text are those of libmtmd's own evaluation, also after
  tokens were taken back and an image left out.
- **prefix reuse**: each turn answers as a context that starts from nothing does (temperature 0).
- **cancelling**: while answering, and while the prompt is read; the next turn is as in a fresh
  context.

"""


def prove_all(folder: Path) -> Results:
    """Run every proof of every family."""
    results: dict[tuple[str, str], str] = {}
    for family in FAMILIES:
        files = FamilyFiles(family, folder)
        for column, proof in PROOFS.items():
            results[family.name, column] = proof(files)
    return results


def render(results: Results) -> str:
    """Return the page that says these results."""
    lines = [_row("family", "models", *PROOFS), _row(*["---"] * (len(PROOFS) + 2))]
    for family in FAMILIES:
        cells = [results[family.name, column] for column in PROOFS]
        lines.append(_row(family.name, family.models, *cells))
    names = ", ".join(f"`{name}`" for name in sorted(LAYER_INPUT_ARCHITECTURES))
    routes = (
        f"llama.cpp gives `layer_input` for {names}, and aborts the process where another graph is "
        "asked for it: the engine asks these alone, by a list, and reads others by "
        "`eval_callback`. `lfm2` and `lfm2moe` give no logits beside `final_norm`, which is read "
        "by `eval_callback` there."
    )
    return _HEAD + "\n".join(lines) + "\n" + _NOTES + textwrap.fill(routes, 100) + "\n"


def read_results(page: str) -> Results:
    """Return what a page says: the cells of its table."""
    results: dict[tuple[str, str], str] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(PROOFS) + 2 and cells[0] not in ("family", "---"):
            results.update({(cells[0], c): v for c, v in zip(PROOFS, cells[2:], strict=True)})
    return results


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
