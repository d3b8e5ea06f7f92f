"""OnnxProbe: right scores, and no score at all where it cannot judge."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.errors import GuardError, ProbeFileError, ProbeShapeError
from safesteer_edge.formats.probe_graph import DenseLayer, ProbeGraph, score_states
from safesteer_edge.formats.probe_onnx import encode_probe
from safesteer_edge.guard.protocols import Probe
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.probe.sessions import missing_cuda_libraries
from safesteer_edge.processes.native_libraries import import_onnxruntime
from tests.bundle.linear_probe import linear_scores, probe_onnx, weights_for

WEIGHTS = weights_for(64)
N_FEATURES = len(WEIGHTS)
FIRST_ROW = np.eye(1, N_FEATURES, dtype=np.float32)
onnxruntime = import_onnxruntime()
NO_CUDA = missing_cuda_libraries(
    str(getattr(onnxruntime, "cuda_version", "")), Path(onnxruntime.__file__).parent.parent
)


@pytest.fixture(scope="module")
def probe():
    with OnnxProbe.from_bytes(
        probe_onnx(WEIGHTS, -0.5, metadata={"safesteer.layer": "2"}), name="p.onnx", device="cpu"
    ) as loaded:
        yield loaded


def states(n: int, seed: int = 0):
    return np.random.default_rng(seed).standard_normal((n, N_FEATURES)).astype(np.float32)


@given(n=st.integers(1, 24), seed=st.integers(0, 2**32 - 1), size=st.floats(1e-3, 1e3))
def test_scores_are_those_of_the_linear_model(probe: OnnxProbe, n: int, seed: int, size: float):
    hidden = states(n, seed) * np.float32(size)
    scores = probe.score(hidden)
    assert scores.dtype == np.float32
    assert scores.shape == (n,)
    np.testing.assert_allclose(scores, linear_scores(hidden, WEIGHTS, -0.5), atol=2e-4)


def test_a_score_does_not_depend_on_the_other_candidates(probe: OnnxProbe):
    hidden = states(8)
    one_by_one = np.concatenate([probe.score(row[np.newaxis]) for row in hidden])
    np.testing.assert_allclose(probe.score(hidden), one_by_one, atol=1e-6)


def test_states_are_left_alone_and_need_not_be_contiguous(probe: OnnxProbe):
    wide = np.random.default_rng(3).standard_normal((6, 2 * N_FEATURES)).astype(np.float32)
    view, before = wide[::2, ::2], wide.copy()
    np.testing.assert_allclose(probe.score(view), probe.score(view.copy()), atol=1e-7)
    np.testing.assert_array_equal(wide, before)


def test_scores_of_an_earlier_call_are_not_overwritten(probe: OnnxProbe):
    first = probe.score(states(4, seed=1))
    kept = first.copy()
    probe.score(states(4, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_several_threads_may_score_at_once(probe: OnnxProbe):
    batches = [states(8, seed) for seed in range(64)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(probe.score, batches))
    for batch, scores in zip(batches, together, strict=True):
        np.testing.assert_array_equal(scores, probe.score(batch))


def test_it_tells_where_it_runs_how_fast_and_what_the_file_says(probe: OnnxProbe):
    as_protocol: Probe = probe
    assert as_protocol.n_features == N_FEATURES
    assert probe.provider == "CPU"
    assert probe.seconds_per_call > 0
    assert probe.metadata == {"safesteer.layer": "2"}


@pytest.mark.parametrize(
    "hidden",
    [
        states(2)[:, :-1],
        states(1)[0],
        states(2)[np.newaxis],
        states(0),
        states(2).astype(np.float64),
        states(2).astype(np.float16),
        states(2).tolist(),
    ],
    ids=["narrow", "one row", "three axes", "no row", "float64", "float16", "list"],
)
def test_states_of_another_form_are_refused(probe: OnnxProbe, hidden):
    with pytest.raises(ProbeShapeError):
        probe.score(hidden)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_not_scored(probe: OnnxProbe, value: float):
    hidden = states(4)
    hidden[2, 5] = value
    with pytest.raises(GuardError, match="not finite"):
        probe.score(hidden)


def test_a_score_that_is_not_a_number_is_refused():
    # The softmax of one logit is 1, until the logit overflows: then it is ∞ − ∞.
    data = probe_onnx(np.full(N_FEATURES, 2.0, np.float32), activation="Softmax")
    with OnnxProbe.from_bytes(data, name="p.onnx", device="cpu") as probe:
        assert probe.score(FIRST_ROW) == 1.0
        with pytest.raises(GuardError, match=r"not in \[0, 1\]"):
            probe.score(FIRST_ROW * np.float32(3e38))


def test_a_score_above_one_is_refused():
    data = probe_onnx(WEIGHTS * 1e-6, 0.5, activation="Identity")
    with OnnxProbe.from_bytes(data, name="p.onnx", device="cpu") as probe:
        assert probe.score(FIRST_ROW) == pytest.approx(0.5, abs=1e-3)
        with pytest.raises(GuardError, match=r"not in \[0, 1\]"):
            probe.score(FIRST_ROW * np.float32(1e9))


def test_a_closed_probe_refuses_and_may_be_closed_again():
    probe = OnnxProbe.from_bytes(probe_onnx(WEIGHTS), name="p.onnx", device="cpu")
    probe.close()
    probe.close()
    with pytest.raises(GuardError, match="closed"):
        probe.score(FIRST_ROW)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an onnx file",
        probe_onnx(WEIGHTS)[:-40],
        probe_onnx(WEIGHTS, input_name="input"),
        probe_onnx(WEIGHTS, output_name="score"),
        probe_onnx(WEIGHTS, n_states=1),
        probe_onnx(WEIGHTS, n_outputs=2),
        probe_onnx(WEIGHTS * np.float32(np.nan)),
        probe_onnx(WEIGHTS, bias=float("nan")),
        probe_onnx(WEIGHTS, activation="Identity"),
        probe_onnx(WEIGHTS, activation="NoSuchOperator"),
    ],
    ids=[
        "empty",
        "text",
        "cut short",
        "input name",
        "output name",
        "fixed batch",
        "two scores per state",
        "NaN weights",
        "NaN bias",
        "no probability",
        "unknown operator",
    ],
)
def test_a_file_that_is_no_probe_is_refused_by_name(data: bytes):
    with pytest.raises(ProbeFileError, match=r"bad\.onnx"):
        OnnxProbe.from_bytes(data, name="bad.onnx", device="cpu")


@pytest.mark.skipif(not NO_CUDA, reason="CUDA works on this machine")
def test_cuda_that_is_not_there_is_an_error_with_a_remedy():
    with pytest.raises(GuardError, match=r"CUDA: .*cannot be loaded; install") as caught:
        OnnxProbe.from_bytes(probe_onnx(WEIGHTS), name="p.onnx", device="cuda")
    assert NO_CUDA[0] in str(caught.value)


@pytest.mark.skipif(bool(NO_CUDA), reason="no CUDA on this machine")
def test_cuda_scores_as_the_cpu_does():
    data = probe_onnx(WEIGHTS)
    with (
        OnnxProbe.from_bytes(data, name="p.onnx", device="cpu") as on_cpu,
        OnnxProbe.from_bytes(data, name="p.onnx", device="cuda") as on_cuda,
    ):
        assert on_cuda.provider == "CUDA"
        np.testing.assert_allclose(on_cuda.score(states(8)), on_cpu.score(states(8)), atol=1e-4)


def test_a_build_without_cuda_is_recognised(tmp_path: Path):
    assert missing_cuda_libraries("", tmp_path) == ("a CUDA build of onnxruntime",)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_nothing_is_written_to_the_screen(device: str):
    program = f"""
        from safesteer_edge.errors import GuardError, ProbeFileError
        from safesteer_edge.probe.probe import OnnxProbe
        from tests.bundle.linear_probe import probe_onnx, weights_for
        for data in (probe_onnx(weights_for(64)), probe_onnx(weights_for(64))[:-40]):
            try:
                OnnxProbe.from_bytes(data, name="p.onnx", device={device!r}).close()
            except (GuardError, ProbeFileError):
                pass
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert child.stdout == b""
    assert child.stderr == b""


