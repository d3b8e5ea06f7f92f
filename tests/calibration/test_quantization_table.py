"""A guard on requantized files of its model, measured and kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safesteer_edge.calibration.quantization import (
    QuantizationRow,
    QuantizationSettings,
    measure_quantizations,
)
from safesteer_edge.cli.measure_command import TYPES
from safesteer_edge.cli.verify_command import table_lines
from safesteer_edge.engine.model import TARGET_TYPES
from tests.guarded_tiny import GuardedTiny
from tests.requantized_tiny import DECIDING, HELD_OUT, N_TOKENS, RequantizedTiny


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def settings(
    guarded_tiny: GuardedTiny,
    requantized_tiny: RequantizedTiny,
    tmp_path_factory: pytest.TempPathFactory,
) -> QuantizationSettings:
    return QuantizationSettings(
        guarded_tiny.settings(None),
        requantized_tiny.source,
        requantized_tiny.bundle,
        tmp_path_factory.mktemp("quantizations"),
        DECIDING,
        HELD_OUT,
        N_TOKENS,
    )


@pytest.fixture(scope="module")
def rows(settings: QuantizationSettings) -> list[QuantizationRow]:
    return measure_quantizations(settings, ["Q8_0", "Q2_K"], lambda *_: None)


def test_the_source_comes_first_and_does_not_drift(rows: list[QuantizationRow]):
    assert [row.quantization for row in rows] == ["F32", "Q8_0", "Q2_K"]
    source = rows[0].drift
    assert source.here == source.reference
    assert source.shift_harmful is not None
    assert source.shift_harmful.mean == 0
    assert rows[0].size_bytes > rows[1].size_bytes > rows[2].size_bytes


def test_the_types_are_those_that_llama_cpp_took(rows: list[QuantizationRow]):
    """Rows of 64 and 128 numbers do not hold the blocks of 256 that K-quants need."""
    assert next(iter(rows[1].bytes_by_type)) == "Q8_0"
    assert not any(kind.endswith("_K") for kind in rows[2].bytes_by_type)


def test_held_out_requests_are_what_is_counted(rows: list[QuantizationRow]):
    for row in rows:
        assert row.after is not None
        assert row.recalibration is not None
        assert row.after.touched_ordinary.n == row.drift.here.touched_ordinary.n == 4
        assert row.after.touched_borderline.n == 2
        assert row.recalibration.rescale.slope > 0


def test_what_was_measured_is_not_measured_again(
    settings: QuantizationSettings, rows: list[QuantizationRow]
):
    def stop(*_: object) -> None:
        raise Stopped

    again = measure_quantizations(settings, ["Q8_0", "Q2_K"], stop)
    assert [row.drift for row in again] == [row.drift for row in rows]
    assert [row.after for row in again] == [row.after for row in rows]
    with pytest.raises(Stopped):  # these are new
        measure_quantizations(replace(settings, deciding=DECIDING[:4]), [], stop)


def test_the_table_has_a_line_for_each_file(rows: list[QuantizationRow]):
    lines = list(table_lines(rows))
    assert lines[0].startswith("4 ordinary and 2 borderline requests")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| F32 |")


def test_the_command_offers_what_the_engine_makes():
    assert TYPES == TARGET_TYPES


def test_a_file_that_cannot_be_recalibrated_does_not_stop_the_others(
    settings: QuantizationSettings,
):
    harmless = tuple(request for request in DECIDING if request.label != "harmful")
    (row,) = measure_quantizations(replace(settings, deciding=harmless), [], lambda *_: None)
    assert row.after is None
    assert "nothing to set a guard by" in row.problem
    assert any("→ - %" in line for line in table_lines([row]))
