"""What is written in a picture is scored as if it had been said, so that it hides nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from safesteer_edge.errors import GuardError
from safesteer_edge.media.picture_words import PictureReader
from safesteer_edge.media.typographic import TextStyle, render_text
from safesteer_edge.session.prompt import media_texts
from safesteer_edge.templates.conversation import Conversation, MediaContent, Message, TextContent
from tests.guarded_tiny import QUIET, WAVERING, GuardedTiny
from tests.session.test_text_only_score import TOLERANCE, score
from tests.session.turns import ask, opened

WORDS = ("Paint it", "Sell it", "Count it", "Name it", "Move it", "Burn it")
_PAGE = TextStyle(width=56, height=56, margin=3, max_size=20, min_size=12)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of WORDS, as large as the projector takes them."""
    folder = tmp_path_factory.mktemp("pages")
    paths = [folder / f"{index}.png" for index in range(len(WORDS))]
    for words, path in zip(WORDS, paths, strict=True):
        Image.fromarray(render_text(words, _PAGE).pixels).save(path)
    return paths


def test_what_a_picture_says_counts_as_much_as_words(guarded_tiny: GuardedTiny, pages: list[Path]):
    with opened(
        guarded_tiny, guarded_tiny.bundle(WAVERING), mmproj=guarded_tiny.projector
    ) as session:
        n_words_higher = 0
        for words, page in zip(WORDS, pages, strict=True):
            session.reset()
            said = score(ask(session, words))
            session.reset()
            shown = score(ask(session, "", images=[page]))
            assert shown >= said - TOLERANCE
            n_words_higher += shown == pytest.approx(said, abs=TOLERANCE)
    assert 0 < n_words_higher < len(WORDS)


def test_a_request_that_is_half_in_the_picture_is_scored_whole(
    guarded_tiny: GuardedTiny, pages: list[Path]
):
    with opened(
        guarded_tiny, guarded_tiny.bundle(WAVERING), mmproj=guarded_tiny.projector
    ) as session:
        for words, page in zip(WORDS, pages, strict=True):
            session.reset()
            whole = score(ask(session, f"Now take this:\n{words}"))
            session.reset()
            assert score(ask(session, "Now take this:", images=[page])) >= whole - TOLERANCE


def test_reading_changes_no_byte_of_the_answer(guarded_tiny: GuardedTiny, pages: list[Path]):
    answers = []
    for bundle in (guarded_tiny.bundle(QUIET), None):
        with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
            turns = [ask(session, "What is it?", images=[page]) for page in pages[:2]]
            answers.append([(turn.text, turn.prefill.n_reused_tokens) for turn in turns])
    assert answers[0] == answers[1]


def test_nothing_is_read_with_the_guard_off(
    guarded_tiny: GuardedTiny, pages: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PictureReader, "words", lambda *_: pytest.fail("read"))
    for bundle in (guarded_tiny.bundle(QUIET), None):
        with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector, guard="off") as session:
            ask(session, "What is it?", images=[pages[0]])


def test_a_picture_that_cannot_be_read_ends_the_turn_before_any_text(
    guarded_tiny: GuardedTiny, pages: list[Path], monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> str:
        raise GuardError("the guard cannot read what is written in picture 'x'")

    monkeypatch.setattr(PictureReader, "words", broken)
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), mmproj=guarded_tiny.projector) as session:
        with pytest.raises(GuardError, match="cannot read"):
            ask(session, "What is it?", images=[pages[0]])
        assert not session.messages


def _read(medium: MediaContent) -> str:
    return {"a": "written in a", "b": "written in b", "c": ""}[medium.sha256]


def _asked(text: str, *pictures: str) -> Message:
    media = tuple(MediaContent("image", name) for name in pictures)
    return Message("user", (*media, TextContent(text)))


@pytest.mark.parametrize(
    ("messages", "texts"),
    [
        ([_asked("said")], []),
        ([_asked("said", "c")], ["said"]),
        ([_asked("said", "a")], ["said", "written in a", "said\nwritten in a"]),
        ([_asked(" ", "a", "c", "b")], ["written in a written in b"]),
        ([_asked(" ", "c")], []),
        (
            [
                _asked("said", "a"),
                Message.from_text("assistant", "Well."),
                Message("user", (MediaContent("audio", "d"), TextContent("later"))),
            ],
            ["later", "later\nwritten in a"],
        ),
        (
            [_asked("said", "a"), Message.from_text("assistant", "Well."), _asked("later")],
            ["later", "later\nwritten in a"],
        ),
    ],
)
def test_what_is_looked_at_alone(messages: list[Message], texts: list[str]):
    system = Message.from_text("system", "Be brief.")
    assert list(media_texts(Conversation((system, *messages)), _read)) == texts
