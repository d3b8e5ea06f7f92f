"""Guard bundles go out as one file and come in checked; whatever is not one stays outside."""

from __future__ import annotations

import json
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from safesteer_edge.bundle.exchange import check_bundle, known_bundles
from safesteer_edge.cli.main import main
from safesteer_edge.library.index import bundles_folder
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.session import open_session
from tests.guarded_tiny import ALARMED, QUIET, GuardedTiny, make_guarded_tiny
from tests.requantized_tiny import RequantizedTiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is installed."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def bundles(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `bundles …`; its exit code and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        exit_code = main(["bundles", *map(str, arguments)])
        captured = capsys.readouterr()
        return exit_code, captured.out, captured.err

    return run


@pytest.fixture
def packed(guarded_tiny: GuardedTiny, home: Path, bundles: Run) -> Path:
    """The tiny model's bundle, exported."""
    assert bundles("export", guarded_tiny.bundle(QUIET), home / "tiny.zip")[0] == 0
    return home / "tiny.zip"


def edited(packed: Path, edit: Callable[[dict[str, bytes]], object]) -> Path:
    """The archive with other content."""
    with zipfile.ZipFile(packed) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    edit(files)
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed


def test_an_imported_bundle_guards_the_model_that_it_is_for(
    guarded_tiny: GuardedTiny, packed: Path, bundles: Run
):
    assert choose_model(str(guarded_tiny.model)).bundle is None
    exit_code, out, _ = bundles("import", packed, "--model", guarded_tiny.model)
    assert exit_code == 0
    assert "unsigned" in out
    (installed,) = [each for each in known_bundles() if each.is_installed]
    assert choose_model(str(guarded_tiny.model)).bundle == installed.folder
    with open_session(guarded_tiny.settings(None, guard="steer")) as session:
        assert session.info.bundle == "tiny-30"
    assert "tiny-30" in bundles("list")[1]
    assert bundles("verify")[0] == 0
    assert bundles("remove", installed.name, "--yes")[0] == 0
    assert choose_model(str(guarded_tiny.model)).bundle is None


def test_the_bundle_that_was_imported_last_is_used(
    guarded_tiny: GuardedTiny, packed: Path, bundles: Run
):
    assert bundles("import", packed)[0] == 0
    assert bundles("import", guarded_tiny.bundle(ALARMED))[0] == 0
    with open_session(guarded_tiny.settings(None, guard="steer")) as session:
        assert session.info.bundle == "tiny+30"
    assert bundles("import", packed)[0] == 0
    with open_session(guarded_tiny.settings(None, guard="steer")) as session:
        assert session.info.bundle == "tiny-30"


def test_a_bundle_comes_back_as_it_went_and_always_as_the_same_file(
    guarded_tiny: GuardedTiny, packed: Path, home: Path, bundles: Run
):
    bundles("import", packed)
    (installed,) = [each for each in known_bundles() if each.is_installed]
    original = guarded_tiny.bundle(QUIET)
    for path in installed.folder.iterdir():
        assert path.read_bytes() == (original / path.name).read_bytes()
    assert bundles("export", installed.name, home / "again.zip")[0] == 0
    assert (home / "again.zip").read_bytes() == packed.read_bytes()
    exit_code, _, err = bundles("export", installed.name, packed)
    assert (exit_code, "--force" in err) == (2, True)
    assert bundles("export", installed.name, packed, "--force")[0] == 0


def test_pages_stay_outside(guarded_tiny: GuardedTiny, packed: Path, bundles: Run):
    edited(packed, lambda files: files.update({"report.html": b"<script>", "README.md": b"#"}))
    assert bundles("import", packed)[0] == 0
    (installed,) = [each for each in known_bundles() if each.is_installed]
    assert {path.name for path in installed.folder.iterdir()} == {"guard.json", "probe.onnx"}


