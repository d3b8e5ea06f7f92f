"""llama.cpp requantizes a model, and the result is the same model to a guard bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.bundle.fingerprint import compare, fingerprint_model
from safesteer_edge.engine.model import TARGET_TYPES, TargetType, requantize
from safesteer_edge.errors import EngineError
from safesteer_edge.formats.model_file import check_language_model
from tests.tiny_models import write_tiny_llama


@pytest.mark.parametrize("target_type", TARGET_TYPES)
def test_the_result_is_another_quantization_of_the_same_model(
    tiny_llama_path: Path, tmp_path: Path, target_type: TargetType
):
    target = tmp_path / "out.gguf"
    requantize(tiny_llama_path, target, target_type, n_threads=1)
    info = check_language_model(target)
    assert info.quantization == target_type
    own = fingerprint_model(tiny_llama_path)
    assert compare(own, fingerprint_model(info)) == "other_quantization"
    assert target.stat().st_size < tiny_llama_path.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_quantized_file_can_be_requantized(tmp_path: Path):
    source = write_tiny_llama(tmp_path / "source.gguf", quantization="Q4_1")
    requantize(source, tmp_path / "out.gguf", "Q8_0", n_threads=1)
    assert check_language_model(tmp_path / "out.gguf").quantization == "Q8_0"


def test_what_cannot_be_read_leaves_nothing_behind(tmp_path: Path):
    source = tmp_path / "source.gguf"
    source.write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot requantize"):
        requantize(source, tmp_path / "out.gguf", "Q8_0", n_threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]
