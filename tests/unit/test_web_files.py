"""Help pages, translations and front-end files agree with the nodes' schemas, read from their source."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja", "pt-BR", "es", "fr", "de", "ko", "ru")
TRANSLATED = LANGUAGES[1:]
HELPED = ("zh", "ja", "pt-BR")
CATEGORIES = {"HLWQ/loaders", "HLWQ/model", "HLWQ/latent", "HLWQ/video", "HLWQ/tools"}


def _locale(language: str, file: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text("utf-8"))


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


def _outputs(schema: ast.Call) -> list[ast.expr]:
    """What a schema lists as outputs."""
    (listed,) = (keyword.value for keyword in schema.keywords if keyword.arg == "outputs")
    assert isinstance(listed, ast.List)
    return listed.elts


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
                "category": [_literal(schema, "category") or ""],
                "outputs": [ast.unparse(call) for call in _outputs(schema)],
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
def test_category(node_id: str) -> None:
    assert set(SCHEMAS[node_id]["category"]) <= CATEGORIES


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_tooltips(node_id: str) -> None:
    assert SCHEMAS[node_id]["without tooltip"] == []


SECTIONS = ["Inputs", "Outputs", "Example", "What can go wrong"]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_help_page(node_id: str) -> None:
    """Title, sections, and every input by the name that it has on the screen; no table, which the Info panel would cut off."""
    text = (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
    names = _locale("en", "nodeDefs")[node_id]
    assert text.splitlines()[0] == f"# {SCHEMAS[node_id]['title'][0]}"
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    assert not re.search(r"^\|", text, re.M)
    inputs = text.split("## Inputs")[1].split("## Outputs")[0]
    assert _items(inputs) == {entry["name"] for entry in names["inputs"].values()}
    outputs = text.split("## Outputs")[1].split("## Example")[0]
    assert _items(outputs) == {entry["name"] for entry in names["outputs"].values()}


def _items(text: str) -> set[str]:
    """The names that the items of a list begin with: `- **one**, **two** (advanced): …`."""
    heads = [line.split(":")[0].split("：")[0] for line in text.splitlines() if line.startswith("- ")]
    return {name for head in heads for name in re.findall(r"\*\*([^*]+)\*\*", head)}


@pytest.mark.parametrize("language", HELPED)
def test_translated_help(language: str) -> None:
    """Each page in full: inputs and outputs by their names on the screen in that language, and as much that can go wrong."""
    for node_id, texts in _locale(language, "nodeDefs").items():
        page = ROOT / "web" / "docs" / node_id / f"{language}.md"
        assert page.is_file(), f"{node_id} has no help in {language}"
        text, english = page.read_text("utf-8"), (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
        assert text.splitlines()[0] == f"# {texts['display_name']}"
        parts, originals = (re.split(r"^## .+$", words, flags=re.M) for words in (text, english))
        assert len(parts) == len(originals) == len(SECTIONS) + 1, node_id
        assert all(part.strip() for part in parts)
        assert parts[4].count("\n- ") == originals[4].count("\n- "), node_id
        assert _items(parts[1]) == {entry["name"] for entry in texts["inputs"].values()}, node_id
        assert _items(parts[2]) == {entry["name"] for entry in texts["outputs"].values()}, node_id


def _several_words() -> dict[str, str]:
    """Inputs that have another name on the screen than in a program, and this name."""
    entries = (entry for texts in _locale("en", "nodeDefs").values() for entry in texts["inputs"].items())
    return {name: entry["name"] for name, entry in entries if "_" in name}


def test_texts_name_what_the_screen_shows() -> None:
    """Help, README, docs and errors call an input as the screen does; a program's name stands in code alone."""
    ids = _several_words()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "web" / "docs").rglob("*.md")):
        told = re.findall(r"\*\*(\w+)\*\*", path.read_text("utf-8"))
        assert set(told) & set(ids) == set(), path.name
    for path in sorted((ROOT / "nodes").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(call, ast.Call) and re.search(r"Error$", ast.unparse(call.func))):
                continue
            said = " ".join(c.value for c in ast.walk(call) if isinstance(c, ast.Constant) and isinstance(c.value, str))
            assert [name for name in ids if re.search(rf"\b{name}\b", said)] == [], f"{path.name}: {said}"


