"""PyTorch checkpoints of directions, read weights-only; never by plain unpickling."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import InputError

from .vector_arrays import (
    MAX_ARRAYS,
    MAX_ELEMENTS,
    ArrayFile,
    check_declared_sizes,
    check_size,
    unusable,
)

# Before 2.6 weights_only=True could run code (CVE-2025-32434), before 2.10 it could corrupt
# memory (CVE-2026-24747).
_LEAST_TORCH = (2, 10)
_WRAPPERS = ("layer_activations", "directions")  # steering-vectors' field, repeng's
_REMEDY = (
    "save plain tensors: safetensors.torch.save_file({str(layer): direction, ...}, "
    "'vector.safetensors')"
)


def read_torch(path: Path) -> ArrayFile:
    """Read a tensor, or a dictionary of tensors by layer, from a .pt file of torch.save.

    Raises VectorFileError for anything that weights-only loading refuses, and InputError without
    PyTorch, or with one that is unsafe. There is no fallback to full unpickling.
    """
    check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise unusable(path, "a bare pickle or no PyTorch checkpoint at all", _REMEDY) from error
    check_declared_sizes(path, entries)
    torch = _torch(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile checkpoint makes PyTorch raise
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "no reason"
        raise unusable(path, f"PyTorch cannot load it weights-only ({reason})", _REMEDY) from error
    return ArrayFile(path, _tensors(path, value, torch))


def _tensors(path: Path, value: Any, torch: Any) -> dict[str, NDArray[np.float64]]:
    if isinstance(value, Mapping):
        for name in _WRAPPERS:
            if isinstance(value.get(name), Mapping):
                value = value[name]
        if len(value) > MAX_ARRAYS:
            raise unusable(path, f"it has {len(value)} entries; expected at most {MAX_ARRAYS}")
        return {str(key): _array(path, tensor, torch) for key, tensor in value.items()}
    return {"": _array(path, value, torch)}


def _array(path: Path, tensor: Any, torch: Any) -> NDArray[np.float64]:
    if not isinstance(tensor, torch.Tensor):
        raise unusable(path, f"it holds a {type(tensor).__name__} where a tensor belongs", _REMEDY)
    # An expanded tensor claims more numbers than its storage has: count before copying.
    if tensor.numel() > MAX_ELEMENTS:
        raise unusable(path, f"it claims a tensor of shape {tuple(tensor.shape)}", _REMEDY)
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise unusable(path, f"it holds a tensor of {tensor.dtype}, {tensor.layout}", _REMEDY)
    try:
        return tensor.detach().to(torch.float64).numpy().copy()
    except (RuntimeError, TypeError) as error:
        raise unusable(path, f"a tensor cannot be read ({str(error)[:100]})", _REMEDY) from error


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]  # in an extra
    except ImportError as error:
        raise InputError(
            f"cannot read {str(path)!r} without PyTorch; pip install 'safesteer-edge[convert]', or "
            + _REMEDY
        ) from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _LEAST_TORCH:
        raise InputError(
            f"cannot read {str(path)!r} with PyTorch {torch.__version__}: before 2.10 loading even "
            "weights-only is unsafe; pip install 'torch>=2.10'"
        )
    return torch
