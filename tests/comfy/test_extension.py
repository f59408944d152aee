"""The nodes that ComfyUI is offered; and that one more is a file and a line, with its help page and its words beside them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[2]
NODE = '''"""The node that says what a text is called."""

from comfy_api.latest import io

from . import tool


class HLWQEcho(tool.Tool, io.ComfyNode):
    """text -> report STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQEcho",
            display_name="HLWQ Echo",
            category="HLWQ/tools",
            description="Says it again.",
            inputs=[io.String.Input("text", tooltip="What to say.")],
            outputs=[tool.report_output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        """Say it."""
        return cls._said(text)
'''
HELP = """# HLWQ Echo

Says it again.

## Inputs

- **text**: what to say.

## Outputs

- **report**: the same.

## Example

Any text.

## What can go wrong

- Nothing.
"""
WORDS = {
    "display_name": "HLWQ Echo",
    "description": "Says it again.",
    "inputs": {"text": {"name": "text", "tooltip": "What to say."}},
    "outputs": {"0": {"name": "report", "tooltip": "The same."}},
}


def test_each_module_has_its_node(pack: ModuleType) -> None:
    from comfyui_hlwq.nodes import extension

    offered = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    assert [node.__module__.rpartition(".")[2] for node in offered] == list(extension.NODES)
    assert len({node.GET_SCHEMA().node_id for node in offered}) == len(extension.NODES)


def test_a_new_node_is_a_file_and_a_line(comfy: Path, tmp_path: Path) -> None:
    """In a copy of the pack; its help page and its words are what tests/unit/test_web_files.py asks for."""
    root = tmp_path / "pack"
    for folder in ("hlwq_core", "nodes", "web", "locales", "docs", "workflows"):
        shutil.copytree(REPO / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "README.md"):
        shutil.copy(REPO / name, root)
    (root / "nodes" / "echo.py").write_text(NODE)
    table = root / "nodes" / "extension.py"
    table.write_text(table.read_text().replace("NODES = (\n", 'NODES = (\n    "echo",\n', 1))
    (root / "web" / "docs" / "HLWQEcho.md").write_text(HELP)
    for language in ("zh", "ja", "pt-BR"):
        (root / "web" / "docs" / "HLWQEcho").mkdir(exist_ok=True)
        (root / "web" / "docs" / "HLWQEcho" / f"{language}.md").write_text(HELP)
    for words in (root / "locales").glob("*/nodeDefs.json"):
        words.write_text(json.dumps(json.loads(words.read_text("utf-8")) | {"HLWQEcho": WORDS}), "utf-8")

    spec = importlib.util.spec_from_file_location(
        "echoing", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    copied = sys.modules["echoing"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(copied)
        nodes = asyncio.run(asyncio.run(copied.comfy_entrypoint()).get_node_list())
        assert nodes[0].GET_SCHEMA().node_id == "HLWQEcho"
        assert nodes[0].execute("again").args == ("again",)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "echoing"]:
            del sys.modules[name]

    tests = root / "tests" / "unit"
    tests.mkdir(parents=True)
    shutil.copy(REPO / "tests" / "unit" / "test_web_files.py", tests)
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-k", "not readme"]
    done = subprocess.run([*command, str(tests)], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
