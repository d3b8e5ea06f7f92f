"""PyTorch checkpoints of directions, read weights-only; never by plain unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.zip_members import read_zip_members, unreadable
from safesteer_edge.errors import InputError

# Before 2.6 weights_only=True could run code (CVE-2025-32434), before 2.10 it could corrupt
# memory (CVE-2026-24747).
_LEAST_TORCH = (2, 10)
_MAX_ELEMENTS = 512 * 65_536
_MAX_TENSORS = 2048
_WRAPPERS = ("layer_activations", "directions")  # steering-vectors' field, repeng's
_REMEDY = (
    "save plain tensors: safetensors.torch.save_file({str(layer): direction, ...}, "
    "'vector.safetensors')"
)


def read_torch(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the tensor ('' is its name), or the tensors by layer, of a file of torch.save.

    Raises InputError for anything that weights-only loading refuses, without PyTorch, and with
    one that is unsafe. There is no fallback to full unpickling.
    """
    read_zip_members(path)  # its limits and damage; older, bare pickles are no zip
    torch = _torch(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile checkpoint makes PyTorch raise
        # Its own text is long, coloured, and says how to load the file unsafely.
        raise unreadable(
            path, "it is damaged, or holds more than tensors (weights-only loading)", _REMEDY
        ) from error
    if not isinstance(value, Mapping):
        return {"": _array(path, value, torch)}
    for name in _WRAPPERS:
        if isinstance(value.get(name), Mapping):
            value = value[name]
    if not 1 <= len(value) <= _MAX_TENSORS:
        raise unreadable(path, f"it has {len(value)} tensors; expected 1 to {_MAX_TENSORS}")
    return {str(key): _array(path, tensor, torch) for key, tensor in value.items()}


def _array(path: Path, tensor: Any, torch: Any) -> NDArray[np.float64]:
    if not isinstance(tensor, torch.Tensor):
        raise unreadable(path, f"it has a {type(tensor).__name__} where a tensor belongs", _REMEDY)
    # An expanded tensor claims more numbers than its storage has: count before copying.
    is_plain = tensor.layout == torch.strided and not (tensor.is_complex() or tensor.is_quantized)
    if tensor.numel() > _MAX_ELEMENTS or not is_plain:
        raise unreadable(
            path, f"it has a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}", _REMEDY
        )
    try:
        return tensor.detach().to(torch.float64).numpy().copy()
    except (RuntimeError, TypeError) as error:  # a meta tensor, a type without numbers
        raise unreadable(path, f"a tensor cannot be read ({error})", _REMEDY) from error


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]  # not a dependency
    except ImportError as error:
        raise InputError(
            f"cannot read {str(path)!r} without PyTorch; pip install 'torch>=2.10', or {_REMEDY}"
        ) from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _LEAST_TORCH:
        raise InputError(
            f"cannot read {str(path)!r} with PyTorch {torch.__version__}: before 2.10 loading even "
            "weights-only is unsafe; pip install 'torch>=2.10'"
        )
    return torch
