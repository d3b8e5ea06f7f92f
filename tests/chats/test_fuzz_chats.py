"""Thousands of damaged chat files: each is read or named, and none keeps the others from anything.

The damage is seeded, so that a failure can be repeated. `pytest -m slow` looks at 4,000.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.export import export_chat
from safesteer_edge.chats.records import MessageAdded, Titled
from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import OK
from safesteer_edge.errors import SafeSteerError
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.tui.plain_chat import PlainChat, run_plain_chat
from safesteer_edge.tui.screens.chats_screen import when
from tests.chats.sample_chats import MODEL, turn
from tests.formats.mutations import mutants
from tests.tui.scripted_session import ScriptedModel

N_AT_ONCE = 50
# As JSON has them: what other programs, bad disks and bad people write.
BAD_TEXTS = (
    *('""', '"\\ud800"', '"a\\udfffb"', '"\\u0000"', '"\\u001b]0;x\\u0007"', '"\\n\\n# x\\n"'),
    *('"../../../etc/passwd"', '"/dev/zero"', '"."', '"x"', '"\\u202e"', f'"{"y" * 70_000}"'),
    *('"stop"', '"loop"', '"m1"', '"m4"', '"user"', '"image"', '"audio"', f'"{"0" * 64}.png"'),
)
BAD_NUMBERS = (
    *("1e300", "-1", "NaN", "Infinity", "1e999", "0", "0.5", "2", "1" + "0" * 400, "9" * 5000),
    *("9223372036854775808", "9223372036854775807", "-0.0", "1e18", "253402300800", "3e10"),
)
BAD_OTHERS = ("null", "true", "[]", "{}", "[" * 90 + "]" * 90, "[" * 3000 + "]" * 3000)


def good_chat(store: ChatStore, picture: Path) -> Path:
    """A chat with all kinds of records: branches, pictures, a title, an end."""
    with store.media.lock(shared=True):
        media = (store.media.add(picture, "image"), store.media.add(picture, "document", "a.pdf"))
    with store.create(MODEL) as file:
        for record in turn(1, "Hello there", "Hi, I am tiny"):
            file.add(record)
        file.add(MessageAdded("m3", "m2", "user", 103.0, "What is this?", media))
        for record in turn(2, "again", "said again", parent="m2")[1:]:
            file.add(record)
        file.add(Titled("Greetings"))
        return file.path


def damaged_values(data: bytes, n: int, *, seed: int) -> Iterator[bytes]:
    """Copies with one to three values changed, or lines moved, doubled or left out."""
    rng = Random(seed)
    for _ in range(n):
        lines = data.splitlines()
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            index = rng.randrange(len(lines))
            if rng.random() < 0.8:
                lines[index] = _with_other_value(lines[index], rng)
            elif rng.random() < 0.4:
                lines[index:index] = [rng.choice(lines)]
            elif rng.random() < 0.5 and len(lines) > 1:
                del lines[index]
            else:
                lines.append(lines.pop(index))
        yield b"\n".join(lines) + b"\n"


def _with_other_value(line: bytes, rng: Random) -> bytes:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # changed already
        return line
    holders: list[tuple[Any, Any]] = []
    waiting = [record]
    while waiting:
        holder = waiting.pop()
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            holders.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    holder, key = rng.choice(holders)
    values = BAD_TEXTS if isinstance(holder[key], str) else BAD_NUMBERS
    if rng.random() < 0.2:
        values = (*BAD_TEXTS, *BAD_NUMBERS, *BAD_OTHERS)
    holder[key] = "HERE"
    return json.dumps(record).replace('"HERE"', rng.choice(values), 1).encode()


@pytest.mark.parametrize("n", [400, pytest.param(4_000, marks=pytest.mark.slow)])
def test_a_damaged_chat_is_read_or_named_and_the_others_are_as_before(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    picture = tmp_path / "a.png"
    Image.new("RGB", (56, 56), "navy").save(picture)
    store = ChatStore()
    good = good_chat(store, picture)
    data = good.read_bytes()
    files = chain(
        mutants(data, n // 8, seed=n, header_bytes=len(data)),
        damaged_values(data, n - n // 8, seed=n),
    )
    n_read = 0
    for number, damaged in enumerate(files, 1):
        chat_id = f"20260101-000000-{number:06x}"
        store.path(chat_id).write_bytes(damaged)
        if number % N_AT_ONCE == 0 or number == n:
            n_read += look_at_all(store, good, capsys)
    assert good.read_bytes() == data
    assert n // 8 < n_read < n // 2  # else the damage tests nothing


def look_at_all(store: ChatStore, good: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Do all there is to do with these chats, delete the damaged; returns how many are read."""
    summaries = {each.id: each for each in store.list()}
    assert good.stem in summaries
    assert summaries[good.stem].problem is None
    listed = run(capsys, "list").splitlines()
    assert len(listed) == len(summaries)
    assert good.stem in run(capsys, "search", "tiny")
    run(capsys, "list", "--json")
    n_read = 0
    for chat_id, summary in summaries.items():
        assert isinstance(when(summary.updated_at, 1.8e9), str)
        if chat_id != good.stem and summary.problem is None:
            n_read += 1
            go_on_with(store, chat_id)
        if chat_id != good.stem:
            run(capsys, "delete", chat_id, "--yes")
            assert not store.path(chat_id).exists()
    assert (store.folder / "media").exists()
    return n_read


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `safesteer-edge chats` prints."""
    exit_code = main(["chats", *arguments])
    captured = capsys.readouterr()
    assert exit_code == OK, captured.err
    assert captured.out.replace("\n", "").isprintable()
    return captured.out


def go_on_with(store: ChatStore, chat_id: str) -> None:
    """Show it in every form, resume it, and ask something; an error is one of ours."""
    log = store.read(chat_id)
    for form in ("markdown", "html", "json"):
        export_chat(log, form, media_path=store.media.path).encode("utf-8")
    lines = io.StringIO("And now?\n/edit 1\nhello\n/regenerate\n")
    out, notes = io.StringIO(), io.StringIO()
    opener = ScriptedModel().open
    chat = PlainChat(opener, SessionSettings(), store, lines=lines, out=out, notes=notes)
    with contextlib.suppress(SafeSteerError):
        run_plain_chat(chat, chat_id, "")
    (out.getvalue() + notes.getvalue()).encode("utf-8")
