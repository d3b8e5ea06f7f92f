"""docs/families.md says what is proven, of every family, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_no_cell_of_the_table_is_empty_or_missing() -> None:
    assert set(SAID) == {(family.name, column) for family in FAMILIES for column in PROOFS}
    assert all(cell.strip() for cell in SAID.values())


def test_the_page_is_what_the_command_writes() -> None:
    assert Path(TABLE_PATH).read_text(encoding="utf-8") == render(SAID)
