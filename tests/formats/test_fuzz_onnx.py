"""Thousands of damaged probes: the pre-check refuses them, or onnxruntime survives them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.onnx_file import check_onnx
from safesteer_edge.formats.probe_graph import (
    Activation,
    DenseLayer,
    ProbeGraph,
)
from safesteer_edge.formats.probe_onnx import encode_probe
from tests.formats.mutations import mutants
from tests.formats.native_loader import load_natively

N_MUTANTS = 1_000 * int(os.environ.get("SAFESTEER_FUZZ_SCALE", "1"))
MAX_CPU_S = 60.0  # a check takes a millisecond; this is for one that is driven astray
RNG = np.random.default_rng(0)


def layer(n_in: int, n_out: int, activation: Activation = "none") -> DenseLayer:
    return DenseLayer(RNG.standard_normal((n_in, n_out)), np.zeros(n_out), activation)


LINEAR = ProbeGraph(np.zeros(8), np.ones(8), (layer(8, 1),))
DEEP = ProbeGraph(
    np.zeros(8),
    np.ones(8),
    (layer(3, 5, "gelu"), layer(5, 4, "relu"), layer(4, 1)),
    components=RNG.standard_normal((3, 8)),
    calibration=(1.5, -0.5),
)


@pytest.mark.parametrize("graph", [LINEAR, DEEP], ids=["linear", "deep"])
def test_onnxruntime_survives_every_damaged_probe_that_is_accepted(
    tmp_path: Path, graph: ProbeGraph
):
    data = encode_probe(graph, {"layer": "18"})
    accepted: list[Path] = []
    for index, damaged in enumerate(mutants(data, N_MUTANTS, seed=5, header_bytes=len(data))):
        start = time.process_time()
        try:
            check_onnx(damaged, name="damaged")
        except ProbeFileError:
            continue
        finally:
            assert time.process_time() - start < MAX_CPU_S, f"the check of {index} hardly ends"
        accepted.append(tmp_path / f"{index}.onnx")
        accepted[-1].write_bytes(damaged)
    assert N_MUTANTS // 20 < len(accepted) < N_MUTANTS // 2
    outcome = load_natively("probe", accepted)
    assert outcome.killer is None, f"{outcome.killer}: {outcome.last_words}"
    assert outcome.n_loaded > len(accepted) // 4
