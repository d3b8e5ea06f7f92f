"""A chat's file is valid whatever happens: kills at any byte, full disks, a second instance."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.chats.chat_file import FLUSH_S, ChatFile, read_chat
from safesteer_edge.chats.chat_log import ChatLog
from safesteer_edge.chats.records import (
    AnswerEnded,
    EndReason,
    HeadMoved,
    MessageAdded,
    MessageDropped,
    ModelChanged,
    Record,
    StoredMedia,
    TextAdded,
    Titled,
    record_from_line,
    record_to_line,
)
from safesteer_edge.errors import ChatFileError, ChatStoreError
from tests.chats.sample_chats import GUARD, MODEL, USAGE, header, turn
from tests.guard.scripted_answers import no_scores

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX limits and signals")


def outline(log: ChatLog) -> list[tuple[object, ...]]:
    entries = ((e.id, e.parent, e.role, e.text, e.reasoning, e.media, e.end) for e in log.entries)
    return [*entries, (log.head, log.title, log.model, log.updated_at)]


@st.composite
def record_sequences(draw: st.DrawFn) -> list[Record]:
    """Records as an interface could write them, branches and all."""
    log = ChatLog(header())
    records: list[Record] = [log.header]
    texts = st.text(max_size=12)

    def add(record: Record) -> None:
        log.apply(record)
        records.append(record)

    for _ in range(draw(st.integers(0, 12))):
        answers = [entry.id for entry in log.entries if entry.role == "assistant"]
        parent = draw(st.sampled_from([None, *answers]))
        media = (StoredMedia("image", "a" * 64, "a" * 64 + ".png", draw(texts)),)
        question = log.new_id()
        has_media = draw(st.booleans())
        add(MessageAdded(question, parent, "user", 1.0, draw(texts), media if has_media else ()))
        step = draw(st.sampled_from(["answer", "drop", "title", "model"]))
        if step == "answer":
            answer = log.new_id()
            add(MessageAdded(answer, question, "assistant", 2.0))
            for piece in draw(st.lists(texts, max_size=4)):
                add(TextAdded(answer, piece, draw(st.sampled_from(["answer", "reasoning"]))))
            if draw(st.booleans()):
                reason = draw(st.sampled_from(get_args(EndReason)))
                add(AnswerEnded(answer, 3.0, reason, GUARD, USAGE))
        elif step == "drop":
            add(MessageDropped(question))
        elif step == "title":
            add(Titled(draw(texts)))
        else:
            add(ModelChanged(MODEL, 4.0))
        if draw(st.booleans()):
            add(HeadMoved(draw(st.sampled_from([None, *(e.id for e in log.entries)]))))
    return records


@given(record_sequences())
@settings(max_examples=60, deadline=None)
def test_a_record_is_what_was_written(records: list[Record]):
    assert [record_from_line(record_to_line(record).rstrip(b"\n")) for record in records] == records


@given(record_sequences(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_file_cut_at_any_byte_is_the_chat_of_its_whole_lines(
    tmp_path: Path, records: list[Record], data: st.DataObject
):
    lines = [record_to_line(record) for record in records]
    whole = b"".join(lines)
    n_bytes = data.draw(st.integers(len(lines[0]), len(whole)))
    path = tmp_path / "chat.jsonl"
    path.write_bytes(whole[:n_bytes])
    n_lines = whole[:n_bytes].count(b"\n")
    expected = outline(ChatLog.of(records[:n_lines]))
    assert outline(read_chat(path)) == expected
    with ChatFile.open(path) as file:
        assert outline(file.log) == expected
        file.add(Titled("repaired"))
    log = read_chat(path)
    assert (log.title, len(log.entries)) == ("repaired", len(expected) - 1)
    assert path.read_bytes().startswith(b"".join(lines[:n_lines]))


@given(st.binary(max_size=200))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_a_chat_or_a_plain_error(tmp_path: Path, noise: bytes):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(record_to_line(header()) + noise)
    try:
        read_chat(path)
    except ChatFileError as error:
        assert str(path) in str(error)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ChatFile]:
    with ChatFile.create(tmp_path / "chat.jsonl", header()) as file:
        yield file


def add_all(file: ChatFile, records: list[Record]) -> None:
    for record in records:
        file.add(record)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < limit_s, f"waited in vain for {what}"
        time.sleep(0.01)


def test_text_reaches_the_disk_by_itself(file: ChatFile):
    add_all(file, turn(1, "Hello", "Hi there")[:3])
    wait_until(lambda: read_chat(file.path).entries[-1].text == "Hi t", "the text on the disk")


def test_pieces_that_come_together_are_one_line(file: ChatFile):
    add_all(file, turn(1, "Hello", "Hi there"))
    assert file.path.read_bytes().count(b'"type":"text"') == 1
    assert outline(read_chat(file.path)) == outline(file.log)


def test_a_second_instance_is_told_and_may_read(file: ChatFile):
    add_all(file, turn(1, "Hello", "Hi there"))
    with pytest.raises(ChatFileError, match="open in another window"):
        ChatFile.open(file.path)
    assert read_chat(file.path).title == "Hello"
    file.close()
    with ChatFile.open(file.path) as again:
        assert outline(again.log) == outline(file.log)


def test_a_chat_belongs_to_its_user_alone(file: ChatFile):
    assert file.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"text","id":"m9","text":"x"}',
        b'{"type":"message","id":"m1","parent":null,"role":"assistant","at":1}',
        b'{"type":"end","id":"m1","at":1,"reason":"bored"}',
        b'{"type":"poem"}',
        b'{"type":"title","title":"x","more":1}',
        b'{"type":"title","title":1}',
        b"[]",
        b"not json",
    ],
)
def test_damage_before_the_end_is_not_read_over(file: ChatFile, line: bytes):
    file.close()
    with file.path.open("ab") as stream:
        stream.write(line + b"\n" + record_to_line(Titled("after")))
    for read in (read_chat, ChatFile.open):
        with pytest.raises(ChatFileError, match="damaged"):
            read(file.path)


def test_a_newer_version_is_named(file: ChatFile):
    file.path.write_bytes(file.path.read_bytes().replace(b'"schema":1', b'"schema":2'))
    with pytest.raises(ChatFileError, match=r"schema is 2.*update"):
        read_chat(file.path)


@POSIX
def test_a_full_disk_is_said_and_nothing_is_lost_when_there_is_room_again(file: ChatFile):
    import resource

    records = turn(1, "Hello", "Hi there")
    add_all(file, records[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = file.path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))
    try:
        file.add(records[2])
        with pytest.raises(ChatStoreError, match="free some space"):
            file.add(records[4])
        assert file.path.read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.add(Titled("there is room"))
    assert outline(read_chat(file.path)) == outline(file.log)


@POSIX
def test_a_kill_loses_what_half_a_second_brought_and_no_more(tmp_path: Path):
    """A process says numbers into a chat until it is killed: what was on the disk stays."""
    assert FLUSH_S <= 0.5
    path = tmp_path / "chat.jsonl"
    program = (
        "import time\n"
        "from pathlib import Path\n"
        "from safesteer_edge.chats.chat_file import ChatFile\n"
        "from safesteer_edge.chats.records import MessageAdded, TextAdded\n"
        "from tests.chats.sample_chats import header\n"
        f"file = ChatFile.create(Path({str(path)!r}), header())\n"
        "file.add(MessageAdded('m1', None, 'user', 1.0, 'Count.'))\n"
        "file.add(MessageAdded('m2', 'm1', 'assistant', 1.0))\n"
        "for number in range(100000):\n"
        "    file.add(TextAdded('m2', f'{number} '))\n"
        "    if number == 0:\n"
        "        print('begun', flush=True)\n"
        "    time.sleep(0.01)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

    def saved() -> list[str]:
        return read_chat(path).entry("m2").text.split()

    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        for _ in range(3):  # the waiting text is written again and again
            n_before = len(saved())
            wait_until(lambda n=n_before: len(saved()) > n, f"more than {n_before} numbers")
        before = saved()
        running.send_signal(signal.SIGKILL)
    after = saved()
    assert after == [str(number) for number in range(len(after))]
    assert len(after) >= len(before)
    with ChatFile.open(path) as file:
        assert file.log.entry("m2").end is None


def end_line(**numbers: str) -> bytes:
    """The line of an answer's end, with numbers of its guard as another program wrote them."""
    line = record_to_line(AnswerEnded("m2", 3.0, "stop", GUARD, USAGE)).decode("ascii")
    for name, text in numbers.items():
        line = re.sub(rf'("{name}":)[^,}}]*', rf"\g<1>{text}", line)
    return line.encode("ascii")


