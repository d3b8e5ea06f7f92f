"""Exports: whole, and with nothing in them that acts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from safesteer_edge.chats.chat_log import ChatLog
from safesteer_edge.chats.export import ExportFormat, export_chat
from safesteer_edge.chats.records import MessageAdded, StoredMedia, TextAdded
from tests.chats.sample_chats import header, turn

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
HOSTILE = '<script>alert(1)</script><img src="http://x/y"> \x1b]0;owned\x07&amp; </div>'


@pytest.fixture
def log() -> ChatLog:
    media = (
        StoredMedia("image", "a" * 64, "a" * 64 + ".png", 'cat".png'),
        StoredMedia("image", "b" * 64, "b" * 64 + ".svg", "b.svg"),
        StoredMedia("image", "c" * 64, "c" * 64, "gone.png"),
        StoredMedia("audio", "d" * 64, "d" * 64, "purr.wav"),
    )
    log = ChatLog.of([header(), MessageAdded("m0", None, "system", 1.0, "Be brief.")])
    for record in turn(1, "Hello", "Hi there", parent="m0"):
        log.apply(record)
    log.apply(MessageAdded("m3", "m2", "user", 103.0, "What is this?", media))
    log.apply(MessageAdded("m4", "m3", "assistant", 104.0))
    log.apply(TextAdded("m4", HOSTILE))
    return log


def test_reasoning_is_in_every_export_and_stays_folded_data(log: ChatLog):
    log.apply(TextAdded("m4", f"first\n</details># {HOSTILE}", "reasoning"))

    def run(to: ExportFormat) -> str:
        return export_chat(log, to, media_path=lambda _: Path("none"))

    assert "\n> *thought for 6 words*\n>\n> first\n> </details># <script>" in run("markdown")
    page = Tags(run("html"))
    assert [tag for tag, _ in page.tags].count("details") == 1
    assert "script" not in [tag for tag, _ in page.tags]
    answer = json.loads(run("json"))["messages"][-1]
    assert answer["reasoning"].startswith("first")
    assert answer["text"] == HOSTILE


@pytest.fixture
def export(log: ChatLog, tmp_path: Path):
    (tmp_path / ("a" * 64 + ".png")).write_bytes(PNG)
    (tmp_path / ("b" * 64 + ".svg")).write_text("<svg onload='alert(1)'/>")

    def run(to: ExportFormat) -> str:
        return export_chat(log, to, media_path=lambda media: tmp_path / media.file)

    return run


class Tags(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_holds_pictures_and_no_markup_of_others(export):
    page = Tags(export("html"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ['cat".png']
    assert (images[0]["src"] or "").startswith("data:image/png;base64,")
    assert "script" not in {tag for tag, _ in page.tags}
    assert '<script>alert(1)</script><img src="http://x/y"> &amp; </div>' in page.text
    assert "gone.png, which is gone" in page.text
    assert "default-src 'none'" in export("html")
    assert "\x1b" not in export("html")


def test_no_page_refers_to_anything_outside_it(export):
    sources = [
        value
        for _, attributes in Tags(export("html")).tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert all((source or "").startswith("data:") for source in sources)


def test_markdown_says_who_said_what_and_how_it_ended(export):
    text = export("markdown")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert headings == ["Hello", "System prompt", "You", "tiny", "You", "tiny"]
    assert "*1 tokens steered*" in text
    assert "*cut off*" in text
    assert "(image: b.svg)" in text
    assert "\x1b" not in text


def test_json_is_the_branch_as_it_was_said(export):
    value = json.loads(export("json"))
    assert [message["role"] for message in value["messages"]] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert value["messages"][-1]["text"] == HOSTILE
    assert value["messages"][2]["end"]["guard"]["risk"] == 0.25
    assert value["model"]["name"] == "tiny"
