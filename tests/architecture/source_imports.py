"""Which module imports which, read from the sources without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# Where each folder's modules live after installation (pyproject.toml, package-dir).
SOURCE_FOLDERS: Mapping[str, Path] = {
    "safesteer_edge": REPOSITORY / "safesteer_edge",
    "safesteer_edge.converters": REPOSITORY / "converters",
    "safesteer_edge.models": REPOSITORY / "models",
}


@dataclass(frozen=True, slots=True)
class Import:
    """One module importing another. deferred: inside a function, so not when the module loads.

    for_types: under `if TYPE_CHECKING:`, so never when the program runs.
    """

    importer: str
    imported: str
    line: int
    deferred: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def is_within(module: str, package: str) -> bool:
    """True for the package itself and for all in it."""
    return module == package or module.startswith(package + ".")


def find_modules(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Module name → source file, for these packages and all in them."""
    modules: dict[str, Path] = {}
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return modules


def read_imports(modules: Mapping[str, Path]) -> list[Import]:
    """Every import in these sources, those for type checkers alone among them."""
    found: list[Import] = []
    for name, path in modules.items():
        tree = ast.parse(path.read_text("utf-8"), str(path))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, deferred, for_types in _nodes(tree):
            for imported in _imported_by(node, package, modules):
                line = getattr(node, "lineno", 0)
                found.append(Import(name, imported, line, deferred, for_types))
    return found


def _nodes(
    node: ast.AST, *, deferred: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.AST, bool, bool]]:
    """All nodes below this one: whether it is inside a function, and whether for types alone."""
    deferred = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    typed = node.body if isinstance(node, ast.If) and _is_type_checking(node.test) else []
    for child in ast.iter_child_nodes(node):
        is_typed = for_types or child in typed
        yield child, deferred, is_typed
        yield from _nodes(child, deferred=deferred, for_types=is_typed)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imported_by(node: ast.AST, package: str, modules: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(node, package)
        for alias in node.names:  # `from package import module` imports the module
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in modules else base
    elif isinstance(node, ast.Call) and node.args:
        called = ast.unparse(node.func).rpartition(".")[2]
        target = node.args[0]
        if called in ("import_module", "__import__") and isinstance(target, ast.Constant):
            yield str(target.value)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module named after `from`, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])
