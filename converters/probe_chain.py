"""Linear steps and layers put together, one after the other, into the parts of a probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from safesteer_edge.converters.probe_graph import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    Activation,
    DenseLayer,
    FloatArray,
    Head,
    Layer,
    LayerNorm,
    ProbeGraph,
)


@dataclass(slots=True)
class ProbeChain:
    """A probe under construction; each step takes the one before as its input.

    Steps that only shift and scale are kept apart until the next product takes them in, so that
    rounding to float32 happens after the standardisation and not inside a sum of large numbers.
    """

    mean: FloatArray
    scale: FloatArray
    components: FloatArray | None = None
    layers: list[Layer] = field(default_factory=list)
    _pending: tuple[FloatArray, FloatArray] | None = None

    @classmethod
    def of_width(cls, n_features: int) -> ProbeChain:
        """Return a chain that gives its input."""
        return cls(np.zeros(n_features), np.ones(n_features))

    def standardise(self, mean: FloatArray, scale: FloatArray) -> None:
        """Add (x - mean) / scale."""
        if self.components is None and not self.layers:
            self.mean = self.mean + mean * self.scale
            self.scale = self.scale * scale
        elif self._pending is None:
            self._pending = mean, scale
        else:
            first_mean, first_scale = self._pending
            self._pending = first_mean + mean * first_scale, first_scale * scale

    def project(self, mean: FloatArray, components: FloatArray) -> None:
        """Add (x - mean) @ components.T. components: (n_components, n_in)."""
        if self.components is None and not self.layers:
            self.standardise(mean, np.ones_like(mean))
            self.components = components
        else:
            self.dense(components.T, -(mean @ components.T))

    def dense(self, weights: FloatArray, bias: FloatArray, activation: Activation = "none") -> None:
        """Add activation(x @ weights + bias)."""
        if self._pending is not None:
            mean, scale = self._pending
            weights = weights / scale[:, None]
            bias = bias - mean @ weights
            self._pending = None
        self.layers.append(DenseLayer(weights, bias, activation))

    def graph(self, head: Head | None = None) -> ProbeGraph:
        """Return the probe, whose last layer must give its logits."""
        return ProbeGraph(
            self.mean, self.scale, tuple(self.layers), components=self.components, head=head
        )


def side_by_side(chains: Sequence[ProbeChain]) -> ProbeChain | None:
    """Return one chain whose last layer gives each of the chains' outputs, in their order.

    The chains are folds of one estimator: None if their layers are not of the same kinds.
    """
    first = chains[0]
    if len(chains) == 1:
        return first
    shared = ProbeChain(first.mean, first.scale)
    folds = [_relative_to(shared, chain) for chain in chains]
    if len({len(layers) for layers in folds}) != 1:
        return None
    for index, layers in enumerate(zip(*folds, strict=True)):
        if len({layer.activation for layer in layers}) != 1:
            return None
        weights = [layer.weights for layer in layers]
        joined = np.concatenate(weights, axis=1) if index == 0 else _block_diagonal(weights)
        bias = np.concatenate([layer.bias for layer in layers])
        shared.layers.append(DenseLayer(joined, bias, layers[0].activation))
    return shared


def _relative_to(shared: ProbeChain, chain: ProbeChain) -> list[DenseLayer]:
    """Return the chain's layers for an input that the shared chain has standardised."""
    layers = [layer for layer in chain.layers if not isinstance(layer, LayerNorm)]
    if chain.components is not None:
        n_components = len(chain.components)
        layers.insert(0, DenseLayer(chain.components.T, np.zeros(n_components)))
    ratio = shared.scale / chain.scale
    offset = (shared.mean - chain.mean) / chain.scale
    first = layers[0]
    weights = first.weights * ratio[:, None]
    layers[0] = DenseLayer(weights, first.bias + offset @ first.weights, first.activation)
    return layers


def _block_diagonal(blocks: Sequence[FloatArray]) -> FloatArray:
    shapes = np.array([block.shape for block in blocks])
    whole = np.zeros(shapes.sum(axis=0))
    row, column = 0, 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole
