"""Models from files, and what can be done with what is here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from safesteer_edge.errors import ModelFileError, SettingsError
from safesteer_edge.library.catalogue import find_model, installed_path
from safesteer_edge.library.index import library_folder, looks_unchanged, read_index
from safesteer_edge.library.install import add_model, installed_record, remove_model, verify_model
from safesteer_edge.session.choice import choose_model, read_model_files
from safesteer_edge.session.settings import SessionSettings
from tests.formats.edited_gguf import split_gguf
from tests.library.conftest import Pull
from tests.library.hub_server import Hub
from tests.tiny_models import write_tiny_llama


@pytest.fixture
def mine(home: Path, tiny_llama_path: Path) -> Path:
    """A model file of the user's own."""
    path = home / "my models" / "müne.gguf"
    path.parent.mkdir()
    shutil.copy(tiny_llama_path, path)
    return path


@pytest.fixture
def my_projector(mine: Path, tiny_projector_path: Path) -> Path:
    return Path(shutil.copy(tiny_projector_path, mine.with_name("mmproj.gguf")))


def touch_later(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 5_000_000_000))


def test_an_added_model_stays_where_it_is_and_answers_to_its_name(mine: Path, my_projector: Path):
    record = add_model("mine", mine, my_projector)
    assert (record.model.path, record.model.is_owned) == (mine, False)
    choice = choose_model("mine")
    assert (choice.path, choice.mmproj, choice.bundle) == (mine, my_projector, None)
    assert choose_model(str(mine)).name == "mine"
    assert find_model("mine").takes == ("images",)


def test_an_added_model_in_parts_is_known_with_all_of_them(mine: Path):
    first, *others = split_gguf(mine, 12)
    record = add_model("mine", first, None)
    assert [file.path for file in record.files] == [first, *others]
    files = read_model_files(SessionSettings(model="mine"))
    assert files.choice.path == first
    touch_later(others[0])
    assert installed_path(find_model("mine")) == first
    others[0].write_bytes(others[0].read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=f"{others[0].name}.*has changed"):
        installed_path(find_model("mine"))
    with pytest.raises(ModelFileError, match=f"{others[0].name}.*has changed"):
        verify_model(installed_record("mine"))
    assert remove_model(installed_record("mine"), with_own_files=True).deleted == (first, *others)
    assert not first.exists()
    assert not others[0].exists()


def test_a_model_in_parts_keeps_its_names_where_they_are_links(mine: Path, home: Path):
    """As in other programs' caches, where a link has the name and its target a hash."""
    blobs = home / "blobs"
    blobs.mkdir()
    links = split_gguf(mine, 12)
    for number, link in enumerate(links):
        link.rename(blobs / str(number))
        link.symlink_to(blobs / str(number))
    assert [file.path for file in add_model("mine", links[0], None).files] == links
    assert choose_model("mine").path == links[0]


@pytest.mark.parametrize("name", ["Mine", "a b", "../x", "", "hf:a/b", "smollm2-135m-instruct"])
def test_a_name_that_is_taken_or_not_a_name_is_refused(mine: Path, name: str):
    with pytest.raises(SettingsError, match=r"model name|already"):
        add_model(name, mine, None)


def test_what_is_not_a_model_is_not_added(mine: Path, my_projector: Path, tmp_path: Path):
    with pytest.raises(ModelFileError, match="projector"):
        add_model("mine", my_projector, None)
    with pytest.raises(ModelFileError, match="not a projector"):
        add_model("mine", mine, mine)
    wide = write_tiny_llama(tmp_path / "wide.gguf", n_embd=128)
    with pytest.raises(ModelFileError, match="feeds models of width 64"):
        add_model("mine", wide, my_projector)
    with pytest.raises(ModelFileError, match="cannot"):
        add_model("mine", tmp_path / "missing.gguf", None)
    assert read_index().models == ()


