"""The code blocks of the documentation run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.default_model import TIMEOUT_S

ROOT = Path(__file__).parents[2]


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.default_model
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_python_of_the_docs_prints_an_answer(name: str, tmp_path: Path) -> None:
    blocks = python_blocks(ROOT / name)
    assert blocks
    for block in blocks:
        run = subprocess.run(
            [sys.executable, "-c", block],
            capture_output=True,
            cwd=tmp_path,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "sky" in run.stdout.lower()
