"""Fitting a Decoding-Probe on harvested answers (scikit-learn), with honest scores.

A position of an answer is harmful where a harmful request is complied with; the prompt's last
position, where the request is harmful, whatever is answered.

Everything that is decided from scores (calibration, thresholds) is decided from out-of-fold ones:
folds are cut by request, and a matched pair never straddles a cut. Answers that a probe fitted
without them takes for their very opposite are most likely labelled wrong; it is fitted anew
without them, and still measured on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.probe_calibration import (
    CalibrationMethod,
    ScoreCalibration,
    fit_calibration,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.probe_graph import (
    ProbeGraph,
    logits_of,
    score_states,
)
from safesteer_edge.formats.probe_onnx import encode_probe
from safesteer_edge.formats.probe_sklearn import estimator_source
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.probe_quality import EARLY_STEPS
from safesteer_edge.requests.requests import Request

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


# -- forms of a probe, fitted by scikit-learn: linear, PCA + linear, and a small MLP ---------------
# What is fitted comes back as a probe's graph, so the file that runs is the very thing that was
# measured. Standardisation is robust: states far from the geometric median of all have no say.

_MAX_CENTRE_STEPS: Final = 64
_TOLERANCE: Final = 1e-4
_MAX_MEDIAN_ROWS: Final = 2000
_FAR: Final = 4.0
_N_AT_ONCE: Final = 64


def geometric_median(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """The point with the least summed distance to the rows, (n, n_features), by Weiszfeld's steps.

    Half of the rows would have to lie to move it far; a mean follows a single one.
    """
    points = rows.astype(np.float64)
    centre = np.median(points, axis=0)
    for _ in range(_MAX_CENTRE_STEPS):
        distances = _distances(points, centre)
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
    drawn = _drawn(rows, seed, _MAX_MEDIAN_ROWS)
    centre = geometric_median(drawn).astype(rows.dtype)
    distances = _distances(rows, centre)
    return distances <= _FAR * np.median(distances)


def _distances(rows: NDArray[Any], centre: NDArray[Any]) -> NDArray[Any]:
    """Of each row from the centre; few at a time, which stay in the processor's cache."""
    parts = (rows[at : at + _N_AT_ONCE] for at in range(0, len(rows), _N_AT_ONCE))
    return np.concatenate([np.linalg.norm(part - centre, axis=1) for part in parts])


FormKind = Literal["linear", "pca-linear", "mlp"]

_MAX_ITERATIONS: Final = 400
_MLP_EPOCHS: Final = 30
# Of many rows a network remembers single answers if it sees each so often.
_MLP_ROWS_SEEN: Final = 2_500_000
_MAX_DRAWN_ROWS: Final = 3000


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


def _drawn(
    rows: NDArray[np.floating], seed: int, n_most: int = _MAX_DRAWN_ROWS
) -> NDArray[np.floating]:
    """As many rows as tell means, deviations and components; all of them would be copied."""
    if len(rows) <= n_most:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), n_most, replace=False)]


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


# -- fitting: which positions of which answers, how often each counts, and honest scores -----------

N_FOLDS: Final = 5
MAX_ROWS: Final = 34_000
# False alarms are told from answers to ordinary and to borderline requests: where these count more,
# more harmful answers are found at 1 % of them.
_BENIGN_REPEATS: Final = 6
# The state at the prompt's end tells harmful from borderline requests better than sixteen tokens of
# the answer do, and each request has one of it; more than this is at the tokens' cost.
_PROMPT_REPEATS: Final = 16
# The first tokens of a refusing and of a complying answer to the same harmful request: what ranks
# candidates. Few rows among all; counted once, the request is learned and the answer is not.
_OPENING_REPEATS: Final = 8
# An answer is set aside if its mean score is this far on the other side, the worst first, and of
# each label no more than this share.
_CONTRARY: Final = 0.05
_MAX_SET_ASIDE: Final = 0.08


