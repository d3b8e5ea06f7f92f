"""What a probe is before it is converted: where it came from, and what it computes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.probe_graph import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    ProbeGraph,
    score_states,
    turned_round,
)
from safesteer_edge.converters.probe_onnx import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    encode_probe,
)
from safesteer_edge.converters.probe_storage import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    Quantization,
)

States = NDArray[np.floating[Any]]
Reference = Callable[[States], NDArray[np.floating[Any]]]
Kind = Literal["auto", "state-dict", "numpy", "rds", "autosteer", "scikit-learn", "onnx"]
OutputKind = Literal["auto", "logit", "probability"]
KINDS: Final = ("auto", "state-dict", "numpy", "rds", "autosteer", "scikit-learn", "onnx")
OUTPUT_KINDS: Final = ("auto", "logit", "probability")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source does not say about itself.

    activations: one after each Linear and LayerNorm; the last may be left out. modules: their
    names in order. harmfulness: the second file of RDS's pair. output, output_kind, n_features:
    of an ONNX graph.
    """

    kind: Kind = "auto"
    activations: tuple[str, ...] | None = None
    modules: tuple[str, ...] | None = None
    layer_norm_epsilon: float | None = None
    harmfulness: Path | None = None
    output: str | None = None
    output_kind: OutputKind = "auto"
    n_features: int | None = None


class ProbeSource(Protocol):
    """A probe that was read. Its score is that of its class 1, whatever that means there.

    kind: in words, for the report. harmful_hint: '' if class 1 is the harmful one unless somebody
    says otherwise; else why that cannot be taken for granted.
    """

    @property
    def kind(self) -> str: ...
    @property
    def harmful_hint(self) -> str: ...
    @property
    def n_features(self) -> int: ...
    def reference_scores(self, states: States) -> NDArray[np.floating[Any]]:
        """Return (n,) scores of class 1 as the source itself computes them."""
        ...

    def encode(
        self,
        metadata: Mapping[str, str],
        *,
        name: str,
        harmful_class: int = 1,
        quantization: Quantization = "none",
    ) -> bytes:
        """Return probe.onnx, which scores the harmful class."""
        ...


@dataclass(frozen=True, slots=True)
class GraphSource:
    """A probe whose parameters are known. reference: the source's own scores, if it can run."""

    kind: str
    graph: ProbeGraph
    harmful_hint: str = ""
    reference: Reference | None = None

    @property
    def n_features(self) -> int:
        """The width of one state."""
        return self.graph.n_features

    def reference_scores(self, states: States) -> NDArray[np.floating[Any]]:
        """Return (n,) scores of class 1; in NumPy and float64 where the source cannot run."""
        return (
            score_states(self.graph, states) if self.reference is None else self.reference(states)
        )

    def encode(
        self,
        metadata: Mapping[str, str],
        *,
        name: str,
        harmful_class: int = 1,
        quantization: Quantization = "none",
    ) -> bytes:
        """Return probe.onnx, which scores the harmful class. Errors: see write_probe."""
        graph = self.graph if harmful_class == 1 else turned_round(self.graph)
        return encode_probe(graph, metadata, name=name, quantization=quantization)
