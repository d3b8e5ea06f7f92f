"""Forms of a Decoding-Probe, fitted by scikit-learn: linear, PCA + linear, and a small MLP.

What is fitted comes back as a probe's graph, so the file that runs is the very thing that was
measured. Standardisation is robust: states far from the geometric median of all have no say in it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.formats.probe_graph import ProbeGraph
from safesteer_edge.formats.probe_sklearn import estimator_source

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


# -- where a cloud of states lies, whatever a few wrong ones say: the geometric median -------------

_MAX_CENTRE_STEPS: Final = 64
_TOLERANCE: Final = 1e-4
_MAX_MEDIAN_ROWS: Final = 2000
_FAR: Final = 4.0


def geometric_median(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """The point with the least summed distance to the rows, (n, n_features), by Weiszfeld's steps.

    Half of the rows would have to lie to move it far; a mean follows a single one.
    """
    points = rows.astype(np.float64)
    centre = np.median(points, axis=0)
    for _ in range(_MAX_CENTRE_STEPS):
        distances = np.linalg.norm(points - centre, axis=1)
        weights = 1.0 / np.maximum(distances, 1e-9)
        moved = (weights / weights.sum()) @ points
        step = float(np.linalg.norm(moved - centre))
        centre = moved
        if step <= _TOLERANCE * float(np.median(distances)):
            break
    return centre


def typical_rows(rows: NDArray[np.floating], seed: int = 0) -> NDArray[np.bool_]:
    """Which rows lie within a few median distances of the geometric median, bool (n,).

    The median itself is taken of at most a few thousand of the rows, drawn.
    """
    drawn = rows
    if len(rows) > _MAX_MEDIAN_ROWS:
        drawn = rows[np.random.default_rng(seed).choice(len(rows), _MAX_MEDIAN_ROWS, replace=False)]
    centre = geometric_median(drawn).astype(rows.dtype)
    distances = np.linalg.norm(rows - centre, axis=1)
    return distances <= _FAR * np.median(distances)


FormKind = Literal["linear", "pca-linear", "mlp"]

_MAX_ITERATIONS: Final = 400
_MLP_EPOCHS: Final = 30
# Of many rows a network remembers single answers if it sees each so often.
_MLP_ROWS_SEEN: Final = 2_500_000
_MAX_DRAWN_ROWS: Final = 6000


@dataclass(frozen=True, slots=True)
class ProbeForm:
    """regularisation: scikit-learn's C, smaller is smoother; an MLP's alpha is its inverse.

    n_components: of a PCA that comes first; 0: none. n_hidden: units of the MLP's one layer.
    """

    kind: FormKind
    regularisation: float
    n_components: int = 0
    n_hidden: int = 0

    def __str__(self) -> str:
        parts = {
            "linear": "linear",
            "pca-linear": f"PCA {self.n_components} + linear",
            "mlp": f"PCA {self.n_components} + MLP {self.n_hidden}",
        }
        return f"{parts[self.kind]}, C {self.regularisation:g}"


def fit_estimator(
    form: ProbeForm,
    states: NDArray[np.float32],
    labels: NDArray[np.int64],
    seed: int,
    repeats: NDArray[np.int64] | None = None,
) -> Pipeline:
    """Return a fitted pipeline from raw states to the chance of label 1, not calibrated.

    states: (n, n_features), overwritten: a copy would double the memory. repeats: as how many rows
    each one counts; None: one. Both labels weigh the same, however often they occur.
    """
    repeats = np.ones(len(labels), dtype=np.int64) if repeats is None else repeats
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps: list[tuple[str, Any]] = [("scale", _fitted_scaler(StandardScaler(), states, seed))]
    rows: NDArray[np.float32] = steps[0][1].transform(states, copy=False)
    if form.kind != "linear":
        drawn = _drawn(rows, seed)
        n_components = min(form.n_components, *drawn.shape)
        pca: Any = PCA(n_components, svd_solver="randomized", random_state=seed).fit(drawn)
        rows = pca.transform(rows)
        steps.append(("pca", pca))
    if form.kind == "mlp":
        # Components shrink fast; a network learns from all of them where they are of one size.
        spread: Any = StandardScaler().fit(rows)
        rows = spread.transform(rows)
        steps.append(("spread", spread))
    steps.append(("classifier", _fitted_classifier(form, rows, labels, seed, repeats)))
    return Pipeline(steps)


def margin_graph(estimator: Pipeline) -> ProbeGraph:
    """Return the pipeline as a graph, whose score is its probability. Checked against it."""
    return estimator_source(estimator, name="the fitted probe").graph


def _fitted_scaler(scaler: Any, states: NDArray[np.float32], seed: int) -> Any:
    drawn = _drawn(states, seed)
    scaler.fit(drawn[typical_rows(drawn, seed)])
    scaler.scale_ = np.maximum(scaler.scale_, 1e-6)
    return scaler


def _drawn(rows: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """As many rows as tell means, deviations and components; all of them would be copied."""
    if len(rows) <= _MAX_DRAWN_ROWS:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), _MAX_DRAWN_ROWS, replace=False)]


def _fitted_classifier(
    form: ProbeForm,
    rows: NDArray[np.float32],
    labels: NDArray[np.int64],
    seed: int,
    repeats: NDArray[np.int64],
) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    if form.kind != "mlp":
        return LogisticRegression(C=form.regularisation, max_iter=_MAX_ITERATIONS, tol=1e-3).fit(
            rows, labels, sample_weight=_balanced_weights(labels, repeats)
        )
    drawn = _balanced(labels, seed, repeats)
    network: Any = MLPClassifier(
        (form.n_hidden,),
        alpha=1.0 / form.regularisation,
        max_iter=int(np.clip(_MLP_ROWS_SEEN // len(drawn), 1, _MLP_EPOCHS)),
        batch_size=cast("Any", int(np.clip(len(drawn) // 20, 1, 256))),  # typed as str there
        random_state=seed,
    )
    with warnings.catch_warnings():
        # So many epochs are the intention: the fewer, the less it remembers single answers.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return network.fit(rows[drawn], labels[drawn])


def _balanced_weights(labels: NDArray[np.int64], repeats: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights of mean 1, of which each label has half."""
    shares = [repeats[labels == label].sum() for label in (0, 1)]
    return repeats * len(labels) / (2.0 * np.where(labels == 1, shares[1], shares[0]))


def _balanced(
    labels: NDArray[np.int64], seed: int, repeats: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows in which both labels stand equally often, the rarer one's drawn again."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(labels)), repeats)
    by_label = [rows[labels[rows] == label] for label in (0, 1)]
    largest = max(len(ours) for ours in by_label)
    return np.concatenate([np.resize(rng.permutation(ours), largest) for ours in by_label])
