"""`safesteer-edge models …` on a library that begins empty, and `ask` on what it then has."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from safesteer_edge.cli import chat_command
from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK, RUNTIME_ERROR
from safesteer_edge.library import hub
from safesteer_edge.library.index import read_index
from tests.guarded_tiny import QUIET, GuardedTiny
from tests.library.conftest import MODEL, REPOSITORY
from tests.library.hub_server import Answer, Hub

NAME = f"hf:{REPOSITORY}"
TIMEOUT_S = 240


class Terminal(io.StringIO):
    """What somebody types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def models(capsys: pytest.CaptureFixture[str]):
    """Run `models …`; exit code, what it printed, and the one line of its error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        exit_code = main(["models", *arguments])
        captured = capsys.readouterr()
        return exit_code, captured.out, captured.err

    return run


def test_from_an_empty_folder_pull_and_then_ask(stocked: Hub, tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "safesteer_edge", *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    pulled = run("models", "pull", NAME)
    assert pulled.returncode == OK, pulled.stderr
    assert f"run: safesteer-edge ask --model {NAME}" in pulled.stdout
    usual = ("--threads", "1", "--ctx", "512", "--max-tokens", "8", "--temperature", "0")
    asked = run("ask", "Hello?", "--model", NAME, "--guard", "off", *usual)
    assert asked.returncode == OK, asked.stderr
    assert asked.stdout.strip()
    refused = run("ask", "Hello?", "--model", NAME, *usual)
    assert refused.returncode == BAD_INPUT
    assert "calibrate" in refused.stderr
    assert "--guard off" in refused.stderr


def test_run_downloads_a_model_after_asking_and_chats_without_a_guard_if_told_to(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(typed: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        usual = ("--threads", "1", "--ctx", "512", "--max-tokens", "8", "--no-save")
        exit_code = main(["run", NAME, *usual])
        captured = capsys.readouterr()
        return exit_code, captured.out, captured.err

    exit_code, _, err = run("n\n")
    assert exit_code == BAD_INPUT
    assert "Download it? [y/N]" in err
    assert read_index().find(NAME) is None
    exit_code, out, err = run("y\nn\ny\nhello\n/quit\n")
    assert exit_code == OK, err
    assert read_index().find(NAME) is not None
    assert "Make one now (about 5 minutes on this machine's CPU)? [y/N]" in err
    assert "OFF: nothing is checked" in err
    assert out.strip()
    exit_code, _, err = run("n\nn\n")
    assert exit_code == BAD_INPUT
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["run", NAME]) == BAD_INPUT  # nobody can be asked
    assert "Say so with --yes" in capsys.readouterr().err


def test_run_makes_a_guard_once_and_chat_finds_it_by_the_models_name(
    home: Path,
    guarded_tiny: GuardedTiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def make(model: Path, mmproj: str | None) -> None:
        assert (model, mmproj) == (guarded_tiny.model, None)
        bundle = guarded_tiny.bundle(QUIET)  # which `calibrate` takes minutes for
        assert main(["bundles", "import", str(bundle)]) == OK

    assert main(["models", "add", "mine", str(guarded_tiny.model)]) == OK
    monkeypatch.setattr(chat_command, "calibrate", make)
    usual = ("--threads", "1", "--ctx", "512", "--max-tokens", "8", "--no-save")
    for typed in ("y\nhello\n", "hello\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        assert main(["run", "mine", *usual]) == OK
        assert "guard: steer" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Terminal("hello\n"))
    assert main(["chat", "--model", "mine", *usual]) == OK
    assert main(["models", "list"]) == OK
    assert "yes" in next(
        row for row in capsys.readouterr().out.splitlines() if row.startswith("mine")
    )


def test_pull_prints_the_record_for_programs(stocked: Hub, models):
    exit_code, out, _ = models("pull", NAME, "--json", "--no-projector")
    assert exit_code == OK
    value = json.loads(out)
    assert (value["name"], value["architecture"], value["bundle"]) == (NAME, "llama", None)
    (file,) = value["files"]
    assert Path(file["path"]).read_bytes() == stocked.files[REPOSITORY][MODEL]


@pytest.mark.parametrize(
    ("answer", "exit_code"), [(Answer(404, {}), BAD_INPUT), (Answer(503, {}), RUNTIME_ERROR)]
)
def test_a_pull_that_fails_is_one_line(
    stocked: Hub, models, answer: Answer, exit_code: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "RETRY_WAIT_S", 0.01)
    stocked.answers["/api/models"] = answer
    code, out, err = models("pull", NAME)
    assert (code, out) == (exit_code, "")
    errors = [line for line in err.splitlines() if not line.startswith("the hub answers")]
    assert len(errors) == 1


def test_a_lying_hub_is_bad_input(stocked: Hub, models):
    stocked.linked_size = 5
    code, _, err = models("pull", NAME)
    assert code == BAD_INPUT
    assert "contradicts itself" in err


def test_list_and_info_show_what_was_pulled(stocked: Hub, models):
    models("pull", NAME)
    _, out, _ = models("list")
    assert any(line.startswith(f"{NAME} ") and "text+images" in line for line in out.splitlines())
    rows = json.loads(models("list", "--json")[1])["models"]
    (row,) = [row for row in rows if row["name"] == NAME]
    assert (row["is_installed"], row["takes"], row["bundle"]) == (True, ["images"], None)
    exit_code, out, _ = models("info", NAME)
    assert exit_code == OK
    assert read_index().models[0].model.sha256 in out
    value = json.loads(models("info", NAME, "--json")[1])
    assert len(value["files"]) == 2
    assert value["hidden_states"].startswith("layer_input")


def test_info_of_a_model_to_pull_says_how(home: Path, models):
    exit_code, out, _ = models("info", "gemma-3-4b-it")
    assert exit_code == OK
    assert "safesteer-edge models pull gemma-3-4b-it" in out
    assert "131072 tokens" in out
    assert "eval_callback" in out
    exit_code, _, err = models("info", "gemma-3-4b-ti")
    assert exit_code == BAD_INPUT
    assert "did you mean 'gemma-3-4b-it'" in err


def test_add_verify_and_remove(home: Path, models, tiny_llama_path: Path):
    exit_code, out, _ = models("add", "mine", str(tiny_llama_path), "--json")
    assert exit_code == OK
    assert json.loads(out)["files"][0]["is_owned"] is False
    assert "unchanged" in models("verify")[1]
    assert json.loads(models("verify", "mine", "--json")[1])["verified"][0]["name"] == "mine"
    assert models("remove", "mine", "--yes")[0] == OK
    assert tiny_llama_path.exists()
    assert read_index().models == ()
    assert "no model" in models("verify")[1]


def test_removing_asks_first(
    stocked: Hub, models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    models("pull", NAME)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    exit_code, _, err = models("remove", NAME)
    assert exit_code == BAD_INPUT
    assert "pass --yes" in err

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert "nothing was removed" in models("remove", NAME)[2]
    assert read_index().find(NAME) is not None
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert models("remove", NAME)[0] == OK
    assert read_index().find(NAME) is None


def test_a_changed_file_is_one_line_and_bad_input(home: Path, models, tiny_llama_path: Path):
    mine = home / "mine.gguf"
    mine.write_bytes(tiny_llama_path.read_bytes())
    models("add", "mine", str(mine))
    mine.write_bytes(mine.read_bytes() + b"\0")
    for arguments in (("path", "mine"), ("info", "mine"), ("verify", "mine")):
        exit_code, out, err = models(*arguments)
        assert (exit_code, out) == (BAD_INPUT, "")
        assert "has changed since its hash was recorded" in err
        assert len(err.splitlines()) == 1


def test_an_unknown_key_in_the_users_catalogue_is_bad_input(home: Path, models):
    folder = home / "config" / "safesteer-edge"
    folder.mkdir(parents=True)
    (folder / "catalogue.toml").write_text('[[model]]\nnam = "x"\n')
    exit_code, _, err = models("list")
    assert exit_code == BAD_INPUT
    assert "did you mean 'name'" in err
