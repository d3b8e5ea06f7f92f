from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.formats.display_text import ControlCharacterFilter, strip_control_characters

_DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_TRICKY = st.text(st.sampled_from("a1;[]P\\@\x1b\x07\x9b\x9c\x9d\n\t\r\u202e\ud800é")) | st.text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("héllo 世界 🙂 שלום", "héllo 世界 🙂 שלום"),
        ("line\r\nline", "line\nline"),
        ("a\x1b[31mred\x1b[0mb", "aredb"),
        ("a\x1b[38;5;1;2mb", "ab"),
        ("a\x9b31mb", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;aGk=\x1b\\b", "ab"),
        ("a\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\b", "aclickb"),
        ("a\x9d0;title\x9cb", "ab"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1b(0b\x1bcd", "abd"),
        ("a\x1b]0;open\x1b[31mb", "ab"),
        ("a\u202eb\u2066c\u2069d", "abcd"),
        ("a\x00\x08\x7f\x85b", "ab"),
        ("a\ud800b", "a\ufffdb"),
        ("a\x1b", "a"),
    ],
)
def test_control_sequences_are_removed(text: str, shown: str) -> None:
    assert strip_control_characters(text) == shown


def test_an_unclosed_sequence_hides_one_line_at_most() -> None:
    assert strip_control_characters("a\x1b]0;hidden\nshown") == "a\nshown"
    assert strip_control_characters("a\x1b]0;" + "h" * 5000).count("h") > 3000


def test_an_aborted_sequence_does_not_take_the_text_behind_it() -> None:
    assert strip_control_characters("\x1b[31\nnext") == "\nnext"
    assert strip_control_characters("\x1b\nnext") == "\nnext"
    assert strip_control_characters("\x1b[3é") == "é"


@settings(deadline=None)
@given(_TRICKY)
def test_nothing_dangerous_is_left(text: str) -> None:
    assert not _DANGEROUS.search(strip_control_characters(text))


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.just("\n")))
def test_other_text_stays_as_it_is(text: str) -> None:
    safe = _DANGEROUS.sub("", text)
    assert strip_control_characters(text) == safe


@settings(deadline=None)
@given(st.lists(_TRICKY))
def test_pieces_give_what_the_whole_gives(pieces: list[str]) -> None:
    filter_ = ControlCharacterFilter()
    assert "".join(map(filter_.feed, pieces)) == strip_control_characters("".join(pieces))
