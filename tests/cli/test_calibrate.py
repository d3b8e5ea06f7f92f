"""`safesteer-edge calibrate`: what it makes loads, the same each time, killed on the way or not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.calibration.settings import layer_sets_for
from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.harvest.replay import N_TOKENS, replay_from_json
from safesteer_edge.requests.requests import replay_requests, requests_sha256
from tests.guarded_tiny import GuardedTiny
from tests.tiny_models.hearing_projector import write_tiny_hearing_projector

LOOSE = ("--false-alarms", "0.34")  # so few requests tell no less
THOROUGH = ("--effort", "thorough")
COUNTS = {"harmful": 10, "harmless": 4, "borderline": 2, "ordinary": 10}


def write_requests(path: Path, labels: dict[str, int], **extra: str) -> Path:
    rows = [
        {"text": f"{label} request number {number}", "label": label, "split": "train", **extra}
        for label, n in labels.items()
        for number in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(tiny: GuardedTiny, folder: Path, data: Path, *more: str) -> list[str]:
    options = ["-o", str(folder), "--data", str(data), "--threads", "1", "--ctx", "512"]
    return ["calibrate", str(tiny.model), *options, *LOOSE, *more]


def bundle_content(folder: Path) -> dict[str, Any]:
    """All of a bundle, without the date and the one field that says what it took.

    The report shows that field as well; its page is compared without the row.
    """
    config = json.loads((folder / "guard.json").read_text())
    del config["created"], config["figures"]["calibration"]["made"]
    report = (folder / "report.json").read_text()
    page = (folder / "report.html").read_text()
    return {
        "guard.json": config,
        "probe.onnx": (folder / "probe.onnx").read_bytes(),
        "report.json": re.sub(r'"(elapsed_s|peak_memory_mib)": [0-9.]+', "", report),
        "report.html": re.sub(r"<tr>(?:(?!<tr>).)*(elapsed|memory)(?:(?!<tr>).)*</tr>", "", page),
        "names": sorted(path.name for path in folder.iterdir()),
    }


@pytest.fixture(scope="module")
def made(guarded_tiny: GuardedTiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle made in one go, and the requests that it was made from."""
    folder = tmp_path_factory.mktemp("made")
    data = write_requests(folder / "requests.jsonl", COUNTS)
    seeing = ("--mmproj", str(guarded_tiny.projector))
    assert main(command(guarded_tiny, folder / "guard", data, *seeing, *THOROUGH)) == OK
    return folder / "guard", data


def test_a_bundle_made_from_a_users_requests_loads_for_its_model(
    guarded_tiny: GuardedTiny, made: tuple[Path, Path]
) -> None:
    with load_bundle(made[0], check_language_model(guarded_tiny.model)) as bundle:
        assert bundle.match == "exact"
        assert bundle.config.probe.layers in layer_sets_for(4)
        figures: Any = bundle.config.figures["calibration"]
    assert figures["harvested"]["text"] == COUNTS
    assert sum(figures["harvested"]["picture"].values()) == 48
    assert figures["vector"]["enabled"] is False and "too few" in figures["vector"]["why"]
    assert figures["made"]["elapsed_s"] > 0


def test_verify_has_the_replay_that_calibrate_recorded(
    guarded_tiny: GuardedTiny, made: tuple[Path, Path]
) -> None:
    figures: Any = json.loads((made[0] / "guard.json").read_text())["figures"]
    replay = replay_from_json(figures["replay"])
    assert replay is not None
    assert replay.requests_sha256 == requests_sha256(replay_requests())
    info = check_language_model(guarded_tiny.model)
    assert (replay.n_tokens, replay.quantization) == (N_TOKENS, info.quantization)
    assert (figures["targets"]["touched"], figures["targets"]["borderline_touched"]) == (0.34, 0.34)
    page = (made[0] / "report.html").read_text()
    assert "The finished guard on test requests" in page


