"""Thousands of damaged GGUF files: the pre-check refuses them, or llama.cpp survives them.

Each kind of damage is seeded, so that a failure can be repeated. To look further than the
default run does: SAFESTEER_FUZZ_SCALE=20 pytest tests/formats/test_fuzz_gguf.py
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import ModelFileError, VectorFileError
from safesteer_edge.formats.control_vector_file import (
    ControlVector,
    read_control_vector,
    write_control_vector,
)
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.formats.projector_file import check_projector
from tests.formats.edited_gguf import split_gguf
from tests.formats.mutations import gguf_field_mutants, mutants, tokenizer_mutants
from tests.formats.native_loader import load_natively
from tests.tiny_models import (
    write_tiny_llama,
    write_tiny_mamba,
    write_tiny_projector,
    write_tiny_qwen2,
)

resource = pytest.importorskip("resource", reason="memory is measured in the POSIX way")

SCALE = int(os.environ.get("SAFESTEER_FUZZ_SCALE", "1"))
MAX_CPU_S = 60.0  # a check takes a millisecond; this is for one that a header drives astray
MAX_GROWTH_BYTES = 200 << 20
Check = Callable[[Path], object]


def damaged(good: Path, n: int, *, seed: int) -> Iterator[bytes]:
    """Half of them damaged blindly, half in the header's fields."""
    header_bytes = read_gguf(good).data_offset
    n_blind = n * SCALE // 2
    return chain(
        mutants(good.read_bytes(), n_blind, seed=seed, header_bytes=header_bytes),
        gguf_field_mutants(good, n * SCALE - n_blind, seed=seed),
    )


def accepted_mutants(
    good: Path,
    check: Check,
    n: int,
    error_class: type[Exception],
    *,
    seed: int = 0,
    more: Iterable[bytes] = (),
) -> list[Path]:
    """Check n damaged copies, and more, and return those that pass, as files.

    Fails if a check takes long, takes memory, or raises anything but error_class.
    """
    accepted: list[Path] = [good]
    before = peak_bytes()
    for index, data in enumerate(chain(damaged(good, n, seed=seed), more)):
        path = good.with_name(f"{good.stem}-{seed}-{index}.gguf")
        path.write_bytes(data)
        start = time.process_time()
        try:
            check(path)
        except error_class:
            path.unlink()
        else:
            accepted.append(path)
        assert time.process_time() - start < MAX_CPU_S, f"the check of {path} hardly ends"
    assert peak_bytes() - before < MAX_GROWTH_BYTES
    return accepted


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def assert_survived(kind: str, paths: list[Path]):
    outcome = load_natively(kind, paths)
    assert outcome.killer is None, f"{outcome.killer}: {outcome.last_words}"
    assert outcome.n_loaded > len(paths) // 3  # or the files test nothing


@pytest.mark.parametrize(
    ("write", "n_damaged"),
    [(write_tiny_llama, 2_000), (write_tiny_qwen2, 500), (write_tiny_mamba, 500)],
)
def test_llama_cpp_survives_every_damaged_model_that_is_accepted(
    tmp_path: Path, write: Callable[..., Path], n_damaged: int
):
    """3,300 files of three architectures, 300 of them with the tokenizer of another model."""
    good = write(tmp_path / "model.gguf", n_layer=2, n_embd=32)
    tokenizers = tokenizer_mutants(good, 100 * SCALE, seed=n_damaged)
    accepted = accepted_mutants(
        good, check_language_model, n_damaged, ModelFileError, seed=n_damaged, more=tokenizers
    )
    assert n_damaged // 20 < len(accepted) < n_damaged * SCALE // 2
    assert_survived("model", accepted)


def test_llama_cpp_survives_every_damaged_part_of_a_model_that_is_accepted(tmp_path: Path):
    whole = write_tiny_llama(tmp_path / "model.gguf", n_layer=2, n_embd=32)
    first, *others = split_gguf(whole, 7)
    accepted: list[Path] = []
    for damaged_part in others:
        for index, data in enumerate(damaged(damaged_part, 200, seed=len(accepted))):
            folder = tmp_path / f"{damaged_part.stem}-{index}"
            folder.mkdir()
            for path in (first, *others):
                (folder / path.name).symlink_to(path)
            (folder / damaged_part.name).unlink()
            (folder / damaged_part.name).write_bytes(data)
            try:
                check_language_model(folder / first.name)
            except ModelFileError:
                shutil.rmtree(folder)
            else:
                accepted.append(folder / first.name)
    assert len(accepted) > 20
    assert_survived("model", accepted)


def test_libmtmd_survives_every_damaged_projector_that_is_accepted(tmp_path: Path):
    good = write_tiny_projector(tmp_path / "mmproj.gguf")
    accepted = accepted_mutants(good, check_projector, 2_000, ModelFileError)
    assert 50 < len(accepted) < 1_000 * SCALE
    assert_survived("projector", accepted)


def test_a_damaged_control_vector_is_refused_or_still_sound(tmp_path: Path):
    good = tmp_path / "vector.gguf"
    rows = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    rows[0] = 0
    write_control_vector(good, ControlVector(rows, "llama", metadata={"made_by": "a test"}))
    accepted = accepted_mutants(good, read_control_vector, 2_000, VectorFileError)
    assert len(accepted) > 50
    for path in accepted:
        vector = read_control_vector(path)
        assert vector.directions.dtype == np.float32
        assert np.isfinite(vector.directions).all()
        assert not vector.directions[0].any()
