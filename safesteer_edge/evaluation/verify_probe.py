"""Whether a bundle's probe still is the probe that it was made from: scores side by side.

The source is worked out in float64 by the formula alone (`LinearSource`), or is another ONNX
graph; the converted probe runs in ONNX Runtime, as it does while the guard decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle
from safesteer_edge.bundle.bundle_files import MAX_PROBE_BYTES
from safesteer_edge.converters.vector_arrays import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    ARRAY_SUFFIXES,
    read_arrays,
)
from safesteer_edge.errors import ProbeFileError, SettingsError
from safesteer_edge.guard.probe import Device, OnnxProbe

N_RANDOM_STATES: Final = 256
MAX_SCORE_DIFFERENCE: Final = 1e-5

Scorer = Callable[[NDArray[np.float32]], NDArray[np.float64]]

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "weights": ("w", "weights", "weight", "coef", "coef_"),
    "bias": ("b", "bias", "intercept", "intercept_"),
    "mean": ("mean", "mean_"),
    "scale": ("scale", "scale_"),
    "components": ("components", "components_"),
    "platt": ("platt",),
}


@dataclass(frozen=True, slots=True)
class LinearSource:
    """sigmoid(slope · (((x − mean) / scale) @ components.T · weights + bias) + intercept)."""

    weights: NDArray[np.float64]
    bias: float
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float64] | None
    platt: tuple[float, float]

    def scores(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the harmful scores of states (n, n_features), float64 (n,)."""
        features = (states.astype(np.float64) - self.mean) / self.scale
        if self.components is not None:
            features = features @ self.components.T
        logits = self.platt[0] * (features @ self.weights + self.bias) + self.platt[1]
        return 0.5 * (1.0 + np.tanh(0.5 * logits))  # the sigmoid, without its overflow


@dataclass(frozen=True, slots=True)
class ProbeParity:
    """How far two scorers differ over the same states. provider: where the bundle's probe ran."""

    provider: str
    n_states: int
    max_difference: float
    least_score: float
    largest_score: float


def compare_probe(probe: OnnxProbe, source: Scorer, states: NDArray[np.float32]) -> ProbeParity:
    """Score the states twice and compare. Raises GuardError for scores that are no scores."""
    scores = probe.score(states).astype(np.float64)
    expected = source(states)
    return ProbeParity(
        provider=probe.provider,
        n_states=len(states),
        max_difference=float(np.abs(scores - expected).max()),
        least_score=float(scores.min()),
        largest_score=float(scores.max()),
    )


def read_probe_source(path: Path, n_features: int) -> Scorer:
    """Return what scores states as the source does: a linear form in arrays, or an .onnx file.

    Raises ProbeFileError for a file that is neither, or of another width, InputError for one whose
    arrays cannot be read.
    """
    if path.suffix.lower() == ".onnx":
        return _onnx_scorer(path, n_features)
    if path.suffix.lower() not in (".npz", ".safetensors"):
        raise ProbeFileError(
            f"cannot compare with {str(path)!r}: expected the probe's linear form as .npz or "
            ".safetensors (w, b, mean, scale, components), or another .onnx"
        )
    source = _linear_source(path, read_arrays(path).arrays)
    width = len(source.mean) if source.components is None else source.components.shape[1]
    if width != n_features:
        raise ProbeFileError(
            f"{str(path)!r} reads states of {width} values; the bundle's probe reads {n_features}"
        )
    return source.scores


def read_probe_bytes(path: Path) -> bytes:
    """Return the bytes of an .onnx file. Raises ProbeFileError if it is missing or too large."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_PROBE_BYTES:
            raise ProbeFileError(f"{str(path)!r} has {size_bytes} bytes: too many for a probe")
        return path.read_bytes()
    except OSError as error:
        raise ProbeFileError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def read_states(path: Path, n_features: int) -> NDArray[np.float32]:
    """Return states from a file of arrays: 'states', or its only matrix.

    Raises SettingsError if they are not finite float (n, n_features), InputError for a file that
    cannot be read.
    """
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise SettingsError(f"states in {path.name!r}; expected one of {ARRAY_SUFFIXES}")
    arrays = read_arrays(path).arrays
    states = arrays.get("states")
    if states is None and len(arrays) == 1:
        states = next(iter(arrays.values()))
    shape = None if states is None else states.shape
    if states is None or states.ndim != 2 or not len(states) or states.shape[1] != n_features:
        raise SettingsError(
            f"{str(path)!r} holds states of shape {shape}; expected (n, {n_features})"
        )
    if not np.isfinite(states.astype(np.float32)).all():
        raise SettingsError(f"{str(path)!r} holds states that are not finite")
    return states.astype(np.float32)


def random_states(bundle: GuardBundle, *, seed: int = 0) -> NDArray[np.float32]:
    """Return states like the model's own: random mixtures of the bundle's stored ones, and noise.

    Float32 (N_RANDOM_STATES, n_features). Pure noise would leave most probes saturated.
    """
    rng = np.random.default_rng(seed)
    canaries = (*bundle.config.canaries.probe, *bundle.config.canaries.engine)
    stored = np.stack([canary.state() for canary in canaries]).astype(np.float64)
    mixtures = rng.dirichlet(np.ones(len(stored)), N_RANDOM_STATES) @ stored
    noise = rng.standard_normal(mixtures.shape) * stored.std()
    share = rng.uniform(0.0, 0.5, (N_RANDOM_STATES, 1))
    return (mixtures + share * noise).astype(np.float32)


def open_probe_again(bundle: GuardBundle, device: Device) -> OnnxProbe:
    """Open the bundle's own probe on a device. The caller closes it. Raises GuardError."""
    path = bundle.folder / bundle.config.probe.file
    return OnnxProbe.from_bytes(read_probe_bytes(path), name=str(path), device=device)


def _onnx_scorer(path: Path, n_features: int) -> Scorer:
    probe = OnnxProbe.from_bytes(read_probe_bytes(path), name=str(path), device="cpu")
    if probe.n_features != n_features:
        probe.close()
        raise ProbeFileError(
            f"{str(path)!r} reads states of {probe.n_features} values; the bundle's probe reads "
            f"{n_features}"
        )
    return lambda states: probe.score(states).astype(np.float64)


def _linear_source(path: Path, arrays: Mapping[str, NDArray[np.float64]]) -> LinearSource:
    found = {
        what: next((arrays[name] for name in names if name in arrays), None)
        for what, names in _NAMES.items()
    }
    weights, bias, components = found["weights"], found["bias"], found["components"]
    if weights is None or bias is None or weights.size < 1 or bias.size != 1:
        raise ProbeFileError(
            f"{str(path)!r} holds {sorted(arrays)[:8]}; expected the weights 'w' and the bias 'b'"
        )
    weights = weights.reshape(-1)
    n_features = len(weights) if components is None else components.shape[-1]
    mean, scale, platt = found["mean"], found["scale"], found["platt"]
    source = LinearSource(
        weights=weights,
        bias=float(bias.reshape(-1)[0]),
        mean=np.zeros(n_features) if mean is None else mean.reshape(-1),
        scale=np.ones(n_features) if scale is None else scale.reshape(-1),
        components=components,
        platt=(1.0, 0.0) if platt is None else (float(platt.flat[0]), float(platt.flat[-1])),
    )
    projected = n_features if components is None else len(components)
    if {len(source.mean), len(source.scale)} != {n_features} or projected != len(weights):
        raise ProbeFileError(f"{str(path)!r}: weights, mean, scale and components do not fit")
    return source
