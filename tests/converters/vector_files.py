"""Control vectors as other programs write them, and as they read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray


def write_repeng_gguf(
    path: Path, directions: Mapping[int, NDArray[np.floating[Any]]], *, model_type: str = "llama"
) -> Path:
    """Write what repeng's ControlVector.export_gguf writes (repeng 0.4.0 and 0.5.0, extract.py)."""
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(directions))
    return _write_directions(writer, path, directions)


def read_as_repeng(path: Path) -> tuple[str, dict[int, NDArray[np.float32]]]:
    """What repeng's ControlVector.import_gguf takes of a file: model_type and directions.

    Where it would warn or raise, and where its arithmetic would meet another type, this fails.
    """
    reader = GGUFReader(path)

    def text(key: str) -> str:
        field = reader.get_field(key)
        assert field is not None and len(field.parts), key
        return bytes(field.parts[-1]).decode("ascii")

    assert text("general.architecture") == "controlvector"
    directions: dict[int, NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        assert tensor.name.startswith("direction."), tensor.name
        assert (tensor.data.dtype, tensor.data.ndim) == (np.float32, 1)
        directions[int(tensor.name.split(".")[1])] = tensor.data
    return text("controlvector.model_hint"), directions


def write_cvector_generator_gguf(
    path: Path, measured: Mapping[int, NDArray[np.floating[Any]]], *, model_type: str = "llama"
) -> Path:
    """Write what llama.cpp's generator writes of directions measured at these blocks' outputs.

    Source: tools/cvector-generator: `direction.%zu` with il+1 (mean.hpp), an i32 layer_count.
    """
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_int32("controlvector.layer_count", len(measured))
    return _write_directions(writer, path, {block + 1: row for block, row in measured.items()})


def _write_directions(
    writer: GGUFWriter, path: Path, directions: Mapping[int, NDArray[np.floating[Any]]]
) -> Path:
    for number, direction in directions.items():
        writer.add_tensor(f"direction.{number}", direction.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
