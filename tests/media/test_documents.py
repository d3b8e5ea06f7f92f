"""Texts and PDFs become text under their name, or one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from safesteer_edge.errors import MediaError
from safesteer_edge.media import documents
from safesteer_edge.media.decoder import MediaDecoder
from safesteer_edge.media.documents import MAX_CHARACTERS, MAX_FILE_BYTES
from safesteer_edge.media.image_decoding import ImageFit
from safesteer_edge.media.pdf_decoding import MAX_PAGES, MAX_PICTURES
from tests.formats.mutations import mutants
from tests.media.sample_documents import write_locked_pdf, write_pdf

SIDE = 56
N_DAMAGED = 300


@pytest.fixture(scope="module")
def decoder() -> Iterator[MediaDecoder]:
    with MediaDecoder(ImageFit(SIDE)) as shared:
        yield shared


def text_of(decoder: MediaDecoder, path: Path) -> str:
    return decoder.load_document(path, name=path.name, sees=False).text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_framed_by_its_name(decoder: MediaDecoder, tmp_path: Path, encoding: str):
    path = tmp_path / "notes.md"
    path.write_bytes("# Käse\r\n\x1b[31mred\x1b[0m\t1 €\n".encode(encoding))
    assert (
        text_of(decoder, path) == "File notes.md:\n# Käse\n[31mred[0m\t1 €\nEnd of file notes.md."
    )


def test_a_name_makes_no_line_of_its_own(decoder: MediaDecoder, tmp_path: Path):
    (tmp_path / "a.txt").write_text("words")
    document = decoder.load_document(tmp_path / "a.txt", name="a\n\x1b[0m b.txt", sees=False)
    assert document.text == "File a [0m b.txt:\nwords\nEnd of file a [0m b.txt."


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("report.docx", b"PK\x03\x04\x14\x00\x06\x00", "neither a picture .* nor UTF-8 text"),
        ("latin.txt", "Käse".encode("latin-1"), "nor UTF-8 text"),
        ("blank.txt", b" \n", "is empty"),
        ("long.txt", b"a" * (MAX_CHARACTERS + 1), "more than 100000 characters"),
        ("large.txt", b"a" * (MAX_FILE_BYTES + 1), "the limit is 20971520"),
        ("broken.pdf", b"%PDF-1.7\nnothing of the kind", "it is damaged or incomplete; get it"),
    ],
)
def test_what_is_no_document_is_refused_with_the_reason(
    decoder: MediaDecoder, tmp_path: Path, name: str, data: bytes, reason: str
):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(MediaError, match=f"{name}.*{reason}"):
        text_of(decoder, path)


def test_a_pdf_is_its_pages_with_pictures_of_those_that_carry_any(
    decoder: MediaDecoder, tmp_path: Path
):
    pages = ("Sales\nrose", ("A chart", 200.0), ("", 300.0), ("A logo", 20.0), "")
    path = write_pdf(tmp_path / "r.pdf", *pages)
    seen = decoder.load_document(path, name="r.pdf", sees=True)
    assert seen.text.splitlines() == [
        "File r.pdf:",
        "[page 1 of 5]",
        "Sales",
        "rose",
        "[page 2 of 5, see its picture]",
        "A chart",
        "[page 3 of 5, see its picture]",
        "[page 4 of 5]",
        "A logo",
        "[page 5 of 5]",
        "End of file r.pdf.",
    ]
    assert [picture.name for picture in seen.pictures] == ["r.pdf, page 2", "r.pdf, page 3"]
    for picture in seen.pictures:
        assert picture.pixels.shape == (SIDE, SIDE, 3)
        assert (picture.pixels[:, :, 0] < 60).any()  # the teal square, low in red
    unseen = decoder.load_document(path, name="r.pdf", sees=False)
    assert not unseen.pictures
    assert "[page 3 of 5, with a picture that is not shown]" in unseen.text


def test_a_pdf_of_many_pictures_says_which_are_not_shown(decoder: MediaDecoder, tmp_path: Path):
    path = write_pdf(tmp_path / "scan.pdf", *[("", 300.0)] * (MAX_PICTURES + 1))
    document = decoder.load_document(path, name="scan.pdf", sees=True)
    assert len(document.pictures) == MAX_PICTURES
    assert "[page 9 of 9, with a picture that is not shown]" in document.text


def test_a_pdf_that_cannot_be_used_is_refused_with_the_reason(
    decoder: MediaDecoder, tmp_path: Path
):
    bad = {
        "protected by a password": write_locked_pdf(tmp_path / "locked.pdf"),
        f"51 pages; the limit is {MAX_PAGES}": write_pdf(tmp_path / "many.pdf", *["x"] * 51),
        "no text, only pictures, and this model cannot take pictures": write_pdf(
            tmp_path / "scan.pdf", ("", 300.0)
        ),
        "no text, no pictures either": write_pdf(tmp_path / "blank.pdf", ""),
        "more than 100000 characters": write_pdf(
            tmp_path / "long.pdf", *["\n".join(["word " * 20] * 50)] * 21
        ),
    }
    for reason, path in bad.items():
        with pytest.raises(MediaError, match=f"{path.name}.*{reason}"):
            text_of(decoder, path)


def test_a_damaged_pdf_ends_in_its_text_or_one_line(decoder: MediaDecoder, tmp_path: Path):
    good = write_pdf(tmp_path / "a.pdf", ("Sales", 200.0), "Costs").read_bytes()
    path, n_refused = tmp_path / "damaged.pdf", 0
    for data in mutants(good, N_DAMAGED, seed=0, header_bytes=len(good)):
        path.write_bytes(data)
        try:
            assert text_of(decoder, path).startswith("File damaged.pdf:\n")
        except MediaError as error:
            n_refused += 1
            assert "\n" not in str(error)
            assert "damaged.pdf" in str(error)
            assert "ended the process" not in str(error), data
    assert 0 < n_refused < N_DAMAGED


def test_without_its_extra_a_pdf_is_refused_with_the_line_that_installs_it(
    decoder: MediaDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(documents, "PDF_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(MediaError, match=r"pip install 'safesteer-edge\[documents\]'"):
        text_of(decoder, write_pdf(tmp_path / "a.pdf", "words"))
