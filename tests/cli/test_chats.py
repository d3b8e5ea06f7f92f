"""`safesteer-edge chats` and `settings` on a user's folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.records import MessageAdded
from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from tests.chats.sample_chats import MODEL, turn
from tests.cli.conftest import Ran


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command with the user's folders below tmp_path."""
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))

    def run_one(*arguments: str) -> Ran:
        exit_code = main(arguments)
        captured = capsys.readouterr()
        return Ran(exit_code, captured.out, captured.err)

    return run_one


@pytest.fixture
def chat_id(run) -> str:
    with ChatStore().create(MODEL) as file:
        for record in turn(1, "Hello \x1b[31mthere", "Hi, I am tiny"):
            file.add(record)
        return file.log.header.id


def test_nothing_is_made_by_looking(run, tmp_path: Path):
    assert run("chats", "list") == Ran(OK, "", "no chats yet\n")
    assert json.loads(run("chats", "list", "--json").out) == {"chats": []}
    assert run("settings", "path").out.endswith("settings.toml\n")
    assert run("settings", "show").exit_code == OK
    assert list(tmp_path.iterdir()) == []


def test_chats_are_listed_shown_and_found(run, chat_id: str):
    listed = run("chats", "list")
    assert chat_id in listed.out and "(2 messages, tiny)" in listed.out
    assert "\x1b" not in listed.out
    assert json.loads(run("chats", "list", "--json").out)["chats"][0]["id"] == chat_id
    shown = run("chats", "show", chat_id[-4:])
    assert "Hi, I am tiny" in shown.out and "\x1b" not in shown.out
    found = run("chats", "search", "TINY", "am")
    assert chat_id in found.out and "assistant: Hi, I am tiny" in found.out
    assert run("chats", "search", "elephant").err == "no matches\n"
    assert run("chats", "show", "zzz").exit_code == BAD_INPUT


def test_a_chat_is_exported_renamed_and_deleted(run, chat_id: str, tmp_path: Path):
    page = tmp_path / "chat.html"
    assert run("chats", "export", chat_id, "--to", "html", "--output", str(page)).exit_code == OK
    assert page.read_text("utf-8").startswith("<!doctype html>")
    wrong = run("chats", "export", chat_id, "--output", str(tmp_path / "no" / "x.md"))
    assert (wrong.exit_code, wrong.err.count("\n")) == (BAD_INPUT, 1)
    assert run("chats", "rename", chat_id, "Greetings").exit_code == OK
    assert "Greetings" in run("chats", "list").out
    unsure = run("chats", "delete", chat_id)
    assert unsure.exit_code == BAD_INPUT and "--yes" in unsure.err
    assert run("chats", "delete", chat_id, "--yes") == Ran(OK, "", "")
    assert run("chats", "list").out == ""


def test_a_damaged_chat_is_named_and_the_others_are_listed(run, chat_id: str):
    with ChatStore().create(MODEL) as file:
        file.add(MessageAdded("m1", None, "user", 1.0, "Hello"))
        file.path.write_bytes(file.path.read_bytes() + b"noise\n")
    listed = run("chats", "list")
    assert listed.exit_code == OK
    assert listed.out.count("damaged") >= 1 and chat_id in listed.out


def test_settings_are_changed_and_brought_back(run):
    assert run("settings", "set", "sampling.temperature", "0.7") == Ran(OK, "", "")
    shown = run("settings", "show").out
    (line,) = [line for line in shown.splitlines() if line.startswith("*")]
    assert line.split()[1:3] == ["sampling.temperature", "0.7"]
    assert json.loads(run("settings", "show", "--json").out)["sampling.temperature"] == 0.7
    assert run("settings", "unset", "sampling.temperature").exit_code == OK
    assert "*" not in {line[0] for line in run("settings", "show").out.splitlines()}
    wrong = run("settings", "set", "guard.mode", "off")
    assert wrong.exit_code == BAD_INPUT and "asked for each time" in wrong.err
    near = run("settings", "set", "look.themes", "dark")
    assert near.exit_code == BAD_INPUT and "did you mean 'look.theme'" in near.err
