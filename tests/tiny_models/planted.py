"""A tiny llama whose words are known: each token leads to given next ones, and harm is a direction.

Its blocks add nothing, so a state is the embedding of the last token: one axis a token, and one
axis on which harmful tokens lie on one side and refusing ones on the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.tiny_models.language_model import TransformerShape, add_metadata
from tests.tiny_models.random_weights import RandomWeights, add_file_type, gguf_output
from tests.tiny_models.vocabulary import CHATML, FIRST_BYTE_ID, IM_END_ID, tiny_vocabulary

HARM_AXIS = 383
GAP_AXIS = 382
REFUSAL, CONSENT = "I can't help with that.", "Sure, here it is."
_SHAPE = TransformerShape("llama", "planted", 4, 384, 4, 4, 32, 512)
_ELSEWHERE = -40.0  # logit of what is never said


def letter_id(letter: str) -> int:
    """The token of a character that no longer one takes up, such as a capital; '' is the end."""
    return FIRST_BYTE_ID + ord(letter) if letter else IM_END_ID


def write_planted_llama(
    path: Path, follows: Mapping[str, Mapping[str, float]], harm: Mapping[str, float]
) -> Path:
    """Write the model and return its path (1.5 MB).

    follows: the chances of what comes behind each letter; behind others the answer ends. harm: of
    letters, from −1 to 1; 0 where it is not given.
    """
    vocabulary = tiny_vocabulary()
    n_vocab, n_embd = len(vocabulary.tokens), _SHAPE.n_embd
    embedding = np.eye(n_vocab, n_embd, dtype=np.float32)
    for letter, value in harm.items():
        embedding[letter_id(letter), HARM_AXIS] = value
    chances = np.full((n_vocab, n_vocab), math.exp(_ELSEWHERE))  # of the next token, by this one
    chances[:, IM_END_ID] = 1.0
    for letter, following in follows.items():
        chances[letter_id(letter)] = math.exp(_ELSEWHERE)
        for next_letter, chance in following.items():
            chances[letter_id(letter), letter_id(next_letter)] = chance
    # The final norm makes every state as long as √n_embd.
    lengths = np.linalg.norm(embedding, axis=1) / math.sqrt(n_embd)
    head = np.zeros((n_vocab, n_embd), dtype=np.float32)
    head[:, :n_vocab] = (np.log(chances) * lengths[:, np.newaxis]).T
    with gguf_output(path, "llama") as writer:
        add_metadata(writer, _SHAPE)
        add_file_type(writer, "F32")
        vocabulary.add_to(writer, CHATML)
        weights = RandomWeights(writer, seed=0, quantization="F32")
        weights.add_quantized("token_embd.weight", embedding)
        for layer_index in range(_SHAPE.n_layer):
            _add_idle_block(weights, f"blk.{layer_index}")
        weights.add("output_norm.weight", np.ones(n_embd, dtype=np.float32))
        weights.add_quantized("output.weight", head)
    return path


def write_planted_seer(path: Path, harm: Mapping[str, float]) -> Path:
    """Write a model that declines what is harmful in words, and what a picture shows it does not.

    harm: of letters, from −1 to 1. Its first block adds the mean harm and the mean modality gap of
    all tokens to each state. It says REFUSAL where harm outweighs the gap, else CONSENT. A picture
    token that bears harm is h on HARM_AXIS and 1 on GAP_AXIS.
    """
    vocabulary = tiny_vocabulary((REFUSAL, CONSENT))
    n_vocab, n_embd = len(vocabulary.tokens), _SHAPE.n_embd
    refusal_id, consent_id = (
        vocabulary.tokens.index(text.replace(" ", "Ġ")) for text in (REFUSAL, CONSENT)
    )
    embedding = np.eye(n_vocab, n_embd, dtype=np.float32)
    for letter, value in harm.items():
        embedding[letter_id(letter), HARM_AXIS] = value
    head = np.zeros((n_vocab, n_embd), dtype=np.float32)
    head[refusal_id, [HARM_AXIS, GAP_AXIS]] = 8.0, -8.0
    head[consent_id, letter_id("\n")] = 4.0
    head[IM_END_ID, [refusal_id, consent_id]] = 200.0
    both = np.zeros((n_embd, n_embd), dtype=np.float32)
    both[[HARM_AXIS, GAP_AXIS], [HARM_AXIS, GAP_AXIS]] = 1.0
    with gguf_output(path, "llama") as writer:
        add_metadata(writer, _SHAPE)
        add_file_type(writer, "F32")
        vocabulary.add_to(writer, CHATML)
        weights = RandomWeights(writer, seed=0, quantization="F32")
        weights.add_quantized("token_embd.weight", embedding)
        for layer_index in range(_SHAPE.n_layer):
            _add_idle_block(weights, f"blk.{layer_index}", mixed=both if layer_index == 0 else None)
        weights.add("output_norm.weight", np.ones(n_embd, dtype=np.float32))
        weights.add_quantized("output.weight", head)
    return path


def _add_idle_block(
    weights: RandomWeights, block: str, *, mixed: NDArray[np.float32] | None = None
) -> None:
    """A block that adds nothing, or the mean of what `mixed` picks out of all tokens so far."""
    n_embd, n_ff = _SHAPE.n_embd, _SHAPE.n_ff
    for norm in ("attn_norm", "ffn_norm"):
        weights.add(f"{block}.{norm}.weight", np.ones(n_embd, dtype=np.float32))
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (n_embd, n_embd))
    shapes |= {"ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff)}
    for part, shape in shapes.items():
        values = np.zeros(shape, dtype=np.float32)
        if mixed is not None and part in ("attn_v", "attn_output"):
            values = mixed
        weights.add_quantized(f"{block}.{part}.weight", values)
