"""The list of chats: found, searched, renamed, copied and deleted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.records import MessageAdded, Record
from safesteer_edge.errors import ChatFileError, ChatStoreError, MediaError
from tests.chats.sample_chats import MODEL, turn


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "data" / "chats")


def saved(store: ChatStore, *records: Record) -> str:
    with store.create(MODEL) as file:
        for record in records:
            file.add(record)
        return file.log.header.id


def test_looking_makes_no_folder(store: ChatStore):
    assert store.list() == ()
    assert list(store.search("x")) == []
    assert not store.folder.exists()


def test_chats_are_listed_the_latest_first(store: ChatStore):
    first = saved(store, *turn(1, "Hello", "Hi"))
    second = saved(store, *turn(1, "Why?", "So."), *turn(2, "And then?", "No.", parent="m2"))
    assert [(each.id, each.title, each.n_messages, each.model) for each in store.list()] == [
        (second, "Why?", 4, "tiny"),
        (first, "Hello", 2, "tiny"),
    ]
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_chat_is_found_by_the_beginning_or_end_of_its_id(store: ChatStore):
    chat_id = saved(store, *turn(1, "Hello", "Hi"))
    assert store.find(chat_id) == store.find(chat_id[-6:]) == store.find(chat_id[:6]) == chat_id
    other = saved(store)
    assert other != chat_id
    for beginning, problem in (("zzz", "no chat"), (chat_id[:4], "2 chats"), ("", "no chat")):
        with pytest.raises(ChatFileError, match=problem):
            store.find(beginning)
    for hostile in ("../../etc/passwd", "a/b", ""):
        with pytest.raises(ChatFileError, match="not the id of a chat"):
            store.read(hostile)


def test_search_finds_all_words_in_any_case_and_script(store: ChatStore):
    chat_id = saved(store, *turn(1, "Où est la Straße?", "In der ÉCOLE, nebenan."))
    saved(store, *turn(1, "Hello", "Hi"))
    hits = list(store.search("école nebenan"))
    assert [(hit.chat.id, hit.entry_id, hit.role) for hit in hits] == [(chat_id, "m2", "assistant")]
    assert "ÉCOLE" in hits[0].snippet
    assert [hit.entry_id for hit in store.search("STRASSE")] == ["m1"]
    assert list(store.search("école straße")) == []
    assert list(store.search("  ")) == []


def test_a_damaged_chat_is_listed_with_its_problem(store: ChatStore):
    chat_id = saved(store, *turn(1, "Hello", "Hi"))
    path = store.path(chat_id)
    path.write_bytes(path.read_bytes().replace(b'"user"', b'"ghost"'))
    (summary,) = store.list()
    assert summary.problem is not None and "ghost" in summary.problem
    assert list(store.search("Hello")) == []
    store.delete(chat_id)
    assert store.list() == ()


DAMAGE = {
    "a time of no calendar": (b'"at":101.0', b'"at":1e300'),
    "a time of 400 digits": (b'"at":101.0', b'"at":1' + b"0" * 400),
    "a time before all": (b'"at":101.0', b'"at":-1'),
    "a count of 400 digits": (b'"prompt_tokens":10', b'"prompt_tokens":1' + b"0" * 400),
    "deep nesting": (b'"Hello"', b"[" * 2000 + b"]" * 2000),
    "no UTF-8": (b'"Hello"', b'"\xff"'),
}


@pytest.mark.skipif(sys.platform == "win32", reason="makes a pipe with a name")
@pytest.mark.parametrize("kind", [*DAMAGE, "a folder", "a pipe"])
def test_a_bad_file_is_named_and_keeps_no_other_from_anything(store: ChatStore, kind: str):
    good = saved(store, *turn(1, "Hello", "Hi"))
    bad = saved(store, *turn(1, "Hello", "Hi"))
    path = store.path(bad)
    if kind in DAMAGE:
        old, new = DAMAGE[kind]
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
    else:
        path.unlink()
        path.mkdir() if kind == "a folder" else os.mkfifo(path)
    problems = {each.id: each.problem for each in store.list()}
    assert problems[good] is None
    assert repr(str(path)) in (problems[bad] or "")
    assert [hit.chat.id for hit in store.search("hello")] == [good]
    with pytest.raises(ChatFileError):
        store.open(bad)
    store.delete(good)
    assert not store.path(good).exists()
    if kind == "a folder":
        with pytest.raises(ChatFileError, match="cannot delete chat"):
            store.delete(bad)
    else:
        store.delete(bad)
        assert not path.exists()


def test_half_a_character_is_read_as_a_sign_for_it(store: ChatStore):
    chat_id = saved(store, *turn(1, "Hello \ud83d there", "Hi \ud83d\ude00 \udfff"))
    branch = store.read(chat_id).branch()
    assert [entry.text for entry in branch] == ["Hello \ufffd there", "Hi 😀 \ufffd"]


def test_a_file_that_a_kill_left_empty_is_no_chat(store: ChatStore):
    chat_id = saved(store)
    for torn in (b"", b'{"type":"chat"'):
        store.path(chat_id).write_bytes(torn)
        assert store.list() == ()


def test_a_chat_is_renamed_unless_it_is_in_use(store: ChatStore):
    chat_id = saved(store, *turn(1, "Hello", "Hi"))
    store.rename(chat_id, " Greetings \n there ")
    assert store.list()[0].title == "Greetings there"
    for wrong in ("", "x" * 201):
        with pytest.raises(ChatFileError, match="title has"):
            store.rename(chat_id, wrong)
    with store.open(chat_id), pytest.raises(ChatFileError, match="another window"):
        store.rename(chat_id, "Other")


def test_a_copy_ends_where_it_is_asked_to(store: ChatStore):
    chat_id = saved(store, *turn(1, "Hello", "Hi"), *turn(2, "And then?", "No.", parent="m2"))
    with store.fork(store.read(chat_id), end="m2") as copy:
        assert [entry.text for entry in copy.log.branch()] == ["Hello", "Hi"]
        assert copy.log.header.forked_from == chat_id
        assert copy.log.title == "Hello (copy)"
        assert copy.log.entry("m2").end == store.read(chat_id).entry("m2").end


def add_picture(store: ChatStore, path: Path) -> str:
    with store.media.lock(shared=True):
        media = (store.media.add(path, "image"),)
    return saved(store, MessageAdded("m1", None, "user", 1.0, "What is this?", media))


def test_deleting_a_chat_deletes_the_media_that_nobody_else_uses(store: ChatStore, tmp_path: Path):
    own, shared = tmp_path / "own.png", tmp_path / "shared.PNG"
    own.write_bytes(b"one")
    shared.write_bytes(b"two")
    first = add_picture(store, own)
    second, third = add_picture(store, shared), add_picture(store, shared)
    paths = {
        chat_id: store.media.path(store.read(chat_id).entry("m1").media[0])
        for chat_id in (first, second, third)
    }
    assert paths[second] == paths[third]
    assert {path.suffix for path in paths.values()} == {".png"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths.values())
    store.delete(first)
    store.delete(second)
    assert [path.exists() for path in paths.values()] == [False, True, True]
    assert [each.id for each in store.list()] == [third]
    assert own.exists() and shared.exists()


def test_no_medium_is_deleted_while_a_chat_cannot_be_read(store: ChatStore, tmp_path: Path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    damaged, chat_id = add_picture(store, picture), saved(store)
    path = store.media.path(store.read(damaged).entry("m1").media[0])
    store.path(damaged).write_bytes(store.path(damaged).read_bytes() + b"what\nis this\n")
    store.delete(chat_id)
    assert path.exists()


def test_a_chat_in_use_is_not_deleted(store: ChatStore):
    chat_id = saved(store, *turn(1, "Hello", "Hi"))
    with store.open(chat_id), pytest.raises(ChatFileError, match="another window"):
        store.delete(chat_id)
    assert store.read(chat_id).title == "Hello"
    with pytest.raises(ChatFileError, match="No such file"):
        store.delete("20200101-000000-000000")


def test_what_is_no_file_is_not_kept(store: ChatStore, tmp_path: Path):
    with store.media.lock(shared=True), pytest.raises(MediaError, match=r"gone\.png"):
        store.media.add(tmp_path / "gone.png", "image")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ChatStoreError, match="make it writable"):
        ChatStore(tmp_path / "file" / "chats").create()
