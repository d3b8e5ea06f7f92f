"""The code blocks of the documentation run as they stand."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest

from safesteer_edge.cli.options import OK
from tests.e2e.default_model import TIMEOUT_S, safesteer_edge

ROOT = Path(__file__).parents[2]


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.default_model
def test_the_readme_s_picture_is_answered_as_it_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    asked = re.search(r'^safesteer-edge ask "([^"]+)" --image (\S+)$', readme, re.MULTILINE)
    assert asked is not None
    answer = re.search(r"^> (.+)$", readme[asked.end() :], re.MULTILINE)
    assert answer is not None
    ran = safesteer_edge("ask", asked[1], "--image", str(ROOT / asked[2]), "--temperature", "0")
    assert ran.exit_code == OK, ran.err
    assert "penguin" in ran.out.lower()
    assert "penguin" in answer[1].lower()


@pytest.mark.default_model
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_python_of_the_docs_prints_an_answer(name: str, tmp_path: Path) -> None:
    blocks = python_blocks(ROOT / name)
    assert blocks
    if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        # Our engine avoids the buffer types that crash there; a Llama of one's own does not.
        blocks = [block for block in blocks if "from llama_cpp import Llama" not in block]
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


def test_the_reference_says_what_the_docstrings_say() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/make_reference.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    page = maker.PAGE.read_text("utf-8")
    assert page == maker.with_reference(page), "run docs/make_reference.py"
