"""A bundle's alignment vector: its checks against the model, and its scaling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.require import require
from safesteer_edge.bundle.schema import GuardConfig, VectorEntry
from safesteer_edge.formats.control_vector_file import ControlVector

# What is added may be as long as the state that it is added to, and no longer: useful steering
# stays well below that, and beyond it the model's own computation is lost, whatever the intent.
MAX_VECTOR_RATIO = 1.0


def scaled_vector(vector: ControlVector, entry: VectorEntry, scale: float) -> ControlVector:
    """Return sign · scale · vector on the layers that the bundle steers, zero on all others."""
    first, last = entry.layers
    directions = np.zeros_like(vector.directions)
    directions[first : last + 1] = vector.directions[first : last + 1] * np.float32(
        entry.sign * scale
    )
    return replace(vector, directions=directions)


def is_reversed(entry: VectorEntry) -> bool:
    """Tell whether the sign or any scale is negative; two negatives are no better explained."""
    return entry.sign < 0 or any(scale < 0 for scale in entry.scales())


def check_polarity(entry: VectorEntry, *, allow_negative_scale: bool) -> None:
    """Refuse a vector that is applied against its direction, unless the user asks for it.

    Subtracting a safety vector is an attack (arXiv 2603.24543), and looks like any other file.
    Raises BundleError.
    """
    require(
        allow_negative_scale or not is_reversed(entry),
        f"the bundle applies its vector backwards (sign {entry.sign}, scales "
        f"{list(entry.scales())}), which would weaken the model's safety; load it only if that is "
        "what you want, with allow_negative_scale",
    )


def check_vector(vector: ControlVector, config: GuardConfig, entry: VectorEntry) -> None:
    """Check a vector's shape, origin and length against the model that the bundle is for.

    Raises BundleError if the shape is not (n_layer, n_embd), if it was made for another
    architecture, or if a layer would be moved by more than MAX_VECTOR_RATIO of its own norm.
    """
    expected_shape = (config.model.n_layer, config.model.n_embd)
    require(
        vector.directions.shape == expected_shape,
        f"{entry.file!r} has shape {vector.directions.shape}; expected {expected_shape} "
        "(n_layer, n_embd); get the bundle again",
    )
    require(
        vector.model_hint == config.model.architecture,
        f"{entry.file!r} is made for {vector.model_hint!r} models; this bundle is for "
        f"{config.model.architecture!r}",
    )
    require(
        vector.layer_convention == entry.layer_convention,
        f"{entry.file!r} has layer convention {vector.layer_convention!r}; guard.json says "
        f"{entry.layer_convention!r}",
    )
    largest = max(entry.scales(), key=abs)
    ratios = _norms(scaled_vector(vector, entry, largest)) / np.array(config.residual_norms)
    worst = int(np.nan_to_num(ratios, nan=np.inf).argmax())
    # Written so that a NaN fails.
    require(
        bool(ratios[worst] <= MAX_VECTOR_RATIO),
        f"{entry.file!r} at scale {largest} would move layer {worst} by {ratios[worst]:.3g} times "
        f"the norm of its state; expected at most {MAX_VECTOR_RATIO}: lower the scale",
    )


def _norms(vector: ControlVector) -> NDArray[np.float64]:
    """Return each layer's L2 norm, float64 (n_layer,)."""
    return np.linalg.norm(vector.directions.astype(np.float64), axis=1)
