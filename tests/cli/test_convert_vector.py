"""`safesteer-edge convert vector` from the command line: what it writes, says and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.cli.main import main
from safesteer_edge.formats.control_vector_file import read_control_vector

ROWS = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "v.npy", ROWS)
    return tmp_path / "v.npy"


def test_a_matrix_becomes_a_vector_and_a_matrix_again(
    matrix: Path, tiny_llama_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    gguf, npz = tmp_path / "vector.gguf", tmp_path / "vector.npz"
    arguments = ["--layer-base", "0", "--model", str(tiny_llama_path), "--layers", "1-2"]
    assert main(["convert", "vector", str(matrix), "-o", str(gguf), *arguments]) == 0
    assert "2 directions of 64 numbers on blocks 1-2 of 4 (llama)" in capsys.readouterr().out
    assert main(["convert", "vector", str(gguf), "-o", str(npz)]) == 0
    with np.load(npz) as archive:
        np.testing.assert_array_equal(archive["directions"][1:3], ROWS[1:3])


def test_weights_scale_and_normalise_are_applied(matrix: Path, tmp_path: Path):
    output = tmp_path / "vector.gguf"
    options = ["--weights", "0.5,0.25", "--scale", "2", "--normalise", "--hint", "llama"]
    arguments = [str(matrix), str(matrix), "-o", str(output), "--layer-base", "1", *options]
    assert main(["convert", "vector", *arguments]) == 0
    lengths = np.linalg.norm(read_control_vector(output).directions, axis=1)
    np.testing.assert_allclose(lengths, [0, 1.5, 1.5, 1.5], rtol=1e-6)


def test_what_was_left_out_is_said(
    matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [str(matrix), "-o", str(tmp_path / "v.gguf"), "--layer-base", "0", "--hint", "x"]
    assert main(["convert", "vector", *arguments]) == 0
    assert "note: 'v.npy': llama.cpp cannot steer the first block" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--layer-base"),
        (["--layer-base", "0"], "--hint"),
        (["--layer-base", "0", "--hint", "x", "--layers", "0-2"], "cannot steer the first"),
        (["--layer-base", "0", "--hint", "x", "--layers", "2-9"], "lower --layers"),
        (["--layer-base", "0", "--hint", "x", "--layers", "two"], "expected A-B"),
        (["--layer-base", "0", "--hint", "x", "--weights", "1,2"], "2 weights for 1 sources"),
        (["--layer-base", "0", "--hint", "x", "--weights", "a"], "expected numbers"),
        (["--layer-base", "0", "--hint", "x", "--scale", "nan"], "other than 0"),
        (["--layer-base", "embedding", "--hint", "x"], "final norm"),
        (["--layer-base", "0", "--model", "missing.gguf"], "missing.gguf"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(
    matrix: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
):
    before = sorted(tmp_path.iterdir())
    assert main(["convert", "vector", str(matrix), "-o", str(tmp_path / "o.gguf"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert problem in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_source_leaves_an_older_output_as_it_was(tmp_path: Path):
    (tmp_path / "v.npz").write_bytes(b"PK\x03\x04 and no more")
    output = tmp_path / "o.gguf"
    output.write_bytes(b"old")
    arguments = [str(tmp_path / "v.npz"), "-o", str(output), "--layer-base", "0", "--hint", "x"]
    assert main(["convert", "vector", *arguments]) == 2
    assert output.read_bytes() == b"old"
