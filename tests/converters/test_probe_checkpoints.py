"""PyTorch checkpoints that hold code or are damaged are refused, and nothing in them runs."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from safesteer_edge.converters.probe_conversion import (
    ConversionSettings,
    convert_probe,
)
from safesteer_edge.errors import InputError

N = 24


def linear() -> torch.nn.Linear:
    """A module whose checkpoint is a good probe."""
    return torch.nn.Linear(N, 1)


def convert(source: Path) -> None:
    convert_probe(source, ConversionSettings(source.parent / "probe.onnx"))


class Sentinel:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("place", ["the content", "a value", "a key", "an attribute"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(place: str, tmp_path: Path):
    trap = Sentinel(tmp_path / "executed")
    weights: Any = OrderedDict(weight=torch.ones(1, N), bias=torch.ones(1))
    if place == "an attribute":
        weights._metadata = trap
    content = {"the content": trap, "a value": {**weights, "extra": trap}, "a key": {trap: 1}}
    torch.save(content.get(place, weights), tmp_path / "probe.pt")
    with pytest.raises(InputError, match="its pickle names"):
        convert(tmp_path / "probe.pt")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "probe.onnx").exists()


def test_a_whole_module_is_refused_with_what_to_save_instead(tmp_path: Path):
    torch.save(torch.nn.Sequential(linear()), tmp_path / "probe.pt")
    with pytest.raises(InputError, match=r"Sequential.*safetensors\.torch\.save_file"):
        convert(tmp_path / "probe.pt")


def test_the_old_format_is_refused_as_the_pickle_that_it_is(tmp_path: Path):
    state = linear().state_dict()
    torch.save(state, tmp_path / "probe.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="it is a pickle"):
        convert(tmp_path / "probe.pt")


def repacked(source: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> None:
    """Write the checkpoint's zip again; change(name, data) gives the new data."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(source, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n, d: d[:-4] if n.endswith("data/0") else d, "larger than its storage"),
        (lambda n, d: b"big" if n.endswith("byteorder") else d, "big-endian"),
        (lambda n, d: d[:-10] if n.endswith("pkl") else d, "pickle"),
        (lambda n, d: b"." if n.endswith("pkl") else d, "pickle is damaged"),
        (lambda n, d: pickle.dumps({"a": 1.0}, 2) if n.endswith("pkl") else d, "is no tensor"),
        (lambda n, d: d.replace(b"FloatStorage", b"QuantStorage"), "QuantStorage"),
        (lambda n, d: b"\x80\x02" + b"\x8a\xff" * 9 if n.endswith("pkl") else d, "pickle"),
    ],
)
def test_a_damaged_checkpoint_is_refused(change: Any, reason: str, tmp_path: Path):
    source = tmp_path / "probe.pt"
    torch.save(linear().state_dict(), source)
    repacked(source, change)
    with pytest.raises(InputError, match=reason):
        convert(source)


def test_every_cut_of_a_checkpoint_is_refused(tmp_path: Path):
    source = tmp_path / "probe.pt"
    torch.save(linear().state_dict(), source)
    whole = source.read_bytes()
    for length in range(0, len(whole), max(len(whole) // 40, 1)):
        source.write_bytes(whole[:length])
        with pytest.raises(InputError):
            convert(source)
