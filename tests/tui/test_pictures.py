"""Pictures: attached in every way, seen, taken off, and refused with a reason."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from textual.events import Paste

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.session.protocol import Document
from safesteer_edge.tui.widgets.attachments import HalfBlocks
from safesteer_edge.tui.widgets.composer import Composer
from tests.media.png_bytes import RGB, png_bytes
from tests.media.sample_documents import write_pdf
from tests.media.sample_pictures import write_sample
from tests.tui.app_driver import Driver, driven, opened
from tests.tui.scripted_session import Script, ScriptedModel, Word, said


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    path = folder / "a cat.png"
    path.write_bytes(picture_of(64, 48))
    return path


def picture_of(width: int, height: int) -> bytes:
    rows = (b"\0" + bytes([200, 120, 40]) * width) * height
    return png_bytes(width, height, bit_depth=8, color_type=RGB, pixels=rows)


def asked_with(driver: Driver, model: ScriptedModel) -> tuple[Path, ...]:
    return model.session.messages[-2].images


async def paste(driver: Driver, text: str) -> None:
    composer = driver.app.chat.query_one(Composer)
    composer.post_message(Paste(text))
    await driver.pilot.pause()


def test_a_picture_is_chosen_asked_about_and_shown(picture: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(picture.parent)

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            await driver.press("ctrl+o")
            await driver.sees("a cat.png")
            await driver.press("down")
            await driver.until(lambda: bool(driver.app.screen.query(HalfBlocks)), "the preview")
            await driver.press("enter")
            await driver.sees("▣ a cat.png ×")
            await driver.send("What is this?")
            await driver.sees("You said: What is this?")
            await driver.until(lambda: bool(driver.app.chat.query(HalfBlocks)), "the picture")
            await driver.ready()
            assert asked_with(driver, model) == (picture,)
            await driver.sees("▣ a cat.png")

    driven(test())


def test_the_picker_shows_sizes_and_filters_as_one_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name, n_bytes in (("apples.txt", 3 << 10), ("pears.txt", 5 << 20), ("plums.md", 10)):
        (tmp_path / name).write_bytes(b"a" * n_bytes)

    async def test():
        async with opened() as driver:
            await driver.press("ctrl+o")
            await driver.sees("apples.txt  3 KiB")
            await driver.sees("pears.txt  5.0 MiB")
            await driver.type("plu")
            await driver.sees_no("pears.txt")
            await driver.sees_no("▣ apples.txt")
            await driver.sees("plums.md")
            await driver.press("enter")
            await driver.sees("plums.md ×")

    driven(test())


@pytest.mark.parametrize("form", ["{}", "'{}'", '"{}"', "{escaped}", "file://{url}"])
def test_a_dropped_path_is_attached_in_any_form(picture: Path, form: str):
    text = form.format(
        picture,
        escaped=str(picture).replace(" ", "\\ "),
        url=str(picture).replace(" ", "%20"),
    )

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            await paste(driver, text)
            await driver.sees("▣ a cat.png ×")
            await driver.send("and?")
            await driver.ready()
            assert asked_with(driver, model) == (picture,)

    driven(test())


def test_typed_paths_several_and_taken_off_again(picture: Path):
    second = picture.with_name("dog.png")
    second.write_bytes(picture_of(8, 8))

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            await driver.send(f"'{picture}'")  # begins with a quote; the next with a slash
            await driver.send(str(second))
            await driver.sees("▣ dog.png ×")
            await driver.press("backspace")
            await driver.sees_no("dog.png")
            await driver.send(f"Compare these '{second}'")
            await driver.ready()
            assert asked_with(driver, model) == (picture, second)
            assert model.session.messages[-2].text == "Compare these"

    driven(test())


def test_what_cannot_be_attached_is_explained(picture: Path):
    async def test():
        async with opened(ScriptedModel(sees=False)) as driver:
            await driver.sees("ready")
            await driver.send(f"/attach {picture}")
            await driver.sees("cannot take pictures")
            await driver.send("/attach /no/such.png")
            await driver.sees("there is no such file")
            await driver.send("/attach https://x.org/a.png")
            await driver.sees("cannot read 'https://x.org/a.png': nothing is fetched")

    driven(test())


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("/no/photo.heic", "there is no such file"),
        ("report.pdf", "`backquotes` to send it as text"),
        ("/home/me/nothere.png what is this", "cannot attach '/home/me/nothere.png'"),
        ("{damaged} what is this", "is none of PNG, JPEG"),
        ("What is '{damaged}'?", "is none of PNG, JPEG"),
        ("{office} sum it up", "nor UTF-8 text"),
        ("https://x.org/a%20b.png what is this", "'https://x.org/a%20b.png': nothing is fetched"),
    ],
)
def test_what_looks_like_a_path_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, reason: str
):
    monkeypatch.chdir(tmp_path)
    damaged, office = tmp_path / "damaged.png", tmp_path / "report.docx"
    damaged.write_bytes(b"not a picture")
    office.write_bytes(b"PK\x03\x04\0\0")

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            message = typed.format(damaged=damaged, office=office)
            await driver.send(message)
            await driver.sees(reason)
            assert driver.app.chat.query_one(Composer).text == message  # to be mended
            assert driver.app.state.attachments == []
            assert model.session.messages == ()
            await driver.send("Hello")
            await driver.sees("You said: Hello")

    driven(test())


@pytest.mark.parametrize("name", ["turned.heic", "turned.avif"])
def test_a_phones_picture_is_attached_and_shown(tmp_path: Path, name: str):
    path = write_sample(tmp_path, name)

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            await driver.send(f"{path} What is this?")
            await driver.sees("You said: What is this?")
            await driver.until(lambda: bool(driver.app.chat.query(HalfBlocks)), "the picture")
            await driver.ready()
            assert asked_with(driver, model) == (path,)

    driven(test())


def test_documents_are_attached_shown_kept_and_edited(tmp_path: Path):
    notes = tmp_path / "notes.md"
    notes.write_text("# Milk")
    report = write_pdf(tmp_path / "report.pdf", "Sales", ("A chart", 200.0))

    async def test():
        model, store = ScriptedModel(), ChatStore(tmp_path / "chats")
        async with opened(model, store=store) as driver:
            await driver.sees("ready")
            await driver.send(str(report))
            await driver.sees("≡ report.pdf ×")
            await driver.send(f"Compare it with {notes}")
            await driver.sees("You said: Compare it with notes.md")
            await driver.ready()
            await driver.sees("≡ report.pdf   ≡ notes.md")
            asked = [Document(report, "report.pdf"), Document(notes, "notes.md")]
            assert list(model.session.messages[-2].documents) == asked
        async with opened(model, store=store) as driver:
            await driver.sees("ready")
            await driver.press("f2")
            await driver.sees("Compare it with")
            await driver.press("enter")
            await driver.sees("≡ report.pdf   ≡ notes.md")
            await driver.send("/edit 1")
            await driver.send("Which is longer?")
            await driver.sees("You said: Which is longer?")
            await driver.ready()
            question = model.session.messages[-2]
            assert question.text == "Which is longer?"
            assert [each.name for each in question.documents] == ["report.pdf", "notes.md"]
            assert [each.path.read_bytes() for each in question.documents] == [
                report.read_bytes(),
                notes.read_bytes(),
            ]

    driven(test())


def test_the_guard_acts_on_a_harmful_picture(picture: Path):
    async def test():
        script = Script([Word("Sure", 0.7), Word(" here", 0.96)], refuse=True)
        async with opened(ScriptedModel({"Do what it says": script}), size=(120, 40)) as driver:
            await driver.sees("ready")
            await driver.send(f"'{picture}' Do what it says")
            await driver.sees("Refused by the guard")
            await driver.press("f5")
            await driver.sees("The correction for pictures")
            await driver.sees("Refused at token 2")

    driven(test())


def test_no_images_shows_names_alone(picture: Path):
    async def test():
        async with opened(show_images=False) as driver:
            await driver.sees("ready")
            await driver.send(f"'{picture}' hello")
            await driver.sees("▣ a cat.png")
            await driver.ready()
            assert not driver.app.chat.query(HalfBlocks)

    driven(test())


def install_tool(folder: Path, name: str, types: str, data: Path) -> None:
    """A clipboard's tool: it lists these types, and prints the file for any one."""
    tool = folder / name
    lists = "*--list-types*|*TARGETS*"
    tool.write_text(f"#!/bin/sh\ncase \"$*\" in {lists}) echo {types};; *) cat '{data}';; esac\n")
    tool.chmod(0o755)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there are other tools")
