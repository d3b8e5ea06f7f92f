"""A journal survives a kill at any byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.rows import EvalRow, open_journal, read_journal
from tests.evaluation.eval_rows import row


def journal(path: Path):
    return open_journal(path, EvalRow)


def test_rows_come_back_as_they_were(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    rows = [row(scores=(0.5, 0.25), answer="ü\n\u2028\ud800"), row(status="error", error="no room")]
    with journal(path) as written:
        for each in rows:
            written.append(each)
    assert list(read_journal(path, EvalRow)) == rows
    with journal(path) as again:
        assert again.items == rows


def test_a_line_that_was_cut_off_is_made_anew(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    with journal(path) as written:
        written.append(row(case_id="a"))
        written.append(row(case_id="b"))
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for size in range(first_line, len(whole)):
        path.write_bytes(whole[:size])
        with journal(path) as cut:
            assert [item.case_id for item in cut.items] == ["a"]
            cut.append(row(case_id="b"))
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", ["{}", "[]", "3", "NaN", '{"x": 1e999}', '{"suite": "x"}', "{broken", "[" * 99_999]
)
def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path, line: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="line 1"), journal(path):
        pass
