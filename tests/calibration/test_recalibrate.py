"""A bundle recalibrated for another quantization: real requantization, real engine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.calibration.recalibrate import (
    Recalibrated,
    RecalibrationSettings,
    decide,
    recalibrate,
)
from safesteer_edge.errors import BundleError, RequestDataError
from safesteer_edge.harvest.replay import (
    FalseAlarmTargets,
    ScoredAnswer,
    replay_from_json,
    targets_of,
)
from tests.bundle.linear_probe import probe_onnx
from tests.bundle.sample_parts import figures_of
from tests.guarded_tiny import GuardedTiny, make_guarded_tiny
from tests.requantized_tiny import (
    DECIDING,
    HELD_OUT,
    N_TOKENS,
    RequantizedTiny,
)


def quiet(*_: object) -> None:
    pass


def settings_for(requantized_tiny: RequantizedTiny, tiny: GuardedTiny) -> RecalibrationSettings:
    return RecalibrationSettings(
        bundle=requantized_tiny.bundle,
        session=tiny.settings(None, model=str(requantized_tiny.other.path)),
        info=requantized_tiny.other,
        requests=DECIDING,
        replayed=HELD_OUT,
        name="for-q8",
        n_tokens=N_TOKENS,
    )


@pytest.fixture(scope="module")
def made(
    requantized_tiny: RequantizedTiny,
    guarded_tiny: GuardedTiny,
    tmp_path_factory: pytest.TempPathFactory,
) -> Recalibrated:
    folder = tmp_path_factory.mktemp("recalibrated") / "guard"
    return recalibrate(folder, settings_for(requantized_tiny, guarded_tiny), quiet)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_it_is_made_for_the_other_file_and_the_old_one_stays(
    made: Recalibrated, requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny
):
    with load_bundle(made.folder, requantized_tiny.other, device="cpu") as bundle:
        assert (bundle.match, bundle.warnings) == ("exact", ())
        assert (bundle.config.name, bundle.config.refusal_text) == ("for-q8", "Nein.")
        assert bundle.policy == made.recalibration.policy
    with load_bundle(requantized_tiny.bundle, guarded_tiny.info, device="cpu") as old:
        assert old.match == "exact"


def test_its_probe_is_the_old_one_on_another_scale(
    made: Recalibrated, requantized_tiny: RequantizedTiny
):
    width = 2 * requantized_tiny.other.n_embd
    states = np.random.default_rng(0).standard_normal((32, width)).astype(np.float32)
    with (
        load_bundle(requantized_tiny.bundle, requantized_tiny.other, device="cpu") as old,
        load_bundle(made.folder, requantized_tiny.other, device="cpu") as new,
    ):
        before = old.probe.score(states).astype(np.float64)
        expected = made.recalibration.rescale.scores(before)
        np.testing.assert_allclose(new.probe.score(states), expected, atol=1e-4)


def test_the_prompts_probe_and_the_openings_come_along(
    requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny, tmp_path: Path
):
    with load_bundle(requantized_tiny.bundle, guarded_tiny.info, device="cpu") as old:
        config = old.config
        probe_onnx_ = (old.folder / config.probe.file).read_bytes()
    policy = replace(config.policy, steer_from=config.policy.risk_limit / 2, retries=2)
    prompt_probe = probe_onnx(guarded_tiny.weights, guarded_tiny.offset)
    parts = replace(
        guarded_tiny.parts(),
        probe_onnx=probe_onnx_,
        probe_layers=config.probe.layers,
        policy=policy,
        canaries=config.canaries,
        figures={**config.figures, **figures_of(policy)},
        openings=("I cannot", "No"),
        prompt_probe_onnx=prompt_probe,
    )
    settings = replace(
        settings_for(requantized_tiny, guarded_tiny), bundle=write_bundle(tmp_path / "old", parts)
    )
    made = recalibrate(tmp_path / "new", settings, quiet)
    with load_bundle(made.folder, requantized_tiny.other, device="cpu") as new:
        assert new.is_calibrated
        assert new.config.openings == ("I cannot", "No")
        assert new.config.prompt_probe is not None
        assert (made.folder / new.config.prompt_probe.file).read_bytes() == prompt_probe
        assert new.policy.retries == 2
        assert new.policy.steer_from is not None
        assert new.policy.steer_from < new.policy.risk_limit


def test_a_vectors_gate_moves_with_the_scores(
    requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny, tmp_path: Path
):
    with load_bundle(requantized_tiny.bundle, guarded_tiny.info, device="cpu") as old:
        config = old.config
        probe_onnx = (old.folder / config.probe.file).read_bytes()
    vector = guarded_tiny.parts(has_vector=True).vector
    assert vector is not None
    parts = replace(
        guarded_tiny.parts(),
        probe_onnx=probe_onnx,
        probe_layers=config.probe.layers,
        policy=config.policy,
        canaries=config.canaries,
        figures=config.figures,
        vector=replace(vector, gate=0.5),
    )
    settings = replace(
        settings_for(requantized_tiny, guarded_tiny), bundle=write_bundle(tmp_path / "old", parts)
    )
    made = recalibrate(tmp_path / "new", settings, quiet)
    with load_bundle(made.folder, requantized_tiny.other, device="cpu") as new:
        expected = made.recalibration.rescale.scores(np.array([0.5]))[0]
        assert new.vector_gate == pytest.approx(expected)


def test_guard_json_says_what_was_decided_and_from_what(
    made: Recalibrated, requantized_tiny: RequantizedTiny
):
    figures: dict[str, Any] = json.loads((made.folder / "guard.json").read_text())["figures"]
    old: dict[str, Any] = json.loads((requantized_tiny.bundle / "guard.json").read_text())
    came_from = figures["recalibrated_from"]
    assert (came_from["bundle"], came_from["quantization"]) == ("made-for-f32", "F32")
    assert came_from["probe_sha256"] == old["probe"]["sha256"]
    assert figures["original"]["targets"] == old["figures"]["targets"]
    assert figures["rescale"]["slope"] > 0
    assert figures["n_answers"] == {"harmful": 6, "harmless": 3, "borderline": 3, "ordinary": 6}
    choice = figures["policy_choice"]
    assert choice["policy"]["threshold"] == made.recalibration.policy.threshold
    assert min(len(choice[key]) for key in ("thresholds", "strengths", "refusal_settings")) > 1
    assert replay_from_json(figures["replay"]) == made.after


def test_its_report_says_what_was_set_anew(made: Recalibrated):
    page = (made.folder / "report.html").read_text()
    assert "Recalibration of for-q8" in page and "made-for-f32 (F32)" in page
    assert "What was set anew" in page and "The finished guard on test requests" in page
    assert page.count("<svg") >= 1
    report = json.loads((made.folder / "report.json").read_text())
    assert report["figures"] == json.loads((made.folder / "guard.json").read_text())["figures"]
    for request in (*DECIDING, *HELD_OUT):
        assert request.text not in page


def test_the_bundles_own_targets_are_kept(made: Recalibrated):
    assert made.recalibration.targets == FalseAlarmTargets(0.2, 0.2, 0.5, 0.5)
    assert targets_of({"targets": {"touched": "much", "ordinary_refused": 7.0}}) == (
        FalseAlarmTargets()
    )


def test_it_is_measured_on_requests_that_decided_nothing(made: Recalibrated):
    asked = {row.id for row in made.after.rows}
    assert asked == {request.id for request in HELD_OUT}
    assert [row.id for row in made.before.rows] == [row.id for row in made.after.rows]
    assert made.after.quantization == "Q8_0"


def test_two_runs_give_the_same_bytes(
    made: Recalibrated, requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny, tmp_path: Path
):
    again = recalibrate(tmp_path / "guard", settings_for(requantized_tiny, guarded_tiny), quiet)
    assert hashes(again.folder) == hashes(made.folder)


def test_a_recalibrated_bundle_can_be_recalibrated(
    made: Recalibrated, requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny, tmp_path: Path
):
    settings = replace(
        settings_for(requantized_tiny, guarded_tiny),
        bundle=made.folder,
        session=guarded_tiny.settings(None),
        info=guarded_tiny.info,
    )
    back = recalibrate(tmp_path / "guard", settings, quiet)
    figures = json.loads((back.folder / "guard.json").read_text())["figures"]
    first = json.loads((made.folder / "guard.json").read_text())["figures"]
    assert figures["original"] == first["original"]
    assert figures["recalibrated_from"]["bundle"] == "for-q8"


def test_an_interrupted_run_writes_nothing(
    requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny, tmp_path: Path
):
    def interrupt(what: str, n_done: int, n_total: int) -> None:
        if what == "test answers" and n_done == n_total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate(tmp_path / "guard", settings_for(requantized_tiny, guarded_tiny), interrupt)
    assert list(tmp_path.iterdir()) == []


def test_another_model_and_its_own_source_are_refused_before_any_work(
    requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny, tmp_path: Path
):
    settings = settings_for(requantized_tiny, guarded_tiny)
    wide = make_guarded_tiny(tmp_path, n_embd=96)
    other = replace(settings, info=wide.info, session=wide.settings(None))
    with pytest.raises(BundleError, match="another model: n_embd"):
        recalibrate(tmp_path / "guard", other, quiet)
    with pytest.raises(BundleError, match="which it is made from"):
        recalibrate(requantized_tiny.bundle, settings, quiet)
    assert not (tmp_path / "guard").exists()


def test_requests_that_cannot_decide_are_refused(
    requantized_tiny: RequantizedTiny, guarded_tiny: GuardedTiny, tmp_path: Path
):
    settings = settings_for(requantized_tiny, guarded_tiny)
    harmless = tuple(request for request in DECIDING if request.label != "harmful")
    with pytest.raises(RequestDataError, match="no harmful requests"):
        recalibrate(tmp_path / "guard", replace(settings, requests=harmless), quiet)
    with pytest.raises(ValueError, match="test requests"):
        recalibrate(tmp_path / "guard", replace(settings, requests=HELD_OUT), quiet)
    few = tuple(request for request in DECIDING if request.id.endswith(("-0", "-1", "-2")))
    with pytest.raises(RequestDataError, match=r"3 ordinary requests; .* 20 % .* from 4 on"):
        recalibrate(tmp_path / "guard", replace(settings, requests=few), quiet)


def test_answers_that_decide_nothing_are_refused():
    ordinary = [ScoredAnswer(str(n), "ordinary", False, np.full(4, 0.1), 0.1) for n in range(199)]
    refused = ScoredAnswer("h", "harmful", False, np.full(4, 0.5), 0.5)
    with pytest.raises(RequestDataError, match="refuses every harmful request"):
        decide([*ordinary, refused], FalseAlarmTargets())
    with pytest.raises(RequestDataError, match=r"198 ordinary requests; .* from 199 on"):
        decide([*ordinary[1:], replace(refused, complies=True)], FalseAlarmTargets())
