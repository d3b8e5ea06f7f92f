"""A guard bundle is pulled from a hub with its model or alone; killed or deceived, whole or not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from safesteer_edge.bundle.exchange import check_bundle, known_bundles
from safesteer_edge.cli.main import main
from safesteer_edge.library.index import bundles_folder, library_folder
from tests.guarded_tiny import ALARMED, QUIET, GuardedTiny, make_guarded_tiny
from tests.library.hub_server import Hub

GUARD, SPEC = "tiny/Tiny-Guard", "hf:tiny/Tiny-Guard"
N_KILLS = 20
TIMEOUT_S = 120
CATALOGUE = """
[[model]]
name = "tiny-one"
title = "Tiny One"
architecture = "llama"
licence = "MIT"
repository = "tiny/Tiny-GGUF"
quantization = "F32"
bundle_repository = "{repository}"
bundle_sha256 = "{sha256}"
"""
# One process imports the program once and forks for each run, so that twenty take seconds.
PROGRAM = """
import os, sys
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
import safesteer_edge.bundle.exchange
from safesteer_edge.cli.main import main
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(main(["bundles", *line.split()]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def stocked(hub: Hub, guarded_tiny: GuardedTiny) -> Hub:
    """The hub with the tiny model, and a repository of its bundle."""
    hub.put("tiny/Tiny-GGUF", "tiny-F32.gguf", guarded_tiny.model.read_bytes())
    put_bundle(hub, guarded_tiny.bundle(QUIET))
    return hub


def put_bundle(hub: Hub, folder: Path, below: str = "") -> None:
    hub.put(GUARD, "README.md", b"# Tiny")
    for path in folder.iterdir():
        hub.put(GUARD, below + path.name, path.read_bytes())


def write_catalogue(home: Path, sha256: str, repository: str = GUARD) -> None:
    folder = home / "config" / "safesteer-edge"
    folder.mkdir(parents=True)
    text = CATALOGUE.format(repository=repository, sha256=sha256)
    (folder / "catalogue.toml").write_text(text)


def config_sha256(hub: Hub) -> str:
    return hashlib.sha256(hub.files[GUARD]["guard.json"]).hexdigest()


def installed() -> list[Path]:
    return [each.folder for each in known_bundles() if each.is_installed]


def test_a_model_of_the_catalogue_comes_with_its_bundle_and_answers_guarded(
    stocked: Hub, home: Path, capsys: pytest.CaptureFixture[str]
):
    write_catalogue(home, config_sha256(stocked))
    assert main(["models", "pull", "tiny-one"]) == 0
    assert "tiny-one is guarded by it now" in capsys.readouterr().out
    usual = ["--threads", "1", "--ctx", "512", "--max-tokens", "4", "--temperature", "0"]
    assert main(["ask", "Hello?", "--model", "tiny-one", *usual]) == 0
    assert "guard tiny-30" in capsys.readouterr().err
    n_before = stocked.n_bytes_sent
    assert main(["models", "pull", "tiny-one"]) == 0
    assert stocked.n_bytes_sent == n_before


@pytest.mark.parametrize("below", ["", "q4/guard/"])
def test_a_bundle_is_pulled_alone(
    hub: Hub, guarded_tiny: GuardedTiny, below: str, capsys: pytest.CaptureFixture[str]
):
    put_bundle(hub, guarded_tiny.bundle(QUIET), below)
    hub.in_git = True  # as a hub keeps small files
    spec = f"{SPEC}:{below[:-1]}" if below else SPEC
    assert main(["bundles", "pull", spec, "--model", str(guarded_tiny.model), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [Path(value["folder"])] == installed()
    assert value["is_calibrated"]
    assert list((library_folder() / ".partial").glob("*.part")) == []


def test_a_signed_bundle_keeps_its_signature_and_a_wrong_one_is_refused(
    hub: Hub,
    guarded_tiny: GuardedTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "mine"
    shutil.copytree(guarded_tiny.bundle(QUIET), folder)
    assert main(["bundles", "keygen", str(tmp_path / "key.pem")]) == 0
    assert main(["bundles", "sign", str(folder), "--key", str(tmp_path / "key.pem")]) == 0
    put_bundle(hub, folder)
    signature = json.loads(hub.files[GUARD]["signature.json"])
    monkeypatch.setenv("SAFESTEER_BUNDLES_TRUSTED_KEYS", f"acme {signature['key']}")
    capsys.readouterr()
    assert main(["bundles", "pull", SPEC, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "signed by acme (trusted)"
    hub.put(GUARD, "report.json", b"{}")  # after it was signed
    assert main(["bundles", "pull", SPEC]) == 2
    assert "signature" in capsys.readouterr().err
    assert len(installed()) == 1


def _swapped_hash(hub: Hub) -> None:
    hub.put(GUARD, "probe.onnx", hub.files[GUARD]["probe.onnx"][::-1])


def _other_config(hub: Hub) -> None:
    hub.put(GUARD, "guard.json", hub.files[GUARD]["guard.json"] + b"\n")


HOSTILE: dict[str, tuple[Callable[[Hub], object], str]] = {
    "wrong-hash": (_swapped_hash, "does not have the hash that its guard.json lists"),
    "other-bundle": (_other_config, "is another than the one that is wanted"),
    "unknown-file": (lambda hub: hub.put(GUARD, "run.py", b""), "no part of one"),
    "upwards": (lambda hub: hub.put(GUARD, "../x.json", b""), "no part of one"),
    "folder": (lambda hub: hub.put(GUARD, "a/guard.json", b"{}"), "no part of one"),
    "unlisted": (lambda hub: hub.put(GUARD, "b.onnx", b"1"), "no part of one"),
    "missing": (lambda hub: hub.files[GUARD].pop("probe.onnx"), "lacks 'probe.onnx'"),
    "large": (lambda hub: hub.put(GUARD, "report.json", bytes(5 << 20)), "too large"),
    "damaged": (lambda hub: setattr(hub, "is_corrupt", True), "does not have the hash"),
    "empty": (lambda hub: hub.files[GUARD].pop("guard.json"), "has no guard.json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_the_bundle_is_one_line_and_nothing_is_installed(
    stocked: Hub, home: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    write_catalogue(home, config_sha256(stocked))
    stocked.put("tiny/Tiny-GGUF", "README.md", b"#")
    edit, problem = HOSTILE[name]
    edit(stocked)
    if name == "damaged":
        assert main(["bundles", "pull", SPEC]) == 2
    else:
        assert main(["models", "pull", "tiny-one"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("safesteer-edge:")]
    assert (captured.out, len(errors)) == ("", 1)
    assert problem in errors[0]
    assert installed() == []


def test_a_bundle_of_another_model_is_refused_before_its_probe_is_fetched(
    hub: Hub, home: Path, guarded_tiny: GuardedTiny, capsys: pytest.CaptureFixture[str]
):
    hub.put(
        "tiny/Tiny-GGUF", "tiny-F32.gguf", make_guarded_tiny(home, n_embd=32).model.read_bytes()
    )
    put_bundle(hub, guarded_tiny.bundle(QUIET))
    write_catalogue(home, config_sha256(hub))
    assert main(["models", "pull", "tiny-one"]) == 2
    assert "made for another model" in capsys.readouterr().err
    assert installed() == []
    assert hub.count("GET", hashlib.sha256(hub.files[GUARD]["probe.onnx"]).hexdigest()) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_pull_that_is_killed_twenty_times_leaves_no_half_written_bundle(
    stocked: Hub, guarded_tiny: GuardedTiny
):
    stocked.put(GUARD, "report.json", json.dumps({"n": "1" * 3_000_000}).encode())
    n_bytes = sum(map(len, stocked.files[GUARD].values()))
    stocked.chunk_wait_s = 0.5  # from the place on where a pull is to be killed
    rng = random.Random(20)
    with Forking() as forking:
        for _ in range(N_KILLS):
            stocked.wait_after = stocked.n_bytes_sent + rng.randrange(n_bytes // 20)
            child = forking.start(f"pull {SPEC}")
            wait_until(lambda: stocked.n_bytes_sent >= stocked.wait_after, "more bytes to be sent")
            os.kill(child, signal.SIGKILL)
            assert forking.ended() == -signal.SIGKILL
            assert installed() == []
        stocked.chunk_wait_s, n_sent = 0.0, stocked.n_bytes_sent
        forking.start(f"pull {SPEC}")
        assert forking.ended() == 0
    assert stocked.n_bytes_sent - n_sent < n_bytes  # it went on where the others stopped
    (folder,) = installed()
    check_bundle(folder)
    for name in ("guard.json", "probe.onnx", "report.json"):
        assert (folder / name).read_bytes() == stocked.files[GUARD][name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_an_import_that_is_killed_twenty_times_leaves_whole_bundles(
    home: Path, guarded_tiny: GuardedTiny
):
    rng = random.Random(21)
    with Forking() as forking:
        took_s = 0.0
        for _ in range(2):  # the first one loads the program
            started_s = time.monotonic()
            forking.start(f"import {guarded_tiny.bundle(QUIET)}")
            assert forking.ended() == 0
            took_s = time.monotonic() - started_s
        for _ in range(N_KILLS):
            child = forking.start(f"import {guarded_tiny.bundle(ALARMED)}")
            time.sleep(rng.uniform(0, took_s))  # anywhere in its work
            with suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
            assert forking.ended() in (0, -signal.SIGKILL)
            assert {check_bundle(folder).name for folder in installed()} - {"tiny+30"} == {
                "tiny-30"
            }
        forking.start(f"import {guarded_tiny.bundle(ALARMED)}")
        assert forking.ended() == 0
    assert len(installed()) == 2
    assert list(bundles_folder().glob(".incoming-*")) == []


class Forking:
    """Runs commands, each in a process that may be killed."""

    def __enter__(self) -> Forking:
        self._starter = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._starter.kill()
        self._starter.communicate()

    def start(self, command: str) -> int:
        """The process's id."""
        assert self._starter.stdin is not None
        print(command, file=self._starter.stdin, flush=True)
        return self._line()

    def ended(self) -> int:
        """Its exit code, once it is over."""
        return self._line()

    def _line(self) -> int:
        assert self._starter.stdout is not None
        return int(self._starter.stdout.readline())


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.001)
