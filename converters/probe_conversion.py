"""From a probe that was read to probe.onnx: which way it points, and that nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.formats.probe_onnx import (
    GraphSource,
    ProbeSource,
    Quantization,
    SourceOptions,
)
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.probe.probe import OnnxProbe

_N_MADE_UP = 256
_MAX_DIFFERENCE = 1e-3  # more than this is no rounding

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class ConversionSettings:
    """How to convert, and for what.

    layers: whose states the probe takes, joined in this order; 0 is the first block's output, −1
    the last one's, n_layer the state after the final norm. model: the GGUF that it will run on.
    check_states: an .npz of `states` (n, n_features) and `labels` (n,), 1 for harmful.
    harmful_class: which of the source's classes 0 and 1 is the harmful one; None if the source
    says, or check_states tell.
    """

    output: Path
    layers: tuple[int, ...] = ()
    model: Path | None = None
    check_states: Path | None = None
    harmful_class: int | None = None
    quantization: Quantization = "none"
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What was written and how near it is to its source.

    max_difference: of scores, ONNX file in float32 against source. quantization_difference: of
    scores, quantized against not. auroc: on the check states, None without them. size_bytes: of
    the file. layers: counted from the first.
    """

    kind: str
    n_features: int
    harmful_class: int
    n_states: int
    max_difference: float
    size_bytes: int
    layers: tuple[int, ...]
    auroc: float | None = None
    quantization_difference: float | None = None


@dataclass(frozen=True, slots=True)
class _States:
    """States to compare on. labels: (n,) bool, None where they are made up."""

    values: NDArray[np.float32]
    labels: NDArray[np.bool_] | None
    name: str


def convert_probe(
    path: Path, settings: ConversionSettings, options: SourceOptions | None = None
) -> ConversionReport:
    """Convert the probe in a file; a 4096-wide one takes under a second.

    Raises InputError where the source cannot be read or an option is needed, ProbeFileError
    where it is no probe or does not fit the model. Nothing is written then.
    """
    from safesteer_edge.converters.probe_files import read_probe_source

    model = check_language_model(settings.model) if settings.model else None
    return convert_source(read_probe_source(path, options or SourceOptions()), settings, model)


def convert_estimator(estimator: Any, settings: ConversionSettings) -> ConversionReport:
    """Convert a fitted scikit-learn classifier or pipeline. Errors: see convert_probe."""
    from safesteer_edge.formats.probe_sklearn import estimator_source

    return convert_source(estimator_source(estimator), settings)


def convert_module(module: Any, settings: ConversionSettings) -> ConversionReport:
    """Convert a PyTorch Linear or Sequential. Errors: see convert_probe."""
    from safesteer_edge.converters.probe_torch_module import module_source

    return convert_source(module_source(module), settings)


def convert_source(
    source: ProbeSource, settings: ConversionSettings, model: ModelInfo | None = None
) -> ConversionReport:
    """Convert a probe that was read. model: settings.model's, if it was checked already."""
    if settings.model is not None:
        model = model or check_language_model(settings.model)
    settings = _counted_from_first(settings, model)
    _check_width(source, settings, model)
    states = _states(source, settings)
    reference = np.asarray(source.reference_scores(states.values), np.float64)
    harmful_class = _harmful_class(source, settings, states, reference)
    expected = reference if harmful_class == 1 else 1.0 - reference

    name = str(settings.output)
    metadata = _metadata(source, settings, model)
    data = source.encode(metadata, name=name, harmful_class=harmful_class)
    scores = _scores(data, name, states)
    difference = float(np.abs(scores - expected).max())
    if not difference <= _MAX_DIFFERENCE:
        raise ProbeFileError(
            f"cannot convert to {name!r}: in float32 its scores are up to {difference:.2g} away "
            "from the source's; standardise the states before the first layer"
        )
    cost: float | None = None
    if settings.quantization != "none":
        data = source.encode(
            metadata, name=name, harmful_class=harmful_class, quantization=settings.quantization
        )
        quantized = _scores(data, name, states)
        cost = float(np.abs(quantized - scores).max())
        scores = quantized
    with atomic_write(settings.output, "wb") as file:
        file.write(data)
    return ConversionReport(
        kind=source.kind,
        n_features=source.n_features,
        harmful_class=harmful_class,
        n_states=len(states.values),
        max_difference=difference,
        size_bytes=len(data),
        layers=settings.layers,
        auroc=_auroc(scores, states.labels),
        quantization_difference=cost,
    )


def _counted_from_first(
    settings: ConversionSettings, model: ModelInfo | None
) -> ConversionSettings:
    """The same with the blocks that negative layers stand for: −1 is the last one."""
    if min(settings.layers, default=0) >= 0:
        return settings
    if model is None:
        raise ProbeFileError(
            f"--layer {min(settings.layers)} counts from the last block; pass the model with "
            "--model, or count from 0"
        )
    n_layer = model.n_layer
    counted = (layer + n_layer if -n_layer <= layer < 0 else layer for layer in settings.layers)
    return replace(settings, layers=tuple(counted))


