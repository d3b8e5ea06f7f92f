"""Typographic images: the same text gives the same pixels, and all of it is on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import MediaError, SettingsError
from safesteer_edge.media.decoder import DecodedImage
from safesteer_edge.media.typographic import TextStyle, numbered_list, png_bytes, render_text
from tests.media.sample_pictures import load_image

PAGE = numbered_list("Steps to bake a loaf of rye bread.")
SMALL = TextStyle(width=224, height=224, margin=8, max_size=40)


def n_text_lines(image: DecodedImage) -> int:
    """Runs of rows that hold ink."""
    inked = (image.pixels < 128).any(axis=(1, 2))
    return int(np.count_nonzero(np.diff(np.concatenate([[False], inked]).astype(int)) == 1))


def ink_box(image: DecodedImage) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((image.pixels < 128).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_the_same_text_gives_the_same_pixels():
    assert render_text(PAGE, SMALL).sha256 == render_text(PAGE, SMALL).sha256
    assert render_text(PAGE, SMALL).sha256 != render_text(PAGE + "!", SMALL).sha256


def test_a_numbered_list_stands_below_its_title():
    assert numbered_list("Title.", n_items=2) == "Title.\n1.\n2."
    assert n_text_lines(render_text("One\n1.\n2.\n3.", TextStyle(line_height=1.5))) == 4


@pytest.mark.parametrize("style", [TextStyle(), SMALL], ids=["page", "small"])
@pytest.mark.parametrize("n_words", [1, 20, 120])
def test_all_ink_stays_inside_the_margins(style: TextStyle, n_words: int):
    left, top, right, bottom = ink_box(render_text("bread " * n_words, style))
    assert style.margin <= left and right < style.width - style.margin
    assert style.margin <= top and bottom < style.height - style.margin


def test_a_longer_text_is_drawn_smaller():
    _, top, _, bottom = ink_box(render_text("bread", SMALL))
    many = render_text("bread " * 40, SMALL)
    assert n_text_lines(many) > 6
    assert bottom - top > SMALL.height // n_text_lines(many)


def test_a_word_that_is_wider_than_the_page_is_broken():
    image = render_text("w" * 120, TextStyle(width=100, height=400, margin=4, min_size=10))
    assert n_text_lines(image) > 5


def test_colours_are_the_styles():
    image = render_text("ink", TextStyle(width=64, height=64, ink=(255, 0, 0), paper=(0, 0, 255)))
    assert image.pixels[0, 0].tolist() == [0, 0, 255]
    assert image.pixels[..., 0].max() == 255


def test_a_png_comes_back_as_the_same_pixels(tmp_path: Path):
    image = render_text(PAGE, SMALL)
    path = tmp_path / "page.png"
    path.write_bytes(png_bytes(image))
    assert load_image(path).sha256 == image.sha256


@pytest.mark.parametrize(
    ("text", "style", "problem"),
    [
        ("  \n ", SMALL, "no text"),
        ("x" * 5000, SMALL, "the limit is 4000"),
        ("word " * 700, SMALL, "does not fit"),
        ("вода", SMALL, "U+0430"),
        ("a\x07b", SMALL, "U+0007"),
        ("text", TextStyle(font=Path("no-such-font.ttf")), "no-such-font.ttf"),
        ("text", TextStyle(font=Path(__file__)), "as a font"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_that_says_why(text: str, style: TextStyle, problem: str):
    with pytest.raises(MediaError, match=problem.replace("+", r"\+")):
        render_text(text, style)


@pytest.mark.parametrize(
    "values",
    [
        {"width": 8},
        {"height": 10_000},
        {"margin": 400},
        {"min_size": 2},
        {"max_size": 9},
        {"line_height": 0.1},
    ],
)
def test_a_style_out_of_range_is_refused(values: dict[str, int]):
    with pytest.raises(SettingsError):
        TextStyle(**values)  # pyright: ignore[reportArgumentType] - the values are the point
