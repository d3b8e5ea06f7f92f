"""Write a trained vision model as llama.cpp's projector file, and read one back.

    python export_gguf.py --work DIR mmproj-smollm2-135m-instruct.gguf

DINOv2's matrices are stored in Q8_0, those after it in F16, the rest in F32.
`load_projector_inplace` is the way back: training goes on from the shipped file where no checkpoint
is at hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from backbone import (
    BLOCK_EPSILON,
    IMAGE_MEAN,
    IMAGE_SIDE,
    IMAGE_STD,
    N_DINOV2_BLOCKS,
    N_HEADS,
    PATCH_SIDE,
    WIDTH,
    VisionModel,
)
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize
from torch import Tensor

NAME = "SmolLM2-135M-Instruct vision"


def write_projector(path: Path, model: VisionModel, n_images: int, name: str = NAME) -> None:
    """Write the file atomically. n_images: what it was trained on, for the record."""
    partial = path.with_name(path.name + ".partial")
    writer = GGUFWriter(partial, "clip")
    writer.add_type("mmproj")
    writer.add_name(name)
    writer.add_license("Apache-2.0")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_uint32("safesteer.training.n_images", n_images)
    writer.add_string("clip.projector_type", "internvl")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    for key, value in (
        ("image_size", IMAGE_SIDE),
        ("patch_size", PATCH_SIDE),
        ("embedding_length", WIDTH),
        ("feed_forward_length", 4 * WIDTH),
        ("block_count", len(model.blocks)),
        ("attention.head_count", N_HEADS),
        ("projection_dim", model.project2.out_features),
        ("projector.scale_factor", 2),
        ("preproc_min_tiles", 1),
        ("preproc_max_tiles", 1),
    ):
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", BLOCK_EPSILON)
    writer.add_array("clip.vision.image_mean", list(IMAGE_MEAN))
    writer.add_array("clip.vision.image_std", list(IMAGE_STD))
    for name, tensor in _tensors(model):
        values = tensor.detach().float().numpy()
        stored_as = _stored_as(name, values.ndim)
        writer.add_tensor(name, quantize(values, stored_as), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _stored_as(name: str, n_dimensions: int) -> GGMLQuantizationType:
    """Q8_0 rounds what a matrix reads to 1 in 127 of a block's largest value.

    Too coarse for the block that pools, whose inputs differ by far less than their means.
    """
    if n_dimensions != 2 or name == "v.position_embd.weight":
        return GGMLQuantizationType.F32
    after_dinov2 = name.startswith(("mm.", f"v.blk.{N_DINOV2_BLOCKS}."))
    return GGMLQuantizationType.F16 if after_dinov2 else GGMLQuantizationType.Q8_0


def load_projector_inplace(model: VisionModel, path: Path) -> int:
    """Fill a model from a projector file; returns the images that it was trained on.

    Raises ValueError if the file is of another shape.
    """
    reader = GGUFReader(path)
    stored = {item.name: item for item in reader.tensors}
    with torch.no_grad():
        for name, target in _tensors(model):
            item = stored.pop(name, None)
            if item is None:
                raise ValueError(f"{str(path)!r} has no tensor {name!r}")
            values = dequantize(item.data, GGMLQuantizationType(item.tensor_type))
            target.copy_(torch.from_numpy(values.copy()).view(target.shape))
    if stored:
        raise ValueError(f"{str(path)!r} has more tensors than the model, as {min(stored)!r}")
    field = reader.get_field("safesteer.training.n_images")
    return int(field.contents()) if field is not None else 0


def read_projector(path: Path) -> VisionModel:
    """The model that a projector file holds. Raises ValueError if it is none of this recipe's."""
    reader = GGUFReader(path)

    def number(key: str) -> int:
        field = reader.get_field(f"clip.vision.{key}")
        if field is None:
            raise ValueError(f"{str(path)!r} has no clip.vision.{key}: no projector of this recipe")
        return int(field.contents())

    model = VisionModel(number("block_count"), number("projection_dim"))
    load_projector_inplace(model, path)
    return model


def _tensors(model: VisionModel) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's name of every weight, with the weight itself."""
    yield "v.patch_embd.weight", model.patch.weight
    assert model.patch.bias is not None
    yield "v.patch_embd.bias", model.patch.bias
    yield "v.class_embd", model.class_token.view(-1)
    yield "v.position_embd.weight", model.positions[0]
    for index, block in enumerate(model.each_block()):
        for theirs, ours in (
            ("ln1", block.norm1),
            ("attn_q", block.query),
            ("attn_k", block.key),
            ("attn_v", block.value),
            ("attn_out", block.out),
            ("ln2", block.norm2),
            ("ffn_up", block.up),
            ("ffn_down", block.down),
        ):
            yield f"v.blk.{index}.{theirs}.weight", ours.weight
            yield f"v.blk.{index}.{theirs}.bias", ours.bias
        yield f"v.blk.{index}.ls1.weight", block.scale1
        yield f"v.blk.{index}.ls2.weight", block.scale2
    for theirs, layer in (("0", model.norm), ("1", model.project1), ("3", model.project2)):
        yield f"mm.model.mlp.{theirs}.weight", layer.weight
        yield f"mm.model.mlp.{theirs}.bias", layer.bias


def main() -> None:
    """Export the newest checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default=NAME)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    checkpoints = [options.work / name for name in ("language.pt", "dense.pt")]
    newest = next((path for path in checkpoints if path.exists()), None)
    if newest is None:
        raise SystemExit(f"no checkpoint in {str(options.work)!r}; train first")
    state = torch.load(newest, weights_only=True, map_location="cpu")
    n_blocks = sum(name.endswith(".norm1.weight") for name in state["model"])
    model = VisionModel(n_blocks, len(state["model"]["project2.bias"]))
    model.load_state_dict(state["model"])
    write_projector(options.file, model, state["n_images"], options.name)
    print(
        f"wrote {options.file}: {options.file.stat().st_size / 2**20:.1f} MiB, "
        f"trained on {state['n_images']} images"
    )


if __name__ == "__main__":
    main()
