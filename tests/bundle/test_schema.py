"""guard.json: what is written is read back, and whatever was not foreseen is refused."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.bundle.canaries import CanaryTolerances
from safesteer_edge.bundle.schema import GuardConfig, format_guard_json, parse_guard_json
from safesteer_edge.errors import BundleError
from tests.bundle.config_strategies import configs

SHA256 = "0123456789abcdef" * 4


@settings(max_examples=60, deadline=None)
@given(configs())
def test_what_is_written_is_read_back(config: GuardConfig):
    assert parse_guard_json(format_guard_json(config), source="guard.json") == config


def sample() -> dict[str, Any]:
    """A small good guard.json as plain JSON."""
    state = base64.b64encode(struct.pack("<2f", 1.0, -1.0)).decode()
    return {
        "schema_version": 1,
        "name": "tiny",
        "created": "2026-11-22",
        "created_by": "tests",
        "model": {
            "architecture": "llama",
            "n_layer": 4,
            "n_embd": 2,
            "n_vocab": 10,
            "vocabulary_sha256": SHA256,
            "quantization": "Q4_1",
            "tensor_table_sha256": SHA256,
        },
        "probe": {
            "file": "probe.onnx",
            "sha256": SHA256,
            "layers": [2],
            "n_features": 2,
            "positive_class": "harmful",
        },
        "vector": {
            "file": "vector.gguf",
            "sha256": SHA256,
            "layer_convention": "block_output_0based",
            "sign": 1,
            "scale": 1,
            "max_scale": 2.0,
            "layers": [1, 3],
            "modalities": {"image": 1.5, "audio": None},
        },
        "policy": {
            "strength": 8.0,
            "threshold": 0.4,
            "hard_threshold": 0.9,
            "hard_patience": 4,
            "risk_limit": 0.8,
            "risk_decay": 0.9,
            "risk_min_steps": 8,
            "risk_gain": 2.0,
            "conversation_carry": 0.5,
        },
        "residual_norms": [1.0, 2.0, 3, 4.0],
        "canaries": {
            "probe": [
                {"hidden_state": state, "harmful_score": 0.1},
                {"hidden_state": state, "harmful_score": 0.9},
            ],
            "engine": [{"hidden_state": state, "harmful_score": 0.9, "token_ids": [1, 9]}],
            "tolerances": {"probe_score": 0.001},
        },
        "figures": {"auroc": 0.9},
        "refusal_text": "No.",
    }


def at(content: dict[str, Any], path: str) -> tuple[Any, Any]:
    """Return the container and the key that a dotted path leads to."""
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    place: Any = content
    for step in way:
        place = place[step]
    return place, last


def refusal(change: Callable[[dict[str, Any]], None]) -> str:
    content = sample()
    change(content)
    with pytest.raises(BundleError) as caught:
        parse_guard_json(json.dumps(content), source="some/guard.json")
    message = str(caught.value)
    assert message.startswith("cannot read 'some/guard.json': ")
    assert "\n" not in message
    return message


def test_the_sample_is_good_and_integers_may_stand_for_floats():
    config = parse_guard_json(json.dumps(sample()), source="guard.json")
    assert config.residual_norms == (1.0, 2.0, 3.0, 4.0)
    assert all(type(norm) is float for norm in config.residual_norms)
    assert config.canaries.tolerances == CanaryTolerances(probe_score=0.001)


@pytest.mark.parametrize("version", [3, 7, "1", None, 0, True, 1.0])
def test_an_unknown_schema_version_is_refused(version: object):
    assert "schema_version" in refusal(lambda c: c.update(schema_version=version))


def test_a_later_schema_version_says_what_this_program_reads_and_to_upgrade():
    def change(content: dict[str, Any]) -> None:
        content.update(schema_version=3, a_key_of_the_future=1)

    message = refusal(change)
    assert "this program reads versions 1 to 2" in message
    assert "upgrade" in message


def test_a_file_without_a_version_is_refused():
    assert "schema_version" in refusal(lambda c: c.pop("schema_version"))


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("refusal_txt", "refusal_text"),
        ("policy.treshold", "threshold"),
        ("probe.n_feature", "n_features"),
        ("vector.max_scal", "max_scale"),
        ("vector.modalities.img", "image"),
        ("canaries.tolerances.score", "probe_score"),
        ("model.n_layers", "n_layer"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(path: str, nearest: str):
    def change(content: dict[str, Any]) -> None:
        place, key = at(content, path)
        place[key] = 1

    message = refusal(change)
    assert f"unknown key {path!r}" in message
    assert nearest in message


@pytest.mark.parametrize(
    "path",
    ["name", "model.n_embd", "probe.layers", "policy.risk_gain", "vector.sign", "canaries.probe"],
)
def test_a_missing_key_is_refused_by_name(path: str):
    def change(content: dict[str, Any]) -> None:
        place, key = at(content, path)
        del place[key]

    assert f"the key {path!r} is missing" in refusal(change)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", 3),
        ("name", ""),
        ("name", "two\nlines"),
        ("name", "\x1b[2J"),
        ("name", "x" * 201),
        ("created", "22.11.2026"),
        ("created", "20261122"),
        ("created_by", "\x07"),
        ("model", []),
        ("model.n_layer", 4.0),
        ("model.n_layer", True),
        ("model.n_layer", 0),
        ("model.vocabulary_sha256", SHA256.upper()),
        ("probe.file", "../probe.onnx"),
        ("probe.file", "/etc/probe.onnx"),
        ("probe.file", "a/probe.onnx"),
        ("probe.file", "a\\probe.onnx"),
        ("probe.file", ".onnx"),
        ("probe.file", "probe.onnx\n"),
        ("probe.file", "probe.bin"),
        ("probe.sha256", "00"),
        ("probe.layers", []),
        ("probe.layers", [2, 2]),
        ("probe.layers", [5]),
        ("probe.layers", [-1]),
        ("probe.layers", 2),
        ("probe.layers", [2.0]),
        ("probe.n_features", 3),
        ("probe.positive_class", "harmless"),
        ("probe.route_hint", "somehow"),
        ("vector.file", "vector.onnx"),
        ("vector.layer_convention", "guessed"),
        ("vector.sign", 2),
        ("vector.sign", True),
        ("vector.sign", 1.0),
        ("vector.scale", 2.1),
        ("vector.scale", -2.1),
        ("vector.scale", "1"),
        ("vector.max_scale", 0),
        ("vector.modalities.image", 5.0),
        ("vector.layers", [0, 3]),
        ("vector.layers", [3, 1]),
        ("vector.layers", [1, 4]),
        ("vector.layers", [1, 2, 3]),
        ("policy.strength", 0),
        ("policy.strength", -1.0),
        ("policy.threshold", 1.0),
        ("policy.threshold", -0.1),
        ("policy.hard_patience", 1.5),
        ("policy.risk_decay", 1.5),
        ("policy.threshold", 10**400),
        ("residual_norms", [1.0, 2.0, 3.0]),
        ("residual_norms.0", 0.0),
        ("residual_norms.0", None),
        ("canaries.probe", []),
        ("canaries.probe.0.harmful_score", 1.1),
        ("canaries.probe.0.harmful_score", 0.85),
        ("canaries.probe.0.hidden_state", "not base64!"),
        ("canaries.probe.0.hidden_state", "AAAA"),
        ("canaries.probe.0.hidden_state", ""),
        ("canaries.probe.0.hidden_state", base64.b64encode(bytes(4)).decode()),
        (
            "canaries.probe.0.hidden_state",
            base64.b64encode(struct.pack("<2f", math.nan, 0)).decode(),
        ),
        ("canaries.engine.0.token_ids", []),
        ("canaries.engine.0.token_ids", [10]),
        ("canaries.engine.0.token_ids", [-1]),
        ("canaries.tolerances.probe_score", 0.5),
        ("canaries.tolerances.engine_cosine", 0.0),
        ("figures", []),
        ("figures", {"x": "\x1b]8;;"}),
        ("figures", {"x": "y" * 300_000}),
        ("refusal_text", " "),
        ("refusal_text", "x" * 2001),
        ("refusal_text", "\ud800"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused(path: str, value: object):
    def change(content: dict[str, Any]) -> None:
        place, key = at(content, path)
        place[key] = value

    field = next(step for step in reversed(path.split(".")) if not step.isdigit())
    message = refusal(change)
    assert any(word in message for word in (field, *field.split("_"), "canar", "scale", "layers"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of a JSON value and of everything in it."""
    if not isinstance(value, (dict, list)):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(leaf for key, item in inner for leaf in leaves(item, (*path, key)))]