def test_removing_leaves_the_users_own_file_unless_asked(mine: Path):
    done = remove_model(add_model("mine", mine, None), with_own_files=False)
    assert (done.deleted, done.kept) == ((), (mine,))
    assert mine.exists()
    done = remove_model(add_model("mine", mine, None), with_own_files=True)
    assert done.deleted == (mine,)
    assert not mine.exists()


def test_removing_deletes_what_was_pulled_but_not_what_another_name_uses(
    stocked: Hub, pulled: Pull
):
    one = pulled()
    record = add_model("same", one.model.path, None)
    remove_model(one, with_own_files=False)
    assert record.model.path.exists()
    assert one.projector is not None
    assert not one.projector.path.exists()
    remove_model(pulled(with_projector=False), with_own_files=False)
    assert record.model.path.exists()


def test_a_file_with_another_time_and_the_same_content_is_recorded_anew(mine: Path):
    record = add_model("mine", mine, None)
    touch_later(mine)
    assert not looks_unchanged(record.model)
    assert installed_path(find_model("mine")) == mine
    assert looks_unchanged(installed_record("mine").model)


def test_choosing_a_model_reads_no_file_and_writes_no_index(mine: Path):
    record = add_model("mine", mine, None)
    touch_later(mine)
    assert choose_model("mine").path == mine
    assert not looks_unchanged(installed_record("mine").model)
    assert read_model_files(SessionSettings(model="mine")).info.path == record.model.path
    assert looks_unchanged(installed_record("mine").model)


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_has_changed_is_not_used(mine: Path, same_size: bool):
    add_model("mine", mine, None)
    content = bytearray(mine.read_bytes())
    content[-1] ^= 1
    mine.write_bytes(bytes(content) if same_size else bytes(content[:-1]))
    touch_later(mine)
    for chosen in ("mine", str(mine)):
        with pytest.raises(ModelFileError, match="has changed since its hash was recorded") as e:
            read_model_files(SessionSettings(model=chosen))
        assert "models remove mine --yes" in str(e.value)


def test_verify_reads_every_byte_even_where_size_and_time_are_the_same(mine: Path):
    record = add_model("mine", mine, None)
    verify_model(record)
    found = mine.stat()
    content = bytearray(mine.read_bytes())
    content[-1] ^= 1
    mine.write_bytes(content)
    os.utime(mine, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert installed_path(find_model("mine")) == mine  # the cheap check cannot see it
    with pytest.raises(ModelFileError, match="SHA-256"):
        verify_model(record)


def test_a_pulled_file_that_has_changed_is_got_again(stocked: Hub, pulled: Pull):
    record = pulled(with_projector=False)
    content = record.model.path.read_bytes()
    record.model.path.write_bytes(content[:-5])
    with pytest.raises(ModelFileError, match="get it again: safesteer-edge models pull hf:"):
        read_model_files(SessionSettings(model=record.name))
    assert pulled(with_projector=False).model.path.read_bytes() == content


def test_a_changed_or_missing_projector_is_found_as_well(mine: Path, my_projector: Path):
    add_model("mine", mine, my_projector)
    my_projector.unlink()
    with pytest.raises(ModelFileError, match="cannot read"):
        read_model_files(SessionSettings(model="mine"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 9, "models": []}', "\xff"])
def test_a_damaged_index_says_what_to_do(home: Path, text: str):
    path = library_folder(create=True) / "index.json"
    path.write_text(text, "latin-1")
    with pytest.raises(SettingsError, match=r"damaged .*move it away"):
        read_index()


def test_the_index_holds_places_inside_its_folder_relative_to_it(stocked: Hub, pulled: Pull):
    record = pulled()
    value = json.loads((library_folder() / "index.json").read_text())
    path = value["models"][0]["model"]["path"]
    assert library_folder() / path == record.model.path
    assert not Path(path).is_absolute()


def test_what_was_never_installed_cannot_be_removed(home: Path):
    with pytest.raises(SettingsError, match="not installed"):
        installed_record("nothing")
    with pytest.raises(SettingsError, match="manage it with pip"):
        installed_record("smollm2-135m-instruct")
