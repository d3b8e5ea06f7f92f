"""Writes one family's tiny language model."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter

from tests.tiny_models.families.family import Family, MetadataValue
from tests.tiny_models.families.tensors import N_EMBD, N_FF, N_HEAD, N_HEAD_KV, add_tensor
from tests.tiny_models.families.vocabulary import make_vocabulary
from tests.tiny_models.language_model import add_output_head, add_token_embedding
from tests.tiny_models.random_weights import RandomWeights, add_file_type, gguf_output


def write_family(path: Path, family: Family, *, seed: int = 0) -> Path:
    """Write a random model of this family in F32 and return its path (about 600 kB)."""
    vocabulary = make_vocabulary(family.tokenizer)
    with gguf_output(path, family.architecture) as writer:
        writer.add_type("model")
        writer.add_name(f"tiny-{family.name}")
        _add_metadata(writer, family)
        add_file_type(writer, "F32")
        vocabulary.add_to(writer, family.template)
        weights = RandomWeights(writer, seed=seed, quantization="F32")
        add_token_embedding(weights, vocabulary, N_EMBD)
        for layer_index in range(family.n_blocks):
            for tensor in family.block(layer_index):
                add_tensor(weights, f"blk.{layer_index}.{tensor.name}", tensor.shape)
        add_output_head(weights, vocabulary, N_EMBD, norm=family.output_norm)
    return path


def _add_metadata(writer: GGUFWriter, family: Family) -> None:
    common: dict[str, MetadataValue] = {
        "block_count": family.n_blocks,
        "context_length": 2048,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
    }
    for name, value in {**common, **family.metadata}.items():
        key = f"{family.architecture}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value))
