"""Which file a probe comes in, and the reader for it. A pickle is never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from safesteer_edge.converters.probe_arrays import (
    autosteer_source,
    rds_source,
    state_dict_source,
)
from safesteer_edge.converters.tensor_files import (
    TensorFile,
    read_bytes,
    read_npz,
    read_safetensors,
    unreadable,
)
from safesteer_edge.converters.torch_checkpoint import WEIGHTS_REMEDY, read_torch_checkpoint
from safesteer_edge.errors import InputError
from safesteer_edge.formats.probe_onnx import (
    Kind,
    ProbeSource,
    SourceOptions,
)

_MAX_ONNX_BYTES = 64 << 20
_PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
_CHECKPOINTS = (".pt", ".pth")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_ARRAYS = (".safetensors", ".npz", *_CHECKPOINTS)
_TRANSFORM, _HARMFULNESS = "transform.safetensors", "harmfulness.safetensors"
_SUFFIXES = f"{', '.join(_ARRAYS)}, .skops, .onnx, or a folder with {_TRANSFORM}"
_AS_ARRAYS: Final[tuple[Kind, ...]] = ("auto", "state-dict", "numpy", "rds", "autosteer")


def read_probe_source(path: Path, options: SourceOptions) -> ProbeSource:
    """Return the probe in a file, or in RDS's folder.

    Raises InputError for a file that cannot be read, a pickle, a kind that its name does not
    fit, and where an option is needed; ProbeFileError for what is no probe.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise unreadable(path, "there is no such file", "check the path")
    if path.is_dir() or options.kind == "rds":
        return _rds(path, options)
    # the first bytes of a safetensors file are a length, which may be anything
    if suffix in _PICKLES or (suffix != ".safetensors" and _starts_like_a_pickle(path)):
        remedy = "save the estimator with skops.io.dump(estimator, 'probe.skops') and convert that"
        raise unreadable(
            path,
            "it is a pickle, and loading one runs whatever code is in it",
            WEIGHTS_REMEDY if suffix in _CHECKPOINTS else remedy,
        )
    if suffix in _ARRAYS:
        return _from_arrays(path, suffix, options)
    if suffix == ".skops":
        from safesteer_edge.converters.probe_skops import skops_source

        _check_kind(path, options, ("auto", "scikit-learn"))
        return skops_source(path)
    if suffix == ".onnx":
        from safesteer_edge.converters.probe_foreign_onnx import onnx_source

        _check_kind(path, options, ("auto", "onnx"))
        return onnx_source(path, read_onnx_bytes(path), options)
    raise unreadable(path, f"its name ends in {suffix!r}", f"expected {_SUFFIXES}")


def read_onnx_bytes(path: Path) -> bytes:
    """Return a file of at most 64 MiB. Raises InputError."""
    return read_bytes(path, max_bytes=_MAX_ONNX_BYTES, remedy="a probe is smaller")


def _from_arrays(path: Path, suffix: str, options: SourceOptions) -> ProbeSource:
    _check_kind(path, options, _AS_ARRAYS)
    is_checkpoint = suffix in _CHECKPOINTS
    if is_checkpoint:
        tensors = read_torch_checkpoint(path, wrappers=_WRAPPERS, remedy=WEIGHTS_REMEDY)
        file = TensorFile(tensors)
    else:
        file = read_npz(path) if suffix == ".npz" else read_safetensors(path)
    if options.kind == "autosteer":
        return autosteer_source(file.tensors, options, name=str(path))
    if options.kind == "auto" and set(file.tensors) == {"mean", "V"}:
        return _rds(path, options)
    return state_dict_source(file, options, name=str(path), is_ordered=is_checkpoint)


def _rds(path: Path, options: SourceOptions) -> ProbeSource:
    folder = path if path.is_dir() else path.parent
    transform = path / _TRANSFORM if path.is_dir() else path
    harmfulness = options.harmfulness or folder / _HARMFULNESS
    for each in (transform, harmfulness):
        if not each.is_file():
            raise unreadable(
                each,
                "there is no such file",
                f"RDS's probe is a pair: {_TRANSFORM}, and {_HARMFULNESS} beside it or in "
                "--harmfulness FILE",
            )
    parts = [read_safetensors(each).tensors for each in (transform, harmfulness)]
    return rds_source(parts[0], parts[1], name=str(path))


def _check_kind(path: Path, options: SourceOptions, allowed: tuple[Kind, ...]) -> None:
    if options.kind not in allowed:
        raise InputError(
            f"--kind {options.kind} does not fit {str(path)!r}; leave it out, or give one of "
            f"{', '.join(allowed)}"
        )


def _starts_like_a_pickle(path: Path) -> bool:
    """Whether the file is a bare pickle of protocol 2 or later, whatever its name."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise unreadable(path, error.strerror or str(error), "check the path") from error
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5
