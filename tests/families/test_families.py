"""docs/families.md says what is proven, of every family, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.engine import node_catcher
from safesteer_edge.engine.node_catcher import c_callback
from tests.engine.open_engine import N_LAYER, Float32Array, open_engine
from tests.families.engine_proofs import read_everywhere
from tests.families.family_files import FamilyFiles
from tests.families.table import PROOFS, TABLE_PATH, read_results, render
from tests.tiny_models.families.table import FAMILIES

SAID = read_results(TABLE_PATH.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def files_by_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FamilyFiles]:
    """Files of each family, written once a session."""
    folder = tmp_path_factory.mktemp("families")
    return {family.name: FamilyFiles(family, folder) for family in FAMILIES}


@pytest.mark.parametrize("column", PROOFS)
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_the_table_says_what_is_proven(
    files_by_family: dict[str, FamilyFiles], family: str, column: str
) -> None:
    assert PROOFS[column](files_by_family[family]) == SAID[family, column]


@pytest.mark.skipif(c_callback() is None, reason="the callback in C was not built")
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (3, 1), (N_LAYER,)])
def test_the_callbacks_in_c_and_in_python_give_the_same_bits(
    files_by_family: dict[str, FamilyFiles],
    family: str,
    layers: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[tuple[Float32Array, Float32Array]] = []
    for _ in range(2):
        path = files_by_family[family].model
        with open_engine(path, layers=layers, route_name="eval_callback") as opened:
            read.append(read_everywhere(opened))
        monkeypatch.setattr(node_catcher, "c_callback", lambda: None)
    for in_c, in_python in zip(*read, strict=True):
        np.testing.assert_array_equal(in_c, in_python)


def test_no_cell_of_the_table_is_empty_or_missing() -> None:
    assert set(SAID) == {(family.name, column) for family in FAMILIES for column in PROOFS}
    assert all(cell.strip() for cell in SAID.values())


def test_the_page_is_what_the_command_writes() -> None:
    assert Path(TABLE_PATH).read_text(encoding="utf-8") == render(SAID)
