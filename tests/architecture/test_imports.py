"""Imports point inward: cli, tui → chat, calibration, evaluation → guard → (protocol) ← engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
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

# What a package may import of ours, besides itself.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "formats": ("errors",),
    "guard": ("errors", "formats", "telemetry_off"),
    "bundle": ("errors", "formats", "guard"),
    "engine": ("errors", "formats", "guard.engine_protocol", "guard.sampling"),
    "media": ("errors", "confined_process", "confined_worker", "telemetry_off"),
    "memory": ("errors", "formats"),
    "confined_process": (),
    "telemetry_off": (),
    "settings": ("errors", "guard.policy", "guard.sampling", "memory.kv_type"),
}
# What a package must not import, where the list above would be too tight.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "chat": ("engine", "bundle", "guard", "session", "runtime", "diagnosis", "cli", "tui"),
    "converters": ("engine", "chat", "session", "runtime", "diagnosis", "cli", "tui"),
    "calibration": ("diagnosis", "cli", "tui"),
    "evaluation": ("diagnosis", "cli", "tui"),
    "models": ("diagnosis", "cli", "tui"),
    "library": ("engine", "guard", "session", "runtime", "diagnosis", "cli", "tui"),
    "diagnosis": ("cli", "tui"),
    # What an interface holds of a session loads no model, and no numpy.
    "chat_session": ("engine", "bundle", "media", "session", "runtime", "cli", "tui"),
    "chats": ("engine", "bundle", "session", "runtime", "isolation", "diagnosis", "cli", "tui"),
    "isolation": ("calibration", "evaluation", "converters", "diagnosis", "cli", "tui"),
    "session": ("calibration", "evaluation", "converters", "diagnosis", "cli", "tui"),
    "runtime": ("calibration", "evaluation", "converters", "diagnosis", "session", "cli", "tui"),
}
# Who may import a leaf.
LEAVES: dict[str, tuple[str, ...]] = {
    "cli": ("cli", "__main__"),
    "tui": ("tui", "cli"),
}
# Third-party packages with one owner: a folder, or files.
OWNERS: dict[str, tuple[str, ...]] = {
    "llama_cpp": ("engine",),
    "onnxruntime": ("telemetry_off",),
    "rapidocr": ("media.picture_words",),  # which imports onnxruntime as well
    "platformdirs": ("folders",),
    "huggingface_hub": ("library.hub", "library.hub_errors"),
    "httpx2": ("library.hub", "library.hub_errors"),
    "filelock": ("library.index", "library.partial_file"),
    # A recipe draws the images that it trains on.
    "PIL": ("media", "models.smollm2-135m-instruct.vision"),
    "miniaudio": ("media.sound_decoding",),
    "pypdfium2": ("media.pdf_decoding",),
    "pillow_heif": ("media.image_decoding",),
    "textual": ("tui",),
    "jinja2": ("chat.template_worker", "chat.template_sandbox"),
}
# `safesteer-edge --help` must answer at once.
# fmt: off
NOT_AT_START = (
    "numpy", "llama_cpp", "onnxruntime", "PIL", "jinja2", "sklearn", "onnx", "textual",
    "huggingface_hub", "httpx2", "filelock", "miniaudio",
    "pypdfium2", "pillow_heif",
)
# fmt: on


def ours(names: Collection[str]) -> list[str]:
    return [f"{OURS}.{name}" for name in names]


def is_in_any(module: str, packages: Collection[str]) -> bool:
    return any(is_within(module, package) for package in packages)


def internal_imports_of(package: str) -> list[Import]:
    """Imports of our modules by those in this package; the bare top package holds a version."""
    return [
        each
        for each in IMPORTS
        if is_within(each.importer, f"{OURS}.{package}")
        and is_within(each.imported, OURS)
        and each.imported != OURS
    ]


def assert_none(wrong: list[Import]) -> None:
    assert not wrong, "; ".join(map(str, wrong))


def test_the_sources_are_found():
    assert {f"{OURS}.guard.decoding", f"{OURS}.converters", f"{OURS}.models"} <= MODULES.keys()
    assert len(IMPORTS) > 100


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_further_in(package: str):
    allowed = ours([package, *ALLOWED[package]])
    assert_none([i for i in internal_imports_of(package) if not is_in_any(i.imported, allowed)])


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_does_not_import_what_lies_further_out(package: str):
    forbidden = ours(FORBIDDEN[package])
    assert_none([i for i in internal_imports_of(package) if is_in_any(i.imported, forbidden)])


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_imported_by_nobody_else(leaf: str):
    importers = ours(LEAVES[leaf])
    assert_none(
        [
            i
            for i in IMPORTS
            if is_within(i.imported, f"{OURS}.{leaf}") and not is_in_any(i.importer, importers)
        ]
    )


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
        if each.imported in MODULES and not each.deferred:
            graph[each.importer].add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))


def test_starting_the_command_line_loads_nothing_heavy():
    program = (
        "import sys, safesteer_edge.cli.main; "
        f"print(*[name for name in {NOT_AT_START} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONNOUSERSITE": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_what_an_interface_holds_of_a_session_loads_nothing_heavy():
    program = (
        "import sys, safesteer_edge.isolation.isolated_session, "
        "safesteer_edge.recorded_chat; "
        f"print(*[name for name in {NOT_AT_START} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


def test_the_guards_rules_load_without_an_engine():
    program = (
        "import sys, safesteer_edge.guard.decoding; "
        "print(*[n for n in ('llama_cpp', 'onnxruntime', 'safesteer_edge.engine') "
        "if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
