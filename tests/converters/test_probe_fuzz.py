"""Damaged files of every kind end in one of our errors, whatever was damaged."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from safesteer_edge.converters.probe_export import export_probe
from safesteer_edge.converters.probe_files import read_probe_source
from safesteer_edge.converters.tensor_files import (
    TensorFile,
    write_npz,
    write_safetensors,
)
from safesteer_edge.errors import InputError
from safesteer_edge.formats.probe_onnx import SourceOptions

WEIGHT = np.linspace(-1, 1, 6, dtype=np.float32)[None]
BIAS = np.zeros(1, np.float32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One good file of each kind, by suffix."""
    folder = tmp_path_factory.mktemp("sources")
    tensors = TensorFile({"weight": WEIGHT, "bias": BIAS}, {"activations": "none"})
    write_safetensors(folder / "p.safetensors", tensors)
    write_npz(folder / "p.npz", tensors)
    torch.save({"weight": torch.as_tensor(WEIGHT), "bias": torch.as_tensor(BIAS)}, folder / "p.pt")
    states = np.random.default_rng(0).standard_normal((20, 6))
    skops.io.dump(LogisticRegression().fit(states, states[:, 0] > 0), folder / "p.skops")
    source = read_probe_source(folder / "p.npz", SourceOptions())
    (folder / "p.onnx").write_bytes(source.encode({}, name="p"))
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@st.composite
def edits(draw: st.DrawFn) -> tuple[list[tuple[float, int]], float]:
    """Places and bytes to put there, and the share that is kept."""
    places = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
    return draw(st.lists(places, min_size=1, max_size=6)), draw(st.sampled_from([1.0, 1.0, 0.7]))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".onnx"])
@settings(deadline=None, max_examples=150)
@given(edit=edits())
def test_a_changed_file_is_read_or_refused(
    suffix: str, edit: Any, sources: dict[str, bytes], tmp_path: Path
):
    changes, kept = edit
    data = bytearray(sources[suffix])
    for place, value in changes:
        data[int(place * len(data))] = value
    path = tmp_path / f"p{suffix}"
    path.write_bytes(data[: int(kept * len(data))])
    try:
        source = read_probe_source(path, SourceOptions())
        assert np.isfinite(source.reference_scores(np.ones((2, source.n_features)))).all()
        if suffix == ".onnx":
            export_probe(path, tmp_path / "back.npz")
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("suffix", "member"), [(".pt", "data.pkl"), (".npz", ".npy")])
@settings(deadline=None, max_examples=300)
@given(edit=edits())
def test_a_changed_member_of_an_intact_zip_is_read_or_refused(
    suffix: str, member: str, edit: Any, sources: dict[str, bytes], tmp_path: Path
):
    """A zip's checksums catch most accidents, and nobody who makes the file on purpose."""
    with zipfile.ZipFile(io.BytesIO(sources[suffix])) as archive:
        members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    data = members[next(name for name in members if name.endswith(member))]
    for place, value in edit[0]:
        data[int(place * len(data))] = value
    path = tmp_path / f"p{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(content))
    try:
        read_probe_source(path, SourceOptions())
    except InputError as error:
        assert "\n" not in str(error)


@settings(deadline=None, max_examples=25)
@given(edit=edits())
def test_a_changed_skops_file_is_read_or_refused(
    edit: Any, sources: dict[str, bytes], tmp_path: Path
):
    test_a_changed_file_is_read_or_refused.hypothesis.inner_test(  # type: ignore[attr-defined]
        ".skops", edit, sources, tmp_path
    )