def _other_config(files: dict[str, bytes]) -> None:
    config = json.loads(files["guard.json"])
    config["probe"]["file"] = "other.onnx"
    files["guard.json"] = json.dumps(config).encode()


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "wrong-hash": (
        lambda files: files.update({"probe.onnx": files["probe.onnx"] + b"\0"}),
        "does not have the hash",
    ),
    "unknown-file": (lambda files: files.update({"run.py": b""}), "no part of one"),
    "unlisted-probe": (lambda files: files.update({"two.onnx": b""}), "no part of one"),
    "upwards": (lambda files: files.update({"../guard.json": b""}), "no part of one"),
    "absolute": (lambda files: files.update({"/etc/x.json": b""}), "no part of one"),
    "folder": (lambda files: files.update({"a/guard.json": b""}), "no part of one"),
    "missing": (lambda files: files.pop("probe.onnx"), "lacks 'probe.onnx'"),
    "no-config": (lambda files: files.pop("guard.json"), "no guard bundle"),
    "other-name": (_other_config, "'other.onnx'"),
    "no-json": (lambda files: files.update({"guard.json": b"\xff"}), "no text"),
    "large": (lambda files: files.update({"report.json": bytes(5 << 20)}), "too large"),
    "many": (
        lambda files: files.update({f"{n}.json": b"" for n in range(30)}),
        "or too many",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_bundle_is_one_line_and_nothing_is_installed(
    name: str, packed: Path, bundles: Run, home: Path
):
    edit, problem = HOSTILE[name]
    folder = home / "as-a-folder"
    exit_code, out, err = bundles("import", edited(packed, edit))
    assert (exit_code, out, err.count("\n")) == (2, "", 1)
    assert problem in err
    if name not in ("upwards", "absolute", "folder"):  # what a folder can hold as well
        folder.mkdir()
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)
        exit_code, out, err = bundles("import", folder)
        assert (exit_code, out, err.count("\n")) == (2, "", 1)
        assert problem in err
    assert not bundles_folder().exists() or list(bundles_folder().glob("*/*")) == []


def test_links_are_refused(guarded_tiny: GuardedTiny, packed: Path, bundles: Run, home: Path):
    folder = home / "linked"
    folder.mkdir()
    source = guarded_tiny.bundle(QUIET)
    (folder / "guard.json").write_bytes((source / "guard.json").read_bytes())
    (folder / "probe.onnx").symlink_to(source / "probe.onnx")
    exit_code, _, err = bundles("import", folder)
    assert (exit_code, "is a link or a folder" in err) == (2, True)
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("guard.json", "probe.onnx"):
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "/etc/passwd")
    exit_code, _, err = bundles("import", packed)
    assert (exit_code, "is a link or a folder" in err) == (2, True)


def test_a_file_that_unpacks_to_more_than_it_says_is_refused(packed: Path, bundles: Run):
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("report.json", bytes(100 << 20))
    exit_code, _, err = bundles("import", packed)
    assert (exit_code, "too large" in err) == (2, True)


@pytest.mark.parametrize("n_bytes", [0, 100, 2000])
def test_an_archive_that_was_cut_off_is_refused(packed: Path, bundles: Run, n_bytes: int):
    packed.write_bytes(packed.read_bytes()[:n_bytes])
    exit_code, out, err = bundles("import", packed)
    assert (exit_code, out, err.count("\n")) == (2, "", 1)


