"""A control vector in the form that its file's name asks for: .gguf, .npz or .safetensors.

The last two hold one array `directions`, float32 (n_layer, n_embd), whose row L belongs to the
output of block L, with `layer_convention` and `model_hint` beside it, so that reading them back
needs no question.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from safesteer_edge.converters.tensor_files import TensorFile, write_npz, write_safetensors
from safesteer_edge.converters.vector_source import CONVENTION_KEY, HINT_KEY
from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.formats.control_vector_file import ControlVector, write_control_vector

DIRECTIONS_NAME: Final = "directions"


def export_vector(path: Path, vector: ControlVector) -> None:
    """Write the vector, or leave the file that is there as it is.

    Raises SettingsError for another kind of file, InputError where it cannot be written.
    """
    check_output_name(path)
    try:
        _WRITERS[path.suffix.lower()](path, vector)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r}: {error.strerror or error}; choose another place"
        ) from error


def check_output_name(path: Path) -> None:
    """Raise SettingsError unless the name ends in one of the forms that can be written."""
    if path.suffix.lower() not in _WRITERS:
        raise SettingsError(
            f"cannot tell what to write from {path.name!r}; expected a name that ends in "
            + ", ".join(_WRITERS)
        )


def _as_tensors(vector: ControlVector) -> TensorFile:
    texts = {CONVENTION_KEY: vector.layer_convention, HINT_KEY: vector.model_hint}
    return TensorFile({DIRECTIONS_NAME: vector.directions}, {**texts, **vector.metadata})


_WRITERS: Final[dict[str, Callable[[Path, ControlVector], None]]] = {
    ".gguf": write_control_vector,
    ".npz": lambda path, vector: write_npz(path, _as_tensors(vector)),
    ".safetensors": lambda path, vector: write_safetensors(path, _as_tensors(vector)),
}
