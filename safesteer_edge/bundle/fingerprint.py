"""Which model a guard bundle was made for, and whether another file is that model."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from safesteer_edge.errors import BundleError
from safesteer_edge.formats.model_file import ModelInfo, check_language_model

Match = Literal["exact", "other_quantization"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
# What requantizing a model changes; every other field says that it is another model.
_QUANTIZATION_FIELDS = frozenset({"quantization", "tensor_table_sha256"})


@dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """What tells one model file from another without hashing gigabytes of weights.

    vocabulary_sha256: of the tokens' raw bytes. tensor_table_sha256: of the tensors' names,
    shapes, types and offsets. Both in lower-case hex.
    """

    architecture: str
    n_layer: int
    n_embd: int
    n_vocab: int
    vocabulary_sha256: str
    quantization: str
    tensor_table_sha256: str

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_embd", "n_vocab"):
            if getattr(self, name) < 1:
                raise BundleError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("vocabulary_sha256", "tensor_table_sha256"):
            if not is_sha256(getattr(self, name)):
                raise BundleError(f"{name} is {getattr(self, name)!r}; expected 64 hex digits")


def is_sha256(text: str) -> bool:
    """Tell whether this is a SHA-256 in lower-case hex."""
    return _SHA256.fullmatch(text) is not None


def fingerprint_model(model: Path | ModelInfo) -> ModelFingerprint:
    """Return the fingerprint of a model file, read and checked if it is given as a path.

    Raises ModelFileError if the file is not a usable GGUF language model.
    """
    info = model if isinstance(model, ModelInfo) else check_language_model(model)
    return ModelFingerprint(
        **{field.name: getattr(info, field.name) for field in fields(ModelFingerprint)}
    )


def compare(bundle_fp: ModelFingerprint, model_fp: ModelFingerprint) -> Match:
    """Say how a model relates to the one that a bundle was made for.

    'other_quantization': the same model with its weights stored in another way.
    Raises BundleError for another model, naming each field that differs with both values.
    """
    differing = {
        field.name
        for field in fields(ModelFingerprint)
        if getattr(bundle_fp, field.name) != getattr(model_fp, field.name)
    }
    if differing <= _QUANTIZATION_FIELDS:
        return "other_quantization" if differing else "exact"
    details = ", ".join(
        f"{field.name} {getattr(bundle_fp, field.name)!r} (this model: "
        f"{getattr(model_fp, field.name)!r})"
        for field in fields(ModelFingerprint)
        if field.name in differing - _QUANTIZATION_FIELDS
    )
    raise BundleError(
        f"the guard bundle is made for another model: {details}; "
        "use its own model, or make a bundle with 'safesteer-edge calibrate'"
    )


# -- one-line checks that say what is wrong in a guard bundle --------------------------------------


def require(holds: bool, problem: str) -> None:
    """Raise BundleError with this text unless the condition holds."""
    if not holds:
        raise BundleError(problem)


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise BundleError unless low <= value <= high; a NaN is in no range."""
    require(low <= value <= high, f"{name} is {value}; expected {low:g} to {high:g}")
