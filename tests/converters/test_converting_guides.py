"""Every guide of docs/converting.md runs as it stands: its Python, then its commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.calibration import separation
from safesteer_edge.cli.main import main
from tests.converters.vector_files import write_repeng_gguf
from tests.tiny_models import write_tiny_llama

_PAGE = Path(__file__).parents[2] / "docs" / "converting.md"
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_QUIET_COMMANDS = {"ask": ["--threads", "1", "--ctx", "512"], "verify": ["--threads", "1"]}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a guide."""

    guide: str
    language: str
    code: str


def read_blocks() -> Iterator[Block]:
    """All fenced blocks, in the order in which a reader meets them."""
    for section in re.split(r"^## ", _PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        guide = section.partition("\n")[0]
        for language, code in _BLOCK.findall(section):
            yield Block(guide, language, code)


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader works: with a model in two quantizations, and a vector of repeng's."""
    write_tiny_llama(tmp_path / "model.gguf")
    write_tiny_llama(tmp_path / "model-q4.gguf", quantization="Q4_0")
    rng = np.random.default_rng(5)
    write_repeng_gguf(tmp_path / "repeng.gguf", {k: rng.standard_normal(64) for k in (3, 2, 1)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guides_run_one_after_the_other(
    readers_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # The reader's model knows what is harmful; a tiny one of random weights does not.
    monkeypatch.setattr(separation, "MIN_ORDINARY", 0.0)
    monkeypatch.setattr(separation, "MIN_BORDERLINE", 0.0)
    blocks = list(read_blocks())
    assert len({block.guide for block in blocks}) >= 6
    for block in blocks:
        if block.language == "python":
            exec(compile(block.code, f"guide {block.guide!r}", "exec"), {})
            continue
        for line in block.code.splitlines():
            program, command, *arguments = shlex.split(line)
            assert program == "safesteer-edge"
            exit_code = main([command, *arguments, *_QUIET_COMMANDS.get(command, [])])
            assert exit_code == 0, (line, capsys.readouterr().err)
    assert (readers_folder / "my-guard" / "guard.json").exists()
    assert "verified" in capsys.readouterr().out
