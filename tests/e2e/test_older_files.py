"""What people have on their disks from earlier versions is read as it was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.cli.main import main
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.formats.user_folders import user_config_folder, user_data_folder
from safesteer_edge.library.catalogue import default_model, installed_path

# Written by the commands of the version before the folders were rearranged.
OLDER = Path(__file__).parent / "data" / "older_files"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATA", "CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    return tmp_path


def placed(name: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(OLDER / name, target)
    return target


def test_a_chat_keeps_its_words_and_its_risk(home: Path):
    path = placed("chat.jsonl", home / "chats" / "20261129-174346-9f438b.jsonl")
    store = ChatStore(path.parent)
    (summary,) = store.list()
    question, answer, *_, last = store.read(summary.id).branch()
    assert question.text == "Why is the sky blue?"
    assert answer.text.startswith("The answer to this classic question lies in")
    assert last.end is not None and last.end.guard is not None
    assert last.end.guard.risk == 0.0028341829531453302


def test_settings_keep_their_values(home: Path, capsys: pytest.CaptureFixture[str]):
    placed("settings.toml", user_config_folder() / "settings.toml")
    assert main(["settings", "show"]) == 0
    shown = capsys.readouterr().out
    for line in ("sampling.temperature 0.5", 'guard.mode "refuse"', 'keys.help "f12"'):
        assert line in " ".join(shown.split())


def test_an_added_model_is_still_there(
    home: Path, tiny_llama_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = placed("index.json", user_data_folder() / "models" / "index.json")
    entries = json.loads(model.read_text("utf-8"))
    file = entries["models"][0]["model"]
    own = shutil.copy(tiny_llama_path, home / "tiny.gguf")
    file["path"], file["mtime_ns"] = str(own), Path(own).stat().st_mtime_ns
    assert file["size_bytes"] == Path(own).stat().st_size
    model.write_text(json.dumps(entries), "utf-8")
    assert main(["models", "list"]) == 0
    assert "tiny-of-mine" in capsys.readouterr().out
    assert main(["models", "path", "tiny-of-mine"]) == 0
    assert capsys.readouterr().out.strip() == str(own)


@pytest.mark.default_model
def test_the_bundle_that_ships_was_made_before_and_fits():
    entry = default_model()
    path = installed_path(entry)
    assert entry.bundle is not None
    with load_bundle(entry.bundle, check_language_model(path), device="cpu") as bundle:
        assert bundle.match == "exact"
