"""write_bundle: what it writes loads, and nothing half-written is ever seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from safesteer_edge.bundle import writer
from safesteer_edge.bundle.bundle import load_bundle, read_config
from safesteer_edge.bundle.writer import BundleParts, write_bundle
from safesteer_edge.errors import BundleError, ProbeFileError, SafeSteerError
from safesteer_edge.formats.model_file import ModelInfo
from tests.bundle.linear_probe import probe_onnx, weights_for


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_what_is_written_says_what_it_was_given(folder: Path, parts: BundleParts):
    config = read_config(folder)
    assert config.name == parts.name
    assert config.model == parts.model
    assert config.policy == parts.policy
    assert config.canaries == parts.canaries
    assert config.figures == parts.figures
    assert config.probe.layers == parts.probe_layers
    assert names(folder) == ["guard.json", "probe.onnx", "vector.gguf"]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, parts: BundleParts):
    first, second = (write_bundle(tmp_path / name, parts) for name in "ab")
    assert snapshot(first) == snapshot(second)


def test_the_date_is_today_unless_given(tmp_path: Path, parts: BundleParts):
    folder = write_bundle(tmp_path / "b", replace(parts, created=""))
    assert abs((date.today() - date.fromisoformat(read_config(folder).created)).days) <= 1


def test_missing_parent_folders_are_made_and_nothing_else_is_left(
    tmp_path: Path, parts: BundleParts
):
    folder = write_bundle(tmp_path / "new" / "deep" / "bundle", parts)
    assert names(folder.parent) == ["bundle"]


def test_an_existing_bundle_is_replaced_whole(folder: Path, parts: BundleParts, model: ModelInfo):
    write_bundle(folder, replace(parts, name="second", vector=None))
    assert names(folder) == ["guard.json", "probe.onnx"]
    assert names(folder.parent) == ["bundle"]
    with load_bundle(folder, model) as bundle:
        assert bundle.config.name == "second"


def flipped(parts: BundleParts) -> BundleParts:
    weights = -weights_for(2 * parts.model.n_embd)
    return replace(parts, probe_onnx=probe_onnx(weights))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (flipped, BundleError),
        (lambda p: replace(p, probe_onnx=b"junk"), ProbeFileError),
        (lambda p: replace(p, residual_norms=(1.0,)), BundleError),
        (lambda p: replace(p, name="\x1b[2J"), BundleError),
        (lambda p: replace(p, figures={"note": "\x1b[2J"}), BundleError),
        (lambda p: replace(p, vector=replace(p.vector, scale=-1.0)), BundleError),
        (lambda p: replace(p, residual_norms=(0.01,) * 4), BundleError),
    ],
    ids=["flipped", "no probe", "norms", "name", "figures", "negative", "too long"],
)
def test_a_bundle_that_would_not_load_is_not_written(
    tmp_path: Path,
    folder: Path,
    parts: BundleParts,
    spoil: Callable[[BundleParts], BundleParts],
    error: type[SafeSteerError],
):
    before = snapshot(folder)
    for place in (folder, tmp_path / "fresh"):
        with pytest.raises(error):
            write_bundle(place, spoil(parts))
    assert snapshot(folder) == before
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_the_old_bundle_stays_if_moving_the_new_one_fails(
    folder: Path, parts: BundleParts, monkeypatch: pytest.MonkeyPatch, fails_at: int
):
    before = snapshot(folder)
    rename = Path.rename
    n_calls = 0

    def failing_rename(self: Path, target: Path) -> Path:
        nonlocal n_calls
        n_calls += 1
        if n_calls == fails_at:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(writer.Path, "rename", failing_rename)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(folder, replace(parts, name="second"))
    assert snapshot(folder) == before
    assert names(folder.parent) == ["bundle"]


def test_a_folder_with_anything_else_in_it_is_not_replaced(folder: Path, parts: BundleParts):
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match=r"thesis\.tex"):
        write_bundle(folder, parts)
    assert (folder / "thesis.tex").exists()


def test_a_file_or_link_in_the_bundles_place_is_not_replaced(tmp_path: Path, parts: BundleParts):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("file", "link"):
        with pytest.raises(BundleError, match="not a folder"):
            write_bundle(tmp_path / name, parts)
    assert (tmp_path / "file").read_text() == "kept"


def test_an_empty_folder_is_used(tmp_path: Path, parts: BundleParts):
    (tmp_path / "empty").mkdir()
    assert names(write_bundle(tmp_path / "empty", parts))


def test_a_reversed_vector_is_written_where_that_is_asked_for(
    tmp_path: Path, parts: BundleParts, model: ModelInfo
):
    assert parts.vector is not None
    reversed_parts = replace(parts, vector=replace(parts.vector, sign=-1))
    folder = write_bundle(tmp_path / "b", reversed_parts, allow_negative_scale=True)
    with pytest.raises(BundleError, match="backwards"):
        load_bundle(folder, model)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_others_may_read_the_bundle(folder: Path):
    assert folder.stat().st_mode & 0o777 == 0o755
