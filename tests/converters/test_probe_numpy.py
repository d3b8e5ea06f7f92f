"""NumPy's files as probes; labelled states that tell which way they point; going back."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from safesteer_edge.converters.probe_conversion import (
    ConversionSettings,
    convert_estimator,
    convert_probe,
)
from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.probe_onnx import SourceOptions
from tests.converters.probe_parity import assert_parity, labels_of, scores_of, wide_states

STATES = wide_states()
LABELS = labels_of(STATES)
NEW_STATES = wide_states(seed=2)
RNG = np.random.default_rng(0)
MEAN, SCALE = STATES.mean(axis=0), STATES.std(axis=0)
COMPONENTS = np.linalg.qr(RNG.standard_normal((24, 4)))[0].T
W24, W4, B = RNG.standard_normal(24) * 0.3, RNG.standard_normal(4), 0.25


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def standardised(states: Any) -> Any:
    return (states - MEAN) / SCALE


ARRAYS: dict[str, tuple[dict[str, Any], Any]] = {
    "w and b": ({"w": W24, "b": B}, lambda x: x @ W24 + B),
    "w alone": ({"w": W24}, lambda x: x @ W24),
    "a row": ({"w": W24[None], "b": np.array([B])}, lambda x: x @ W24 + B),
    "a column": ({"w": W24[:, None], "b": np.array([B])}, lambda x: x @ W24 + B),
    "as scikit-learn": ({"coef_": W24[None], "intercept_": [B]}, lambda x: x @ W24 + B),
    "standardised": (
        {"w": W24, "b": B, "mean": MEAN, "scale": SCALE},
        lambda x: standardised(x) @ W24 + B,
    ),
    "std": (
        {"w": W24, "b": B, "mean": MEAN, "std": SCALE},
        lambda x: standardised(x) @ W24 + B,
    ),
    "all five": (
        {"w": W4, "b": B, "mean": MEAN, "scale": SCALE, "components": COMPONENTS},
        lambda x: standardised(x) @ COMPONENTS.T @ W4 + B,
    ),
    "PCA alone": (
        {"w": W4, "b": B, "mean": MEAN, "components": COMPONENTS},
        lambda x: (x - MEAN) @ COMPONENTS.T @ W4 + B,
    ),
    "PCA's own mean": (
        {"w": W4, "mean": MEAN, "scale": SCALE, "components": COMPONENTS, "pca_mean": W24},
        lambda x: (standardised(x) - W24) @ COMPONENTS.T @ W4,
    ),
}


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A linear probe that finds LABELS."""
    model = LogisticRegression().fit(standardised(STATES), LABELS)
    path = tmp_path / "linear.npz"
    np.savez(path, w=model.coef_[0], b=model.intercept_, mean=MEAN, scale=SCALE)
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """States with labels."""
    np.savez(tmp_path / "states.npz", states=NEW_STATES, labels=labels_of(NEW_STATES))
    return tmp_path / "states.npz"


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_in_an_npz_score_the_same(name: str, save: Any, tmp_path: Path):
    arrays, logit = ARRAYS[name]
    save(tmp_path / "probe.npz", **arrays)
    convert_probe(tmp_path / "probe.npz", ConversionSettings(tmp_path / "probe.onnx"))
    assert_parity(tmp_path / "probe.onnx", STATES, sigmoid(logit(STATES.astype(np.float64))))


def test_labelled_states_are_measured(linear: Path, labelled: Path):
    output = linear.with_name("probe.onnx")
    report = convert_probe(linear, ConversionSettings(output, check_states=labelled))
    assert report.auroc is not None
    assert report.auroc > 0.9
    assert report.max_difference < 1e-5
    assert report.n_states == len(NEW_STATES)


def test_a_score_that_falls_with_harm_is_refused_until_it_is_flipped(tmp_path: Path, linear: Path):
    states, output = tmp_path / "states.npz", tmp_path / "probe.onnx"
    np.savez(states, states=NEW_STATES, labels=1 - labels_of(NEW_STATES))
    with pytest.raises(ProbeFileError, match=r"falls with harm: AUROC 0\.0.*--flip"):
        convert_probe(linear, ConversionSettings(output, check_states=states))
    assert not output.exists()
    settings = ConversionSettings(output, check_states=states, harmful_class=0)
    report = convert_probe(linear, settings)
    assert report.auroc is not None
    assert report.auroc > 0.9
    with np.load(linear) as arrays:
        expected = sigmoid(-(standardised(NEW_STATES) @ arrays["w"] + arrays["b"]))
    assert_parity(output, NEW_STATES, expected)


def test_a_flip_that_the_labelled_states_contradict_is_refused(linear: Path, labelled: Path):
    settings = ConversionSettings(
        linear.with_name("probe.onnx"), check_states=labelled, harmful_class=0
    )
    with pytest.raises(ProbeFileError, match="leave out --flip"):
        convert_probe(linear, settings)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"states": NEW_STATES}, "expected 'states'"),
        ({"states": NEW_STATES[:, :5], "labels": LABELS}, "expected \\(n, 24\\)"),
        ({"states": NEW_STATES, "labels": LABELS[:5]}, "expected \\(n, 24\\)"),
        ({"states": NEW_STATES, "labels": LABELS + 1}, "expected 0 and 1"),
        ({"states": NEW_STATES, "labels": LABELS * 0}, "both of them"),
        ({"states": NEW_STATES * np.nan, "labels": LABELS}, "not finite"),
    ],
)
def test_labelled_states_that_do_not_fit_are_refused(
    arrays: dict[str, Any], reason: str, linear: Path, tmp_path: Path
):
    np.savez(tmp_path / "states.npz", **arrays)
    settings = ConversionSettings(tmp_path / "p.onnx", check_states=tmp_path / "states.npz")
    with pytest.raises(InputError, match=reason):
        convert_probe(linear, settings)
    assert not (tmp_path / "p.onnx").exists()


