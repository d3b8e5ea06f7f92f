"""Probes given as named arrays: state dictionaries, NumPy files, RDS's pair, AutoSteer's prober.

The arrays are first sorted into modules: dense layers, layer norms, standardiser, PCA, calibration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from safesteer_edge.converters.tensor_files import Array, TensorFile
from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.probe_graph import (
    ACTIVATIONS,
    Activation,
    DenseLayer,
    FloatArray,
    Head,
    IsotonicFolds,
    Layer,
    LayerNorm,
    ProbeGraph,
    SigmoidFolds,
    refused,
)
from safesteer_edge.formats.probe_onnx import GraphSource, SourceOptions

_EPSILON = 1e-5  # torch.nn.LayerNorm's default, which a state dictionary does not hold
_FINAL = ("none", "sigmoid", "softmax")
_AUTOSTEER_HINT = "AutoSteer's released code trains with 0 = toxic: --harmful-class 0"
_TWO_OUTPUTS = "it has two outputs; say which is harmful: --harmful-class 0 or 1"
_RDS_HINT = "RDS's released code trains with harmful = 0: --harmful-class 0"
_NUMBER = re.compile(r"\d+")
# What else the arrays of standardisers and linear probes are called.
_SYNONYMS = {"std": "scale", "w": "weight", "b": "bias", "coef": "weight"}
_BUFFERS = {"mean", "scale", "components", "pca_mean"}
_MAX_SHOWN = 8
_PARTS = "a probe may have Linear and LayerNorm layers (weight, bias), mean, scale and components"


@dataclass(slots=True)
class ProbeModules:
    """What the arrays are. dense: name → weight (n_out, n_in), bias (n_out,). norms: gain, bias.

    mean, scale, components, pca_mean: None where the source has none. order: the names in dense
    and norms, as the file has them.
    """

    dense: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    norms: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    mean: FloatArray | None = None
    scale: FloatArray | None = None
    components: FloatArray | None = None
    pca_mean: FloatArray | None = None
    calibration: tuple[float, float] = (1.0, 0.0)
    head: Head | None = None
    order: list[str] = field(default_factory=list)


def state_dict_source(
    file: TensorFile, options: SourceOptions, *, name: str, is_ordered: bool = False
) -> GraphSource:
    """Return the probe of a state dictionary, or of a NumPy file's arrays.

    file.metadata: may hold what options do ('activations', 'modules', 'layer_norm_epsilon').
    Two outputs are a softmax's: class 1 is scored, and nobody says whether it is the harmful one.
    Raises InputError where an option is needed, ProbeFileError for what is no probe.
    """
    modules = sort_into_modules(file.tensors, name=name)
    asked = options.modules or _listed(file.metadata.get("modules"))
    order = order_of_modules(modules, asked, is_ordered=is_ordered, name=name)
    given = options.activations or _listed(file.metadata.get("activations"))
    activations = _activations(given, modules, order, name)
    layers = _layers(modules, order, activations, _epsilon(file.metadata, options))
    layers, hint = _one_logit(layers, activations[-1], modules, name)
    return GraphSource("state dictionary", _graph(modules, layers), hint)


def autosteer_source(
    tensors: Mapping[str, Array], options: SourceOptions, *, name: str
) -> GraphSource:
    """Return AutoSteer's prober: Linear and ReLU in turn, softmax over two. Errors: as above."""
    n_layers = sum(key.endswith("weight") for key in tensors)
    activations = ("relu",) * (n_layers - 1) + ("softmax",)
    known = SourceOptions(activations=activations, modules=options.modules)
    source = state_dict_source(TensorFile(tensors), known, name=name)
    return GraphSource("AutoSteer prober", source.graph, _AUTOSTEER_HINT)


