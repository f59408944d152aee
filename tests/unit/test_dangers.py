"""What the code must not do, found by reading it: code out of files, a shell, the network where none was asked for, a listening port;
and words in any file about how the project's work was organised.

Each rule is tried on snippets that break it, and on some that look like it and do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_house import CODE, REPO, tracked

CODE_FROM_FILES = {
    "modules": {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "runpy", "code"},
    "calls": {
        "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__",
        "torch.load", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load", "torch.serialization.load",
        "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    },
}  # fmt: skip
SHELL = {
    "os.system", "os.popen", "os.posix_spawn", "os.startfile", "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}  # fmt: skip
NETWORK = {
    "socket", "ssl", "urllib.request", "http", "http.client", "http.server", "requests", "httpx", "aiohttp", "urllib3", "websockets",
    "websocket", "ftplib", "smtplib", "telnetlib", "xmlrpc", "huggingface_hub", "socketserver",
}  # fmt: skip
LISTENS = {
    "asyncio.start_server", "asyncio.start_unix_server", "socket.create_server", "aiohttp.web.run_app", "aiohttp.web.TCPSite",
    "aiohttp.web.SockSite", "aiohttp.web.UnixSite", "http.server.HTTPServer", "http.server.ThreadingHTTPServer",
    "socketserver.TCPServer", "socketserver.ThreadingTCPServer", "socketserver.UDPServer", "xmlrpc.server.SimpleXMLRPCServer",
    "wsgiref.simple_server.make_server", "multiprocessing.managers.BaseManager", "multiprocessing.connection.Listener",
    "torch.distributed.TCPStore", "torch.distributed.init_process_group", "websockets.serve", "torch.distributed.rpc.init_rpc",
}  # fmt: skip
LISTENING_METHODS = {"listen", "create_server", "start_server", "serve_forever"}
# Who talks to others because a user called it. `nodes/routes.py` answers ComfyUI's own server.
TALKS = (
    "hlwq_core/client/",
    "hlwq_core/tools/download.py",
    "hlwq_core/batch/actor.py",
    "nodes/routes.py",
    "nodes/compat/origin.py",
)
# A port is looked for here, of which ComfyUI is told; nobody listens on it here.
BINDS = "hlwq_core/client/server.py"


class _Reading(ast.NodeVisitor):
    """Names as they were imported, whatever they are called here; and whether a call stands in a function."""

    def __init__(self, tree: ast.AST):
        self.names: dict[str, str] = {}
        self.modules: list[tuple[str, int, bool]] = []
        self.calls: list[tuple[str, ast.Call, bool]] = []
        self._inside = 0
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.names[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        self.visit(tree)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(part)
        self._inside += 1
        for part in node.body:
            self.visit(part)
        self._inside -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._inside += 1
        self.visit(node.body)
        self._inside -= 1

    def visit_Import(self, node: ast.Import) -> None:
        self.modules += [(alias.name, node.lineno, not self._inside) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level:
            self.modules += [(f"{node.module}.{alias.name}", node.lineno, not self._inside) for alias in node.names]

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        first, _, rest = name.partition(".")
        whole = ".".join(filter(None, (self.names.get(first, first), rest)))
        self.calls.append((whole, node, not self._inside))
        self.generic_visit(node)


def _of(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def _is_constant(node: ast.expr) -> bool:
    """A text that stands in the code, or a constant by its name."""
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id.isupper())


def dangers(source: str, place: str) -> Iterator[str]:
    """What a file of the pack does that it must not, each as `line: what`."""
    reading = _Reading(ast.parse(source))
    talks = place.startswith(TALKS)
    for name, line, _ in reading.modules:
        if _of(name, CODE_FROM_FILES["modules"]):
            yield f"{line}: code from files: import {name}"
        if _of(name, NETWORK) and not talks:
            yield f"{line}: network in a room that has none: import {name}"
        if name in CODE_FROM_FILES["calls"] | SHELL | LISTENS and not (name in LISTENS and talks):
            yield f"{line}: imported to be called: {name}"
    for name, call, at_import in reading.calls:
        line, method = call.lineno, name.rsplit(".", 1)[-1]
        words = {word.arg: word.value for word in call.keywords}
        if name in CODE_FROM_FILES["calls"]:
            yield f"{line}: code from files: {name}"
        if method == "load" and "allow_pickle" in words:
            yield f"{line}: code from files: {name}(allow_pickle=…)"
        if name in SHELL or name.startswith(("os.exec", "os.spawn")) or "shell" in words:
            yield f"{line}: a shell: {name}"
        if at_import and (_of(name, NETWORK) or name.startswith(("subprocess.", "asyncio.run", "threading.Thread"))):
            yield f"{line}: at import: {name}"
        if name in LISTENS or (method in LISTENING_METHODS and isinstance(call.func, ast.Attribute)):
            yield f"{line}: a listening port: {name}"
        if method == "bind" and isinstance(call.func, ast.Attribute) and place != BINDS and "signature" not in name:
            yield f"{line}: a listening port: {name}"
        if method == "format" and isinstance(call.func, ast.Attribute) and not _is_constant(call.func.value):
            yield f"{line}: filled in, whatever text it is: {name}"
        if (
            name == "getattr"
            and call.args[1:]
            and isinstance(call.args[1], ast.Constant)
            and call.args[1].value in ("eval", "exec", "system")
        ):
            yield f"{line}: called by its name: {call.args[1].value}"


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(REPO).as_posix())
def test_nothing_dangerous(path: Path) -> None:
    assert list(dangers(path.read_text(encoding="utf-8"), path.relative_to(REPO).as_posix())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p\np.loads(b'')",
        "from pickle import loads",
        "def f():\n    import dill",
        "import runpy",
        "eval('1')",
        "exec('1')",
        "import builtins\nbuiltins.exec('1')",
        "code = compile('1', '', 'exec')",
        "getattr(b, 'eval')('1')",
        "__import__('os')",
        "import torch\ntorch.load('a')",
        "import torch as t\ndef f():\n    return t.load('a', weights_only=True)",
        "from torch import load\nload('a')",
        "from torch import load as read",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "import os\nos.system('ls')",
        "from os import system as run\nrun('ls')",
        "import os as o\no.popen('ls')",
        "import subprocess\ndef f():\n    subprocess.run('ls', shell=True)",
        "import subprocess as s\ndef f():\n    s.Popen('ls', shell=flag)",
        "import subprocess\ndef f():\n    subprocess.getoutput('ls')",
        "import asyncio\nasync def f():\n    await asyncio.create_subprocess_shell('ls')",
        "import subprocess\nsubprocess.run(['ls'])",
        "import threading\nthreading.Thread(target=f).start()",
        "def f(title):\n    return title.format(1)",
        "def f(nodes):\n    return nodes['title'].format(**nodes)",
        "def f(title):\n    return f'{title} {{}}'.format(1)",
        "class A:\n    import subprocess\n    subprocess.Popen(['ls'])",
        "def f(x=__import__('os')): ...",
        "import socket",
        "def load():\n    import urllib.request",
        "from urllib.request import urlopen",
        "from urllib import request",
        "import requests",
        "def load():\n    from huggingface_hub import hf_hub_download",
        "async def f(s):\n    await asyncio.start_server(g, port=1)",
        "def f(s):\n    s.bind(('0.0.0.0', 80))",
        "def f(s):\n    s.listen()",
        "def f():\n    torch.distributed.TCPStore('x', 1, is_master=True)",
        "from torch.distributed import init_process_group",
    ],
)  # fmt: skip
def test_a_file_that_does_it_is_noticed(source: str) -> None:
    assert list(dangers(source, "nodes/load_checkpoint.py"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import aiohttp\nsession = aiohttp.ClientSession()", "at import"),
        ("import urllib.request\nclass A:\n    x = urllib.request.urlopen('http://x')", "at import"),
        ("import huggingface_hub\ndef f(x=huggingface_hub.HfApi()): ...", "at import"),
        ("from aiohttp import web\ndef f():\n    web.run_app(app)", "a listening port"),
        ("import http.server\ndef f():\n    http.server.HTTPServer(('', 1), H).serve_forever()", "a listening port"),
        ("import socket\ndef f():\n    socket.socket().bind(('', 1))", "a listening port"),
        ("import socketserver\ndef f():\n    socketserver.TCPServer(('', 1), H)", "a listening port"),
    ],
)
def test_a_file_that_may_talk_may_not_do_it_either(source: str, found: str) -> None:
    assert any(found in line for line in dangers(source, "hlwq_core/client/client.py"))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nX = re.compile('a')",
        "PAGE = 'a {}'\ndef f(x):\n    return PAGE.format(x) + '{}'.format(x) + format(x, '.1f')",
        "model.eval()",
        "def f(self):\n    self.exec()\n    loader.load('a')",
        "import json\njson.load(file)",
        "from safetensors.torch import load_file\nload_file('a')",
        "from urllib.parse import quote",
        "import subprocess\ndef f():\n    subprocess.run(['git', 'log'])",
        "import inspect\ninspect.signature(f).bind(1)",
        "def f(app):\n    app.bind_all = 1",
    ],
)
def test_what_only_looks_like_it_is_let_pass(source: str) -> None:
    assert not list(dangers(source, "nodes/load_checkpoint.py"))


# ---- words ----

# What a project's own files never say: who worked on it in what order, and where it was asked for. Each is split so that this file
# says none of it.
ORGANISED = [
    rf"\b{word}\b"
    for word in (
        r"(?:this|next|last|previous|earlier|another|each) ses" + r"sion(?:'s)? (?:of work|did|does|has done|left|should|will|wrote)",
        r"(?:filed|written|done|made|left) (?:by|for|to|in) (?:a|the|this|an earlier|the next) ses" + r"sion",
        r"(?:the|our|its) (?:closing|hand-?over) no" + r"te",
        r"issue #?\d+|is" + r"sues? (?:show|note|resolved|blocked|stops)",
        r"(?:the|this|your|my) br" + r"ief (?:says|said|asks|asked)",
        r"(?:sub-?)?age" + r"nts? (?:wrote|did|were|was) ",
        r"hel" + r"pers? (?:wrote|did|was given|were given)",
        r"(?:the|a) le" + r"ad (?:wrote|said|asked|does that|decides)",
        r"device (?:le" + r"ase|loan)|le" + r"ased (?:card|machine|GPU)",
        r"(?:as|being) an? (?:AI|language mo" + r"del)|AI[- ](?:generated|written|assisted)|Cla" + r"ude|Chat" + r"GPT|Cop" + r"ilot",
        r"git work" + r"tree",
        r"(?:in|of|after) this wa" + r"ve|wa" + r"ve \d",
        r"Co-Authored" + r"-By",
    )
]  # fmt: skip
_ORGANISED = re.compile("|".join(ORGANISED), re.IGNORECASE)


def test_no_words_about_how_the_work_was_organised() -> None:
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found = _ORGANISED.search(data.decode("utf-8", "replace"))
            assert found is None, f"{path.relative_to(REPO)} says {found[0] if found else ''!r}"


@pytest.mark.parametrize(
    "words",
    [
        "The next ses" + "sion should measure it.", "filed by a ses" + "sion", "see iss" + "ue #12", "is" + "sues show 21", "as iss" + "ue 4 asks",
        "The br" + "ief asks for less.", "two age" + "nts wrote it", "hel" + "pers did the rest", "The le" + "ad decides.", "no device le" + "ase",
        "written as an A" + "I", "AI-gener" + "ated", "by Cla" + "ude", "in a git work" + "tree", "after this wa" + "ve", "See the closing no" + "te.",
    ],
)  # fmt: skip
def test_words_that_say_it_are_noticed(words: str) -> None:
    assert _ORGANISED.search(words)


@pytest.mark.parametrize(
    "words",
    [
        "one session of aiohttp", "the helper function", "leading zeros", "a user agent", "at least", "an issue on GitHub", "in brief",
        "sawtooth waves", "Each session of a server has its own log.", "a language model's layers",
    ],
)  # fmt: skip
def test_words_of_the_trade_are_let_pass(words: str) -> None:
    assert not _ORGANISED.search(words)
