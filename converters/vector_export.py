"""A control vector in the form that its file's name asks for: .gguf, .npz or .safetensors.

The last two hold one array `directions`, float32 (n_layer, n_embd), whose row L belongs to the
output of block L, with `layer_convention` and `model_hint` beside it, so that reading them back
needs no question.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.control_vector_file import ControlVector, write_control_vector

from .vector_source import CONVENTION_KEY, HINT_KEY

DIRECTIONS_NAME: Final = "directions"
_HEADER_ALIGNMENT = 8  # safetensors asks for it


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


def _write_npz(path: Path, vector: ControlVector) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {DIRECTIONS_NAME: vector.directions}
    arrays |= {key: np.array(text) for key, text in _texts(vector).items()}
    np.savez(buffer, **arrays)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getvalue())


def _write_safetensors(path: Path, vector: ControlVector) -> None:
    data = np.ascontiguousarray(vector.directions, dtype="<f4").tobytes()
    header = {
        "__metadata__": dict(_texts(vector)),
        DIRECTIONS_NAME: {
            "dtype": "F32",
            "shape": list(vector.directions.shape),
            "data_offsets": [0, len(data)],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    with atomic_write(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def _texts(vector: ControlVector) -> Mapping[str, str]:
    return {
        CONVENTION_KEY: vector.layer_convention,
        HINT_KEY: vector.model_hint,
        **vector.metadata,
    }


_WRITERS: Final[dict[str, Callable[[Path, ControlVector], None]]] = {
    ".gguf": write_control_vector,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
