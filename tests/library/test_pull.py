"""Pulling from a hub that behaves: what is installed, what is asked, what is not asked twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from safesteer_edge.errors import HubError, ModelFileError, SettingsError
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.library.catalogue import find_model, installed_path
from safesteer_edge.library.index import library_folder, read_index
from safesteer_edge.library.install import remove_model
from safesteer_edge.session.choice import choose_model
from tests.formats.edited_gguf import split_gguf
from tests.library.conftest import MODEL, PROJECTOR, REPOSITORY, Pull, Told
from tests.library.hub_server import COMMIT, Answer, Hub

NAME = f"hf:{REPOSITORY}"


def test_model_and_projector_are_installed_with_where_they_are_from(
    stocked: Hub, pulled: Pull, told: Told, tiny_llama_path: Path
):
    record = pulled()
    assert record.model.path.read_bytes() == tiny_llama_path.read_bytes()
    assert (record.name, record.architecture, record.takes) == (NAME, "llama", ("images",))
    assert record.model.sha256 == hashlib.sha256(tiny_llama_path.read_bytes()).hexdigest()
    assert (record.model.repository, record.model.revision) == (REPOSITORY, COMMIT)
    assert record.projector is not None
    assert record.projector.repository_file == PROJECTOR
    assert read_index().find(NAME) == record
    assert installed_path(find_model(NAME)) == record.model.path
    assert told.expected == told.advanced == record.model.size_bytes + record.projector.size_bytes
    assert list((library_folder() / ".partial").glob("*.part")) == []


def test_what_is_installed_already_is_not_downloaded_again(stocked: Hub, pulled: Pull):
    first = pulled()
    n_sent = stocked.n_bytes_sent
    assert pulled() == first
    assert stocked.n_bytes_sent == n_sent


def test_another_revision_replaces_the_old_file_once_it_is_there(
    stocked: Hub, pulled: Pull, tiny_mamba_path: Path
):
    old = pulled(with_projector=False)
    stocked.put(REPOSITORY, MODEL, tiny_mamba_path.read_bytes())
    new = pulled(with_projector=False)
    assert new.model.path != old.model.path
    assert not old.model.path.exists()
    assert [model.name for model in read_index().models] == [NAME]


def test_a_name_of_the_catalogue_takes_its_usual_quantization_or_the_one_asked_for(
    hub: Hub, pulled: Pull, told: Told, tiny_llama_path: Path, tiny_projector_path: Path
):
    entry = find_model("smolvlm-256m-instruct")
    content = tiny_llama_path.read_bytes()
    for name in ("SmolVLM-256M-Instruct-Q8_0.gguf", "SmolVLM-256M-Instruct-f16.gguf"):
        hub.put(entry.repository, name, content)
    hub.put(entry.repository, "mmproj-other-f16.gguf", b"never asked for")
    hub.put(entry.repository, entry.projector, tiny_projector_path.read_bytes())
    assert pulled("smolvlm-256m-instruct").model.repository_file.endswith("Q8_0.gguf")
    assert pulled("smolvlm-256m-instruct:Q8_0").name == "smolvlm-256m-instruct"
    f16 = pulled("smolvlm-256m-instruct:f16")
    assert f16.name == "smolvlm-256m-instruct:F16"
    assert f16.model.repository_file.endswith("f16.gguf")
    assert find_model(f16.name).title == entry.title
    with pytest.raises(HubError, match=r"no Q4_K_M.*SmolVLM-256M-Instruct-Q8_0\.gguf"):
        pulled("smolvlm-256m-instruct:Q4_K_M")


def test_the_only_variant_that_is_installed_answers_to_the_name(
    hub: Hub, pulled: Pull, tiny_llama_path: Path
):
    entry = find_model("qwen3-0.6b")
    hub.put(entry.repository, "Qwen3-0.6B-f16.gguf", tiny_llama_path.read_bytes())
    pulled("qwen3-0.6b:f16")
    assert find_model("qwen3-0.6b").name == "qwen3-0.6b:F16"


@pytest.mark.parametrize(
    ("names", "wanted", "chosen"),
    [
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf"], "", "a-Q4_K_M.gguf"),
        (["a-Q4_K.gguf", "a-Q4_K_M.gguf"], ":q4_k", "a-Q4_K.gguf"),
        (["a.gguf"], "", "a.gguf"),
        (["deep/a-Q8_0.gguf", "b-F16.gguf"], ":deep/a-Q8_0.gguf", "deep/a-Q8_0.gguf"),
        (["a-F16.gguf", "a-BF16.gguf"], ":F16", "a-F16.gguf"),
        (["a-imatrix.gguf", "a-Q4_K_M-imatrix.gguf"], "", "a-Q4_K_M-imatrix.gguf"),
        (["imatrix_q8_0.gguf", "a-iMatrix-Q8_0.gguf"], ":Q8_0", "a-iMatrix-Q8_0.gguf"),
        (["imatrix.gguf", "a-IMATRIX.gguf", "a.gguf"], "", "a.gguf"),
        (["my-imatrix.gguf", "a.gguf"], ":my-imatrix.gguf", "my-imatrix.gguf"),
        (["my-imatrix.gguf"], ":my-imatrix.gguf", "my-imatrix.gguf"),
        (["mmproj-me-Q8_0.gguf", "a.gguf"], ":mmproj-me-Q8_0.gguf", "mmproj-me-Q8_0.gguf"),
    ],
)
def test_which_file_is_meant(
    hub: Hub, pulled: Pull, tiny_llama_path: Path, names: list[str], wanted: str, chosen: str
):
    for name in names:
        hub.put(REPOSITORY, name, tiny_llama_path.read_bytes())
    assert pulled(NAME + wanted, with_projector=False).model.repository_file == chosen


@pytest.mark.parametrize(
    ("names", "wanted", "problem"),
    [
        (["README.md"], "", "no GGUF model"),
        (["a-imatrix.gguf", "imatrix_Q8_0.gguf"], "", "no GGUF model"),
        (["a-F16.gguf", "b-F32.gguf"], "", "name one of its files: a-F16.gguf, b-F32.gguf"),
        (["a.gguf"], ":Q4_0", "no Q4_0"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], ":Q8_0", "several files"),
        (
            ["a-Q8_0-00001-of-00003.gguf", "a-Q8_0-00003-of-00003.gguf"],
            ":Q8_0",
            "one part of 3, and the repository has no 'a-Q8_0-00002-of-00003.gguf'",
        ),
        (["../../a-Q8_0.gguf"], "", "a-Q8_0"),
    ],
)
def test_what_is_not_one_file_is_refused_with_what_there_is(
    hub: Hub, pulled: Pull, names: list[str], wanted: str, problem: str
):
    for name in names:
        hub.put(REPOSITORY, name, b"GGUF")
    with pytest.raises((HubError, ModelFileError), match=problem):
        pulled(NAME + wanted)
    assert read_index().models == ()


@pytest.mark.parametrize("spec", ["hf:", "hf:one", "hf:a/b/c/d", "hf:/x", "hf:a/b:"])
def test_what_cannot_be_read_is_a_usage_error(hub: Hub, pulled: Pull, spec: str):
    with pytest.raises(SettingsError, match="hf:OWNER/NAME"):
        pulled(spec)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    stocked: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pulled()
    assert stocked.n_bytes_sent > 0
    assert stocked.tokens_at_cdn == []


def test_a_file_that_the_hub_keeps_in_git_is_checked_by_gits_hash(stocked: Hub, pulled: Pull):
    stocked.in_git = True
    record = pulled()
    assert len(record.model.sha256) == 64
    assert hashlib.sha256(record.model.path.read_bytes()).hexdigest() == record.model.sha256


def test_offline_mode_asks_nobody_and_says_so(
    stocked: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="HF_HUB_OFFLINE is set"):
        pulled()
    assert stocked.requests == []


def ollama_blob(home: Path, content: bytes) -> Path:
    return home / ".ollama/models/blobs" / f"sha256-{hashlib.sha256(content).hexdigest()}"


def lm_studio(home: Path, _content: bytes) -> Path:
    return home / ".lmstudio/models/tiny/Tiny-GGUF/whatever.gguf"


def old_lm_studio(home: Path, _content: bytes) -> Path:
    return home / ".cache/lm-studio/models/tiny/Tiny-GGUF/whatever.gguf"


def chosen_lm_studio(home: Path, _content: bytes) -> Path:
    settings = home / ".lmstudio/settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"downloadsFolder": str(home / "mine")}))
    return home / "mine/whatever.gguf"


def hub_cache(home: Path, content: bytes) -> Path:
    digest = hashlib.sha256(content).hexdigest()
    return home / "cache/huggingface/hub/models--tiny--Tiny-GGUF/blobs" / digest


@pytest.mark.parametrize(
    "place", [ollama_blob, lm_studio, old_lm_studio, chosen_lm_studio, hub_cache]
)
def test_what_another_program_has_is_not_downloaded(
    stocked: Hub, pulled: Pull, told: Told, home: Path, tiny_llama_path: Path, place
):
    content = tiny_llama_path.read_bytes()
    path = place(home, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    record = pulled(with_projector=False)
    assert stocked.n_bytes_sent == 0
    assert f"already on this machine, {path}" in told.lines[0]
    assert record.model.path.samefile(path)
    path.unlink()  # the other program may delete its own
    assert record.model.path.read_bytes() == content


def test_a_file_of_the_same_size_and_another_content_is_not_taken(
    stocked: Hub, pulled: Pull, home: Path, tiny_llama_path: Path
):
    content = tiny_llama_path.read_bytes()
    for place in (ollama_blob, lm_studio):
        path = place(home, content)
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(len(content)))
    assert pulled(with_projector=False).model.path.read_bytes() == content
    assert stocked.n_bytes_sent == len(content)


def test_where_no_second_name_can_be_given_the_file_is_used_where_it_is(
    stocked: Hub, pulled: Pull, home: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = tiny_llama_path.read_bytes()
    path = ollama_blob(home, content)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

    def refuse(*_arguments: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    record = pulled(with_projector=False)
    assert (record.model.path, record.model.is_owned) == (path, False)
    assert stocked.n_bytes_sent == 0


# -- models in parts ------------------------------------------------------------------------------


@pytest.fixture
def parts(hub: Hub, tmp_path: Path, tiny_llama_path: Path, tiny_projector_path: Path) -> list[Path]:
    """The parts of a model that the hub has in a folder, beside a projector and another part."""
    parts = split_gguf(Path(shutil.copy(tiny_llama_path, tmp_path / "a-Q8_0.gguf")), 16)
    assert len(parts) == 3
    for part in parts:
        hub.put(REPOSITORY, f"deep/{part.name}", part.read_bytes())
    hub.put(REPOSITORY, "a-Q4_K_M-00002-of-00002.gguf", b"never asked for")
    hub.put(REPOSITORY, PROJECTOR, tiny_projector_path.read_bytes())
    return parts


@pytest.mark.parametrize("wanted", ["", ":q8_0", ":deep/a-Q8_0-00002-of-00003.gguf"])
def test_a_model_in_parts_is_pulled_whole_and_is_one_model(
    hub: Hub, pulled: Pull, told: Told, parts: list[Path], wanted: str
):
    record = pulled(NAME + wanted)
    assert record.projector is not None
    *own, projector = record.files
    assert [file.path.name for file in own] == [part.name for part in parts]
    assert [file.path.read_bytes() for file in own] == [part.read_bytes() for part in parts]
    assert {file.path.parent for file in own} == {record.model.path.parent}
    assert all(file.sha256 and file.is_owned for file in own)
    assert told.expected == told.advanced == sum(file.size_bytes for file in record.files)
    assert [model.name for model in read_index().models] == [NAME + wanted]
    assert choose_model(NAME + wanted).path == record.model.path
    assert check_language_model(record.model.path).size_bytes == sum(f.size_bytes for f in own)
    n_sent = hub.n_bytes_sent
    assert (pulled(NAME + wanted), hub.n_bytes_sent) == (record, n_sent)
    remove_model(record, with_own_files=False)
    assert not [*library_folder().rglob("*.gguf")]
    assert projector.path.name == PROJECTOR


def test_a_cut_pull_of_parts_keeps_what_came_and_a_later_one_gets_the_rest(
    hub: Hub, pulled: Pull, parts: list[Path]
):
    digest = hashlib.sha256(parts[2].read_bytes()).hexdigest()
    hub.answers[f"/{digest}"] = Answer(403, {})
    with pytest.raises(HubError, match="status 403"):
        pulled(with_projector=False)
    assert read_index().models == ()
    hub.answers.clear()
    kept = sum(path.stat().st_size for path in library_folder().rglob("*.part"))
    n_sent = hub.n_bytes_sent
    record = pulled(with_projector=False)
    assert len(record.files) == 3
    assert hub.n_bytes_sent - n_sent == sum(file.size_bytes for file in record.files) - kept


def test_a_new_part_gets_a_folder_of_its_own_and_the_old_model_goes_once_it_is_there(
    hub: Hub, pulled: Pull, parts: list[Path]
):
    old = pulled(with_projector=False)
    spoilt = parts[1].read_bytes()[:-500]
    hub.put(REPOSITORY, f"deep/{parts[1].name}", spoilt)
    with pytest.raises(HubError, match=r"deep/a-Q8_0-00002-of-00003.*nothing was installed"):
        pulled(with_projector=False)
    assert read_index().models == (old,)
    assert {*library_folder().rglob("*.gguf")} == {file.path for file in old.files}
    changed = bytearray(parts[1].read_bytes())
    changed[-1] ^= 1
    hub.put(REPOSITORY, f"deep/{parts[1].name}", bytes(changed))
    new = pulled(with_projector=False)
    assert new.parts[0].path.read_bytes() == changed
    assert {*library_folder().rglob("*.gguf")} == {file.path for file in new.files}


def test_parts_that_cannot_get_their_names_are_downloaded(
    hub: Hub, pulled: Pull, home: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
):
    for part in parts:
        blob = ollama_blob(home, part.read_bytes())
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(part.read_bytes())
    linked = pulled(with_projector=False)
    assert (linked.model.path.name, hub.n_bytes_sent) == (parts[0].name, 0)
    remove_model(linked, with_own_files=False)

    def refuse(*_arguments: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    record = pulled(with_projector=False)
    assert hub.n_bytes_sent == sum(file.size_bytes for file in record.files)
