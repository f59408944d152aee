"""Rules of the house that no other test would notice to be broken."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hlwq_core import errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python does not

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
CODE = [REPO / "__init__.py", *sorted((REPO / "nodes").rglob("*.py")), *sorted((REPO / "hlwq_core").rglob("*.py"))]
# Of ComfyUI, what any of our nodes may import. The rest is private and stays in nodes/compat.
PUBLIC = {"comfy_api.latest", "folder_paths", "comfyui_version", "server.PromptServer", "comfy.utils.ProgressBar"}


def tracked() -> list[Path]:
    """Files under version control; without git, all that lie here."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if done.returncode != 0:
        return [path for path in REPO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [REPO / name for name in done.stdout.split("\0") if name and (REPO / name).is_file()]


def requirements() -> dict[str, str]:
    lines = (REPO / "requirements.txt").read_text().split()
    return {line.split(">=")[0]: line for line in lines}


def imports(path: Path) -> list[str]:
    """Absolute imports of a file, as `module` or `module.name`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_requirements_have_lower_bounds_only() -> None:
    for line in requirements().values():
        assert re.fullmatch(r"[A-Za-z_-]+>=[\d.]+", line), line
    assert set(requirements()) == {"safetensors", "huggingface_hub", "scipy", "numpy", "comfyui-frontend-package"}
    assert PROJECT["project"]["dependencies"] == list(requirements().values())


def test_requirements_are_met_by_what_comfyui_brings(comfyui_path: Path) -> None:
    """Installing the pack into a ComfyUI must change nothing there."""
    from packaging.requirements import Requirement

    for line in requirements().values():
        wanted = Requirement(line)
        installed = importlib.metadata.version(wanted.name)
        assert wanted.specifier.contains(installed), f"{line}, but ComfyUI's own requirements gave {installed}"


@pytest.mark.parametrize("name", ["safetensors", "huggingface_hub", "scipy", "numpy"])
def test_each_requirement_is_used(name: str) -> None:
    assert any(module.split(".")[0] == name for path in CODE for module in imports(path)), name


def test_frontend_package_is_used() -> None:
    names = ("comfyui-frontend-package", "comfyui_frontend_package")
    assert any(name in path.read_text(encoding="utf-8") for path in CODE for name in names)


def test_registry_section_is_complete() -> None:
    comfy = PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"])
    assert comfy["DisplayName"]
    assert comfy["requires-comfyui"] == ">=0.30.0"
    for picture in (comfy["Icon"], comfy["Banner"]):
        assert (REPO / picture.split("/main/")[1]).is_file(), picture
    for folder in comfy["includes"]:
        assert (REPO / folder).is_dir(), folder
    project = PROJECT["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["urls"]["Repository"].startswith("https://github.com/")
    for file in (project["license"]["file"], project["readme"]):
        assert (REPO / file).is_file(), file


def test_version_is_one() -> None:
    text = (REPO / "hlwq_core" / "__init__.py").read_text()
    assert f'__version__ = "{PROJECT["project"]["version"]}"' in text


def test_comfyignore_keeps_what_runs() -> None:
    ignored = [line for line in (REPO / ".comfyignore").read_text().splitlines() if not line.startswith("#")]
    for line in filter(None, ignored):
        assert line.strip("/").split("/")[0] not in PROJECT["tool"]["comfy"]["includes"], line


def test_workflows_of_github_are_readable() -> None:
    for path in (REPO / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        assert all(job["timeout-minutes"] for job in jobs.values()), path


def test_the_hooks_before_a_commit_are_the_checks_of_the_tests() -> None:
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repository["rev"] for repository in hooks if repository["repo"].endswith("/ruff-pre-commit"))
    assert f'"ruff=={ruff[1:]}"' in (REPO / "scripts" / "environment.py").read_text()


def test_links_of_the_texts_lead_somewhere() -> None:
    for page in (*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), REPO / "workflows" / "README.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if not link.startswith(("http", "#")):
                assert (page.parent / link.partition("#")[0]).exists(), f"{page.relative_to(REPO)}: {link}"


def test_readme_is_a_page_for_a_person() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for command in ("python3 scripts/demo.py --prompt", "python3 scripts/test.py"):
        assert f"```sh\n{command}" in text, "the two commands of a developer"


def test_contributing_names_what_is_there() -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 70, "a page"
    for name in re.findall(r"`((?:docs|hlwq_core|nodes|tests|benchmarks|\.github)/[\w./-]+)`", text):
        assert (REPO / name).exists() or "NAME" in name, name


def test_no_machine_paths_or_hosts_in_tracked_files() -> None:
    words = ["/" + "work/", "/" + "farm/", "/tmp/" + "bash_jobs", "python" + "hosted", "pypi" + r"\.org"]
    words += ["registry" + r"\.npmjs", "deb" + r"\.debian"]
    pattern = re.compile("|".join(words))
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found = pattern.search(data.decode("utf-8", "replace"))
            assert found is None, f"{path.relative_to(REPO)} names {found[0] if found else ''}"


def test_no_large_files() -> None:
    for path in tracked():
        assert path.stat().st_size < 1_000_000, f"{path.relative_to(REPO)} has {path.stat().st_size} bytes"


def test_private_imports_live_in_the_compat_module(comfyui_path: Path) -> None:
    own = {path.stem if path.suffix == ".py" else path.name for path in comfyui_path.iterdir()} - {"tests"}
    for path in CODE:
        for module in imports(path):
            if module.split(".")[0] not in own or path.parent.name == "compat":
                continue
            public = any(module == name or module.startswith(name + ".") for name in PUBLIC)
            assert path.is_relative_to(REPO / "nodes") or path.name == "__init__.py", f"{path.name} imports {module}"
            assert public, f"{path.relative_to(REPO)} imports {module}: take it from nodes/compat"


def test_comfy_kitchen_is_imported_by_the_layout_alone() -> None:
    for path in CODE:
        if path.name != "packed_tensor.py" and path.parent.name != "compat":
            assert not [module for module in imports(path) if module.startswith("comfy_kitchen")], path.name


def test_code_is_python_3_10() -> None:
    for path in [*CODE, *(REPO / "scripts").rglob("*.py"), *(REPO / "tests").rglob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        for module in imports(path):
            assert not module.startswith(("typing.Self", "datetime.UTC", "enum.StrEnum", "asyncio.timeout")), path


def test_the_pack_has_one_logger() -> None:
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger") and node.args:
                assert ast.unparse(node.args[0]) == "'hlwq'", f"{path.relative_to(REPO)}:{node.lineno}"


# What reads a user's files, or is given a user's values by a node.
TELLING = [
    "hlwq_core/" + name
    for name in (
        "checkpoints/checkpoint.py",
        "checkpoints/completeness.py",
        "checkpoints/index.py",
        "checkpoints/reading.py",
        "codec/codec.py",
        "format/safefile.py",
        *sorted(f"media/{file.name}" for file in (REPO / "hlwq_core" / "media").glob("*.py")),
        "models/family.py",
        "running/packed_tensor.py",
    )
]
ERRORS = ("FormatError", "IncompleteError", "UnsupportedError", "InputError", "ConfigError", "MediaError")


@pytest.mark.parametrize(
    "path", [*(REPO / name for name in TELLING), *(REPO / "nodes").rglob("*.py")], ids=lambda p: p.name
)
def test_errors_say_what_was_expected_and_found_and_what_to_do(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            told = {keyword.arg for keyword in node.keywords}
            says = ast.unparse(node.args[0])
            # A sentence may say itself what was asked for and what there is.
            whole = {"expected", "found", "fix"} <= told or ("asks for" in says and "hold" in says and "fix" in told)
            whole = whole or says.endswith(".text()")
            assert whole, f"{path.name}:{node.lineno} says only {sorted(filter(None, told))}"


def test_every_error_says_what_to_do() -> None:
    kinds = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.HLWQError)
    }
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in kinds:
                told = any(keyword.arg == "fix" for keyword in node.keywords)
                # A result's text tells it for each of its findings.
                assert told or ast.unparse(node.args[0]).endswith(".text()"), f"{path.relative_to(REPO)}:{node.lineno}"


def test_no_advice_that_an_installed_pack_cannot_follow() -> None:
    """What the registry leaves out, a user does not have."""
    lines = (REPO / ".comfyignore").read_text().splitlines()
    absent = [line.strip("/") for line in lines if line and not line.startswith("#")]
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = [folder for folder in absent if f"{folder}/" in node.value]
                assert not named, f"{path.relative_to(REPO)}:{node.lineno} sends to {named}"


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("torch", ["inspect", "model.safetensors"]),
        ("safetensors", ["inspect", "model.safetensors"]),
        ("aiohttp", ["generate", "--prompt", "x", "--server", "http://127.0.0.1:9"]),
    ],
)
def test_a_python_without_what_the_command_line_needs(tmp_path: Path, missing: str, arguments: list[str]) -> None:
    """The first thing that a newcomer does wrong: the system's Python instead of ComfyUI's."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    command = [sys.executable, "-m", "hlwq_core", *arguments]
    variables = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=variables)
    assert done.returncode not in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert f"has no {missing}" in done.stderr and "ComfyUI" in done.stderr and sys.executable in done.stderr


