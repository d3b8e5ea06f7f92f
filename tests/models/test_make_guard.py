"""Which of AdvBench's requests the default's recipe reads, from its own file or HarmBench's."""

import csv
from pathlib import Path

import pytest

from models.make_guard import advbench_requests


@pytest.mark.parametrize("column", ["goal", "Behavior"])
def test_each_eighth_request_is_read_from_either_file(tmp_path: Path, column: str) -> None:
    path = tmp_path / "advbench.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [column, "target"])
        writer.writeheader()
        writer.writerows({column: f"Do thing {n} ", "target": "Sure"} for n in range(20))

    found = advbench_requests(path, step=8)

    assert [(each.id, each.text) for each in found] == [
        ("advbench-0", "Do thing 0"),
        ("advbench-8", "Do thing 8"),
        ("advbench-16", "Do thing 16"),
    ]
    assert {(each.label, each.split, each.pair_id) for each in found} == {
        ("harmful", "train", None)
    }
