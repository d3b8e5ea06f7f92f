"""scikit-learn's own estimators, through skops and as objects, score the same in ONNX."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC

from safesteer_edge.converters.probe_conversion import (
    ConversionSettings,
    convert_estimator,
    convert_probe,
)
from safesteer_edge.errors import InputError, ProbeFileError
from tests.converters.probe_parity import assert_parity, labels_of, scores_of, wide_states

STATES = wide_states()
LABELS = labels_of(STATES)
NEW_STATES = wide_states(seed=2)

ONE_CALIBRATION: dict[str, Any] = {"ensemble": False}
MLP: dict[str, Any] = {"hidden_layer_sizes": (6, 3), "max_iter": 40, "random_state": 0}
ESTIMATORS = {
    "logistic regression": LogisticRegression(max_iter=2000),
    "standardised": make_pipeline(StandardScaler(), LogisticRegression()),
    "not centred": make_pipeline(StandardScaler(with_mean=False), LogisticRegression(max_iter=999)),
    "chosen by folds": make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=3),
    ),
    "with PCA": make_pipeline(StandardScaler(), PCA(4), LogisticRegression()),
    "whitened PCA": make_pipeline(PCA(4, whiten=True), "passthrough", LogisticRegression()),
    "standardised twice": make_pipeline(PCA(5), StandardScaler(), LogisticRegression()),
    "sgd": make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
    "lda": LinearDiscriminantAnalysis(),
    "lda, eigen": LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1),
    "mlp, relu": make_pipeline(StandardScaler(), MLPClassifier(**MLP)),
    "mlp, tanh": make_pipeline(StandardScaler(), MLPClassifier(**MLP, activation="tanh")),
    "mlp, logistic": make_pipeline(StandardScaler(), MLPClassifier(**MLP, activation="logistic")),
    "svm, calibrated": make_pipeline(StandardScaler(), CalibratedClassifierCV(LinearSVC())),
    "svm pipelines, calibrated": CalibratedClassifierCV(
        make_pipeline(StandardScaler(), LinearSVC())
    ),
    "svm with PCA, calibrated": CalibratedClassifierCV(
        make_pipeline(StandardScaler(), PCA(4), LinearSVC())
    ),
    "svm, one calibration": CalibratedClassifierCV(
        make_pipeline(StandardScaler(), LinearSVC()), **ONE_CALIBRATION
    ),
    "hinge, calibrated": make_pipeline(
        StandardScaler(), PCA(6), StandardScaler(), CalibratedClassifierCV(SGDClassifier())
    ),
    "svm, by temperature": CalibratedClassifierCV(
        make_pipeline(StandardScaler(), LinearSVC()), method="temperature"
    ),
    "svm, isotonic": make_pipeline(
        StandardScaler(), CalibratedClassifierCV(LinearSVC(), method="isotonic")
    ),
    "mlp, calibrated": make_pipeline(
        StandardScaler(), CalibratedClassifierCV(MLPClassifier(**MLP))
    ),
    "mlp, isotonic": make_pipeline(
        StandardScaler(), CalibratedClassifierCV(MLPClassifier(**MLP), method="isotonic", cv=2)
    ),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of LogisticRegressionCV, on defaults
]


def save(estimator: Any, path: Path) -> Path:
    skops.io.dump(estimator, path)
    return path


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_saved_with_skops_scores_the_same(name: str, tmp_path: Path):
    estimator = ESTIMATORS[name].fit(STATES, LABELS)
    output = tmp_path / "probe.onnx"
    report = convert_probe(save(estimator, tmp_path / "e.skops"), ConversionSettings(output))
    expected = estimator.predict_proba(NEW_STATES.astype(np.float64))[:, 1]
    assert_parity(output, NEW_STATES, expected)
    assert report.max_difference <= 1e-5


def test_an_estimator_given_as_an_object_scores_the_same(tmp_path: Path):
    estimator = ESTIMATORS["with PCA"].fit(STATES, LABELS)
    convert_estimator(estimator, ConversionSettings(tmp_path / "probe.onnx"))
    assert_parity(tmp_path / "probe.onnx", NEW_STATES, estimator.predict_proba(NEW_STATES)[:, 1])


def test_a_calibration_of_a_fitted_estimator_scores_the_same(tmp_path: Path):
    fitted = make_pipeline(StandardScaler(), LinearSVC()).fit(STATES[:200], LABELS[:200])
    estimator = CalibratedClassifierCV(FrozenEstimator(fitted)).fit(STATES[200:], LABELS[200:])
    source = save(estimator, tmp_path / "e.skops")
    convert_probe(source, ConversionSettings(tmp_path / "probe.onnx"))
    assert_parity(tmp_path / "probe.onnx", NEW_STATES, estimator.predict_proba(NEW_STATES)[:, 1])


@pytest.mark.parametrize("name", ["standardised", "svm, calibrated", "svm, isotonic"])
def test_class_0_as_the_harmful_one_turns_the_score_round(name: str, tmp_path: Path):
    estimator = ESTIMATORS[name].fit(STATES, LABELS)
    settings = ConversionSettings(tmp_path / "probe.onnx", harmful_class=0)
    convert_estimator(estimator, settings)
    expected = estimator.predict_proba(NEW_STATES.astype(np.float64))[:, 0]
    assert_parity(tmp_path / "probe.onnx", NEW_STATES, expected)


def test_classes_with_names_do_not_say_which_is_harmful(tmp_path: Path):
    named = np.where(LABELS == 1, "bad", "good")
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(STATES, named)
    output = tmp_path / "probe.onnx"
    with pytest.raises(InputError, match=r"\['bad', 'good'\].*--harmful-class"):
        convert_estimator(estimator, ConversionSettings(output))
    assert not output.exists()
    states = tmp_path / "states.npz"
    np.savez(states, states=STATES, labels=LABELS)
    report = convert_estimator(estimator, ConversionSettings(output, check_states=states))
    assert report.harmful_class == 0
    assert report.auroc is not None
    assert report.auroc > 0.8


class Stranger(ClassifierMixin, BaseEstimator):
    """Looks like a classifier and is not scikit-learn's."""

    def fit(self, states: Any, labels: Any) -> Stranger:
        self.classes_ = np.unique(labels)
        self.n_features_in_ = states.shape[1]
        return self