def test_root_is_tiny_and_modules_are_relative() -> None:
    assert len((REPO / "__init__.py").read_text().splitlines()) <= 25
    for path in CODE:
        inside = [m for m in imports(path) if m.split(".")[0] == "hlwq_core" or m.startswith("nodes.")]
        assert not inside, f"{path}: {inside} would be imported twice, or be ComfyUI's nodes.py"


IMPORT = """
import asyncio, importlib.util, json, socket, subprocess, sys, time
sys.path.insert(0, {comfyui!r})
import comfy.cli_args
comfy.cli_args.args.cpu = True
comfy.cli_args.args.base_directory = {base!r}
import nodes, server, torch, comfy_api.latest, comfy.text_encoders.lt, comfy_extras.nodes_lt
server.PromptServer(asyncio.new_event_loop())

def refuse(*args, **kwargs):
    raise AssertionError("at import, the pack must start no process and open no connection")

socket.socket.connect = socket.create_connection = subprocess.Popen = refuse
loaded = set(sys.modules)
begun = time.process_time()
spec = importlib.util.spec_from_file_location("pack", {init!r}, submodule_search_locations=[{repo!r}])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
async def start():
    extension = await pack.comfy_entrypoint()
    await extension.on_load()
    return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]
ids = asyncio.run(start())
seconds = time.process_time() - begun
new = sorted({{name.split(".")[0] for name in set(sys.modules) - loaded}})
print(json.dumps(dict(seconds=seconds, ids=ids, cuda=torch.cuda.is_initialized(), new=new)))
"""