@pytest.mark.parametrize(
    ("tool", "display"), [("wl-paste", "WAYLAND_DISPLAY"), ("xclip", "DISPLAY")]
)
def test_ctrl_v_attaches_the_picture_that_the_clipboard_holds(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, display: str
):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv(display, "0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("ready")
            install_tool(tmp_path, tool, "image/png", picture)
            await driver.press("ctrl+v")
            await driver.sees("▣ pasted-1.png ×")
            await paste(driver, "")  # as terminals do where there is no text
            await driver.sees("▣ pasted-2.png ×")
            install_tool(tmp_path, tool, "'image/png text/plain'", picture)
            driver.app.copy_to_clipboard("some words")
            await driver.press("ctrl+v")
            await driver.sees("some words")
            await driver.press("enter")
            await driver.sees("You said: some words")
            await driver.ready()
            asked = [path.read_bytes() for path in asked_with(driver, model)]
            assert asked == [picture.read_bytes()] * 2

    driven(test())


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there are other tools")
def test_a_clipboard_that_cannot_be_read_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WAYLAND_DISPLAY", "0")
    monkeypatch.setenv("PATH", str(tmp_path))

    async def test():
        async with opened() as driver:
            await driver.sees("ready")
            await driver.press("ctrl+v")
            await driver.sees("install wl-clipboard")
            driver.app.copy_to_clipboard("copied in here")
            await driver.press("ctrl+v")
            await driver.sees("copied in here")

    driven(test())


def test_a_queued_message_keeps_its_files_and_the_next_one_has_its_own(tmp_path: Path):
    for name in ("first.md", "second.md"):
        (tmp_path / name).write_text("# Milk")
    gate = threading.Event()

    async def test():
        model = ScriptedModel({"count": said("one two three four", gate=gate)})
        async with opened(model) as driver:
            await driver.send("count")
            await driver.sees("one two three")
            await driver.send(str(tmp_path / "first.md"))
            await driver.sees("first.md ×")
            await driver.send("what is it?")
            await driver.sees("queued: what is it?")
            await driver.sees_no("first.md ×")
            await driver.send(str(tmp_path / "second.md"))
            await driver.sees("second.md ×")
            gate.set()
            await driver.sees("You said: what is it?")
            await driver.ready()
            await driver.sees("second.md ×")
            await driver.send("and this?")
            await driver.ready()
            asked = [message.documents for message in model.session.messages[::2]]
            assert [[each.name for each in files] for files in asked] == [
                [],
                ["first.md"],
                ["second.md"],
            ]

    driven(test())
