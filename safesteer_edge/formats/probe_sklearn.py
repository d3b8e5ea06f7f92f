"""scikit-learn's classifiers as probes. What was read is compared with the estimator itself.

Estimators are told apart by their exact class: a subclass may compute something else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.probe_graph import (
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
    score_states,
    transposed,
)
from safesteer_edge.formats.probe_onnx import (
    GraphSource,
    States,
)

# -- linear steps and layers put together, one after the other, into the parts of a probe ----------


@dataclass(slots=True)
class ProbeChain:
    """A probe under construction; each step takes the one before as its input.

    Steps that only shift and scale are kept apart until the next product takes them in, so that
    rounding to float32 happens after the standardisation and not inside a sum of large numbers.
    """

    mean: FloatArray
    scale: FloatArray
    components: FloatArray | None = None
    layers: list[Layer] = field(default_factory=list[Layer])
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
        """Add (x - mean) @ components.transpose(). components: (n_components, n_in)."""
        if self.components is None and not self.layers:
            self.standardise(mean, np.ones_like(mean))
            self.components = components
        else:
            self.dense(transposed(components), -(components @ mean))

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
    linalg: Any = importlib.import_module("scipy.linalg")
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
        joined = np.concatenate(weights, axis=1) if index == 0 else linalg.block_diag(*weights)
        bias = np.concatenate([layer.bias for layer in layers])
        shared.layers.append(DenseLayer(joined, bias, layers[0].activation))
    return shared


def _relative_to(shared: ProbeChain, chain: ProbeChain) -> list[DenseLayer]:
    """Return the chain's layers for an input that the shared chain has standardised."""
    layers = [layer for layer in chain.layers if not isinstance(layer, LayerNorm)]
    if chain.components is not None:
        n_components = len(chain.components)
        layers.insert(0, DenseLayer(transposed(chain.components), np.zeros(n_components)))
    ratio = shared.scale / chain.scale
    offset = (shared.mean - chain.mean) / chain.scale
    first = layers[0]
    weights = first.weights * ratio[:, None]
    layers[0] = DenseLayer(weights, first.bias + offset @ first.weights, first.activation)
    return layers


_LINEAR = ("LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis")
_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "identity": "none",
    "logistic": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
}
_USUAL_CLASSES = ((0, 1), (False, True), (-1, 1))
_TOLERANCE = 1e-6  # both compute in float64
_N_CHECKED = 64
_SUPPORTED = (
    "LogisticRegression, LogisticRegressionCV, SGDClassifier(loss='log_loss'), "
    "LinearDiscriminantAnalysis, MLPClassifier, CalibratedClassifierCV, StandardScaler, PCA, and "
    "pipelines of these"
)


def estimator_source(estimator: Any, *, name: str = "estimator") -> GraphSource:
    """Return the probe of a fitted binary classifier or pipeline; class 1 is `classes_[1]`.

    name: what error messages call it. Raises ProbeFileError if it is not fitted, not binary, or
    has a part that is not translated.
    """
    try:
        classes = np.asarray(estimator.classes_).tolist()
        if len(classes) != 2:
            raise refused(
                name, f"it has {len(classes)} classes; expected 2", f"supported are {_SUPPORTED}"
            )
        graph = _Translation(name).graph_of(estimator)
    except AttributeError as error:
        raise refused(name, f"it is no fitted classifier ({error})", "fit it first") from error

    def reference(states: States) -> Any:
        return estimator.predict_proba(states)[:, 1]

    _check_same(graph, reference, name)
    usual = tuple(classes) in _USUAL_CLASSES
    hint = "" if usual else f"its classes are {classes}; say which is harmful: --harmful-class 0|1"
    return GraphSource(f"scikit-learn {type(estimator).__name__}", graph, hint, reference)


