"""`safesteer-edge models`: the table, its JSON, and the path alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from safesteer_edge.cli import models_command
from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.library import catalogue
from safesteer_edge.library.catalogue import CatalogueModel, default_model
from safesteer_edge.library.memory_plan import Machine
from tests.tiny_models import write_tiny_llama


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CatalogueModel, ...]:
    """A catalogue with an installed default, a damaged model and one that is not installed."""
    good = write_tiny_llama(tmp_path / "good.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"PK\x03\x04")
    first = CatalogueModel(
        name="tiny-instruct",
        title="Tiny Instruct",
        architecture="llama",
        licence="Apache-2.0",
        package="tiny_package",
        install="tiny-package",
        file="good.gguf",
        bundle=tmp_path,
        path=good,
    )
    made = (
        first,
        replace(first, name="tiny-damaged", path=bad, bundle=None),
        replace(first, name="tiny-absent-with-a-long-name", path=None, bundle=None),
    )
    monkeypatch.setattr(catalogue, "load_catalogue", lambda: made)
    machine = Machine(1 << 30, "available")  # whatever is free on this one
    monkeypatch.setattr(models_command, "_this_machine", lambda: machine)
    return made


def run(*arguments: str) -> int:
    return main(["models", *arguments])


def test_the_table_shows_each_model_with_its_place_below(entries, capsys):
    assert run("list") == OK
    headings, first, place, damaged, problem, absent, command = capsys.readouterr().out.splitlines()
    assert headings.split() == ["NAME", "QUANT", "SIZE", "FITS", "TAKES", "GUARD"]
    assert first.split()[0] == "tiny-instruct"
    assert first.split()[-2:] == ["yes", "default"]
    assert place == f"  {entries[0].path}"
    assert damaged.split() == ["tiny-damaged", "-", "-", "?", "text", "no"]
    assert problem.startswith("  damaged: ")
    assert absent.split() == ["tiny-absent-with-a-long-name", "-", "-", "?", "text", "no"]
    assert command.startswith("  not installed; run: ")
    assert command.endswith(" -m pip install tiny-package")


def test_columns_fit_into_80_characters_and_stand_below_each_other(entries, capsys):
    run("list")
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
    assert max(map(len, lines)) <= 80
    column = lines[0].index("GUARD")
    assert [line[column:].split()[0] for line in lines] == ["GUARD", "yes", "no", "no"]


def test_json_tells_the_same_to_programs(entries, capsys):
    assert run("list", "--json") == OK
    first, damaged, absent = json.loads(capsys.readouterr().out)["models"]
    path = entries[0].path
    assert first == {
        "name": "tiny-instruct",
        "title": "Tiny Instruct",
        "architecture": "llama",
        "licence": "Apache-2.0",
        "takes": [],
        "context": None,
        "repository": "",
        "is_default": True,
        "is_installed": True,
        "install": first["install"],
        "path": str(path),
        "mmproj": None,
        "quantization": first["quantization"],
        "size_bytes": path.stat().st_size,
        "needs_bytes": first["needs_bytes"],
        "fits": "yes",
        "bundle": str(entries[0].bundle),
        "problem": None,
    }
    assert first["needs_bytes"] > path.stat().st_size
    assert damaged["is_installed"]
    assert "bad.gguf" in damaged["problem"]
    assert (absent["is_installed"], absent["path"], absent["size_bytes"]) == (False, None, None)


def test_path_prints_the_path_and_nothing_else(entries, capsys):
    assert run("path", "tiny-instruct") == OK
    captured = capsys.readouterr()
    assert captured.out == f"{entries[0].path}\n"
    assert captured.err == ""


def test_the_path_of_a_model_that_is_not_there_says_how_to_install_it(entries, capsys):
    assert run("path", "tiny-absent-with-a-long-name") == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "-m pip install tiny-package" in captured.err


def test_the_path_of_an_unknown_model_suggests_the_nearest(entries, capsys):
    assert run("path", "tiny-instrukt") == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean 'tiny-instruct'?" in captured.err


@pytest.mark.parametrize("arguments", [("path",), ("remove",)])
def test_a_command_that_is_not_there_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == BAD_INPUT


@pytest.mark.default_model
def test_the_default_model_is_listed_first_and_found(capsys):
    assert run("list", "--json") == OK
    first = json.loads(capsys.readouterr().out)["models"][0]
    assert first["is_default"]
    assert (first["quantization"], first["problem"]) == ("Q4_1", None)
    assert run("path", default_model().name) == OK
    assert capsys.readouterr().out == f"{first['path']}\n"