@settings(max_examples=200, deadline=None)
@given(
    path=st.sampled_from(leaves(sample())[1:]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
)
def test_no_value_anywhere_raises_anything_but_a_bundle_error(path: tuple[Any, ...], value: Any):
    content = sample()
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    try:
        config = parse_guard_json(json.dumps(content), source="guard.json")
    except BundleError:
        return
    assert parse_guard_json(format_guard_json(config), source="guard.json") == config


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(literal: str):
    for place in ('"strength": 8.0', '"auroc": 0.9'):
        key = place.split(":")[0]
        text = json.dumps(sample()).replace(place, f"{key}: {literal}")
        assert literal in text
        with pytest.raises(BundleError):
            parse_guard_json(text, source="guard.json")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", "[" * 100_000, '{"a":' * 100_000, "\ufeff{}", "1" * 10_000],
    ids=["empty", "cut", "list", "null", "deep list", "deep object", "byte order mark", "long"],
)
def test_text_that_is_not_a_json_object_is_refused(text: str):
    with pytest.raises(BundleError, match=r"cannot read 'guard\.json'"):
        parse_guard_json(text, source="guard.json")


def test_a_key_that_stands_there_twice_is_refused():
    text = json.dumps(sample()).replace('"sign": 1', '"sign": 1, "sign": -1')
    with pytest.raises(BundleError, match="'sign' stands there twice"):
        parse_guard_json(text, source="guard.json")


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_figures_that_json_cannot_hold_are_refused_on_construction(value: object):
    config = parse_guard_json(json.dumps(sample()), source="guard.json")
    fields = {name: getattr(config, name) for name in GuardConfig.__dataclass_fields__}
    with pytest.raises(BundleError, match="JSON"):
        GuardConfig(**{**fields, "figures": {"auroc": value}})


def test_a_configuration_that_would_be_too_large_is_not_written():
    state = base64.b64encode(bytes(4 * 16384)).decode()
    content = sample()
    content["model"]["n_embd"] = content["probe"]["n_features"] = 16384
    content["canaries"]["probe"] = [
        {"hidden_state": state, "harmful_score": score / 100} for score in range(60)
    ]
    content["canaries"]["engine"] = []
    config = parse_guard_json(json.dumps(content), source="guard.json")
    with pytest.raises(BundleError, match="fewer canaries"):
        format_guard_json(config)