def test_an_archive_with_any_byte_changed_is_refused_or_the_same(packed: Path, bundles: Run):
    whole = packed.read_bytes()
    for at in range(0, len(whole), len(whole) // 60):
        packed.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert bundles("import", packed)[0] in (0, 2)
    folder = known_folder()
    if folder is not None:
        assert check_bundle(folder).name == "tiny-30"


def known_folder() -> Path | None:
    return next((each.folder for each in known_bundles() if each.is_installed), None)


def test_a_bundle_of_another_model_is_refused(packed: Path, bundles: Run, home: Path):
    other = make_guarded_tiny(home, n_embd=32)
    exit_code, _, err = bundles("import", packed, "--model", other.model)
    assert exit_code == 2
    assert "made for another model: n_embd 64 (this model: 32)" in err
    assert known_folder() is None


def test_one_for_another_quantization_offers_to_be_set_right(
    requantized_tiny: RequantizedTiny, bundles: Run, home: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["models", "add", "mine", str(requantized_tiny.other.path)]) == 0
    exit_code, out, _ = bundles("import", requantized_tiny.bundle, "--model", "mine")
    assert exit_code == 0
    assert f"calibrate {requantized_tiny.other.path} --from {known_folder()} -o guard-other" in out
    assert choose_model("mine").bundle is None
    assert main(["models", "add", "same", str(requantized_tiny.source)]) == 0
    assert choose_model("same").bundle == known_folder()
    capsys.readouterr()
    main(["models", "list", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows["same"]["bundle"] == str(known_folder())
    main(["models", "remove", "same", "--yes"])
    main(["models", "remove", "mine", "--yes"])


def test_info_says_who_made_it_and_how_it_was_measured(
    requantized_tiny: RequantizedTiny, bundles: Run
):
    exit_code, out, _ = bundles("info", requantized_tiny.bundle)
    assert exit_code == 0
    for part in ("by safesteer-edge", "unsigned", "6 harmful", "splits train", "SHA-256"):
        assert part in out
    facts = json.loads(bundles("info", requantized_tiny.bundle, "--json")[1])
    assert facts["name"] == "made-for-f32"


def test_diff_names_each_value_that_differs(guarded_tiny: GuardedTiny, bundles: Run):
    first, second = guarded_tiny.bundle(QUIET), guarded_tiny.bundle(ALARMED)
    exit_code, out, _ = bundles("diff", first, second)
    assert exit_code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["name", "probe.sha256", "canaries"]
    assert bundles("diff", first, first)[1] == "nothing differs\n"


def test_a_bundle_that_is_not_there_is_one_line(bundles: Run):
    for arguments in (("info", "none"), ("verify", "none"), ("diff", "a", "b"), ("import", "x")):
        exit_code, out, err = bundles(*arguments)
        assert (exit_code, out, err.count("\n")) == (2, "", 1)


def test_a_signed_bundle_says_who_signed_it(
    guarded_tiny: GuardedTiny, home: Path, bundles: Run, monkeypatch: pytest.MonkeyPatch
):
    folder = home / "mine"
    shutil.copytree(guarded_tiny.bundle(QUIET), folder)
    assert "unsigned" in bundles("info", folder)[1]
    assert bundles("keygen", home / "key.pem")[0] == 0
    assert (home / "key.pem").stat().st_mode & 0o077 == 0
    assert bundles("keygen", home / "key.pem")[0] == 2  # it would be lost
    exit_code, out, _ = bundles("sign", folder, "--key", home / "key.pem", "--json")
    key = json.loads(out)["key"]
    assert exit_code == 0
    assert bundles("export", folder, home / "signed.zip")[0] == 0
    exit_code, out, _ = bundles("import", home / "signed.zip")
    assert exit_code == 0 and f"signed by an unknown key, {key}" in out
    monkeypatch.setenv("SAFESTEER_BUNDLES_TRUSTED_KEYS", f"others AAAA, acme {key}")
    (installed,) = [each for each in known_bundles() if each.is_installed]
    for arguments in (("import", home / "signed.zip"), ("info", folder), ("verify", folder)):
        assert "signed by acme (trusted)" in bundles(*arguments)[1]
    assert "signed by acme (trusted)" in bundles("verify", installed.name)[1]
    monkeypatch.setenv("SAFESTEER_BUNDLES_TRUSTED_KEYS", "acme")
    exit_code, _, err = bundles("info", folder)
    assert (exit_code, "expected a name and a key" in err) == (2, True)


WRONG_SIGNATURES: dict[str, Callable[[dict[str, bytes]], object]] = {
    "another-report": lambda files: files.update({"report.json": b"{}"}),
    "another-key": lambda files: files.update(
        {"signature.json": re.sub(rb'"key": "..', b'"key": "AA', files["signature.json"])}
    ),
    "no-json": lambda files: files.update({"signature.json": b"{"}),
    "deep": lambda files: files.update({"signature.json": b"[" * 100_000}),
    "no-signature": lambda files: files.update({"signature.json": b'{"key": null}'}),
}


@pytest.mark.parametrize("name", WRONG_SIGNATURES)
def test_a_wrong_signature_is_refused_in_one_line(
    name: str, guarded_tiny: GuardedTiny, home: Path, bundles: Run
):
    folder = home / "mine"
    shutil.copytree(guarded_tiny.bundle(QUIET), folder)
    bundles("keygen", home / "key.pem")
    bundles("sign", folder, "--key", home / "key.pem")
    bundles("export", folder, home / "signed.zip")
    edited(home / "signed.zip", WRONG_SIGNATURES[name])
    exit_code, out, err = bundles("import", home / "signed.zip")
    assert (exit_code, out, err.count("\n")) == (2, "", 1)
    assert "signature" in err and "is wrong" in err
    assert not any(each.is_installed for each in known_bundles())
    with zipfile.ZipFile(home / "signed.zip") as archive:
        archive.extractall(folder)
    for arguments in (("info", folder), ("verify", folder), ("export", folder, home / "no.zip")):
        exit_code, out, err = bundles(*arguments)
        assert (exit_code, out, err.count("\n")) == (2, "", 1)
    assert bundles("sign", folder, "--key", home / "key.pem")[0] == 0  # anew
    assert bundles("verify", folder)[0] == 0


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_signs_nothing(
    content: bytes | None, guarded_tiny: GuardedTiny, home: Path, bundles: Run
):
    if content is not None:
        (home / "key.pem").write_bytes(content)
    folder = home / "mine"
    shutil.copytree(guarded_tiny.bundle(QUIET), folder)
    exit_code, out, err = bundles("sign", folder, "--key", home / "key.pem")
    assert (exit_code, out, err.count("\n")) == (2, "", 1)
    assert "bundles keygen" in err
    assert not (folder / "signature.json").exists()
