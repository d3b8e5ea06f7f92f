"""PyTorch's files and repeng's exporter, made by the real libraries where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesteer_edge.converters.vector_conversion import (
    VectorRequest,
    convert_vector,
)
from safesteer_edge.converters.vector_export import export_vector
from safesteer_edge.errors import InputError
from safesteer_edge.formats.control_vector_file import ControlVector

ROWS = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def converted(path: Path, **options: Any) -> np.ndarray:
    options = {"layer_base": "0", "model_hint": "llama", **options}
    return convert_vector(VectorRequest((path,), **options)).vector.directions


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_tensor_of_any_precision_is_read(tmp_path: Path, torch: Any, dtype: str):
    tensor = torch.tensor(ROWS).to(getattr(torch, dtype))
    torch.save(tensor, tmp_path / "v.pt")
    expected = tensor.to(torch.float32).numpy()
    np.testing.assert_array_equal(converted(tmp_path / "v.pt")[1:], expected[1:])


def test_steering_vectors_dictionary_is_read(tmp_path: Path, torch: Any):
    """Its SteeringVector holds {layer: direction}, decoder blocks counted from 0."""
    activations = {layer: torch.tensor(ROWS[layer]) for layer in (1, 2)}
    for name, content in (
        ("plain", activations),
        ("field", {"layer_activations": activations, "layer_type": "decoder_block"}),
        ("named", {f"layers.{layer}": row for layer, row in activations.items()}),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        directions = converted(tmp_path / f"{name}.pt")
        np.testing.assert_array_equal(directions[[1, 2]], ROWS[[1, 2]])


def test_safetensors_of_pytorch_are_read(tmp_path: Path, torch: Any):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    tensors = {str(layer): torch.tensor(ROWS[layer]).bfloat16() for layer in (1, 3)}
    safetensors_torch.save_file(tensors, tmp_path / "v.safetensors")
    directions = converted(tmp_path / "v.safetensors")
    expected = torch.tensor(ROWS).bfloat16().float().numpy()
    np.testing.assert_array_equal(directions[[1, 3]], expected[[1, 3]])


class Bomb:
    """Unpickling it makes a file: a sign that code ran."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return (Path.touch, (self.sign,))


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path: Path, torch: Any):
    sign = tmp_path / "ran"
    for name, content in (("bomb", Bomb(sign)), ("module", torch.nn.Linear(2, 2))):
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(InputError, match=r"save plain tensors: safetensors") as refused:
            converted(tmp_path / f"{name}.pt")
        assert "\n" not in str(refused.value)
    torch.save(torch.tensor(ROWS), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError):
        converted(tmp_path / "old.pt")
    assert not sign.exists()


def test_a_tensor_that_claims_more_than_it_stores_is_refused(tmp_path: Path, torch: Any):
    torch.save(torch.ones(1).expand(1 << 20, 1 << 20), tmp_path / "v.pt")
    assert (tmp_path / "v.pt").stat().st_size < 4096
    with pytest.raises(InputError, match="tensor of shape"):
        converted(tmp_path / "v.pt")


@pytest.mark.parametrize("content", [{}, {"1": "text"}, {"1": None}, ["no"], 5])
def test_checkpoints_without_directions_are_refused(tmp_path: Path, torch: Any, content: Any):
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(InputError):
        converted(tmp_path / "v.pt")


def test_pytorch_is_not_needed_to_read_its_files(
    tmp_path: Path, torch: Any, monkeypatch: pytest.MonkeyPatch
):
    torch.save(torch.tensor(ROWS), tmp_path / "v.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(converted(tmp_path / "v.pt")[1:], ROWS[1:])


def test_a_file_that_repengs_exporter_wrote_gives_its_directions():
    """data/repeng-0.4.0.gguf: ControlVector("llama", …).export_gguf of repeng 0.4.0, which needs an
    older NumPy than the project and so cannot be installed beside it. The directions of layers 3, 2
    and 1 are drawn in that order from default_rng(20).
    """
    path = Path(__file__).parent / "data" / "repeng-0.4.0.gguf"
    directions = converted(path, convention="repeng", layer_base=None)
    rng = np.random.default_rng(20)
    for layer in (3, 2, 1):
        expected = rng.standard_normal(64).astype(np.float32)
        np.testing.assert_array_equal(directions[layer], expected)


def test_repengs_own_exporter_and_importer_agree_with_ours(tmp_path: Path):
    """Both ways, where repeng is installed: it brings transformers, which the project does not."""
    extract = pytest.importorskip("repeng")
    theirs = extract.ControlVector("llama", {layer: ROWS[layer] for layer in (3, 2, 1)})
    theirs.export_gguf(tmp_path / "theirs.gguf")
    directions = converted(tmp_path / "theirs.gguf", convention="repeng", layer_base=None)
    np.testing.assert_array_equal(directions[1:], ROWS[1:])
    export_vector(tmp_path / "ours.gguf", ControlVector(directions, "llama"))
    again = extract.ControlVector.import_gguf(tmp_path / "ours.gguf")
    assert again.model_type == "llama"
    assert sorted(again.directions) == [1, 2, 3]
    for layer, direction in again.directions.items():
        np.testing.assert_array_equal(direction, ROWS[layer])
