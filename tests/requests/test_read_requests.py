"""A user's file of requests is read with defaults, or refused in words that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.errors import RequestDataError
from safesteer_edge.requests.requests import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    SPLITS,
    Request,
    load_requests,
    read_requests,
    split_of_text,
)


def write_lines(folder: Path, *lines: str | bytes | dict[str, object]) -> Path:
    path = folder / "mine.jsonl"
    with path.open("wb") as stream:
        for line in lines:
            text = json.dumps(line) if isinstance(line, dict) else line
            stream.write((text.encode() if isinstance(text, str) else text) + b"\n")
    return path


def test_a_users_file_is_read_with_defaults(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path,
        {"text": "Wie spät ist es?", "label": "ordinary", "language": "de", "split": "test"},
        "",
        {"text": "What's for tea?", "label": "harmless", "id": "tea", "group": "food"},
    )
    assert read_requests(path) == (
        Request("mine-0001", "Wie spät ist es?", "ordinary", "user", "test", "de"),
        Request(
            "tea", "What's for tea?", "harmless", "food", split_of_text("What's for tea?"), "und"
        ),
    )


def test_a_byte_order_mark_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "hello there", "label": "ordinary"}')
    assert read_requests(path)[0].text == "hello there"


def test_the_packages_own_texts_survive_a_round_trip(
    tmp_path: Path,
) -> None:
    requests = load_requests()
    keys = ("id", "text", "label", "group", "split", "language")
    path = write_lines(tmp_path, *({key: getattr(r, key) for key in keys} for r in requests))
    assert [(r.id, r.text, r.split) for r in read_requests(path)] == [
        (r.id, r.text, r.split) for r in requests
    ]


OK = '{"text": "fine", "label": "ordinary"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "lable": "ordinary"}', "unknown key 'lable' (did you mean 'label'?)"),
        ('{"text": "a", "label": "ordinary", "zz": 1}', "unknown key 'zz' (known here: text,"),
        ('{"label": "ordinary"}', "the key 'text' is missing; correct that line"),
        ('{"text": "a"}', "the key 'label' is missing"),
        ('{"text": " ", "label": "ordinary"}', "'text' is ' '; expected a text with a word"),
        ('{"text": 7, "label": "ordinary"}', "'text' is 7; expected a text"),
        ('{"text": {"b": [1]}, "label": "ordinary"}', "'text' is {'b': [1]}; expected a text"),
        (
            '{"text": "a", "label": "harmfull"}',
            "'label' is 'harmfull'; expected 'harmful' or 'harmless' or 'borderline' or 'ordinary'"
            " (did you mean 'harmful'?)",
        ),
        (
            '{"text": "a", "label": "ordinary", "split": "dev"}',
            "'split' is 'dev'; expected 'train'",
        ),
        ('{"text": "a", "label": "ordinary", "split": null}', "it has a null; expected a value"),
        ('{"text": "a", "text": "b", "label": "ordinary"}', "the key 'text' stands there twice"),
        ('{"text": "\\ud800", "label": "ordinary"}', "half of a surrogate pair"),
        ('["text", "a"]', "it is ['text', 'a']; expected an object (keys with values)"),
        ('{"text": "a", ', "not valid JSON (Expecting property name"),
        ("[" * 60_000, "not valid JSON ("),
        ("[" + "9" * 5000 + "]", "not valid JSON ("),
        ('{"text": "a", "label": "ordinary", "image": "none.png"}', "none.png' is no file"),
        (b'{"text": "caf\xe9", "label": "ordinary"}', "not UTF-8 (byte 0xe9); correct that line"),
        (
            '{"text": "' + "a" * MAX_LINE_BYTES + '"}',
            f"longer than {MAX_LINE_BYTES} bytes; put one",
        ),
        ('{"text": "FINE ", "label": "harmful"}', "labelled 'harmful', but 'ordinary' in line 1"),
        (
            '{"text": "fine", "label": "ordinary", "split": "SPLIT"}',
            "with the same text; keep a text in one split",
        ),
        (
            '{"text": "b", "label": "ordinary", "id": "mine-0001"}',
            "id 'mine-0001' is that of line 1",
        ),
    ],
)
def test_a_bad_line_is_refused_with_file_line_problem_and_remedy(
    tmp_path: Path, line: str | bytes, message: str
) -> None:
    if isinstance(line, str):
        other_split = next(split for split in SPLITS if split != split_of_text("fine"))
        line = line.replace("SPLIT", other_split)
    path = write_lines(tmp_path, OK, line)
    with pytest.raises(RequestDataError) as caught:
        read_requests(path)
    text = str(caught.value)
    assert text.startswith(f"{str(path)!r}, line 2: ")
    assert message in text
    assert "; " in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 300


def test_a_file_that_is_too_large_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_FILE_BYTES == 64 * 1024 * 1024
    monkeypatch.setattr("safesteer_edge.requests.requests.MAX_FILE_BYTES", 100)
    path = write_lines(tmp_path, OK, OK, OK)
    with pytest.raises(RequestDataError, match=r"line 3: the file is larger than 100 bytes; split"):
        read_requests(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RequestDataError, match=r"^cannot read '.*; give the path of"):
            read_requests(path)


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestDataError, match="holds no requests; write one"):
        read_requests(write_lines(tmp_path, "", "  "))
