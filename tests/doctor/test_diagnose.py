"""The whole diagnosis: whatever is broken, the rest is still examined."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.doctor import diagnose as module
from safesteer_edge.doctor.check import Check
from safesteer_edge.doctor.diagnose import diagnose
from safesteer_edge.library import catalogue

SUBJECTS = {
    *("python", "safesteer-edge", "llama-cpp-python", "numpy", "pillow", "textual"),
    *("llama.cpp", "cpu cores", "cpu features", "llama.cpp gpu", "onnxruntime packages"),
    *("onnxruntime", "data folder", "cache folder", "config folder", "memory"),
    *("nothing phones home", "picture words", "default model", "guard bundle"),
    *("probe provider", "guarded token"),
}


def by_name() -> dict[str, Check]:
    checks = list(diagnose())
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    return dict(zip(names, checks, strict=True))


def test_the_rest_is_examined_if_llama_cpp_dies_at_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(str(tmp_path))
    checks = by_name()
    assert set(checks) >= SUBJECTS
    assert checks["llama.cpp"].status == "fail"
    assert checks["guarded token"].status == "fail"
    assert checks["onnxruntime"].status == "ok"
    assert checks["memory"].status == "ok"


def test_a_broken_catalogue_fails_only_what_needs_it(monkeypatch: pytest.MonkeyPatch):
    def broken():
        raise OSError("catalogue.toml is gone")

    def no_child(*_: object, **__: object):
        raise RuntimeError("no processes today")

    monkeypatch.setattr(catalogue, "load_catalogue", broken)
    monkeypatch.setattr(module, "ask_child", no_child)
    checks = by_name()
    assert checks["default model"].finding == "unexpected OSError: catalogue.toml is gone"
    assert checks["llama.cpp"].finding == "unexpected RuntimeError: no processes today"
    assert checks["data folder"].status == checks["python"].status == "ok"
