"""Marks of steered passages, sparklines, typed paths, copies: the parts without a screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.errors import InputError, MediaError
from safesteer_edge.guard.events import TextDelta
from safesteer_edge.tui.attached_files import require_files, split_media_paths
from safesteer_edge.tui.chat_export import code_blocks
from safesteer_edge.tui.commands.table import parse_command
from safesteer_edge.tui.guard_words import sparkline
from safesteer_edge.tui.shown_turn import (
    CLOSE,
    OPEN,
    ShownTurn,
    marked,
    removed_marks,
    split_marks,
    without_marks,
)
from tests.tui.scripted_session import Word, step_of


def test_marks_go_round_letters_alone():
    assert marked("a **bold** end", [(1, 8)]) == f"a **{OPEN}bold{CLOSE}** end"
    assert marked("1. item", [(0, 2)]) == "1. item"  # a mark here would break the list


def test_marks_come_off_again():
    text = marked("one two three", [(4, 7), (8, 13)])
    assert removed_marks(text) == "one two three"
    assert split_marks(text) == ("one two three", [(4, 7), (8, 13)])


def test_a_model_cannot_make_marks():
    assert without_marks(f"{OPEN}x{CLOSE}") == "\ufffdx\ufffd"


def test_a_steered_word_is_marked_when_its_text_settles_later():
    turn = ShownTurn("q")
    turn.feed(step_of(1, Word("You"), 0.0))
    turn.feed(step_of(2, Word(" ask", 0.1, " steal"), 0.0))
    assert turn.feed(TextDelta("You a")) == f"You {OPEN}a{CLOSE}"
    assert turn.feed(TextDelta("sk")) == f"{OPEN}sk{CLOSE}"
    assert turn.text == "You ask"


def test_a_sparkline_is_as_wide_as_asked_and_keeps_the_peaks():
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert len(sparkline([0.0] * 100, 10)) == 10
    assert "█" in sparkline([0.0] * 50 + [1.0] + [0.0] * 49, 10)


def test_an_existing_path_is_no_command_and_a_missing_one_is_explained(tmp_path: Path):
    assert parse_command(f"{tmp_path} what is there?") is None
    assert parse_command("//comment") is None
    assert parse_command("not a command") is None
    assert parse_command("/no/photo.heic") is None
    assert parse_command("/photo.heic what is this") is None
    with pytest.raises(InputError, match=r"did you mean /help"):
        parse_command("/halp")


def test_paths_with_bare_spaces_and_texts_that_only_look_like_paths(tmp_path: Path):
    path = tmp_path / "two words.png"
    path.touch()
    assert split_media_paths(f" {path} ") == ("", [path])
    assert split_media_paths("see a.png") == ("see a.png", [])
    assert split_media_paths("x" * 30_000) == ("x" * 30_000, [])


@pytest.mark.parametrize(
    ("typed", "paths"),
    [
        ("/no/photo.heic", ["/no/photo.heic"]),
        ("report.pdf", ["report.pdf"]),
        ("/home/me/nothere.png what is this", ["/home/me/nothere.png"]),
        ("What is in '/home/me/my cat.jpg'?", ["/home/me/my cat.jpg"]),
        ("sum up report.docx.", ["report.docx"]),
        ("sum up ./notes.md, please", ["notes.md"]),
        ("notes.txt", ["notes.txt"]),
        ("/home/me/nothere", ["/home/me/nothere"]),
        ("/no/a.png\nwhat is this?", ["/no/a.png"]),
        ("compare\n/no/a.png\n/no/b.png", ["/no/a.png", "/no/b.png"]),
        ("what does `/no/photo.heic` mean", []),
        ("what is and/or, 1/2 or TCP/IP", []),
        ("what does /usr/bin hold, and what /dev/null?", []),
        ("see `https://example.com/a.png`", []),
        ("read\nhttps://example.com/a.png", []),
        ("see https://example.com/a", []),
        ("what should a CHANGES.md say", []),
        ("draw(load('a.png')) or *.png", []),
        ("for i in x:\n    cp /no/a.png $i\n", []),
        ("what differs between .png and .jpg?", []),
    ],
)
def test_what_looks_like_a_path_is_one_though_no_file_is_there(
    typed: str, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    found = split_media_paths(typed, typed=True)[1]
    assert found == [Path(path) for path in paths]
    if paths:
        with pytest.raises(MediaError, match="no such file; check the path"):
            require_files(found)


def test_a_documents_name_stays_in_the_question_and_a_pictures_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("notes.md", "Makefile", "a.png"):
        (tmp_path / name).touch()
    notes, makefile, picture = (tmp_path / name for name in ("notes.md", "Makefile", "a.png"))
    for typed, text, paths in (
        (f"sum up {notes}.", "sum up notes.md.", [notes]),
        ("sum up notes.md", "sum up notes.md", [Path("notes.md")]),
        (f"why does {makefile} fail?", "why does Makefile fail?", [makefile]),
        ("what is a Makefile?", "what is a Makefile?", []),
        (f"{notes} {picture}", "", [notes, picture]),
        (f"what is in {picture}?", "what is in?", [picture]),
        (f"if x:\n    cat {notes}", f"if x:\n    cat {notes}", []),
    ):
        assert split_media_paths(typed, typed=True) == (text, paths)
    assert split_media_paths("notes.md") == ("notes.md", [])  # a pasted word
    assert split_media_paths(str(notes)) == ("", [notes])


def test_code_blocks_of_any_fence():
    assert code_blocks("~~~\na\n~~~\ntext\n````md\n```\nb\n```\n````") == ["a", "```\nb\n```"]
