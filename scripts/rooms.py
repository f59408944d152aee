"""The rooms of the code: which module imports which, read from the source.

A room is a folder of `hlwq_core` or `nodes`, or one of their modules that stands alone. tests/unit/test_rooms.py holds the
rooms to the floors.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
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


# ---- the picture -----------------------------------------------------------------------------------------------------

BOX, GAP, FLOOR, MARGIN = (150, 46), 26, 96, 24
COLOURS = {"hlwq_core": ("#e8f0fa", "#3f789e"), "nodes": ("#f6ecd8", "#b58b2a")}
PAGE = """# The rooms

Two packages: `hlwq_core` reads, decodes, makes and checks checkpoints and knows nothing of ComfyUI; `nodes` is its way into
ComfyUI. Each folder answers one question, which its first sentence says. An arrow means "imports from"; one that others imply
is left out. Nothing imports upwards and nothing in a circle: `tests/unit/test_rooms.py` says which room may import from which.

![The rooms and what they import from](rooms.svg)

{table}

A walk in ten minutes: `format/packed.py` (what a packed weight is), `backends/eager.py` (how it is decoded, in forty lines),
`checkpoints/checkpoint.py` (how files become packed weights), `running/packed_tensor.py` (how ComfyUI moves them),
`nodes/running/packed_ops.py` (where they are multiplied), `nodes/load_checkpoint.py` (the node that starts all of it).

Picture and table are written by `python scripts/rooms.py`.
"""


def needed_arrows(into: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no other way implies."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ways = list(into[start])
        while ways:
            room_ = ways.pop()
            if room_ not in found:
                found.add(room_)
                ways += into[room_]
        return found

    return sorted(
        (room_, other)
        for room_, others in into.items()
        for other in others
        if not any(other in reached(third) for third in others - {other})
    )


def floors(into: dict[str, set[str]]) -> list[list[str]]:
    """The rooms by how far they are from the ground, each as low as it can stand."""
    heights: dict[str, int] = {}

    def height(room_: str) -> int:
        if room_ not in heights:
            heights[room_] = 1 + max((height(other) for other in into[room_]), default=-1)
        return heights[room_]

    for room_ in into:
        height(room_)
    return [sorted(r for r in heights if heights[r] == level) for level in range(max(heights.values()) + 1)]


def ways_down(levels: list[list[str]], arrows: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """For each arrow what it passes, its ends included: on floors between them a gap of its own."""
    on = {room_: number for number, level in enumerate(levels) for room_ in level}
    result = {}
    for start, end in arrows:
        between = [f"{start}>{end}@{number}" for number in range(on[start] - 1, on[end], -1)]
        for number, gap in zip(range(on[start] - 1, on[end], -1), between, strict=True):
            levels[number].append(gap)
        result[start, end] = [start, *between, end]
    return result


def places(levels: list[list[str]], ways: list[list[str]]) -> dict[str, tuple[float, float]]:
    """The middle of each room and gap: floors from below, each above what it leads to."""
    below: dict[str, list[str]] = {}
    for way in ways:
        for upper, lower in pairwise(way):
            below.setdefault(upper, []).append(lower)

    def wide(item: str) -> float:
        return GAP if "@" in item else BOX[0] + GAP

    widest = max(sum(map(wide, level)) for level in levels)
    middles: dict[str, tuple[float, float]] = {}
    for number, level in enumerate(levels):
        wishes = {
            item: sum(middles[other][0] for other in below[item]) / len(below[item]) if item in below else widest / 2
            for item in level
        }
        space = (widest - sum(map(wide, level))) / len(level)
        x = float(MARGIN)
        for item in sorted(level, key=lambda item: (wishes[item], item)):
            middles[item] = x + (space + wide(item)) / 2, MARGIN + FLOOR * (len(levels) - number - 0.5)
            x += space + wide(item)
    return middles


def svg(found: dict[str, Module]) -> str:
    """The picture."""
    into = {room_: set(others) for room_, others in rooms(found).items()}
    levels = floors(into)
    ways = ways_down(levels, needed_arrows(into))
    middles = places(levels, list(ways.values()))
    width = max(x for x, _ in middles.values()) + BOX[0] / 2 + MARGIN
    height = max(y for _, y in middles.values()) + BOX[1] / 2 + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8a94a6"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    half = BOX[1] / 2
    for way in ways.values():
        (x, y), *rest = (middles[item] for item in way)
        line = f"M{x:.0f} {y + half:.0f}"
        for x, y in rest[:-1]:
            line += f" L{x:.0f} {y - half:.0f} V{y + half:.0f}"
        line += f" L{rest[-1][0]:.0f} {rest[-1][1] - half:.0f}"
        lines.append(f'<path d="{line}" stroke="#8a94a6" fill="none" marker-end="url(#tip)"/>')
    for room_ in sorted(into):
        x, y = middles[room_]
        fill, edge = COLOURS[room_.split(".")[0]]
        lines.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6" '
            f'fill="{fill}" stroke="{edge}"/>'
        )
        lines.append(
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-size="14" fill="#1c2333">{_short(room_)}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _short(room_: str) -> str:
    return room_.removeprefix("hlwq_core.")


def page(found: dict[str, Module]) -> str:
    """docs/rooms.md."""
    rows = ["| room | what it is for |", "| --- | --- |"]
    for room_ in sorted(rooms(found)):
        module = found[room_]
        where = room_.replace(".", "/") + ("/" if module.is_package else ".py")
        sentence = " ".join(module.sentence.split("\n\n")[0].split())
        rows.append(f"| `{where}` | {sentence} |")
    return PAGE.format(table="\n".join(rows))


if __name__ == "__main__":
    code = modules()
    (ROOT / "docs" / "rooms.svg").write_text(svg(code), encoding="utf-8")
    (ROOT / "docs" / "rooms.md").write_text(page(code), encoding="utf-8")