@pytest.mark.parametrize(
    ("quantization", "cost", "share"), [("fp16", 1e-3, 0.6), ("int8", 0.02, 0.4)]
)
def test_quantized_probes_are_smaller_and_say_what_it_costs(
    quantization: Any, cost: float, share: float, tmp_path: Path
):
    rng = np.random.default_rng(0)
    arrays = {"0.weight": rng.standard_normal((64, 24)) * 0.2, "0.bias": np.zeros(64)}
    arrays |= {"2.weight": rng.standard_normal((1, 64)) * 0.2, "2.bias": np.zeros(1)}
    np.savez(tmp_path / "probe.npz", **arrays)
    options = SourceOptions(activations=("relu",))
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    convert_probe(tmp_path / "probe.npz", ConversionSettings(plain), options)
    settings = ConversionSettings(small, quantization=quantization)
    report = convert_probe(tmp_path / "probe.npz", settings, options)
    states = np.random.default_rng(0).standard_normal((256, 24)).astype(np.float32)
    measured = np.abs(scores_of(small, states) - scores_of(plain, states)).max()
    assert report.quantization_difference is not None
    assert report.quantization_difference == pytest.approx(measured, abs=1e-7)
    assert 0 < report.quantization_difference < cost
    assert small.stat().st_size < plain.stat().st_size * share + 1000


def test_quantizing_an_isotonic_probe_is_refused(tmp_path: Path):
    estimator = CalibratedClassifierCV(LinearSVC(), method="isotonic").fit(
        standardised(STATES), LABELS
    )
    with pytest.raises(InputError, match="isotonic calibration needs float64"):
        convert_estimator(estimator, ConversionSettings(tmp_path / "p.onnx", quantization="int8"))


def npz_with(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


HUGE_HEADER = npy(np.zeros(4)).replace(b"(4,)", b"(4000000000,)")[:-32]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"w.npy": npy(np.array([{}], dtype=object))}, "only a pickle could load"),
        ({"w.npy": npy(W24)[:-3]}, "is damaged"),
        ({"w.npy": b"\x80\x04N."}, "is damaged"),
        ({"w.npy": npy(np.array(["a", "b"]))}, "not numbers"),
        ({"w.npy": npy(W24 * np.inf)}, "not finite"),
        ({"w.npy": npy(np.ones(4)).replace(b"(4,)", b"(9,)")}, "its shape is"),
        ({"w.npy": HUGE_HEADER}, "is damaged"),
        ({"q.npy": npy(W24)}, "belong to no layer"),
        ({"mean.npy": npy(np.ones(3)), "w.npy": npy(W24)}, "weights of layer 0"),
        ({"scale.npy": npy(np.zeros(24)), "w.npy": npy(W24)}, "scale is not above 0"),
        ({"w.npy": npy(W24 * 1e300)}, "not finite in float32"),
    ],
)
def test_a_bad_npz_is_refused_and_nothing_is_written(
    members: dict[str, bytes], reason: str, tmp_path: Path
):
    source = npz_with(tmp_path / "probe.npz", members)
    with pytest.raises(InputError, match=reason) as caught:
        convert_probe(source, ConversionSettings(tmp_path / "probe.onnx"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("suffix", [".npz", ".skops", ".pt"])
def test_a_zip_that_unpacks_to_gigabytes_is_refused_unread(suffix: str, tmp_path: Path):
    zeros = b"\0" * (64 << 20)
    source = tmp_path / f"bomb{suffix}"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(9):
            archive.writestr(f"{index}.npy", zeros)
    assert source.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="unpacks to 603979776 bytes"):
        convert_probe(source, ConversionSettings(tmp_path / "probe.onnx"))


def safetensors(header: bytes) -> bytes:
    """A file of this header and no numbers."""
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a whole safetensors file"),
        (b"\xff" * 64, "not a whole safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "does not fit|no layers"),
        (safetensors(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'), "header"),
        (safetensors(b'{"w":{"dtype":"F32","shape":[1e9],"data_offsets":[0,0]}}'), "header"),
        (safetensors(b'{"w":{"dtype":"F9","shape":[0],"data_offsets":[0,0]}}'), "header"),
        (safetensors(b'{"w":{"shape":[0],"data_offsets":[0,0]}}'), "header"),
        (safetensors(b'{"w":3}'), "header"),
        (safetensors(b"[" * 90_000), "header"),
    ],
)
def test_a_damaged_safetensors_file_is_refused(data: bytes, reason: str, tmp_path: Path):
    (tmp_path / "probe.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=reason):
        convert_probe(tmp_path / "probe.safetensors", ConversionSettings(tmp_path / "probe.onnx"))
