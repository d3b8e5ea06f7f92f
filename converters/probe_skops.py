"""Estimators saved with skops, loaded only if every type in them is one that a probe needs.

skops trusts all of scikit-learn's public classes; this list is shorter, and is compared with the
file's own schema before skops sees it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from safesteer_edge.converters.tensor_files import read_zip_members, unreadable
from safesteer_edge.errors import InputError
from safesteer_edge.formats.probe_onnx import GraphSource
from safesteer_edge.formats.probe_sklearn import estimator_source

_SCHEMA = "schema.json"
_MAX_SCHEMA_BYTES = 16 << 20
_CLASSES: Final = frozenset(
    {
        "sklearn._loss._loss.CyHalfBinomialLoss",
        "sklearn._loss._loss.CyHalfMultinomialLoss",
        "sklearn.calibration.CalibratedClassifierCV",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.calibration._TemperatureScaling",
        "sklearn.decomposition._pca.PCA",
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
        "sklearn.frozen._frozen.FrozenEstimator",
        "sklearn.isotonic.IsotonicRegression",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._logistic.LogisticRegressionCV",
        "sklearn.linear_model._sgd_fast.Hinge",
        "sklearn.linear_model._stochastic_gradient.SGDClassifier",
        "sklearn.neural_network._multilayer_perceptron.MLPClassifier",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._label.LabelBinarizer",
        "sklearn.svm._classes.LinearSVC",
    }
)
_SCALARS: Final = frozenset(
    f"numpy.{name}"
    for name in (
        *("float16", "float32", "float64", "int32", "int64", "uint32", "uint64"),
        *("bool", "bool_", "str_", "ndarray"),
    )
)
_PLAIN = frozenset(f"builtins.{name}" for name in ("str", "int", "float", "bool"))
# skops' kinds of nodes, and what each may name. Those that call functions are left out.
_NODES: Final = {
    "DictNode": frozenset({"builtins.dict", "collections.OrderedDict"}),
    "ListNode": frozenset({"builtins.list"}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "JsonNode": _PLAIN,
    "NdArrayNode": _SCALARS,
    "TypeNode": _SCALARS | _PLAIN,
    "RandomStateNode": frozenset({"numpy.random.mtrand.RandomState"}),
    "LossNode": _CLASSES,
    "ObjectNode": _CLASSES,
    "CachedNode": _CLASSES | _SCALARS | _PLAIN | {"builtins.dict", "builtins.list"},
}


def skops_source(path: Path) -> GraphSource:
    """Return the probe of an estimator that `skops.io.dump` wrote.

    Raises InputError if skops or scikit-learn are not installed, for a damaged or huge file, and
    for any type that is not on the list; ProbeFileError for what cannot be translated.
    """
    members = read_zip_members(path)
    schema = members.get(_SCHEMA)
    if schema is None or len(schema.data) > _MAX_SCHEMA_BYTES:
        raise unreadable(path, "it is not a skops file", "save it with skops.io.dump")
    try:
        strange = sorted(_strange_types(json.loads(schema.data)))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"its schema is damaged ({error})") from error
    if strange:
        raise unreadable(
            path, f"it holds {strange[:5]}, which no probe needs", "save the classifier alone"
        )
    return estimator_source(_load(path), name=str(path))


def _strange_types(node: Any) -> set[str]:
    """Return the types below this node that are not on the list."""
    children = node if isinstance(node, list) else []
    found: set[str] = set()
    if isinstance(node, dict):
        children = list(node.values())
        if "__loader__" in node or "__class__" in node or "__module__" in node:
            loader, name = (
                node.get("__loader__"),
                f"{node.get('__module__')}.{node.get('__class__')}",
            )
            if not isinstance(loader, str) or name not in _NODES.get(loader, ()):
                found.add(f"{name} ({loader})")
    return found.union(*map(_strange_types, children))


def _load(path: Path) -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise InputError(
            f"cannot read {str(path)!r}: {error}; pip install 'safesteer-edge[conversion]'"
        ) from error
    try:
        unknown = skops.io.get_untrusted_types(file=path)
        if not set(unknown) <= _CLASSES:
            raise unreadable(path, f"skops finds {unknown} in it", "save the classifier alone")
        return skops.io.load(path, trusted=unknown)
    except InputError:
        raise
    except Exception as error:  # skops and scikit-learn raise anything for a damaged file
        raise unreadable(
            path, f"skops cannot load it ({error})", "save it again with skops.io.dump"
        ) from error