def test_onnxruntime_is_not_imported_before_a_probe_is_loaded():
    program = (
        "import sys, safesteer_edge.bundle.writer; sys.exit('onnxruntime' in sys.modules or "
        "'llama_cpp' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)


# -- linear probes as the package writes them, which take a shorter way ----------------------------


def linear_graph(rng: np.random.Generator, *, mean_size: float = 3.0) -> ProbeGraph:
    return ProbeGraph(
        mean=(rng.standard_normal(N_FEATURES) * mean_size).astype(np.float32),
        scale=rng.uniform(0.1, 10, N_FEATURES).astype(np.float32),
        layers=(DenseLayer(WEIGHTS[:, np.newaxis], np.array([0.25], np.float32)),),
        calibration=(1.3, -0.4),
    )


def encoded(graph: ProbeGraph) -> OnnxProbe:
    return OnnxProbe.from_bytes(encode_probe(graph, {}), name="p.onnx", device="cpu")


@given(n=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), mean_size=st.floats(0, 1e5))
@settings(deadline=None, max_examples=30)
def test_our_own_linear_probes_score_as_their_graph_says(n: int, seed: int, mean_size: float):
    rng = np.random.default_rng(seed)
    graph = linear_graph(rng, mean_size=mean_size)
    hidden = (graph.mean + graph.scale * rng.standard_normal((n, N_FEATURES))).astype(np.float32)
    with encoded(graph) as probe:
        # Means of 1e5 leave float32 states few digits behind the point.
        np.testing.assert_allclose(probe.score(hidden), score_states(graph, hidden), atol=5e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_they_score_no_state_that_is_not_finite(value: float):
    rng = np.random.default_rng(5)
    with encoded(linear_graph(rng)) as probe:
        hidden = states(3)
        hidden[1, 7] = value
        for rows in (hidden, hidden[1:2]):
            with pytest.raises(GuardError, match="not finite"):
                probe.score(rows)
        assert np.isfinite(probe.score(states(3))).all()


def test_their_scores_end_at_0_and_1():
    graph = linear_graph(np.random.default_rng(6))
    hidden = np.stack([WEIGHTS, -WEIGHTS]) * np.float32(1e6)
    with encoded(graph) as probe:
        assert probe.score(hidden).tolist() == [1.0, 0.0]