def rds_source(
    transform: Mapping[str, Array], harmfulness: Mapping[str, Array], *, name: str
) -> GraphSource:
    """Return RDS's probe: Linear(k, 1) on the first k columns of V, after centring.

    transform: mean (n_embd,), V (n_embd, n_columns), principal components first. harmfulness:
    weight (n_fits, 1, k), bias (n_fits, 1), averaged over fits as RDS's code does.
    Raises ProbeFileError for other arrays.
    """
    arrays = {**transform, **{f"harmfulness.{key}": value for key, value in harmfulness.items()}}
    expected = {"mean": 1, "V": 2, "harmfulness.weight": 3, "harmfulness.bias": 2}
    shapes = {key: np.shape(array) for key, array in arrays.items()}
    if {key: len(shape) for key, shape in shapes.items()} != expected:
        raise ProbeFileError(
            f"cannot convert {name!r}: RDS's pair has the shapes {shapes}; expected mean (n,), "
            "V (n, n), weight (n_fits, 1, 4), bias (n_fits, 1)"
        )
    weight = arrays["harmfulness.weight"].astype(np.float64).mean(axis=0)
    n_components = weight.shape[1]
    components = arrays["V"].astype(np.float64)[:, :n_components].T
    bias = arrays["harmfulness.bias"].astype(np.float64).mean(axis=0)
    mean = arrays["mean"].astype(np.float64)
    graph = ProbeGraph(mean, np.ones_like(mean), (DenseLayer(weight.T, bias),), components)
    return GraphSource("RDS pair", graph, _RDS_HINT)


def _listed(text: str | None) -> tuple[str, ...] | None:
    return tuple(text.split(",")) if text else None


def _epsilon(metadata: Mapping[str, str], options: SourceOptions) -> float:
    if options.layer_norm_epsilon is not None:
        return options.layer_norm_epsilon
    try:
        return float(metadata.get("layer_norm_epsilon", _EPSILON))
    except ValueError as error:
        raise InputError(f"layer_norm_epsilon is no number: {error}") from error


def _activations(
    given: Sequence[str] | None, modules: ProbeModules, order: Sequence[str], name: str
) -> tuple[str, ...]:
    """Return one activation for each layer; a single layer has none unless somebody says so."""
    if given is None and len(order) == 1:
        return ("none",)
    if given is None:
        kinds = ["Linear" if each in modules.dense else "LayerNorm" for each in order]
        shown = ", ".join(f"{each} ({kind})" for each, kind in zip(order, kinds, strict=True))
        raise InputError(
            f"cannot tell the activations of {name!r}, which no state dictionary holds: its layers "
            f"are {shown}; name what follows each, for example "
            f"--activations {','.join(['relu'] * (len(order) - 1))},none"
        )
    activations = tuple(given) if len(given) == len(order) else (*given, "none")
    allowed = {*ACTIVATIONS, "softmax"}
    unknown = [each for each in activations if each not in allowed]
    if unknown or len(activations) != len(order):
        problem = f"{unknown[0]!r} is none" if unknown else f"there are {len(order)} layers"
        raise InputError(
            f"--activations {','.join(given)} does not fit: {problem}; give one for each of "
            f"{list(order)}, out of {', '.join(ACTIVATIONS)}; softmax only at the end"
        )
    return activations


def _layers(
    modules: ProbeModules, order: Sequence[str], activations: Sequence[str], epsilon: float
) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for index, (name, text) in enumerate(zip(order, activations, strict=True)):
        # the last layer's belongs to the score, see _one_logit
        activation = cast(Activation, text if index < len(order) - 1 else "none")
        if name in modules.dense:
            weight, bias = modules.dense[name]
            layers.append(DenseLayer(weight.T, bias, activation))
        else:
            layers.append(LayerNorm(*modules.norms[name], epsilon, activation))
    return tuple(layers)