def test_no_help_page_without_a_node() -> None:
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(SCHEMAS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations(language: str) -> None:
    """All nodes, all inputs and outputs, each with its tooltip; nothing that no longer exists."""
    nodes = _locale(language, "nodeDefs")
    assert set(nodes) == set(SCHEMAS)
    for node_id, texts in nodes.items():
        assert texts["display_name"].startswith("HLWQ ")
        assert texts["description"]
        assert set(texts["inputs"]) == set(SCHEMAS[node_id]["inputs"]), node_id
        assert list(texts["outputs"]) == [str(n) for n in range(len(SCHEMAS[node_id]["outputs"]))], node_id
        assert all(entry["name"] for part in ("inputs", "outputs") for entry in texts[part].values())
        if language != "en":  # English has them from the schemas
            untold = [name for name, entry in texts["inputs"].items() if not entry.get("tooltip")]
            silent = [n for n, call in enumerate(SCHEMAS[node_id]["outputs"]) if "tooltip" in call]
            untold += [f"output {n}" for n in silent if not texts["outputs"][str(n)].get("tooltip")]
            assert untold == [], node_id
        # vue-i18n reads these as its own syntax.
        assert not re.search(r"[@|{}]", json.dumps(list(texts.values())[:2], ensure_ascii=False))
        tooltips = [entry.get("tooltip", "") for part in ("inputs", "outputs") for entry in texts[part].values()]
        assert not re.search(r"[@|{}]", "".join(tooltips))
    if language == "en":
        assert {n: [t["display_name"]] for n, t in nodes.items()} == {n: s["title"] for n, s in SCHEMAS.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_name_a_thing(language: str) -> None:
    """An input that several nodes have is called the same in all of them."""
    names: dict[str, set[str]] = {}
    for texts in _locale(language, "nodeDefs").values():
        for name, entry in texts["inputs"].items():
            names.setdefault(name, set()).add(entry["name"])
    assert {name: words for name, words in names.items() if len(words) > 1} == {}


@pytest.mark.parametrize("language", TRANSLATED)
def test_numbers_and_names_are_the_same(language: str) -> None:
    """A translated tooltip names the values, files and numbers that the English one names, as they are."""
    for node_id, texts in _locale(language, "nodeDefs").items():
        for name, entry in texts["inputs"].items():
            english = TOOLTIPS[node_id].get(name)
            if english is None:
                continue
            for kept in re.findall(r"models/\w+|%[^%]+%|\b(?:ltx|LTX|FP|INT|BF)[-\d.][-\w.]*|\bComfyUI\b", english):
                assert kept.rstrip(".") in entry["tooltip"], (node_id, name, kept)


def _tooltips() -> dict[str, dict[str, str]]:
    """node id -> input -> its tooltip in English, as far as it is written out."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted((ROOT / "nodes").rglob("*.py")):
        module = ast.parse(file.read_text("utf-8"))
        for schema in ast.walk(module):
            if not (isinstance(schema, ast.Call) and ast.unparse(schema.func).endswith("Schema")):
                continue
            entry = found.setdefault(_literal(schema, "node_id") or "", {})
            for call in _inputs(schema, module):
                if text := _literal(call, "tooltip"):
                    entry[call.args[0].value] = text
    return found


TOOLTIPS = _tooltips()
SCRIPTS = "".join(path.read_text("utf-8") for path in sorted((ROOT / "web").glob("*.js")))


def test_every_word_is_known() -> None:
    """What the front end says has a sentence in English, and no sentence is left that nothing says."""
    words = _locale("en", "main")["hlwq"]
    said = set(re.findall(r'say\(\s*"([^"]+)"', SCRIPTS)) | set(
        re.findall(r'[?:] "((?:report|exchanged)[\w.]*)"', SCRIPTS)
    )
    made = {"fix.download", "fix.verify", "fix.repair"}  # say(`fix.${fix}`)
    templates = {f"template.{path.stem}{end}" for path in (ROOT / "workflows").glob("*.json") for end in ("", ".about")}
    assert set(words) == said | made | templates


@pytest.mark.parametrize("language", TRANSLATED)
def test_words(language: str) -> None:
    """Every sentence of the report, the buttons, the dialogs and the templates, with the same values in it."""
    english, words = _locale("en", "main")["hlwq"], _locale(language, "main")["hlwq"]
    assert set(words) == set(english)
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", words[key])) == sorted(re.findall(r"\{\w+\}", text)), key
        assert set(re.findall(r"BF16|models/hlwq|LTX-[\d.]+", text)) <= set(
            re.findall(r"BF16|models/hlwq|LTX-[\d.]+", words[key])
        ), key
    assert _locale(language, "commands")["HLWQ_ExchangeLoaders"]["label"] == words["exchange"]
    repair = _locale(language, "nodeDefs")["HLWQRepair"]["display_name"]
    assert repair in words["repair.how"], "a node is called by the name that it has on the screen"


def test_no_text_is_written_in_the_scripts() -> None:
    """What a person reads comes from locales/: no sentence stands in the scripts."""
    for file in sorted((ROOT / "web").glob("*.js")):
        lines = [line for line in file.read_text("utf-8").splitlines() if not re.match(r"\s*(//|\*|/\*)", line)]
        sentences = [line for line in lines if re.search(r'"[A-Z][a-z]+ [a-z]+ [a-z]', line) and "label:" not in line]
        assert sentences == [], file.name


def test_one_size() -> None:
    """The published checkpoint's size is the same wherever it is told, and follows from its tensors."""
    from hlwq_core.models import families, ltx23

    widths = {"F32": 4, "F16": 2, "BF16": 2}
    dense = sum(widths[dtype] * math.prod(shape) for dtype, shape in ltx23.tensors().values())
    # The 28 two-dimensional weights of each block: 18.522e9 of them, packed at 5.125 bits; and two upscalers.
    whole = dense - 18.522e9 * (2 - 5.125 / 8) + 1.3e9
    size = families.published()[ltx23.REPOSITORIES[0]]
    assert abs(size / whole - 1) < 0.01
    told = [ROOT / "README.md", *(ROOT / "web" / "docs").rglob("*.md")]
    for path in told:
        for line in path.read_text("utf-8").splitlines():
            if "The card says" not in line:  # the publisher's own figure, which the text disputes
                assert not re.search(r"\b(?:15|17|15 to 23|1[57]–23) GB", line), f"{path.name}: {line}"
    assert "about 22 GB" in (ROOT / "README.md").read_text("utf-8")


def test_only_public_frontend_modules() -> None:
    """ComfyUI promises extensions scripts/app.js and scripts/api.js, nothing else of its sources."""
    for file in (ROOT / "web").glob("*.js"):
        for module in re.findall(r'^import .* from "(.+)";$', file.read_text("utf-8"), re.M):
            assert module in ("../../scripts/app.js", "../../scripts/api.js") or (file.parent / module).is_file()


def test_readme_pictures_are_made_by_the_tests() -> None:
    """Each picture that README.md and docs/ show is there, and nothing else; the screenshots are kept by tests/browser."""
    texts = [page.read_text("utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    shown = set(re.findall(r"\]\((?:\.\./)?images/([\w.-]+)\)", "".join(texts)))
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests" / "browser").glob("test_*.py"))
    made = {f"{name}.jpg" for name in re.findall(r'(?:picture|frame_strip)\([^"\n]*"([\w-]+)"', tests)}
    made |= {f"{name}.webp" for name in re.findall(r'film\([^"\n]*"([\w-]+)"', tests)}
    assert shown == made | {"banner.png"}
    assert {path.name for path in (ROOT / "images").iterdir()} == shown | {"icon.png"}
