"""Copies of good GGUF files with a value, an array or a tensor changed, by the gguf package."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray

TypedValue = tuple[GGUFValueType, Any]


def u32(value: int) -> TypedValue:
    return GGUFValueType.UINT32, value


def i32(value: int) -> TypedValue:
    return GGUFValueType.INT32, value


def f32(value: float) -> TypedValue:
    return GGUFValueType.FLOAT32, value


def text(value: str) -> TypedValue:
    return GGUFValueType.STRING, value


def boolean(value: bool) -> TypedValue:
    return GGUFValueType.BOOL, value


def i32_array(values: list[int]) -> TypedValue:
    return GGUFValueType.INT32, values


def f32_array(values: list[float]) -> TypedValue:
    return GGUFValueType.FLOAT32, values


def text_array(values: list[str] | list[bytes]) -> TypedValue:
    return GGUFValueType.STRING, values


def edit_gguf(
    source: Path,
    *,
    values: Mapping[str, TypedValue | None] | None = None,
    tensors: Mapping[str, NDArray[Any] | None] | None = None,
    types: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
) -> Path:
    """Write an edited copy beside the source and return its path.

    values: metadata to set, or to leave out (None). tensors: new arrays, in NumPy's order of
    dimensions. types: names of other types for tensors that are F32. drop: tensors to leave out.
    """
    target = source.with_name(f"edited-{source.name}")
    reader = GGUFReader(source)
    fields = {
        key: _typed_value(field)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    fields |= dict(values or {})
    architecture = fields.pop("general.architecture")
    writer = GGUFWriter(target, architecture[1] if architecture else "removed")
    if architecture is None:
        del writer.kv_data[0]["general.architecture"]
    for key, typed in fields.items():
        if typed is not None and isinstance(typed[1], list):
            writer.add_key_value(key, typed[1], GGUFValueType.ARRAY, typed[0])
        elif typed is not None:
            writer.add_key_value(key, typed[1], typed[0])
    arrays = {t.name: np.array(t.data).reshape(t.shape[::-1].tolist()) for t in reader.tensors}
    arrays |= dict(tensors or {})
    for name, array in arrays.items():
        if array is not None and name not in drop:
            _add_tensor(writer, name, array, (types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def split_gguf(source: Path, n_tensors: int) -> list[Path]:
    """Write the model beside the source in parts of so many tensors, and return their paths."""
    reader = GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(source, architecture, split_max_tensors=n_tensors)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] is GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, *reversed(_typed_value(field)))
    for tensor in reader.tensors:
        shape = tensor.data.shape if tensor.tensor_type > 1 else tensor.shape[::-1].tolist()
        writer.add_tensor(
            tensor.name, np.array(tensor.data), raw_shape=shape, raw_dtype=tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(source.parent.glob(f"{source.stem}-*-of-*.gguf"))


def _typed_value(field: Any) -> TypedValue:
    return field.types[-1], field.contents()


def _add_tensor(writer: GGUFWriter, name: str, array: NDArray[Any], type_name: str | None) -> None:
    integers = {"I8": np.int8, "I32": np.int32, "F64": np.float64}
    if type_name is None:
        writer.add_tensor(name, array)
    elif type_name in integers:
        writer.add_tensor(name, array.astype(integers[type_name]))
    else:
        wanted = GGMLQuantizationType[type_name]
        writer.add_tensor(name, quantize(array.astype(np.float32), wanted), raw_dtype=wanted)
