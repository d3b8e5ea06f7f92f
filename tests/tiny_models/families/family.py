"""What one model family is, as far as its tiny model differs from the others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.tiny_models.families.tensors import BlockTensors
from tests.tiny_models.families.vocabulary import Tokenizer

MetadataValue = bool | int | float | str | Sequence[int]
ProjectorKind = Literal[
    "gemma3", "idefics3", "internvl", "lfm2", "mlp", "qwen2vl_merger", "qwen3vl_merger"
]


@dataclass(frozen=True, slots=True)
class Family:
    """A model family.

    name: of its row in docs/families.md. architecture: general.architecture. models: for people.
    metadata: below `{architecture}.`, over what all have. block: the tensors of block L.
    projector: what feeds it images; None: no published model of it sees. output_norm: its tensor.
    """

    name: str
    architecture: str
    models: str
    tokenizer: Tokenizer
    template: str
    block: BlockTensors
    projector: ProjectorKind | None
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    n_blocks: int = 4
    output_norm: str = "output_norm"