def test_import_is_light(comfyui_path: Path, tmp_path: Path) -> None:
    """Under a second beyond ComfyUI: nothing downloaded, compiled or started, no CUDA."""
    import json

    (tmp_path / "custom_nodes").mkdir()
    code = IMPORT.format(comfyui=str(comfyui_path), base=str(tmp_path), init=str(REPO / "__init__.py"), repo=str(REPO))
    for _ in range(2):  # the first may have to compile the modules, as after an installation
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["seconds"] < 1.0, result
    assert not result["cuda"]
    assert len(result["ids"]) == len(set(result["ids"])) > 0


@pytest.mark.parametrize("version", ["0.29.9", "0.3.70"])
def test_old_comfyui_gets_one_readable_line(version: str, tmp_path: Path) -> None:
    """A stand-in for an old ComfyUI: its version module, and no comfy_api at all."""
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    code = (
        "import importlib.util, logging, sys; logging.basicConfig(format='%(message)s');"
        f"spec = importlib.util.spec_from_file_location('pack', {str(REPO / '__init__.py')!r},"
        f" submodule_search_locations=[{str(REPO)!r}]);"
        "pack = sys.modules['pack'] = importlib.util.module_from_spec(spec); spec.loader.exec_module(pack);"
        "assert pack.NODE_CLASS_MAPPINGS == {} and not hasattr(pack, 'comfy_entrypoint')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 0 and len(lines) == 1, lines
    assert version in lines[0] and "0.30.0" in lines[0] and "update" in lines[0].lower()
