"""Help pages, translations and front-end files agree with the nodes' schemas, read from their source."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja", "pt-BR")


def _literal(call: ast.Call, keyword: str) -> str | None:
    for entry in call.keywords:
        if entry.arg == keyword and isinstance(entry.value, ast.Constant):
            return entry.value.value
    return None


def _helpers(module: ast.Module) -> dict[str, tuple[ast.FunctionDef, ast.Module]]:
    """The functions of a module of nodes/, and those that it takes from its neighbours."""
    found = {entry.name: (entry, module) for entry in module.body if isinstance(entry, ast.FunctionDef)}
    for entry in module.body:
        if isinstance(entry, ast.ImportFrom) and entry.level == 1 and entry.module:
            file = ROOT / "nodes" / f"{entry.module}.py"
            if file.is_file():
                other = ast.parse(file.read_text("utf-8"))
                theirs = {part.name: part for part in other.body if isinstance(part, ast.FunctionDef)}
                found |= {name.name: (theirs[name.name], other) for name in entry.names if name.name in theirs}
    return found


def _inputs(tree: ast.AST, module: ast.Module) -> list[ast.Call]:
    """The calls `io.….Input("name", …)`, those in helpers that are called there included."""
    helpers = _helpers(module)
    calls = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        if isinstance(call.func, ast.Attribute) and call.func.attr == "Input":
            calls.append(call)
        elif isinstance(call.func, ast.Name) and call.func.id in helpers:
            calls += _inputs(*helpers[call.func.id])
    return calls


def _schemas() -> dict[str, dict[str, list[str]]]:
    """node id -> {"title": [display name], "inputs": names, "without tooltip": names}."""
    found = {}
    for file in sorted((ROOT / "nodes").rglob("*.py")):
        module = ast.parse(file.read_text("utf-8"))
        for schema in ast.walk(module):
            if not (isinstance(schema, ast.Call) and isinstance(schema.func, ast.Attribute)):
                continue
            if schema.func.attr != "Schema":
                continue
            node_id, title = _literal(schema, "node_id"), _literal(schema, "display_name")
            assert node_id and title, f"{file.name}: ids and names are literal, so that ComfyUI-Manager finds them"
            names = {call: call.args[0].value for call in _inputs(schema, module)}
            tooltips = {
                name for call, name in names.items() if any(keyword.arg == "tooltip" for keyword in call.keywords)
            }
            found[node_id] = {
                "title": [title],
                "inputs": list(names.values()),
                "without tooltip": [name for name in names.values() if name not in tooltips],
            }
    return found


SCHEMAS = _schemas()


def test_every_node_is_seen() -> None:
    extension = ast.parse((ROOT / "nodes" / "extension.py").read_text("utf-8"))
    (modules,) = (
        ast.literal_eval(entry.value)
        for entry in extension.body
        if isinstance(entry, ast.Assign) and ast.unparse(entry.targets[0]) == "NODES"
    )
    assert len(SCHEMAS) == len(modules) >= 12
    assert all(node_id.startswith("HLWQ") for node_id in SCHEMAS)


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_tooltips(node_id: str) -> None:
    assert SCHEMAS[node_id]["without tooltip"] == []


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_help_page(node_id: str) -> None:
    """Title, sections, and every input by its name."""
    text = (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
    assert text.splitlines()[0] == f"# {SCHEMAS[node_id]['title'][0]}"
    assert re.findall(r"^## (.+)$", text, re.M) == ["Inputs", "Outputs", "Example", "What can go wrong"]
    inputs = text.split("## Inputs")[1].split("## Outputs")[0]
    assert set(re.findall(r"\*\*(\w+)\*\*", inputs)) == set(SCHEMAS[node_id]["inputs"])


def test_no_help_page_without_a_node() -> None:
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(SCHEMAS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations(language: str) -> None:
    """All nodes, all inputs, nothing that no longer exists."""
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    assert set(nodes) == set(SCHEMAS)
    for node_id, texts in nodes.items():
        assert texts["display_name"].startswith("HLWQ ")
        assert texts["description"]
        assert set(texts["inputs"]) == set(SCHEMAS[node_id]["inputs"]), node_id
        assert all(entry["name"] for entry in texts["inputs"].values())
        # vue-i18n reads these as its own syntax.
        assert not re.search(r"[@|{}]", json.dumps(list(texts.values())[:2], ensure_ascii=False))
    if language == "en":
        assert {n: [t["display_name"]] for n, t in nodes.items()} == {n: s["title"] for n, s in SCHEMAS.items()}


def test_only_public_frontend_modules() -> None:
    """ComfyUI promises extensions scripts/app.js and scripts/api.js, nothing else of its sources."""
    for file in (ROOT / "web").glob("*.js"):
        for module in re.findall(r'^import .* from "(.+)";$', file.read_text("utf-8"), re.M):
            assert module in ("../../scripts/app.js", "../../scripts/api.js") or (file.parent / module).is_file()


def test_readme_pictures_are_made_by_the_tests() -> None:
    """Each picture that README.md shows is there, and nothing else; the screenshots are kept by tests/browser."""
    shown = set(re.findall(r"\]\(images/([\w.-]+)\)", (ROOT / "README.md").read_text("utf-8")))
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests" / "browser").glob("test_*.py"))
    made = {f"{name}.jpg" for name in re.findall(r'(?:picture|frame_strip)\([^"\n]*"([\w-]+)"', tests)}
    assert shown == made | {"banner.png"}
    assert {path.name for path in (ROOT / "images").iterdir()} == shown | {"icon.png"}
