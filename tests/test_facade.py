"""The names that `import safesteer_edge` offers, and the functions that do what commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import safesteer_edge
from safesteer_edge import errors
from tests.guarded_tiny import PROBE_LAYERS, QUIET, GuardedTiny


def test_every_public_name_is_listed_and_there():
    assert dir(safesteer_edge) == sorted(safesteer_edge.__all__)
    for name in safesteer_edge.__all__:
        assert getattr(safesteer_edge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        _ = safesteer_edge.Sesion  # pyright: ignore[reportAttributeAccessIssue]  # what is tested


def test_every_error_is_public():
    kinds = {n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, Exception)}
    assert kinds <= set(safesteer_edge.__all__)


def test_importing_it_loads_nothing_heavy():
    program = "import sys, safesteer_edge; print('numpy' in sys.modules, len(dir(safesteer_edge)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split()[0] == "False"


def test_a_bundle_and_its_probe_are_loaded(guarded_tiny: GuardedTiny):
    folder = str(guarded_tiny.bundle(QUIET))
    states = np.stack(list(guarded_tiny.states_by_tokens.values()))
    with safesteer_edge.GuardBundle.load(folder, str(guarded_tiny.model)) as bundle:
        scores = bundle.probe.score(states)
    probe = safesteer_edge.Probe.load(Path(folder) / "probe.onnx", device="cpu")
    np.testing.assert_array_equal(probe.score(states), scores)
    probe.close()


def test_a_probe_is_converted(guarded_tiny: GuardedTiny, tmp_path: Path):
    source = tmp_path / "probe.npz"
    weights, bias = guarded_tiny.weights, np.array([guarded_tiny.offset], np.float32)
    np.savez(source, weight=weights[np.newaxis, :], bias=bias)
    report = safesteer_edge.convert_probe(
        source,
        str(tmp_path / "probe.onnx"),
        layers=PROBE_LAYERS,
        model=guarded_tiny.model,
        harmful_class=1,
    )
    assert report.n_features == len(weights)
    assert report.max_difference < 1e-5


def test_a_vector_is_converted_and_back(guarded_tiny: GuardedTiny, tmp_path: Path):
    matrix = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    np.save(tmp_path / "v.npy", matrix)
    gguf, npz = tmp_path / "v.gguf", tmp_path / "v.npz"
    vector = safesteer_edge.convert_vector(
        tmp_path / "v.npy", gguf, layer_base="0", model=guarded_tiny.model, layers=(1, 2)
    )
    np.testing.assert_array_equal(vector.directions[1:3], matrix[1:3])
    safesteer_edge.convert_vector([gguf], npz)
    with np.load(npz) as archive:
        np.testing.assert_array_equal(archive["directions"][1:3], matrix[1:3])


def test_a_model_is_calibrated(guarded_tiny: GuardedTiny, tmp_path: Path):
    counts = {"harmful": 10, "harmless": 4, "borderline": 2, "ordinary": 10}
    rows = [
        {"text": f"{label} request number {number}", "label": label, "split": "train"}
        for label, n in counts.items()
        for number in range(n)
    ]
    data = tmp_path / "requests.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told: list[str] = []
    folder = safesteer_edge.calibrate(
        guarded_tiny.model,
        tmp_path / "guard",
        requests=data,
        false_alarms=0.34,
        progress=lambda what, _done, _total: told.append(what),
        n_threads=1,
        n_ctx=512,
    )
    safesteer_edge.GuardBundle.load(folder, guarded_tiny.model, device="cpu").close()
    assert told


def test_a_model_is_evaluated(guarded_tiny: GuardedTiny, tmp_path: Path):
    report = safesteer_edge.evaluate(
        guarded_tiny.model,
        tmp_path / "run",
        suites=["text-harmful"],
        defences=["off", "safesteer"],
        limit=1,
        bundle=guarded_tiny.bundle(QUIET),
        n_threads=1,
        n_ctx=512,
        max_tokens=4,
    )
    assert report["counts"]["answered"] == 2
    assert (tmp_path / "run" / "report.html").exists()
