"""What `chat` takes from the settings file, and what its own options say instead."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from safesteer_edge.cli import chat_command
from safesteer_edge.session import settings_file
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.session.settings_file import with_setting, write_settings
from safesteer_edge.session.settings_schema import UserSettings


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(*typed: str, **settings: str) -> SessionSettings:
        user = UserSettings()
        for key, value in settings.items():
            user = with_setting(user, key.replace("__", "."), value)
        path = write_settings(user, tmp_path / settings_file.FILE_NAME)
        monkeypatch.setattr(settings_file, "settings_path", lambda: path)
        found: list[SessionSettings] = []
        monkeypatch.setattr(
            chat_command, "_run_plain", lambda settings, **_: found.append(settings) or 0
        )
        parser = argparse.ArgumentParser()
        chat_command.add_parser(parser.add_subparsers())
        options = parser.parse_args(["chat", "--plain", *typed])
        options.run(options)
        return found[0]

    return run


def test_the_file_says_how_models_think_and_how_their_cache_is_kept(chosen):
    settings = chosen(model__thinking="false", model__kv_type="q8_0")
    assert (settings.prefers_thinking, settings.thinking) == (False, None)
    assert settings.kv_type == "q8_0"


def test_options_go_before_the_file(chosen):
    settings = chosen(
        "--think", "--kv-type", "q4_0", model__thinking="false", model__kv_type="q8_0"
    )
    assert settings.thinking is True
    assert settings.kv_type == "q4_0"