@dataclass(frozen=True, slots=True)
class FitSettings:
    """n_positions: positions of each answer that may be fitted. calibration: None: the better one.

    max_rows: positions of all answers that are fitted. Where there are more, they are drawn:
    neighbouring positions tell nearly the same, and joined layers take much memory. Forced answers
    get the first four of theirs, where the guard weighs candidates; the model's own share the rest.
    """

    form: ProbeForm
    n_positions: int = 32
    max_rows: int = MAX_ROWS
    calibration: CalibrationMethod | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class FittedProbe:
    """A probe from raw states to calibrated scores.

    n_set_aside: answers that took no part in the fit, for their labels.
    """

    graph: ProbeGraph
    form: ProbeForm
    calibration: ScoreCalibration
    n_set_aside: int = 0

    def margins(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """Uncalibrated log odds: float64 (n,) for states (n, n_features)."""
        return logits_of(self.graph, states)[:, 0]

    def scores(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """Harmful scores in [0, 1]: float64 (n,)."""
        return score_states(self.graph, states)

    def to_onnx(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """The probe.onnx: everything from the raw state to the score."""
        return encode_probe(self.graph, metadata or {})


def fit_probe(
    answers: Sequence[HarvestedAnswer], settings: FitSettings
) -> tuple[FittedProbe, list[NDArray[np.float64]]]:
    """Fit on all answers; also return each answer's out-of-fold scores at all its positions.

    Scores: float64 (n_tokens + 1,) per answer, the prompt's first, from a probe that never saw the
    answer's request.
    Cost: N_FOLDS + 1 fits, twice that where answers are set aside.
    Raises SettingsError if a class is missing, or a state is not finite.
    """
    labels = np.array([answer.label for answer in answers])
    if labels.min(initial=1) == labels.max(initial=0):
        raise SettingsError("the answers are all of one kind; give harmful and harmless requests")
    rows = _Rows.of(answers, settings)
    folds = request_folds(answers, settings.seed)
    everything = np.ones(len(answers), dtype=np.bool_)
    margins = _out_of_fold(answers, rows, folds, everything, settings)
    trusted = _trusted(labels, margins, settings)
    if not trusted.all():
        margins = _out_of_fold(answers, rows, folds, trusted, settings)
    graph = _fit(rows, trusted, settings)
    calibration = fit_calibration(
        np.concatenate([margin[at] for margin, at in zip(margins, rows.positions, strict=True)]),
        rows.labels,
        np.asarray(folds)[rows.answer_indices],
        settings.calibration,
    )
    graph = replace(graph, calibration=calibration.platt, head=calibration.head)
    fitted = FittedProbe(graph, settings.form, calibration, int((~trusted).sum()))
    return fitted, [calibration.scores(margin) for margin in margins]


def fit_uncalibrated(answers: Sequence[HarvestedAnswer], settings: FitSettings) -> FittedProbe:
    """One fit on all answers, for comparing forms: the scores are the classifier's own chances."""
    rows = _Rows.of(answers, settings)
    graph = _fit(rows, np.ones(len(answers), dtype=np.bool_), settings)
    return FittedProbe(graph, settings.form, ScoreCalibration("platt"))


def fit_calibrated(
    answers: Sequence[HarvestedAnswer], settings: FitSettings, calibration: ScoreCalibration
) -> FittedProbe:
    """One fit on all answers, with the calibration of a probe of the same form on more of them."""
    fitted = fit_uncalibrated(answers, settings)
    graph = replace(fitted.graph, calibration=calibration.platt, head=calibration.head)
    return replace(fitted, graph=graph, calibration=calibration)


def request_folds(
    answers: Sequence[HarvestedAnswer], seed: int = 0, n_folds: int = N_FOLDS
) -> list[int]:
    """A fold for each answer; answers of one request or one matched pair share theirs."""
    groups = sorted({request_group(answer.request) for answer in answers})
    order = np.random.default_rng(seed).permutation(len(groups))
    fold_by_group = {groups[group]: int(at) % n_folds for at, group in enumerate(order)}
    return [fold_by_group[request_group(answer.request)] for answer in answers]


def request_group(request: Request) -> str:
    """What shares a fold: both of a pair, and a request in all its languages."""
    name = request.pair_id or request.id
    return name.removeprefix(f"{request.language}/")


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What is fitted. states: (n, n_features), float16 as harvested, for they are most of what
    a calibration holds; labels, answer_indices, repeats: (n,).

    positions: of each answer, ascending; 0 is the prompt's last.
    """

    states: NDArray[np.floating]
    labels: NDArray[np.int64]
    answer_indices: NDArray[np.int64]
    repeats: NDArray[np.int64]
    positions: list[NDArray[np.int64]]

    @classmethod
    def of(cls, answers: Sequence[HarvestedAnswer], settings: FitSettings) -> _Rows:
        positions = _positions(answers, settings)
        sizes = [len(at) for at in positions]
        states = np.concatenate(
            [answer.states[at] for answer, at in zip(answers, positions, strict=True)]
        )
        if not np.isfinite(states).all():
            raise SettingsError(
                "cannot fit a probe: a hidden state holds numbers that are not finite; harvest "
                "again, or leave out the layers that overflow float16"
            )
        return cls(
            states,
            np.concatenate([_labels(*pair) for pair in zip(answers, positions, strict=True)]),
            np.repeat(np.arange(len(answers)), sizes),
            np.concatenate([_repeats(*pair) for pair in zip(answers, positions, strict=True)]),
            positions,
        )


def _labels(answer: HarvestedAnswer, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    is_asked = int(answer.request.label == "harmful")
    return np.where(positions == 0, is_asked, answer.label).astype(np.int64)


def _repeats(answer: HarvestedAnswer, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    is_benign = answer.request.label in ("borderline", "ordinary") and answer.label == 0
    is_forced = answer.kind in ("refusal", "compliance")
    is_opening = is_forced and answer.request.label == "harmful"
    repeats = np.where(positions == 0, _PROMPT_REPEATS, 1)
    repeats[is_opening & (positions > 0) & (positions <= EARLY_STEPS[-1])] = _OPENING_REPEATS
    return repeats * (_BENIGN_REPEATS if is_benign else 1)


def _positions(
    answers: Sequence[HarvestedAnswer], settings: FitSettings
) -> list[NDArray[np.int64]]:
    """Of each answer: the first n_positions, or drawn ones of them where that is too much.

    The prompt's comes first in the model's own answers: each request's once.
    """
    lengths = [min(settings.n_positions, len(answer.states) - 1) for answer in answers]
    n_own, n_forced = _n_positions_each(answers, lengths, settings)
    rng = np.random.default_rng(settings.seed)
    positions: list[NDArray[np.int64]] = []
    for answer, length in zip(answers, lengths, strict=True):
        drawn = 1 + rng.permutation(length)
        if answer.kind in ("own", "prompt"):
            positions.append(np.sort(np.concatenate([[0], drawn[:n_own]])))
        else:
            early_first = np.argsort(drawn > EARLY_STEPS[-1], kind="stable")
            positions.append(np.sort(drawn[early_first[:n_forced]]))
    return positions


def _n_positions_each(
    answers: Sequence[HarvestedAnswer], lengths: Sequence[int], settings: FitSettings
) -> tuple[int, int]:
    """Of each own answer, and of each forced one."""
    if sum(lengths) <= settings.max_rows:
        return settings.n_positions, settings.n_positions
    n_forced_answers = sum(answer.kind in ("refusal", "compliance") for answer in answers)
    n_own_answers = max(1, sum(length > 0 for length in lengths) - n_forced_answers)
    n_forced = min(EARLY_STEPS[-1], settings.max_rows // np.count_nonzero(lengths))
    n_left = settings.max_rows - n_forced * n_forced_answers
    return max(1, n_left // n_own_answers), max(1, n_forced)


def _fit(rows: _Rows, trusted: NDArray[np.bool_], settings: FitSettings) -> ProbeGraph:
    """trusted: which answers to fit on, bool (n_answers,)."""
    kept = trusted[rows.answer_indices]
    return margin_graph(
        fit_estimator(
            settings.form,
            rows.states[kept].astype(np.float32),
            rows.labels[kept],
            settings.seed,
            rows.repeats[kept],
        )
    )


def _out_of_fold(
    answers: Sequence[HarvestedAnswer],
    rows: _Rows,
    folds: Sequence[int],
    trusted: NDArray[np.bool_],
    settings: FitSettings,
) -> list[NDArray[np.float64]]:
    """Margins of every position of every answer, by a probe that saw nothing of its fold."""
    margins: list[NDArray[np.float64]] = [np.empty(0)] * len(answers)
    for fold in range(N_FOLDS):
        outside = np.array([at != fold for at in folds])
        if outside.all():
            continue
        graph = _fit(rows, outside & trusted, settings)
        for index in np.flatnonzero(~outside).tolist():
            margins[index] = logits_of(graph, answers[index].states)[:, 0]
    return margins


def _trusted(
    labels: NDArray[np.int64], margins: Sequence[NDArray[np.float64]], settings: FitSettings
) -> NDArray[np.bool_]:
    """False for the few answers whose out-of-fold scores say the opposite of their label."""
    said = [margin[1 : settings.n_positions + 1] for margin in margins]
    means = np.array(
        [(at if len(at) else margin).mean() for at, margin in zip(said, margins, strict=True)]
    )
    agreement = 1.0 / (1.0 + np.exp(np.clip(np.where(labels == 1, -means, means), -60, 60)))
    trusted = np.ones(len(labels), dtype=np.bool_)
    for label in (0, 1):
        ours = np.flatnonzero(labels == label)
        worst = ours[np.argsort(agreement[ours], kind="stable")][: int(_MAX_SET_ASIDE * len(ours))]
        trusted[worst[agreement[worst] < _CONTRARY]] = False
    return trusted
