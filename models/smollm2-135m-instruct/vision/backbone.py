"""The vision model in PyTorch: what llama.cpp's `internvl` projector graph computes.

DINOv2-small's first blocks (ViT-S/14, Apache-2.0), others after them, 2×2 pixel shuffle, LayerNorm
and two linear layers into the language model's embedding space. Source of the graph: llama.cpp,
tools/mtmd/models/internvl.cpp: the class token comes last, GELU is the tanh form, and a token
joins four patches in the order (top left, top right, bottom left, bottom right).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_SIDE = 224
PATCH_SIDE = 14
N_PATCHES_SIDE = IMAGE_SIDE // PATCH_SIDE  # 16
N_CELLS_SIDE = N_PATCHES_SIDE // 2  # 8: one image token is a cell of 2×2 patches
IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, which DINOv2 was trained with
IMAGE_STD = (0.229, 0.224, 0.225)
WIDTH = 384
N_HEADS = 6
N_DINOV2_BLOCKS = 12
BLOCK_EPSILON = 1e-6
PROJECTOR_EPSILON = 1e-5
_PRETRAINED_SIDE = 518 // PATCH_SIDE


class Block(nn.Module):
    """One pre-norm transformer block with LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=BLOCK_EPSILON)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.scale1 = nn.Parameter(torch.ones(WIDTH))
        self.norm2 = nn.LayerNorm(WIDTH, eps=BLOCK_EPSILON)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.scale2 = nn.Parameter(torch.ones(WIDTH))

    def forward(self, states: Tensor) -> Tensor:
        """(n_batch, n_tokens, WIDTH) to the same shape."""
        states = states + self.scale1 * self._attend(self.norm1(states))
        inner = F.gelu(self.up(self.norm2(states)), approximate="tanh")
        return states + self.scale2 * self.down(inner)

    def _attend(self, normed: Tensor) -> Tensor:
        n_batch, n_tokens, _ = normed.shape

        def heads(layer: nn.Linear) -> Tensor:
            return layer(normed).view(n_batch, n_tokens, N_HEADS, -1).transpose(1, 2)

        query, key, value = heads(self.query), heads(self.key), heads(self.value)
        # Plain products: PyTorch's fused attention is slower than this on CPUs (measured).
        weights = (query @ key.transpose(-1, -2)) * (query.shape[-1] ** -0.5)
        mixed = weights.softmax(-1).to(value.dtype) @ value
        return self.out(mixed.transpose(1, 2).reshape(normed.shape))


