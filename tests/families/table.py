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

What is proven of the engine for each model family. A family is a graph of llama.cpp's. The
tests prove it on tiny random models with that graph's real tensors, metadata, tokenizer and
projector. They say that the engine computes and remembers correctly there, not
that a model of the family is good or has a guard bundle.

`python -m tests.families` writes this page; a test fails where it is wrong.

"""

_NOTES = """
- **loads**: the pure-Python checks accept the files, llama.cpp loads what they describe.
- **chat template**: every text arrives, control strings stay plain text, images need a projector.
- **hidden states**: the family's routes equal llama.cpp's whole-sequence evaluation (and NumPy) at
  the prompt's end, while decoding and for candidates, with logits.
- **roll-back**: candidates are tried, accepted, and taken back over 20 tokens; then others come as
  in a straight run. A recurrent state has no cells to remove, and is evaluated again from a
  checkpoint behind the question.
- **shorter prompt**: how much is kept of a prompt that shares a part with the next.
- **side prompt**: words beside a picture, looked at alone, end in llama.cpp's state and leave
  nothing.
- **control vector**: `direction.L` is added to block L's output and changes no block before it;
  block 0 cannot be steered.
- **lazy ≡ eager**: the same tokens at temperature 0.
- **images**: after two images logits are those of libmtmd's own evaluation, also with tokens taken
  back or an image left out.
- **prefix reuse**: each turn answers as a fresh context does (temperature 0).
- **cancelling**: while answering or reading; the next turn is as in a fresh context.

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
        f"llama.cpp gives `layer_input` for {names}, and aborts the process for any other. "
        "The engine asks these alone, and reads others by `eval_callback`. `lfm2` and `lfm2moe` "
        "give no logits beside `final_norm`: `eval_callback` reads it there."
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
