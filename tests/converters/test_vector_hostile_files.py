"""Files that lie about themselves, or that only a pickle could load, are refused unread."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.converters.vector_source import read_source
from safesteer_edge.errors import InputError
from tests.converters.vector_files import write_repeng_gguf

ROWS = np.ones((4, 8), dtype=np.float32)


class Bomb:
    """Unpickling it makes a file: a sign that code ran."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.sign,))


def npy_header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def write_whole(path: Path) -> Path:
    """Write a good file of the form that its name says."""
    if path.suffix == ".npy":
        np.save(path, ROWS)
    elif path.suffix == ".npz":
        np.savez(path, directions=ROWS)
    elif path.suffix == ".gguf":
        write_repeng_gguf(path, {1: ROWS[0], 2: ROWS[1]})
    else:
        header = b'{"d":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]}}'
        path.write_bytes(struct.pack("<Q", len(header)) + header + ROWS.tobytes())
    return path


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(InputError, match=match) as error:
        read_source(path, layer_base="0", convention="repeng")
    assert "\n" not in str(error.value)


def test_a_pickle_is_never_loaded(tmp_path: Path):
    sign = tmp_path / "ran"
    objects = np.array([Bomb(sign)], dtype=object)
    data = io.BytesIO()
    np.save(data, objects, allow_pickle=True)
    for name in ("v.pkl", "v.pt", "v.pth", "v.npz", "v.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(sign)))
        refused(tmp_path / name)
    (tmp_path / "v.npy").write_bytes(data.getvalue())
    refused(tmp_path / "v.npy", "Python objects")
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("v.npy", data.getvalue())
    refused(tmp_path / "v.npz", "Python objects")
    assert not sign.exists()


@pytest.mark.parametrize("shape", [(10**6, 10**6), (4, 9), (2**62, 4), (-1, 8), (4, 7)])
def test_a_header_that_claims_another_size_is_refused(tmp_path: Path, shape: tuple[int, ...]):
    (tmp_path / "v.npy").write_bytes(npy_header(shape) + ROWS.tobytes())
    refused(tmp_path / "v.npy")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path):
    path = tmp_path / "v.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("v.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(600):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    refused(path, "unpacks to")


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path):
    for suffix in (".npy", ".npz", ".safetensors", ".gguf"):
        path = write_whole(tmp_path / f"v{suffix}")
        data = path.read_bytes()
        assert read_source(path, layer_base="0", convention="repeng").n_embd == 8
        for length in range(0, len(data) - 32, 7):
            path.write_bytes(data[:length])
            refused(path)


def test_a_gguf_that_claims_too_much_is_refused(tmp_path: Path):
    path = write_repeng_gguf(tmp_path / "v.gguf", {1: ROWS[0]})
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 8, 2**40)  # the number of tensors
    path.write_bytes(data)
    refused(path)
    refused(write_repeng_gguf(tmp_path / "far.gguf", {2_000_000_000: ROWS[0]}))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"a": ROWS[0], "b": ROWS[1]}, "are named"),
        ({"layer_1": ROWS[0], "block_2": ROWS[1]}, "are named"),
        ({"1": ROWS[0], "01": ROWS[1]}, "again"),
        ({"900": ROWS[0], "1": ROWS[1]}, "too far"),
        ({"1": ROWS[0], "2": ROWS[1, :4]}, "expected one width"),
        ({"1": ROWS[:2], "2": ROWS[1]}, "shape"),
        ({"v": ROWS[0]}, "are named"),
        ({"v": ROWS[None]}, "are named"),
        ({"v": ROWS[:0]}, "shape"),
        ({"v": ROWS.astype(complex)}, "complex"),
        ({"v": np.array("text")}, "no array"),
        ({"v": ROWS, "layer_convention": np.array("other")}, "layer_convention"),
    ],
)
def test_arrays_that_are_no_directions_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], problem: str
):
    np.savez(tmp_path / "v.npz", **arrays)  # pyright: ignore[reportArgumentType]  # no such option
    refused(tmp_path / "v.npz", problem)


def test_other_files_are_refused(tmp_path: Path):
    for name in ("v.txt", "v", "missing.npy", "missing.npz", "missing.pt", "missing.gguf"):
        if not name.startswith("missing"):
            (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name)
    (tmp_path / "folder.npy").mkdir()
    refused(tmp_path / "folder.npy")


@pytest.mark.parametrize(
    "header", ["{'descr': '<f4', 'shape': (((", "[" * 90, "None", "{}", "\x00"]
)
def test_a_header_that_is_no_dictionary_is_refused(tmp_path: Path, header: str):
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    (tmp_path / "v.npy").write_bytes(data)
    refused(tmp_path / "v.npy")


@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """No mutation may raise anything but our own error, or allocate more than the file has."""
    suffix = data.draw(st.sampled_from([".npy", ".npz", ".safetensors", ".gguf"]))
    path = write_whole(tmp_path_factory.mktemp("damage") / f"v{suffix}")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        source = read_source(path, layer_base="0", convention="repeng")
    except InputError:
        return
    assert sum(row.size for row in source.rows.values()) <= 64