def test_a_run_that_is_killed_goes_on_and_the_same_states_make_the_same_bundle(
    guarded_tiny: GuardedTiny, made: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, data = made
    seeing = ("--mmproj", str(guarded_tiny.projector))
    arguments = command(guarded_tiny, tmp_path / "guard", data, *seeing, *THOROUGH)
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    cache = tmp_path / "cache" / "safesteer-edge" / "harvest"
    program = [sys.executable, "-m", "safesteer_edge", *arguments]
    killed = subprocess.Popen(program, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(cache.glob("*.states"))) < 5:
        assert killed.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "waited in vain for five harvested answers"
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    kept = {path: path.stat().st_ino for path in cache.glob("*.states")}
    assert len(kept) < 74  # it was killed on the way
    second = subprocess.run(program, env=env, capture_output=True, text=True, timeout=600)
    assert second.returncode == OK, second.stderr
    assert all(path.stat().st_ino == inode for path, inode in kept.items())
    first_line = second.stderr.replace("\r", "\n").split("harvesting answers: ")[1]
    assert int(first_line.split("/")[0]) >= len(kept)
    # Batches begin elsewhere after a kill, and states differ in their last bits; the requests not.
    resumed, uncut = (bundle_content(folder) for folder in (tmp_path / "guard", whole))
    counts = [
        bundle["guard.json"]["figures"]["calibration"]["harvested"] for bundle in (resumed, uncut)
    ]
    assert counts[0] == counts[1] and resumed["names"] == uncut["names"]
    again = command(guarded_tiny, tmp_path / "again", data, *seeing, *THOROUGH)
    program = [sys.executable, "-m", "safesteer_edge", *again]
    assert subprocess.run(program, env=env, capture_output=True, timeout=600).returncode == OK
    assert bundle_content(tmp_path / "again") == resumed


def test_a_quick_run_says_how_long_it_takes_and_what_it_did_not_try(
    guarded_tiny: GuardedTiny,
    made: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "guard"
    assert main(command(guarded_tiny, folder, made[1])) == OK
    told = capsys.readouterr().err
    assert re.search(r"a quick calibration takes about \d+ s on this machine", told)
    with load_bundle(folder, guarded_tiny.info) as bundle:
        figures: Any = bundle.config.figures
    assert figures["calibration"]["harvested"]["text"] == COUNTS
    assert figures["calibration"]["effort"]["name"] == "quick"
    assert figures["n_own"] == COUNTS
    assert set(figures["prompt_probe"]["auroc"]) == {"harmless", "borderline", "ordinary"}
    page = (folder / "report.html").read_text()
    assert "The effort was quick. Not tried: the rest of the requests;" in page
    assert "The limits come from 10 answers to ordinary requests." in page
    assert re.search(
        r"refused: ordinary answers</td><td[^>]*>\d+/10 \([\d.]+ %, 95 % \d+–\d+\)", page
    )
    assert "decode-path" not in page  # batches are not
    asked = ["ask", "hello", "--model", str(guarded_tiny.model), "--bundle", str(folder)]
    assert main([*asked, "--ctx", "512", "--max-tokens", "1", "--guard", "monitor"]) == OK
    offer = f"calibrate {guarded_tiny.model} --effort standard"
    assert offer in capsys.readouterr().err
    # What it has read counts: the same again, and more of it, reads nothing twice.
    assert main(command(guarded_tiny, folder, made[1], "--effort", "standard")) == OK
    assert "reading requests: 26/26" in capsys.readouterr().err


def test_of_so_many_minutes_it_makes_what_they_pay_for(
    guarded_tiny: GuardedTiny,
    made: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "guard"
    assert main(command(guarded_tiny, folder, made[1], "--minutes", "0.001")) == BAD_INPUT
    assert one_line(capsys) and "on this machine: give at least 1" in one_line.last
    assert not folder.exists()
    assert main(command(guarded_tiny, folder, made[1], "--minutes", "30")) == OK
    assert "Not tried: what 30 minutes did not pay for;" in (folder / "report.html").read_text()
    for options, says in (
        (("--minutes", "nan"), "expected more than 0"),
        (("--minutes", "3", *THOROUGH), "leave out --effort thorough"),
    ):
        assert main(command(guarded_tiny, tmp_path / "no", made[1], *options)) == BAD_INPUT
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"harmful": 30}, "has no ordinary ones"),
        ({"ordinary": 30}, "has no harmful ones"),
        ({"harmful": 30, "ordinary": 3}, "has 3 ordinary ones outside the test split"),
        ({"harmful": 30, "ordinary": 198}, "needs 199 of them"),
        ({"harmful": 30, "ordinary": 198}, "--false-alarms 0.02"),
        ({"harmful": 30, "ordinary": 199, "borderline": 8}, "needs 19 of them: give more, or none"),
    ],
)
def test_requests_that_teach_nothing_are_refused_before_any_work(
    guarded_tiny: GuardedTiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    labels: dict[str, int],
    says: str,
) -> None:
    data = write_requests(tmp_path / "requests.jsonl", labels)
    usual = command(guarded_tiny, tmp_path / "guard", data)[: -len(LOOSE)]
    assert main(usual) == BAD_INPUT
    assert one_line(capsys) and says in one_line.last
    assert not (tmp_path / "guard").exists()