NO_RISKS = ["NaN", "Infinity", "-Infinity", "-0.1", "1.1", "1e999", "9" * 400, '"0.5"', "[0.5]"]


@pytest.mark.parametrize("text", NO_RISKS)
@pytest.mark.parametrize("name", ["risk", "max_score", "mean_score"])
def test_a_record_whose_risk_or_score_is_none_is_damaged(tmp_path: Path, name: str, text: str):
    path = tmp_path / "chat.jsonl"
    lines = [record_to_line(record) for record in (header(), *turn(1, "Hello", "Hi there")[:-1])]
    path.write_bytes(b"".join([*lines, end_line(**{name: "0.5"})]))
    assert read_chat(path).branch()[-1].text == "Hi there"
    path.write_bytes(b"".join([*lines, end_line(**{name: text})]))
    with pytest.raises(ChatFileError, match=r"cannot read chat .*; it is damaged"):
        read_chat(path)


@given(no_scores)
def test_a_line_with_what_is_no_risk_is_no_record(value: float):
    with pytest.raises(ChatFileError):
        record_from_line(end_line(risk=repr(value)))


@pytest.mark.parametrize("at", ["NaN", "Infinity", "9" * 400])
def test_a_record_of_no_time_is_damaged(at: str):
    with pytest.raises(ChatFileError):
        record_from_line(end_line(at=at))
