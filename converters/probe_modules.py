"""Named arrays sorted into modules: dense layers, layer norms, standardiser, PCA, calibration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from safesteer_edge.converters.tensor_files import Array
from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.probe_graph import (
    FloatArray,
    Head,
    IsotonicFolds,
    SigmoidFolds,
)

_NUMBER = re.compile(r"\d+")
# What else the arrays of standardisers and linear probes are called.
_SYNONYMS = {"std": "scale", "w": "weight", "b": "bias", "coef": "weight"}
_BUFFERS = {"mean", "scale", "components", "pca_mean"}
_MAX_SHOWN = 8


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
        raise _refused(name, f"it has no layers, only {_shown(list(tensors))}")
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
        raise _refused(name, f"array {key!r} holds {tensor.dtype}, not numbers")
    array = tensor.astype(np.float64)
    if not np.isfinite(array).all():
        raise _refused(name, f"array {key!r} has numbers that are not finite", "train it again")
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
            raise _refused(name, f"it has more than one array called {leaf!r}")
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
        raise _refused(name, f"{problem}, which belong to no layer that a probe may have")
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
        raise _refused(name, f"the weight of {prefix!r} has shape {weight.shape}")
    modules.order.append(prefix)


def _numbers_in(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBER.findall(text))


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f"{names[:_MAX_SHOWN]}{more}"


def _refused(name: str, problem: str, remedy: str = "") -> ProbeFileError:
    remedy = remedy or (
        "a probe may have Linear and LayerNorm layers (weight, bias), mean, scale and components"
    )
    return ProbeFileError(f"cannot convert {name!r}: {problem}; {remedy}")
