"""The reader of imports sees them all, however they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.source_imports import find_modules, read_imports


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pack.cli.main", "pack.cli.main"),
        ("import pack.cli as x, os", "pack.cli"),
        ("from pack import cli", "pack.cli"),
        ("from pack.cli import main", "pack.cli.main"),
        ("from pack.cli.main import run", "pack.cli.main"),
        ("from . import tilt", "pack.guard.tilt"),
        ("from .tilt import Tilt", "pack.guard.tilt"),
        ("from .. import cli", "pack.cli"),
        ("from ..cli.main import run", "pack.cli.main"),
        ("def f():\n    import numpy.linalg", "numpy.linalg"),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", "numpy"),
        ("import importlib\nimportlib.import_module('numpy')", "numpy"),
        ("m = __import__('numpy')", "numpy"),
        ("if TYPE_CHECKING:\n    import os\nelse:\n    import numpy", "numpy"),
    ],
)
def test_an_import_is_seen(tmp_path: Path, source: str, expected: str):
    assert expected in imported_by_risk(tmp_path, source)


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_an_import_for_type_checkers_is_told_apart(tmp_path: Path, test: str):
    write_package(tmp_path, f"import os\nif {test}:\n    from pack import cli")
    found = read_imports(find_modules({"pack": tmp_path}))
    assert {(i.imported, i.for_types) for i in found} == {("os", False), ("pack.cli", True)}


def test_only_imports_inside_functions_are_deferred(tmp_path: Path):
    write_package(
        tmp_path, "import os\nclass A:\n    import re\n    def f(self):\n        import json"
    )
    found = read_imports(find_modules({"pack": tmp_path}))
    assert {(i.imported, i.deferred) for i in found} == {
        ("os", False),
        ("re", False),
        ("json", True),
    }


def imported_by_risk(folder: Path, source: str) -> list[str]:
    """What pack/guard/risk.py imports if this is its source."""
    write_package(folder, source)
    found = read_imports(find_modules({"pack": folder}))
    assert all(each.importer == "pack.guard.risk" for each in found)
    return [each.imported for each in found]


def write_package(folder: Path, source: str) -> None:
    for name in ("__init__", "cli/__init__", "cli/main", "guard/__init__", "guard/tilt"):
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (folder / "guard/risk.py").write_text(source)