def _one_logit(
    layers: tuple[Layer, ...], final: str, modules: ProbeModules, name: str
) -> tuple[tuple[Layer, ...], str]:
    """Return layers that end in the logit of class 1, and why that may not be the harmful one."""
    last = layers[-1]
    n_outputs = last.weights.shape[1] if isinstance(last, DenseLayer) else 0
    n_expected = 1 if modules.head is None else n_outputs
    if final not in _FINAL or ((final == "softmax") != (n_outputs == 2) and final != "none"):
        raise InputError(
            f"cannot convert {name!r}: {final!r} at its end gives no probability of "
            f"{n_outputs} numbers; expected sigmoid (or none) for one, softmax (or none) for two"
        )
    if n_outputs == n_expected:
        return layers, ""
    if n_outputs != 2 or not isinstance(last, DenseLayer):
        raise refused(
            name, f"it ends in {n_outputs} numbers", "expected one (a logit) or two (a softmax's)"
        )
    # softmax over two is the sigmoid of their difference
    weights = last.weights[:, 1:] - last.weights[:, :1]
    merged = DenseLayer(weights, last.bias[1:] - last.bias[:1])
    return (
        *layers[:-1],
        merged,
    ), _TWO_OUTPUTS


def _graph(modules: ProbeModules, layers: tuple[Layer, ...]) -> ProbeGraph:
    width = _n_features(modules, layers)
    mean = np.zeros(width) if modules.mean is None else modules.mean
    scale = np.ones(width) if modules.scale is None else modules.scale
    if modules.pca_mean is not None and modules.pca_mean.shape == mean.shape == scale.shape:
        mean = mean + modules.pca_mean * scale  # ((x - m) / s - p) = (x - (m + p s)) / s
    elif modules.pca_mean is not None:
        raise ProbeFileError(
            f"cannot make a probe: the PCA's mean has shape {modules.pca_mean.shape}, the "
            f"standardiser's {mean.shape}; expected the same"
        )
    parts: dict[str, Any] = {"calibration": modules.calibration, "head": modules.head}
    return ProbeGraph(mean, scale, layers, modules.components, **parts)


def _n_features(modules: ProbeModules, layers: tuple[Layer, ...]) -> int:
    known: list[FloatArray | None] = [modules.mean, modules.scale, modules.pca_mean]
    for array in known:
        if array is not None:
            return len(array)
    if modules.components is not None:
        return int(np.shape(modules.components)[-1])
    first = layers[0]
    return len(first.weights if isinstance(first, DenseLayer) else first.gain)


# -- arrays into modules ---------------------------------------------------------------------------


def sort_into_modules(tensors: Mapping[str, Array], *, name: str) -> ProbeModules:
    """Return what the arrays are, by the names that PyTorch and scikit-learn give them.

    name: what error messages call the source. Raises ProbeFileError for any array that has no
    place, is not made of numbers, or has some that are not finite.
    """
    groups: dict[str, dict[str, FloatArray]] = {}
    for key, tensor in tensors.items():
        prefix, _, leaf = key.rpartition(".")
        leaf = leaf.removesuffix("_")
        # scikit-learn's intercept_ is a bias beside coef_; a calibration's is its own
        if leaf == "intercept" and f"{prefix}.slope".lstrip(".") not in tensors:
            leaf = "bias"
        groups.setdefault(prefix, {})[_SYNONYMS.get(leaf, leaf)] = _numbers(key, tensor, name)
    modules = ProbeModules()
    points: dict[str, tuple[FloatArray, FloatArray]] = {}
    for prefix, group in groups.items():
        rest = _take_buffers(modules, group, name)
        if set(rest) == {"slope", "intercept"}:
            _take_calibration(modules, rest["slope"], rest["intercept"])
        elif set(rest) == {"x", "y"}:
            points[prefix] = rest["x"], rest["y"]
        elif rest:
            _take_layer(modules, prefix, rest, name)
    if points:
        ordered = sorted(points, key=_numbers_in)
        modules.head = IsotonicFolds(tuple(points[prefix] for prefix in ordered))
    if not modules.order:
        raise refused(name, f"it has no layers, only {_shown(list(tensors))}", _PARTS)
    return modules