class VisionModel(nn.Module):
    """Pixels to image tokens, in steps that the training stages take apart."""

    def __init__(self, n_blocks: int, n_embd: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, PATCH_SIDE, stride=PATCH_SIDE)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        # The class token's position is the last row.
        self.positions = nn.Parameter(torch.zeros(1, N_PATCHES_SIDE**2 + 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(n_blocks))
        self.norm = nn.LayerNorm(4 * WIDTH, eps=PROJECTOR_EPSILON)
        self.project1 = nn.Linear(4 * WIDTH, 2 * n_embd)
        self.project2 = nn.Linear(2 * n_embd, n_embd)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: uint8 (n_batch, 224, 224, 3). Image tokens (n_batch, 64, n_embd), row by row."""
        return self.tokens(self.embed(pixels))

    def embed(self, pixels: Tensor) -> Tensor:
        """The residual stream before the first block: (n_batch, 257, WIDTH), class token last."""
        scaled = pixels.float() / 255
        normal = (scaled - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
        patches = self.patch(normal.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        states = torch.cat([patches, self.class_token.expand(len(patches), -1, -1)], 1)
        return states + self.positions

    def run(self, states: Tensor, begin: int, end: int) -> Tensor:
        """The residual stream after blocks begin … end - 1."""
        for block in self.blocks[begin:end]:
            states = block(states)
        return states

    def each_block(self) -> Iterator[Block]:
        """The blocks, as what they are."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def parameters_from(self, begin: int) -> Iterator[nn.Parameter]:
        """Everything that acts on the residual stream before block `begin`, and after it."""
        for part in (*self.blocks[begin:], self.norm, self.project1, self.project2):
            yield from part.parameters()

    def tokens(self, states: Tensor, begin: int = 0) -> Tensor:
        """Image tokens from the residual stream before block `begin`."""
        return self.project(to_cells(self.run(states, begin, len(self.blocks))))

    def project(self, cells: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Image tokens (…, n_embd) of cells (…, 4 · WIDTH). dropout: of the inner layer."""
        inner = F.gelu(self.project1(self.norm(cells)), approximate="tanh")
        return self.project2(F.dropout(inner, dropout))


def to_cells(states: Tensor) -> Tensor:
    """Each cell's four patches side by side: (n_batch, 257, WIDTH) to (n_batch, 64, 4 · WIDTH)."""
    n_batch, side = len(states), N_CELLS_SIDE
    cells = states[:, :-1].reshape(n_batch, side, 2, side, 2, WIDTH).transpose(2, 3)
    return cells.reshape(n_batch, side * side, 4 * WIDTH)


def load_dinov2_inplace(model: VisionModel, onnx_path: Path) -> None:
    """Fill patches, positions and the first blocks from an ONNX export of DINOv2-small."""
    tensors = _named_weights(onnx.load(str(onnx_path)))
    prefix = "backbone.embeddings."
    with torch.no_grad():
        _copy(model.patch.weight, tensors[prefix + "patch_embeddings.projection.weight"])
        _copy(model.patch.bias, tensors[prefix + "patch_embeddings.projection.bias"])
        _copy(model.class_token, tensors[prefix + "cls_token"])
        _copy(model.positions, _positions(tensors))
        for index, block in zip(range(N_DINOV2_BLOCKS), model.each_block(), strict=False):
            layer = f"backbone.encoder.layer.{index}."
            for ours, theirs in (
                ("norm1", "norm1"),
                ("query", "attention.attention.query"),
                ("key", "attention.attention.key"),
                ("value", "attention.attention.value"),
                ("out", "attention.output.dense"),
                ("norm2", "norm2"),
                ("up", "mlp.fc1"),
                ("down", "mlp.fc2"),
            ):
                target = block.get_submodule(ours)
                assert isinstance(target, nn.Linear | nn.LayerNorm)
                _copy(target.weight, tensors[f"{layer}{theirs}.weight"])
                _copy(target.bias, tensors[f"{layer}{theirs}.bias"])
            _copy(block.scale1, tensors[layer + "layer_scale1.lambda1"])
            _copy(block.scale2, tensors[layer + "layer_scale2.lambda1"])


def _positions(tensors: dict[str, Tensor]) -> Tensor:
    """Positions of DINOv2's 37×37 grid, brought to 16×16 as DINOv2 itself does: bicubic."""
    class_position = next(
        tensor
        for name, tensor in tensors.items()
        if tensor.shape == (1, 1, WIDTH) and "cls_token" not in name
    )
    grid = next(t for t in tensors.values() if t.shape == (1, _PRETRAINED_SIDE**2, WIDTH))
    square = grid.view(1, _PRETRAINED_SIDE, _PRETRAINED_SIDE, WIDTH).permute(0, 3, 1, 2)
    small = F.interpolate(square, (N_PATCHES_SIDE, N_PATCHES_SIDE), mode="bicubic")
    return torch.cat([small.flatten(2).transpose(1, 2), class_position], 1)


def _copy(target: Tensor | None, source: Tensor) -> None:
    if target is None or target.shape != source.shape:
        raise ValueError(
            f"the weight of shape {tuple(source.shape)} does not fit; is this DINOv2-small?"
        )
    target.copy_(source)


def _named_weights(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Initializers by name; anonymous matrices get the name of the bias that follows them."""
    graph = model.graph
    tensors = {
        item.name: torch.from_numpy(numpy_helper.to_array(item).copy())
        for item in graph.initializer
    }
    by_output = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        biases = [name for name in node.input if name.endswith(".bias") and name in tensors]
        products = [by_output[name] for name in node.input if name in by_output]
        if len(biases) == 1 and len(products) == 1 and products[0].op_type == "MatMul":
            name = biases[0].removesuffix("bias") + "weight"
            tensors.setdefault(name, tensors[products[0].input[1]].T.contiguous())
    return tensors