def test_what_the_model_cannot_take_is_refused_before_any_work(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hearing = write_tiny_hearing_projector(tmp_path / "hears.gguf")
    (tmp_path / "a.png").write_bytes(b"")
    plain = write_requests(tmp_path / "plain.jsonl", COUNTS)
    images = write_requests(tmp_path / "images.jsonl", COUNTS, image="a.png")
    sounds = write_requests(tmp_path / "sounds.jsonl", COUNTS, audio="a.png")
    unknown = write_requests(tmp_path / "unknown.jsonl", COUNTS, colour="red")
    sees, hears = ("--mmproj", str(guarded_tiny.projector)), ("--mmproj", str(hearing))
    for data, options, says in (
        (plain, hears, "cannot see"),
        (images, (), "its projector (mmproj-….gguf) is missing"),
        (images, hears, "cannot see"),
        (plain, ("--audio", *sees), "no request has a recording"),
        (sounds, ("--audio", *sees), "cannot hear"),
        (unknown, (), "unknown key 'colour'"),
        (plain, ("--false-alarms", "0"), "expected a share above 0"),
        (plain, ("--cache-limit", "0"), "expected GiB, more than 0"),
        (plain, ("--cache-limit", "inf"), "expected GiB, more than 0"),
        (plain, ("--cache-limit", "nan"), "expected GiB, more than 0"),
        (plain, ("--false-alarms", "nan"), "expected a share above 0"),
        (plain, ("--cache-limit", "0.0001"), "raise --cache-limit"),
    ):
        assert main(command(guarded_tiny, tmp_path / "guard", data, *options)) == BAD_INPUT
        assert one_line(capsys) and says in one_line.last, (options, one_line.last)
    assert not (tmp_path / "guard").exists()


class _OneLine:
    """Tells whether the error is one line, and keeps it."""

    last = ""

    def __call__(self, capsys: pytest.CaptureFixture[str]) -> bool:
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if not line.startswith("warning: ")]
        self.last = errors[-1] if errors else ""
        return len(errors) == 1


one_line = _OneLine()


@pytest.mark.parametrize("n_layer", [1, 2, 4, 12, 30, 80])
def test_layer_sets_lie_inside_the_model_and_below_its_last_block(n_layer: int) -> None:
    for layers in layer_sets_for(n_layer):
        assert layers == tuple(sorted(set(layers)))
        assert 0 <= layers[0] <= layers[-1] <= max(0, n_layer - 2)
    assert layer_sets_for(30)[0] == (18,)
