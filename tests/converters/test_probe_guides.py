"""Every run in docs/converting-probes.md works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import OK
from tests.converters.probe_parity import scores_of

_PAGE = Path(__file__).parents[2] / "docs" / "converting-probes.md"
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_guides_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    blocks = _BLOCK.findall(_PAGE.read_text("utf-8"))
    assert len(blocks) >= 8
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "guide", "exec"), {})
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "safesteer-edge"
            assert main(arguments) == OK, line
    printed = capsys.readouterr().out
    assert printed.count("AUROC 1.000") + printed.count("AUROC 0.99") >= 4
    with np.load("states.npz") as file:
        states = file["states"]
    small, again = (scores_of(tmp_path / name, states) for name in ("small.onnx", "again.onnx"))
    np.testing.assert_allclose(small, again, atol=1e-6)
