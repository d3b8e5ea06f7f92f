"""Fingerprints: the same model, the same model requantized, another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safesteer_edge.bundle.fingerprint import ModelFingerprint, compare, fingerprint_model
from safesteer_edge.errors import BundleError
from safesteer_edge.formats.model_file import ModelInfo
from tests.tiny_models import write_tiny_llama, write_tiny_qwen2


def test_a_path_and_its_model_info_have_one_fingerprint(model: ModelInfo):
    assert fingerprint_model(model.path) == fingerprint_model(model)


def test_the_same_file_elsewhere_is_an_exact_match(tmp_path: Path, model: ModelInfo):
    again = fingerprint_model(write_tiny_llama(tmp_path / "other name.gguf"))
    assert compare(fingerprint_model(model), again) == "exact"


def test_a_requantized_model_is_the_same_model(tmp_path: Path, model: ModelInfo):
    requantized = fingerprint_model(write_tiny_llama(tmp_path / "q.gguf", quantization="Q8_0"))
    assert compare(fingerprint_model(model), requantized) == "other_quantization"


def test_another_tensor_table_under_the_same_quantization_name_is_noticed(model: ModelInfo):
    fingerprint = fingerprint_model(model)
    other = replace(fingerprint, tensor_table_sha256="0" * 64)
    assert compare(fingerprint, other) == "other_quantization"


def test_another_model_is_refused_with_every_difference_and_both_values(
    tmp_path: Path, model: ModelInfo
):
    wider = fingerprint_model(write_tiny_qwen2(tmp_path / "w.gguf", n_layer=3, n_embd=32))
    with pytest.raises(BundleError) as caught:
        compare(fingerprint_model(model), wider)
    message = str(caught.value)
    assert "architecture 'llama' (this model: 'qwen2')" in message
    assert "n_layer 4 (this model: 3)" in message
    assert "n_embd 64 (this model: 32)" in message
    assert "tensor_table" not in message
    assert "vocabulary" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architecture", "qwen2"),
        ("n_layer", 5),
        ("n_embd", 65),
        ("n_vocab", 7),
        ("vocabulary_sha256", "f" * 64),
    ],
)
def test_each_field_of_the_model_counts(model: ModelInfo, name: str, value: object):
    fingerprint = fingerprint_model(model)
    with pytest.raises(BundleError, match=name):
        compare(fingerprint, replace(fingerprint, **{name: value}))


def test_another_vocabulary_of_the_same_size_is_another_model(tmp_path: Path):
    ours, theirs = (
        fingerprint_model(write_tiny_llama(tmp_path / f"{word}.gguf", extra_vocab=(word,)))
        for word in ("cat", "dog")
    )
    with pytest.raises(BundleError, match="vocabulary_sha256"):
        compare(ours, theirs)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layer", 0), ("n_vocab", -1), ("vocabulary_sha256", "abc"), ("tensor_table_sha256", "")],
)
def test_a_fingerprint_with_impossible_values_is_refused(
    model: ModelInfo, name: str, value: object
):
    fingerprint: ModelFingerprint = fingerprint_model(model)
    with pytest.raises(BundleError, match=name):
        replace(fingerprint, **{name: value})