def _check_width(
    source: ProbeSource, settings: ConversionSettings, model: ModelInfo | None
) -> None:
    n_layers = max(len(settings.layers), 1)
    if model is None:
        return
    outside = [layer for layer in settings.layers if not 0 <= layer <= model.n_layer]
    if outside:
        raise ProbeFileError(
            f"--layer {outside[0]} is not in {str(model.path)!r}, which has {model.n_layer} "
            f"blocks; expected 0 to {model.n_layer} (0 is the first block's output)"
        )
    if source.n_features != n_layers * model.n_embd:
        raise ProbeFileError(
            f"the probe takes {source.n_features} numbers, and {n_layers} layer(s) of "
            f"{str(model.path)!r} give {n_layers} × {model.n_embd} = {n_layers * model.n_embd}; "
            "name the model and every --layer that it was trained on"
        )


def _states(source: ProbeSource, settings: ConversionSettings) -> _States:
    """Return the labelled states, or made-up ones, spread as the probe's standardiser has it."""
    if settings.check_states is not None:
        return _read_states(settings.check_states, source.n_features)
    noise = np.random.default_rng(0).standard_normal((_N_MADE_UP, source.n_features))
    if isinstance(source, GraphSource):
        noise = noise * source.graph.scale + source.graph.mean
    return _States(noise.astype(np.float32), None, "made-up states")


def _read_states(path: Path, n_features: int) -> _States:
    from safesteer_edge.converters.tensor_files import read_npz

    tensors = read_npz(path).tensors
    states, labels = tensors.get("states"), tensors.get("labels")
    if states is None or labels is None:
        raise InputError(
            f"cannot use {str(path)!r}: it has the arrays {list(tensors)}; expected 'states' "
            "(n, n_features) and 'labels' (n,), 1 for harmful"
        )
    problem = ""
    if states.ndim != 2 or states.shape[1] != n_features or labels.shape != states.shape[:1]:
        problem = f"states {states.shape} and labels {labels.shape}; expected (n, {n_features})"
    elif states.dtype.kind != "f" or not np.isfinite(states.astype(np.float32)).all():
        problem = "states that are not finite floats"
    elif set(np.unique(labels).tolist()) != {0, 1}:
        problem = f"labels {np.unique(labels).tolist()[:5]}; expected 0 and 1, both of them"
    if problem:
        raise InputError(f"cannot use {str(path)!r}: it has {problem}; collect them again")
    return _States(states.astype(np.float32), labels == 1, str(path))


def _harmful_class(
    source: ProbeSource, settings: ConversionSettings, states: _States, reference: FloatArray
) -> int:
    """Return which class is harmful; the labelled states must agree, or decide."""
    measured = _auroc(reference, states.labels)
    asked = settings.harmful_class
    if asked is None and source.harmful_hint:
        if measured is None:
            raise InputError(
                f"cannot tell which way this probe points: {source.harmful_hint}; "
                "or give labelled states: --check-states F.npz"
            )
        asked = 0 if measured < 0.5 else 1
    harmful_class = 1 if asked is None else asked
    if measured is not None:
        rising = measured if harmful_class == 1 else 1.0 - measured
        if rising < 0.5:
            remedy = "turn it round with --flip" if harmful_class == 1 else "leave out --flip"
            raise ProbeFileError(
                f"the probe's score falls with harm: AUROC {rising:.3f} on {states.name!r}; "
                f"{remedy} (--harmful-class {1 - harmful_class})"
            )
    return harmful_class


def _auroc(scores: FloatArray, labels: NDArray[np.bool_] | None) -> float | None:
    return None if labels is None else auroc(scores[labels], scores[~labels])


def _scores(data: bytes, name: str, states: _States) -> NDArray[np.float32]:
    with OnnxProbe.from_bytes(data, name=name, device="cpu") as probe:
        return probe.score(states.values)


def _metadata(
    source: ProbeSource, settings: ConversionSettings, model: ModelInfo | None
) -> dict[str, str]:
    metadata = {
        "safesteer.format_version": "1",
        "safesteer.positive_class": "harmful",
        "safesteer.source_kind": source.kind,
        "safesteer.quantization": settings.quantization,
        **settings.metadata,
    }
    if settings.layers:
        metadata["safesteer.layers"] = ",".join(map(str, settings.layers))
    if model is not None:
        metadata |= {
            "safesteer.model.architecture": model.architecture,
            "safesteer.model.quantization": model.quantization,
            "safesteer.model.tensor_table_sha256": model.tensor_table_sha256,
            "safesteer.model.vocabulary_sha256": model.vocabulary_sha256,
        }
    if settings.check_states is not None:
        digest = hashlib.sha256(settings.check_states.read_bytes()).hexdigest()
        metadata["safesteer.check_states_sha256"] = digest
    return metadata
