"""load_bundle: a good bundle loads; every kind of bad one is refused, with nothing left open."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesteer_edge.bundle import bundle as bundle_module
from safesteer_edge.bundle.bundle import GuardBundle, load_bundle, read_config
from safesteer_edge.bundle.schema import recorded_effect
from safesteer_edge.bundle.writer import BundleParts, VectorParts, write_bundle
from safesteer_edge.errors import BundleError, GuardError, ProbeFileError, VectorFileError
from safesteer_edge.formats.control_vector_file import write_control_vector
from safesteer_edge.formats.json_values import format_json
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.library.catalogue import default_model
from safesteer_edge.probe.probe import OnnxProbe
from tests.bundle.conftest import Edit
from tests.bundle.linear_probe import probe_onnx, weights_for
from tests.bundle.sample_parts import POLICY, RESIDUAL_NORM, figures_of, sample_vector
from tests.tiny_models import write_tiny_llama, write_tiny_qwen2

EditConfig = Callable[[Edit], None]


def vector_of(parts: BundleParts) -> VectorParts:
    assert parts.vector is not None
    return parts.vector


def exchange(folder: Path, edit_config: EditConfig, entry: str, data: bytes) -> None:
    """Put other content in a listed file, with the hash that goes with it."""
    name = {"probe": "probe.onnx", "vector": "vector.gguf"}[entry]
    (folder / name).write_bytes(data)
    edit_config(lambda c: c[entry].update(sha256=hashlib.sha256(data).hexdigest()))


def refusal(folder: Path, model: ModelInfo, error: type[Exception] = BundleError) -> str:
    with pytest.raises(error) as caught:
        load_bundle(folder, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_bundle_loads_with_all_its_parts(folder: Path, model: ModelInfo):
    with load_bundle(folder, model) as bundle:
        assert bundle.match == "exact"
        assert bundle.warnings == ()
        assert bundle.policy == POLICY
        assert bundle.probe.n_features == 2 * model.n_embd
        assert bundle.config == read_config(folder)
        assert bundle.folder == folder


def test_the_vector_comes_scaled_per_modality_and_only_on_its_layers(
    tmp_path: Path, model: ModelInfo, parts: BundleParts
):
    narrow = replace(vector_of(parts), scale=0.5, layers=(2, 2))
    folder = write_bundle(tmp_path / "b", replace(parts, vector=narrow))
    with load_bundle(folder, model) as bundle:
        own, image = bundle.control_vector, bundle.vector_for("image")
        assert own is not None
        assert image is not None
        row = narrow.vector.directions[2]
        np.testing.assert_allclose(own.directions[2], 0.5 * row, rtol=1e-6)
        np.testing.assert_allclose(image.directions[2], 1.5 * row, rtol=1e-6)
        assert not own.directions[[0, 1, 3]].any()
        assert bundle.vector_for("audio") is None


def test_a_bundle_may_have_no_vector(tmp_path: Path, model: ModelInfo, parts: BundleParts):
    folder = write_bundle(tmp_path / "b", replace(parts, vector=None))
    with load_bundle(folder, model) as bundle:
        assert bundle.control_vector is None
        assert bundle.vector_for("image") is None


def test_closing_frees_the_probe_and_may_be_done_twice(folder: Path, model: ModelInfo):
    bundle = load_bundle(folder, model)
    bundle.close()
    bundle.close()
    with pytest.raises(GuardError, match="closed"):
        bundle.probe.score(np.zeros((1, bundle.probe.n_features), np.float32))


def test_a_missing_folder_is_refused_with_a_way_to_make_one(tmp_path: Path, model: ModelInfo):
    message = refusal(tmp_path / "nowhere", model)
    assert "nowhere" in message
    assert "calibrate" in message


@pytest.mark.parametrize("name", ["guard.json", "probe.onnx", "vector.gguf"])
def test_a_missing_file_is_refused_by_name(folder: Path, model: ModelInfo, name: str):
    (folder / name).unlink()
    assert name in refusal(folder, model)


@pytest.mark.parametrize("name", ["probe.onnx", "vector.gguf"])
def test_a_file_that_was_changed_is_refused(folder: Path, model: ModelInfo, name: str):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    message = refusal(folder, model)
    assert name in message
    assert "SHA-256" in message


def test_text_that_is_not_utf8_is_refused(folder: Path, model: ModelInfo):
    (folder / "guard.json").write_bytes(b'{"name": "\xff"}')
    assert "UTF-8" in refusal(folder, model)


def test_a_configuration_above_the_size_limit_is_not_read(folder: Path, model: ModelInfo):
    with (folder / "guard.json").open("ab") as file:
        file.truncate(5 * 1024 * 1024)
    assert "at most" in refusal(folder, model)


def test_an_unknown_schema_version_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    edit_config(lambda c: c.update(schema_version=3))
    assert "upgrade" in refusal(folder, model)


def test_a_policy_that_never_refuses_is_for_comparisons_and_no_bundles(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    edit_config(lambda c: c["policy"].update(refuses=False))
    assert "refuses false" in refusal(folder, model)


@pytest.mark.parametrize("name", ["../probe.onnx", "/probe.onnx", "sub/probe.onnx", "..\\p.onnx"])
def test_a_path_in_place_of_a_name_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig, name: str
):
    shutil.copy(folder / "probe.onnx", folder.parent / "probe.onnx")
    edit_config(lambda c: c["probe"].update(file=name))
    assert "plain name" in refusal(folder, model)


@pytest.mark.parametrize("name", ["guard.json", "probe.onnx", "vector.gguf"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, model: ModelInfo, name: str):
    outside = folder.parent / f"outside {name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert "link out of" in refusal(folder, model)


def test_a_loop_of_links_is_refused(folder: Path, model: ModelInfo):
    (folder / "probe.onnx").unlink()
    (folder / "probe.onnx").symlink_to(folder / "probe.onnx")
    assert "probe.onnx" in refusal(folder, model)


def test_a_link_to_the_folder_itself_is_fine(folder: Path, model: ModelInfo):
    link = folder.parent / "link"
    link.symlink_to(folder)
    load_bundle(link, model).close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_in_place_of_a_file_does_not_hang(folder: Path, model: ModelInfo):
    (folder / "probe.onnx").unlink()
    os.mkfifo(folder / "probe.onnx")
    assert "regular file" in refusal(folder, model)


@pytest.mark.parametrize("name", ["other.onnx", "OTHER.GGUF", ".hidden.gguf"])
def test_a_probe_or_vector_that_is_not_listed_is_refused(folder: Path, model: ModelInfo, name: str):
    (folder / name).write_bytes(b"")
    message = refusal(folder, model)
    assert name in message
    assert "does not list" in message


def test_other_files_may_lie_in_the_folder(folder: Path, model: ModelInfo):
    (folder / "README.md").write_text("How this bundle was made.")
    load_bundle(folder, model).close()


def test_another_model_is_refused_naming_what_differs(tmp_path: Path, folder: Path):
    other = check_language_model(write_tiny_qwen2(tmp_path / "q.gguf", n_embd=32))
    message = refusal(folder, other)
    assert "architecture 'llama' (this model: 'qwen2')" in message
    assert "n_embd 64 (this model: 32)" in message


def test_another_quantization_loads_with_a_warning_and_a_pointer(tmp_path: Path, folder: Path):
    other = check_language_model(write_tiny_llama(tmp_path / "q.gguf", quantization="Q8_0"))
    with load_bundle(folder, other) as bundle:
        assert bundle.match == "other_quantization"
        (warning,) = bundle.warnings
    assert "calibrated on F32" in warning
    assert "is Q8_0" in warning
    assert "safesteer-edge calibrate" in warning


def test_a_bundle_without_engine_canaries_says_so(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    edit_config(lambda c: c["canaries"].update(engine=[]))
    with load_bundle(folder, model) as bundle:
        assert "wrong layer" in bundle.warnings[0]


def test_a_probe_for_another_width_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    exchange(folder, edit_config, "probe", probe_onnx(weights_for(model.n_embd)))
    assert f"{model.n_embd} values" in refusal(folder, model)


def test_a_probe_with_weights_that_are_no_numbers_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    weights = weights_for(2 * model.n_embd)
    weights[3] = np.nan
    exchange(folder, edit_config, "probe", probe_onnx(weights))
    refusal(folder, model, ProbeFileError)


@pytest.mark.parametrize("spoil", [lambda w: -w, lambda w: 0 * w, lambda w: 1.1 * w, np.roll])
def test_a_probe_that_was_flipped_or_altered_fails_its_self_test(
    folder: Path, model: ModelInfo, edit_config: EditConfig, spoil: Any
):
    weights = weights_for(2 * model.n_embd)
    spoilt = spoil(weights, 1) if spoil is np.roll else spoil(weights)
    exchange(folder, edit_config, "probe", probe_onnx(spoilt))
    assert "the probe's self-test failed" in refusal(folder, model)


def test_joined_layers_in_another_number_are_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    edit_config(lambda c: c["probe"].update(layers=[1]))
    assert "n_features" in refusal(folder, model)


@pytest.mark.parametrize(
    "change",
    [
        {"sign": -1},
        {"scale": -0.5},
        {"modalities": {"image": -0.1, "audio": None}},
        {"modalities": {"image": None, "audio": -0.1}},
    ],
)
def test_a_vector_applied_backwards_needs_permission(
    folder: Path, model: ModelInfo, edit_config: EditConfig, change: dict[str, Any]
):
    edit_config(lambda c: c["vector"].update(change))
    assert "backwards" in refusal(folder, model)
    with load_bundle(folder, model, allow_negative_scale=True) as bundle:
        assert any("backwards" in warning for warning in bundle.warnings)


def test_a_negative_sign_turns_the_vector_round(
    folder: Path, model: ModelInfo, edit_config: EditConfig, parts: BundleParts
):
    edit_config(lambda c: c["vector"].update(sign=-1))
    with load_bundle(folder, model, allow_negative_scale=True) as bundle:
        vector = bundle.control_vector
        assert vector is not None
        np.testing.assert_array_equal(vector.directions, -vector_of(parts).vector.directions)


@pytest.mark.parametrize("scaling", [{"scale": 3.9}, {"modalities": {"image": 3.9, "audio": None}}])
def test_a_vector_longer_than_the_states_it_moves_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig, scaling: dict[str, Any]
):
    edit_config(lambda c: c.update(residual_norms=[RESIDUAL_NORM, 7.0, RESIDUAL_NORM, 9.0]))
    edit_config(lambda c: c["vector"].update(scaling))
    message = refusal(folder, model)
    assert "layer 1" in message
    assert "lower the scale" in message


def test_only_steered_layers_count_for_the_vectors_length(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    edit_config(lambda c: c.update(residual_norms=[0.1, 0.1, RESIDUAL_NORM, RESIDUAL_NORM]))
    refusal(folder, model)
    edit_config(lambda c: c["vector"].update(layers=[2, 3]))
    load_bundle(folder, model).close()


def test_a_vector_for_another_architecture_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    path = folder / "vector.gguf"
    write_control_vector(path, replace(sample_vector(model, norm=2.0), model_hint="qwen2"))
    exchange(folder, edit_config, "vector", path.read_bytes())
    assert "'qwen2'" in refusal(folder, model)


def test_a_vector_of_another_width_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    path = folder / "vector.gguf"
    vector = sample_vector(model, norm=2.0)
    write_control_vector(path, replace(vector, directions=vector.directions[:, :32].copy()))
    exchange(folder, edit_config, "vector", path.read_bytes())
    assert "n_embd" in refusal(folder, model)


def test_a_vector_file_that_is_none_is_refused(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    exchange(folder, edit_config, "vector", b"PK\x03\x04 not a GGUF file")
    refusal(folder, model, VectorFileError)


def test_the_probe_is_closed_when_a_later_check_fails(
    folder: Path, model: ModelInfo, edit_config: EditConfig, monkeypatch: pytest.MonkeyPatch
):
    opened: list[OnnxProbe] = []
    load = OnnxProbe.from_bytes

    def remember(*args: Any, **kwargs: Any) -> OnnxProbe:
        opened.append(load(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(bundle_module.OnnxProbe, "from_bytes", remember)
    edit_config(lambda c: c["vector"].update(sign=-1))
    refusal(folder, model)
    (probe,) = opened
    with pytest.raises(GuardError, match="closed"):
        probe.score(np.zeros((1, probe.n_features), np.float32))


def test_a_loaded_bundle_cannot_be_changed(folder: Path, model: ModelInfo):
    with load_bundle(folder, model) as bundle, pytest.raises(AttributeError):
        bundle.warnings = ()  # pyright: ignore[reportAttributeAccessIssue]  # the test's point
    assert GuardBundle.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]


# What a bundle must do nothing with, at every rule.
NEVER = {
    "strength": 1e-6,
    "threshold": 0.999999,
    "hard_threshold": 0.999999,
    "hard_patience": 1024,
    "risk_limit": 1.0,
}


@pytest.mark.parametrize("figures", [{}, {"calibrated": True}, figures_of(POLICY)])
def test_a_policy_that_can_never_act_is_refused_whatever_its_figures_say(
    folder: Path, model: ModelInfo, edit_config: EditConfig, figures: dict[str, object]
):
    edit_config(lambda c: c["policy"].update(NEVER))
    edit_config(lambda c: c.update(figures=figures))
    message = refusal(folder, model)
    assert "can never act" in message
    assert "threshold 0.999999" in message
    assert "calibrate" in message


def test_a_policy_that_acted_on_no_harmful_answer_is_refused_and_not_written(
    tmp_path: Path, folder: Path, model: ModelInfo, edit_config: EditConfig, parts: BundleParts
):
    never = figures_of(POLICY, acts_on=0.0)
    edit_config(lambda c: c.update(figures=never))
    assert "acts on none of the harmful answers" in refusal(folder, model)
    with pytest.raises(BundleError, match="acts on none"):
        write_bundle(tmp_path / "b", replace(parts, figures=never))
    assert not (tmp_path / "b").exists()


def effect_of(policy: GuardPolicy, figures: dict[str, object]) -> str:
    return recorded_effect(policy, json.loads(format_json(figures)))


def test_figures_of_either_calibration_count():
    choice = figures_of(POLICY)["policy_choice"]
    assert effect_of(POLICY, {"calibration": {"policy": choice}}) == "acts"
    assert effect_of(POLICY, {"policy_choice": choice}) == "acts"
    assert effect_of(POLICY, {"original": {"policy_choice": choice}}) == "unknown"


def test_steering_counts_only_where_it_is_felt():
    def figures(policy: GuardPolicy) -> dict[str, object]:
        choice = {"policy": asdict(policy), "refused": {"harmful": 0.0}, "touched": {"harmful": 1}}
        return {"policy_choice": choice}

    weak = replace(POLICY, strength=0.1)
    assert effect_of(POLICY, figures(POLICY)) == "acts"
    assert effect_of(weak, figures(weak)) == "never_acts"


@pytest.mark.parametrize("share", [None, "0.7", True, 1.7, -0.1, [0.7], {"share": 0.7}])
@pytest.mark.parametrize("what", ["refused", "touched"])
def test_figures_that_are_no_shares_say_nothing(what: str, share: object):
    figures: Any = figures_of(POLICY)
    figures["policy_choice"][what] = {"harmful": share}
    assert effect_of(POLICY, figures) == "unknown"


@pytest.mark.parametrize("choice", [None, 3, [], {}, {"policy": {}}, {"policy": [1]}])
def test_figures_of_another_shape_say_nothing(choice: object):
    assert effect_of(POLICY, {"policy_choice": choice}) == "unknown"


def test_figures_of_another_policy_say_nothing_for_this_one(
    folder: Path, model: ModelInfo, edit_config: EditConfig
):
    edit_config(lambda c: c["policy"].update(threshold=0.8))
    with load_bundle(folder, model) as bundle:
        assert not bundle.is_calibrated
        assert "UNCALIBRATED" in bundle.warnings[0]


def replayed(*scores: object, complies: bool = True) -> dict[str, object]:
    return {"replay": {"complies": [complies] * len(scores), "max_score": list(scores)}}


def test_a_policy_above_every_replayed_harmful_score_is_refused():
    high = replace(POLICY, threshold=0.95, hard_threshold=0.95, risk_limit=0.95, strength=1e3)
    assert high.can_steer and high.can_refuse
    assert effect_of(high, replayed(0.3, 0.94)) == "never_acts"
    assert effect_of(high, replayed(0.3, 0.96)) == "unknown"
    # The prompt's score is not kept, and may be higher than any token's.
    assert effect_of(replace(high, prompt_weight=8), replayed(0.3)) == "unknown"


@pytest.mark.parametrize(
    "figures", [replayed(), replayed(0.1, complies=False), replayed(0.1, None), {"replay": 1}]
)
def test_a_replay_that_is_not_whole_rules_nothing_out(figures: dict[str, object]):
    assert effect_of(POLICY, figures) == "unknown"


def test_the_hash_of_a_bundle_is_that_of_its_guard_json(folder: Path, model: ModelInfo):
    with load_bundle(folder, model) as bundle:
        assert bundle.is_calibrated
        assert bundle.sha256 == hashlib.sha256((folder / "guard.json").read_bytes()).hexdigest()


def test_the_vector_that_was_hashed_is_the_vector_that_steers(
    folder: Path, model: ModelInfo, parts: BundleParts, monkeypatch: pytest.MonkeyPatch
):
    path = folder / "vector.gguf"
    check = bundle_module.check_sha256

    def exchange_after(data: bytes, expected: str, checked: Path) -> None:
        check(data, expected, checked)
        if checked == path:
            write_control_vector(path, sample_vector(model, norm=0.001))

    monkeypatch.setattr(bundle_module, "check_sha256", exchange_after)
    with load_bundle(folder, model) as bundle:
        vector = bundle.unscaled_vector
        assert vector is not None
        np.testing.assert_array_equal(vector.directions, vector_of(parts).vector.directions)


def test_the_embedded_default_is_calibrated_and_does_not_load_with_its_limits_out_of_reach():
    folder = default_model().bundle
    assert folder is not None
    config = read_config(folder)
    figures = dict(config.figures)
    assert recorded_effect(config.policy, figures) == "acts"
    high = {"threshold": 0.995, "hard_threshold": 0.995}
    assert recorded_effect(replace(config.policy, **high), figures) == "unknown"
    never = replace(config.policy, **high, risk_limit=1.0, prompt_limit=1.0)
    assert recorded_effect(never, figures) == "never_acts"
