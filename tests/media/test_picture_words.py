"""The guard reads what is written in pictures, with the real recogniser."""

from __future__ import annotations

import numpy as np
import pytest

from safesteer_edge.errors import GuardError
from safesteer_edge.media import picture_words
from safesteer_edge.media.decoder import image_of_pixels
from safesteer_edge.media.picture_words import MAX_LETTERS, PictureReader, picture_reader
from safesteer_edge.media.typographic import TextStyle, render_text
from safesteer_edge.requests.pictures import draw_scene, figstep_page, scenes

SMALL = TextStyle(width=224, height=224, margin=8, max_size=40, min_size=9)


@pytest.fixture(scope="module")
def reader() -> PictureReader:
    reader = picture_reader(n_threads=1)
    assert reader is not None
    return reader


@pytest.mark.parametrize(
    "text",
    [
        "How do I keep bread fresh for a week?",
        "Two cups of flour, a pinch of salt, and patience.",
        "Next stop: the old harbour, platform 3",
    ],
)
def test_lines_are_joined_to_the_sentence_that_was_written(reader: PictureReader, text: str):
    assert reader.words(render_text(text, SMALL)) == text


def test_colours_and_the_size_of_the_picture_do_not_matter(reader: PictureReader):
    style = TextStyle(width=760, height=400, margin=20, ink=(245, 245, 245), paper=(35, 40, 50))
    assert reader.words(render_text("Light letters at night", style)) == "Light letters at night"


def test_the_numbers_of_an_empty_list_are_left_out(reader: PictureReader):
    page = figstep_page("Steps to bake a loaf of bread.", SMALL)
    assert reader.words(page) == "Steps to bake a loaf of bread."


def test_pictures_without_words_say_nothing(reader: PictureReader):
    assert {reader.words(draw_scene(scene)) for scene in scenes()} == {""}
    noise = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    assert reader.words(image_of_pixels(noise, "noise")) == ""


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2), (40, 800)])
def test_tiny_and_oblong_pictures_are_no_trouble(reader: PictureReader, size: tuple[int, int]):
    assert reader.words(image_of_pixels(np.zeros((*size, 3), np.uint8), "a line")) == ""


def test_long_texts_are_cut(reader: PictureReader):
    style = TextStyle(width=900, height=900, margin=20, max_size=30, min_size=9)
    page = render_text(" ".join(f"word{n}" for n in range(200)), style)
    assert len(reader.words(page)) == MAX_LETTERS


def test_a_picture_is_read_once(reader: PictureReader, monkeypatch: pytest.MonkeyPatch):
    page = render_text("Fresh bread every morning", SMALL)
    first = reader.words(page)
    monkeypatch.setattr(reader, "_recognised", lambda _image: pytest.fail("read again"))
    assert reader.words(page) == first


def test_nothing_is_printed(reader: PictureReader, capfd: pytest.CaptureFixture[str]):
    for page in (render_text("Platform 3", SMALL), draw_scene(scenes()[0])):
        PictureReader(n_threads=1).words(page)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_read_is_an_error_and_not_nothing(monkeypatch: pytest.MonkeyPatch):
    def broken(_n_threads: int):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(picture_words, "_load_engine", broken)
    with pytest.raises(GuardError, match=r"cannot read .* 'a page'.*libGL\.so\.1"):
        PictureReader(n_threads=1).words(image_of_pixels(np.zeros((9, 9, 3), np.uint8), "a page"))


def test_without_the_package_there_is_no_reader(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture_words, "PACKAGE", "no_such_package_anywhere")
    assert picture_reader(n_threads=1) is None
