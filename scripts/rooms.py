"""The rooms of the code: which module imports which, read from the source.

A room is a folder of `hlwq_core` or `nodes`, or one of their modules that stands alone. tests/unit/test_rooms.py holds the
rooms to the floors.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is imported by its path from the root, and folders whose modules see each other by their bare names.
PACKAGES = ("hlwq_core", "nodes", "tests")
FOLDERS = ("scripts", "benchmarks")


@dataclass
class Module:
    """A file of Python.

    Attributes:
        name: dotted, from the root: `hlwq_core.backends.cuda`, `scripts.environment`.
        path: the file.
        sentence: its docstring, empty if it has none.
        imports: names of the modules of this project that it imports, wherever in the file.
    """

    name: str
    path: Path
    sentence: str = ""
    imports: set[str] = field(default_factory=set)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def modules(root: Path = ROOT) -> dict[str, Module]:
    """Every module of the project by its name."""
    found: dict[str, Module] = {}
    for top in (*PACKAGES, *FOLDERS):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path)
    for module in found.values():
        tree = ast.parse(module.path.read_text(encoding="utf-8"))
        module.sentence = ast.get_docstring(tree) or ""
        for target in _targets(module, tree):
            known = _nearest(target, found)
            if known is not None and known != module.name:
                module.imports.add(known)
    return found


def _targets(module: Module, tree: ast.Module) -> Iterator[str]:
    """What a module imports, as names from the root, each followed by the name taken from it."""
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    top = module.name.split(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            # `nodes` alone is ComfyUI's own module, never ours.
            yield f"{top}.{name}" if top in FOLDERS and name.split(".")[0] not in PACKAGES else name


def _nearest(target: str, known: dict[str, Module]) -> str | None:
    parts = target.split(".")
    if parts == ["nodes"]:
        return None
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in known:
            return None if name in FOLDERS else name
    return None


def circles(found: dict[str, Module]) -> list[list[str]]:
    """Modules that import each other, round about or straight: strongly connected parts of more than one (Tarjan)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for other in sorted(found[name].imports):
            if other not in numbers:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], numbers[other])
        if lowest[name] == numbers[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                result.append(sorted(part))

    for name in found:
        if name not in numbers:
            visit(name)
    return result


def room(name: str, found: dict[str, Module]) -> str:
    """The room of a module: a folder of `hlwq_core` or `nodes`, a module of hlwq_core that stands alone, or `nodes`."""
    parts = name.split(".")
    if parts[0] == "hlwq_core":
        return ".".join(parts[:2])
    if parts[0] == "nodes" and len(parts) > 1 and found[".".join(parts[:2])].is_package:
        return ".".join(parts[:2])
    return parts[0]


def rooms(found: dict[str, Module]) -> dict[str, dict[str, list[str]]]:
    """For each room of the two packages the rooms that it imports from, and by which modules."""
    result: dict[str, dict[str, list[str]]] = {}
    for name, module in found.items():
        if name.split(".")[0] not in ("hlwq_core", "nodes"):
            continue
        own = room(name, found)
        into = result.setdefault(own, {})
        for other in module.imports:
            if other.split(".")[0] in ("hlwq_core", "nodes") and room(other, found) != own:
                into.setdefault(room(other, found), []).append(name)
    return result
