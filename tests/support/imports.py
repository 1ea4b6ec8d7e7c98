"""Imports between modules, read from the source. Every import counts, also inside a function or for types only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]


def graph(root: Path) -> Graph:
    """The modules of one package, or of a folder of scripts that import each other by the folder's name, and their imports of it."""
    files = {_name(root, path): path for path in sorted(root.rglob("*.py"))}
    assert files, f"{root} has no source"
    return {name: set(_imports(name, path, files)) - {name} for name, path in files.items()}


def _name(root: Path, path: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                # A name that is a module is imported itself; any other comes from the module that defines or re-exports it.
                target = f"{base}.{alias.name}"
                yield from (found for found in (target if target in files else base,) if found in files)


def circles(modules: Graph) -> list[list[str]]:
    """Groups of modules that import each other in a circle, each sorted."""
    reached = {name: _reach(modules, name) for name in modules}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in modules
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reach(modules: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(modules[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += modules[name]
    return found