class BentRegression(LogisticRegression):
    """Computes something else than its class promises."""


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (LinearSVC(), "gives a margin and no probability; fit it inside CalibratedClassifierCV"),
        (SGDClassifier(), "gives a margin and no probability"),
        (GaussianNB(), "'GaussianNB' is not translated; supported are LogisticRegression"),
        (make_pipeline(MinMaxScaler(), LogisticRegression()), "'MinMaxScaler' is not translated"),
        (Stranger(), "Stranger' is not translated"),
        (BentRegression(), "BentRegression' is not translated"),
        (
            CalibratedClassifierCV(MLPClassifier(**MLP), method="temperature"),
            "its calibration is 'temperature'",
        ),
    ],
)
def test_an_estimator_that_is_not_translated_is_refused(
    estimator: Any, reason: str, tmp_path: Path
):
    estimator.fit(STATES, LABELS)
    with pytest.raises(ProbeFileError, match=reason):
        convert_estimator(estimator, ConversionSettings(tmp_path / "probe.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_an_estimator_that_is_not_fitted_is_refused(tmp_path: Path):
    with pytest.raises(ProbeFileError, match="no fitted classifier"):
        convert_estimator(LogisticRegression(), ConversionSettings(tmp_path / "probe.onnx"))


def test_three_classes_are_refused(tmp_path: Path):
    estimator = LogisticRegression(max_iter=50).fit(STATES, np.arange(len(STATES)) % 3)
    with pytest.raises(ProbeFileError, match="3 classes; expected 2"):
        convert_estimator(estimator, ConversionSettings(tmp_path / "probe.onnx"))


def test_an_estimator_whose_numbers_were_changed_to_nan_is_refused(tmp_path: Path):
    estimator = LogisticRegression(max_iter=50).fit(STATES, LABELS)
    estimator.coef_[0, 3] = np.nan
    with pytest.raises(ProbeFileError, match="not finite"):
        convert_estimator(estimator, ConversionSettings(tmp_path / "probe.onnx"))


def edit_schema(path: Path, edit: Any) -> None:
    """Rewrite a skops file's schema; everything else stays."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(members["schema.json"])
    edit(schema)
    members["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"__module__": "os", "__class__": "system"}, "os.system"),
        ({"__loader__": "MethodNode", "__class__": "Pipeline"}, "MethodNode"),
        ({"__loader__": "OperatorFuncNode", "__module__": "operator"}, "OperatorFuncNode"),
        (
            {"__class__": "FeatureHasher", "__module__": "sklearn.feature_extraction"},
            "FeatureHasher",
        ),
        ({"__loader__": ["ObjectNode"]}, "ObjectNode"),
    ],
)
def test_a_type_that_no_probe_needs_is_refused_before_skops_loads_it(
    changes: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save(LogisticRegression(max_iter=50).fit(STATES, LABELS), tmp_path / "e.skops")
    bad = {"__loader__": "ObjectNode", "__module__": "sklearn.pipeline", "content": {}, **changes}
    edit_schema(path, lambda schema: schema["content"]["content"].update(hidden=bad))
    monkeypatch.setattr(skops.io, "load", lambda *_, **__: pytest.fail("skops was asked to load"))
    with pytest.raises(InputError, match=named):
        convert_probe(path, ConversionSettings(tmp_path / "probe.onnx"))
    assert not (tmp_path / "probe.onnx").exists()


def test_the_scores_of_a_flipped_ensemble_stay_within_0_and_1(tmp_path: Path):
    estimator = ESTIMATORS["svm, calibrated"].fit(STATES, LABELS)
    convert_estimator(estimator, ConversionSettings(tmp_path / "p.onnx", harmful_class=0))
    scores = scores_of(tmp_path / "p.onnx", NEW_STATES * np.float32(1000))
    assert scores.min() >= 0
    assert scores.max() <= 1
