"""What a command takes from settings file and environment, and what its flags say instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.session import isolated_session
from safesteer_edge.session.session import open_session
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.session.settings_file import with_setting, write_settings
from safesteer_edge.session.settings_schema import UserSettings
from tests.cli.conftest import Ask
from tests.guarded_tiny import GuardedTiny


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Write the user's settings file, in a folder of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def run(**settings: str) -> None:
        user = UserSettings()
        for key, value in settings.items():
            user = with_setting(user, key.replace("__", "."), value)
        write_settings(user)

    return run


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, write):
    """The settings that `chat --plain` opens its session with."""
    from safesteer_edge.cli.main import main

    def run(*typed: str, **settings: str) -> SessionSettings:
        write(**settings)
        found: list[SessionSettings] = []

        def open_no_session(settings: SessionSettings) -> None:
            found.append(settings)
            raise KeyboardInterrupt

        monkeypatch.setattr(isolated_session, "open_isolated_session", open_no_session)
        main(["chat", "--plain", *typed])
        return found[0]

    return run


def test_the_file_says_how_models_think_and_how_their_cache_is_kept(chosen):
    settings = chosen(model__thinking="false", model__kv_type="q8_0")
    assert (settings.prefers_thinking, settings.thinking) == (False, None)
    assert settings.kv_type == "q8_0"


def test_flags_go_before_the_environment_and_that_before_the_file(
    chosen, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAFESTEER_MODEL_KV_TYPE", "q4_0")
    monkeypatch.setenv("SAFESTEER_SAMPLING_TOP_K", "9")
    settings = chosen(
        "--think",
        "--top-k",
        "7",
        model__thinking="false",
        model__kv_type="q8_0",
        sampling__seed="5",
    )
    assert settings.thinking is True
    assert settings.kv_type == "q4_0"
    assert (settings.sampling.top_k, settings.sampling.seed) == (7, 5)


def test_the_files_projector_is_not_for_the_model_of_a_flag(chosen):
    usual = {"model__name": "a", "model__mmproj": "p.gguf"}
    assert chosen(**usual).mmproj == Path("p.gguf")
    assert chosen("--model", "b", **usual).mmproj is None
    assert chosen("--model", "b", "--mmproj", "q.gguf", **usual).mmproj == Path("q.gguf")


def test_a_flag_may_switch_the_guard_off_for_once(chosen):
    assert chosen(guard__mode="refuse").guard == "refuse"
    assert chosen("--guard", "off", guard__mode="refuse").guard == "off"


def test_ask_reads_the_file_and_the_environment(ask: Ask, write, monkeypatch: pytest.MonkeyPatch):
    write(guard__rerank="eager")
    monkeypatch.setenv("SAFESTEER_GUARD_MODE", "refuse")

    def guard(*flags: str) -> dict[str, object]:
        ran = ask("Hello there", "--json", *flags)
        assert ran.exit_code == OK
        return json.loads(ran.out)["guard"]

    assert guard()["mode"] == "refuse"
    steering = guard("--guard", "steer")
    assert (steering["mode"], steering["rerank"]) == ("steer", "eager")


def test_an_unknown_variable_names_the_nearest(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAFESTEER_TOP_K", "9")
    ran = ask("Hello there")
    assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
    assert "did you mean 'SAFESTEER_SAMPLING_TOP_K'?" in ran.err


def test_a_session_of_no_settings_takes_the_users(
    write, guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch
):
    usual = guarded_tiny.settings(None, guard="off")
    write(model__name=str(guarded_tiny.model), sampling__max_tokens="5", model__context="512")
    monkeypatch.setenv("SAFESTEER_MODEL_BUNDLE", str(guarded_tiny.bundle()))
    with open_session() as session:
        assert session.info.model_path == Path(str(usual.model))
        assert (session.turn_settings.max_tokens, session.info.n_ctx) == (5, 512)
        assert session.info.bundle is not None
