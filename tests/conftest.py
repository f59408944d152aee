"""What all tests share: golden data, the tiny model, ComfyUI in this process and as a server."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[1]
CI = os.environ.get("CI", "") not in ("", "0", "false")
# How the server of the tests is started: on the CPU, or on a GPU as a user would (HLWQ_TEST_SERVER="--novram").
SERVER_ARGS = shlex.split(os.environ.get("HLWQ_TEST_SERVER", "--cpu"))
# Two busy threads on two busy cores wait for each other: measured three to four times slower than one. Here, since a folder's
# own conftest.py imports torch before any hook runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: without this neither the
    # session deadline of .ci/run nor the tests of Ctrl-C would reach anybody.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def terminated(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    # The ComfyUIs and browsers of the fixtures live in sessions of their own: they end only if we tear down.
    signal.signal(signal.SIGTERM, terminated)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if kept := os.environ.pop("HLWQ_OUTCOMES", ""):
        config.pluginmanager.register(_module("outcomes", REPO / "tests" / "outcomes.py").Outcomes(Path(kept)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test that used the server shows the end of its log."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and server is not None:
        report.sections.append(("ComfyUI's log", server.tail(60)))


def missing(what: str) -> None:
    """Skip where something that a test needs is not there; in CI that is a failure."""
    if CI:
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the vectors made by the format's author's own code (see its README.md)."""
    return REPO / "tests" / "golden"


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """Folder of the ComfyUI to test with."""
    given = os.environ.get("COMFYUI_PATH")
    if not given or not (Path(given) / "main.py").is_file():
        missing("no ComfyUI: run the tests with `python3 scripts/test.py`, or set COMFYUI_PATH to its folder")
    assert given
    return Path(given).resolve()


def _script(name: str) -> ModuleType:
    """A module of scripts/, which is no package and stays off sys.path (its test.py would hide the library's)."""
    return _module(f"hlwq_scripts_{name}", REPO / "scripts" / f"{name}.py")


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


environment = _script("environment")


@pytest.fixture(scope="session")
def tiny(comfyui_path: Path) -> Path:
    """Folder with models/ and input/ of the tiny LTX-2.3 (scripts/make_tiny.py); made once, then cached."""
    cache = Path(os.environ.get("HLWQ_CACHE") or "~/.cache/comfyui-hlwq").expanduser()
    return environment.tiny_model(environment.Environment(Path(sys.executable), comfyui_path, cache))


@pytest.fixture(scope="session")
def ray() -> Path:
    """A folder that gives Ray to a process whose PYTHONPATH names it; made once, then cached."""
    cache = Path(os.environ.get("HLWQ_CACHE") or "~/.cache/comfyui-hlwq").expanduser()
    try:
        return environment.ray_folder(environment.Environment(Path(sys.executable), Path(), cache))
    except environment.SetupError as error:
        missing(f"no Ray: {error}")
        raise


def load_pack(name: str = "comfyui_hlwq") -> ModuleType:
    """Import the repository's root as the package `name`, as ComfyUI does with a folder of custom_nodes."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, REPO / "__init__.py", submodule_search_locations=[str(REPO)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@pytest.fixture(scope="session")
def comfy(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI booted in this process on the CPU, with its extra nodes; the (empty) base directory it uses."""
    base = tmp_path_factory.mktemp("comfy-base")
    for folder in ("models", "input", "output", "temp", "user", "custom_nodes"):
        (base / folder).mkdir()
    sys.path.insert(0, str(comfyui_path))
    import comfy.cli_args  # it reads no command line here: comfy.options.enable_args_parsing was not called

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = str(base)
    comfy.cli_args.args.disable_api_nodes = True
    import nodes
    import server

    assert Path(nodes.__file__).parent == comfyui_path, "another `nodes` was imported before ComfyUI's"
    loop = asyncio.new_event_loop()
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return base


@pytest.fixture(scope="session")
def pack(comfy: Path) -> ModuleType:
    """The pack, imported in this process as `comfyui_hlwq`, with ComfyUI behind it on the CPU."""
    return load_pack()


@pytest.fixture(scope="session")
def comfy_base(comfy: Path, tiny: Path) -> Path:
    """The in-process ComfyUI's base directory with the tiny's models and inputs linked into it."""
    environment.link_tree(tiny / "models", comfy / "models")
    environment.link_tree(tiny / "input", comfy / "input")
    return comfy


@pytest.fixture(scope="session")
def server_backend() -> str:
    """What the server of the tests decodes with."""
    return "eager" if "--cpu" in SERVER_ARGS else "cuda"


@pytest.fixture(scope="session")
def server(comfyui_path: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A real ComfyUI over HTTP, with the tiny's models and the pack as a custom node.

    Has `url`, `base` (Path: models/, input/, output/, custom_nodes/, user/), `log` (Path) and `tail(lines)`.
    """
    from hlwq_core.client.server import LocalServer

    base = tmp_path_factory.mktemp("server-base")
    for folder in ("output", "user", "custom_nodes"):
        (base / folder).mkdir()
    for models in (tiny / "models", tiny / "ltx25" / "models"):
        environment.link_tree(models, base / "models")
    shutil.copytree(tiny / "input", base / "input")
    (base / "custom_nodes" / "ComfyUI-HLWQ").symlink_to(REPO, target_is_directory=True)
    extra = [*SERVER_ARGS, "--disable-api-nodes", "--output-directory", str(base / "output")]
    started = time.monotonic()
    log = base / "comfyui.log"
    with LocalServer(comfyui_path, base=base, extra=extra, timeout=150, log=log) as running:
        print(f"ComfyUI answered after {time.monotonic() - started:.1f} s; its log: {log}")
        yield running