def order_of_modules(
    modules: ProbeModules, asked: Sequence[str] | None, *, is_ordered: bool, name: str
) -> list[str]:
    """Return the names of layers in the order in which they run.

    asked: that order, from an option. is_ordered: the file keeps the order of definition.
    Raises InputError if nothing tells the order.
    """
    names = modules.order
    if asked is not None:
        if sorted(asked) != sorted(names):
            raise InputError(
                f"--modules names {list(asked)}, and {name!r} has {names}; name each of them once"
            )
        return list(asked)
    if is_ordered or len(names) == 1:
        return names
    patterns = {_NUMBER.sub("#", each) for each in names}
    if len(patterns) == 1 and "#" in patterns.pop():
        return sorted(names, key=_numbers_in)
    raise InputError(
        f"cannot tell the order of the layers in {name!r}, whose names have no numbers; "
        f"name them in order: --modules {','.join(names)}"
    )


def _numbers(key: str, tensor: Array, name: str) -> FloatArray:
    if tensor.dtype.kind not in "fiu":
        raise refused(name, f"array {key!r} holds {tensor.dtype}, not numbers", _PARTS)
    array = tensor.astype(np.float64)
    if not np.isfinite(array).all():
        raise refused(name, f"array {key!r} has numbers that are not finite", "train it again")
    return array


def _take_buffers(
    modules: ProbeModules, group: Mapping[str, FloatArray], name: str
) -> dict[str, FloatArray]:
    """Take standardiser and PCA out of a group and return the rest."""
    found = {leaf: array for leaf, array in group.items() if leaf in _BUFFERS}
    # beside components and without a scale, the mean is the PCA's own
    if "components" in found and "mean" in found and "scale" not in found:
        found["pca_mean"] = found.pop("mean")
    for leaf, array in found.items():
        if getattr(modules, leaf) is not None:
            raise refused(name, f"it has more than one array called {leaf!r}", _PARTS)
        flat = array if leaf == "components" else array.reshape(-1)
        setattr(modules, leaf, flat)
    return {leaf: array for leaf, array in group.items() if leaf not in _BUFFERS}


def _take_calibration(modules: ProbeModules, slope: FloatArray, intercept: FloatArray) -> None:
    if slope.size == intercept.size == 1:
        modules.calibration = float(slope.item()), float(intercept.item())
    else:
        modules.head = SigmoidFolds(slope.reshape(-1), intercept.reshape(-1))


def _take_layer(
    modules: ProbeModules, prefix: str, group: Mapping[str, FloatArray], name: str
) -> None:
    weight = group.get("weight")
    if weight is None or not set(group) <= {"weight", "bias"}:
        problem = f"it has {_shown([f'{prefix}.{leaf}'.lstrip('.') for leaf in group])}"
        raise refused(name, f"{problem}, which belong to no layer that a probe may have", _PARTS)
    is_vector_probe = weight.ndim == 1 and ("bias" not in group or group["bias"].size == 1)
    if (is_vector_probe and weight.size > 1) or weight.size == 1:
        weight = weight.reshape(1, -1)
    if weight.ndim == 2:
        if weight.shape[1] == 1 < weight.shape[0] and group.get("bias", np.zeros(1)).size == 1:
            weight = weight.T  # (n_in, 1), a column
        bias = group.get("bias", np.zeros(weight.shape[0])).reshape(-1)
        modules.dense[prefix] = weight, bias
    elif weight.ndim == 1:
        modules.norms[prefix] = weight, group.get("bias", np.zeros_like(weight))
    else:
        raise refused(name, f"the weight of {prefix!r} has shape {weight.shape}", _PARTS)
    modules.order.append(prefix)


def _numbers_in(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBER.findall(text))


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f"{names[:_MAX_SHOWN]}{more}"