class _Translation:
    """One estimator's translation; name: for errors."""

    def __init__(self, name: str) -> None:
        self._name = name

    def graph_of(self, estimator: Any) -> ProbeGraph:
        chain = ProbeChain.of_width(self._n_features(estimator))
        classifier = self._add_transformers(chain, estimator)
        if self._kind(classifier) == "CalibratedClassifierCV":
            return self._calibrated(classifier, chain)
        self._add_margin(chain, classifier, as_score=True)
        return chain.graph()

    def _n_features(self, estimator: Any) -> int:
        if self._kind(estimator) == "Pipeline":
            return self._n_features(estimator.steps[0][1])
        return int(estimator.n_features_in_)

    def _kind(self, estimator: Any) -> str:
        """Return the class's name if the class is scikit-learn's own."""
        kind: Any = type(cast(object, estimator))
        if kind.__module__.split(".")[0] != "sklearn":
            raise self._unknown(f"{kind.__module__}.{kind.__qualname__}")
        return kind.__name__

    def _add_transformers(self, chain: ProbeChain, estimator: Any) -> Any:
        """Add a pipeline's steps but the last, and return that; anything else comes back."""
        kind = self._kind(estimator)
        if kind == "FrozenEstimator":
            return self._add_transformers(chain, estimator.estimator)
        if kind != "Pipeline":
            return estimator
        for _, step in estimator.steps[:-1]:
            if step is not None and step != "passthrough":
                self._add_transformer(chain, step)
        return self._add_transformers(chain, estimator.steps[-1][1])

    def _add_transformer(self, chain: ProbeChain, step: Any) -> None:
        kind = self._kind(step)
        n_in = self._n_features(step)
        if kind == "Pipeline":
            self._add_transformer(chain, self._add_transformers(chain, step))
        elif kind == "StandardScaler":
            mean = np.zeros(n_in) if step.mean_ is None or not step.with_mean else step.mean_
            scale = np.ones(n_in) if step.scale_ is None else step.scale_
            chain.standardise(_float64(mean), _float64(scale))
        elif kind == "PCA":
            components = _float64(step.components_)
            if step.whiten:
                components = components / np.sqrt(step.explained_variance_)[:, None]
            chain.project(_float64(step.mean_), components)
        else:
            raise self._unknown(kind)

    def _add_margin(self, chain: ProbeChain, estimator: Any, *, as_score: bool) -> bool:
        """Add the layers that give the logit of class 1; True if they give its probability.

        as_score: the estimator's own probability is wanted, so it must have one; else what
        CalibratedClassifierCV asks for, the margin where there is one.
        """
        classifier = self._add_transformers(chain, estimator)
        kind = self._kind(classifier)
        if kind == "MLPClassifier":
            self._add_perceptron(chain, classifier, is_probability=not as_score)
            return not as_score
        is_linear = kind in _LINEAR or (kind == "SGDClassifier" and classifier.loss == "log_loss")
        if kind in ("LinearSVC", "SGDClassifier") and as_score and not is_linear:
            raise refused(
                self._name,
                f"{kind} gives a margin and no probability",
                "fit it inside CalibratedClassifierCV",
            )
        if not is_linear and kind not in ("LinearSVC", "SGDClassifier", "RidgeClassifier"):
            raise self._unknown(kind)
        coefficients = transposed(_float64(np.atleast_2d(classifier.coef_)))
        chain.dense(coefficients, _float64(np.atleast_1d(classifier.intercept_)))
        return False

    def _add_perceptron(self, chain: ProbeChain, classifier: Any, *, is_probability: bool) -> None:
        hidden = _ACTIVATIONS[classifier.activation]
        last = len(classifier.coefs_) - 1
        for index, weights in enumerate(classifier.coefs_):
            final: Activation = "sigmoid" if is_probability else "none"
            bias = classifier.intercepts_[index].astype(np.float64)
            activation = hidden if index < last else final
            chain.dense(weights.astype(np.float64), bias, activation)

    def _calibrated(self, classifier: Any, before: ProbeChain) -> ProbeGraph:
        """Return the mean of a CalibratedClassifierCV's folds. before: what comes first."""
        chains: list[ProbeChain] = []
        calibrators: list[Any] = []
        is_probability = False
        for fold in classifier.calibrated_classifiers_:
            chain = replace(before, layers=[*before.layers])
            is_probability = self._add_margin(chain, fold.estimator, as_score=False)
            chains.append(chain)
            calibrators.append(fold.calibrators[0])
        joined = side_by_side(chains)
        if joined is None:
            raise refused(self._name, "its folds differ in their layers", "use ensemble=False")
        return joined.graph(self._head(calibrators, classifier.method, is_probability))

    def _head(self, calibrators: list[Any], method: str, is_probability: bool) -> Head:
        if method == "sigmoid":
            slopes = np.array([-float(each.a_) for each in calibrators])
            return SigmoidFolds(slopes, np.array([-float(each.b_) for each in calibrators]))
        if method == "temperature" and not is_probability:
            # softmax of (-margin, margin) * beta
            slopes = np.array([2.0 * float(each.beta_) for each in calibrators])
            return SigmoidFolds(slopes, np.zeros(len(calibrators)))
        if method == "isotonic":
            lines = [(each.X_thresholds_, each.y_thresholds_) for each in calibrators]
            return IsotonicFolds(tuple((_float64(x), _float64(y)) for x, y in lines))
        raise refused(self._name, f"its calibration is {method!r}", "use method='sigmoid'")

    def _unknown(self, kind: str) -> ProbeFileError:
        return refused(self._name, f"{kind!r} is not translated", f"supported are {_SUPPORTED}")


def _check_same(graph: ProbeGraph, reference: Callable[[States], Any], name: str) -> None:
    """Raise ProbeFileError unless the translation scores like the estimator.

    The states are made up, near where the estimator was fitted.
    """
    noise = np.random.default_rng(0).standard_normal((_N_CHECKED, graph.n_features))
    states = noise * graph.scale + graph.mean
    difference = float(np.abs(score_states(graph, states) - reference(states)).max())
    if not difference <= _TOLERANCE:
        raise refused(
            name,
            f"its translation scores up to {difference:.2g} away from the estimator",
            "report it, with the version of scikit-learn",
        )


def _float64(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
