"""Whoever reads what others wrote, each as a function of bytes: for fuzzers, which change the bytes and look what comes out.

A reader may refuse by an error of the pack (`HLWQError`), and by nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

REPO = Path(__file__).resolve().parents[2]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from hlwq_core import errors  # noqa: E402
from hlwq_core.batch import journal, results  # noqa: E402
from hlwq_core.batch import read as batch_read  # noqa: E402
from hlwq_core.batch.job import Job  # noqa: E402
from hlwq_core.checkpoints import checkpoint, claim, completeness, find  # noqa: E402
from hlwq_core.client import client, graph, grid  # noqa: E402
from hlwq_core.client.generate import Request  # noqa: E402
from hlwq_core.codec.calibration import VERSION, CalibrationFile  # noqa: E402
from hlwq_core.format import record, safefile  # noqa: E402
from hlwq_core.format.portable import why_not  # noqa: E402
from hlwq_core.models import family, ltx23, recipes  # noqa: E402
from hlwq_core.tools import bits, download, replacing  # noqa: E402
from tests.attacks import checkpoints as attacks  # noqa: E402

# What lies beside the folder that a reader is given, and must stay as it is.
OUTSIDE = "outside.txt"
# A variable with the folder to work in.
HOME = "HLWQ_FUZZ_HOME"


@dataclasses.dataclass(frozen=True)
class Reader:
    """`read(folder, data)` reads `data` as its kind of file, in an empty folder of its own; `seeds` are sound ones."""

    about: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]


@functools.lru_cache(maxsize=1)
def _home() -> Path:
    """A folder in memory where there is such a thing: millions of files are written to it."""
    memory = Path("/dev/shm")
    given = os.environ.get(HOME)  # libFuzzer ends a process without a word: who called it removes the folder
    home = Path(given or tempfile.mkdtemp(prefix="hlwq-fuzz-", dir=memory if memory.is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, home, ignore_errors=True)
    (home / OUTSIDE).write_text("not to be touched")
    return home


def attempt(reader: Reader, data: bytes) -> errors.HLWQError | None:
    """Let it read; its refusal, or None where it took the data.

    Raises:
        Exception: whatever else came out of it. That is a fault.
        AssertionError: it changed something outside of its folder.
    """
    home = _home()
    folder = home / "folder"
    outside = str(home / OUTSIDE)
    before = os.stat(outside)
    os.mkdir(folder)
    try:
        reader.read(folder, data)
        return None
    except errors.HLWQError as refusal:
        str(refusal)  # is told to the user
        return refusal
    finally:
        _remove(str(folder))
        left, after = os.listdir(home), os.stat(outside)
        assert left == [OUTSIDE] and after.st_mtime_ns == before.st_mtime_ns and after.st_size == before.st_size, left


def _remove(folder: str) -> None:
    """What `shutil.rmtree` does, for a few files a third of its time."""
    with os.scandir(folder) as entries:
        inside = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for path, is_folder in inside:
        if is_folder:
            shutil.rmtree(path)
        else:
            os.unlink(path)
    os.rmdir(folder)


# -- tensors -----------------------------------------------------------------------------------------------------------

_NAME = "model.safetensors"
_DTYPES = ("U8", "I8", "F16", "F32", "I64", "BF16")


def _whole(path: Path, **choices: Any) -> None:
    """Everything that a loader asks of a checkpoint."""
    with_data = checkpoint.open_checkpoint(path, **choices)
    for name in with_data.names()[:4]:
        with_data.info(name)
        with_data.check_data(name)
        with_data.decode(name)
    for name in with_data.plain_names()[:4]:
        with_data.plain(name)
    with_data.report()
    completeness.whole(with_data)


def _header(folder: Path, data: bytes) -> None:
    (folder / _NAME).write_bytes(data)
    file = safefile.SafeFile(folder / _NAME)
    for name in list(file)[:8]:
        file.tensor(name)
    find.glance(folder / _NAME)
    _whole(folder)


def _header_seeds() -> list[bytes]:
    home = Path(tempfile.mkdtemp())
    seeds = [
        attacks.write(home / "v1.safetensors", attacks.layer(), {"config": "{}"}).read_bytes(),
        attacks.write(home / "plain.safetensors", {"a": attacks.halves(2, 3)}).read_bytes(),
        attacks.write(home / "scaled.safetensors", _v4()).read_bytes(),
    ]
    shutil.rmtree(home)
    return seeds


def _v4() -> attacks.Tensors:
    parts = {
        "codes": attacks.u8(attacks.ROWS, attacks.BLOCKS * 80),
        "norms": attacks.halves(attacks.ROWS, attacks.BLOCKS),
        "ct_scaled": attacks.floats(*(i / 16 - 1 for i in range(32))),
    }
    return {f"a.b.{part}": value for part, value in parts.items()}


def _tensor(tensors: Callable[[], attacks.Tensors], part: str) -> Reader:
    """A layer one of whose tensors is another: data are a dtype, a rank, the shape and the bytes."""

    def read(folder: Path, data: bytes) -> None:
        if len(data) < 2:
            return
        there = tensors()
        (name,) = [name for name in there if name.endswith(part)]
        dtype, rank = _DTYPES[data[0] % len(_DTYPES)], data[1] % 4
        numbers, raw = data[2 : 2 + 2 * rank], data[2 + 2 * rank :]
        shape = [int.from_bytes(numbers[i : i + 2], "little") for i in range(0, len(numbers), 2)]
        there[name] = (dtype, shape, raw)
        attacks.write(folder / _NAME, there)
        _whole(folder / _NAME)

    def seeds() -> list[bytes]:
        there = tensors()
        (name,) = [name for name in there if name.endswith(part)]
        dtype, shape, raw = there[name]
        head = bytes([_DTYPES.index(dtype), len(shape)])
        return [head + b"".join(n.to_bytes(2, "little") for n in shape) + raw]

    return Reader(f"a layer whose {part} is another tensor", seeds, read)


# -- side files --------------------------------------------------------------------------------------------------------


def _config(folder: Path, data: bytes) -> None:
    shapes = {
        "model.diffusion_model.patchify_proj.weight": (4096, 128),
        "model.diffusion_model.transformer_blocks.47.attn2.to_k.weight": (4096, 4096),
    }
    with contextlib.suppress(errors.HLWQError):
        family.find_config(ltx23.FAMILY, folder, {"config": data.decode("utf-8", "replace")}, shapes)
    (folder / "config.json").write_bytes(data)
    family.find_config(ltx23.FAMILY, folder, {}, shapes)


def _config_seeds() -> list[bytes]:
    values = ltx23.FAMILY.config()
    small = {part: dict(list(items.items())[:6]) for part, items in values.items() if isinstance(items, dict)}
    return [json.dumps(small).encode(), json.dumps({"transformer": values["transformer"]}).encode()]


def _claim(folder: Path, data: bytes) -> None:
    (folder / "polar_config.json").write_bytes(data)
    claim.read_claim(folder)


def _record(folder: Path, data: bytes) -> None:
    (folder / record.RECORD).write_bytes(data)
    record.read_record(folder)


def _recipe(folder: Path, data: bytes) -> None:
    (folder / "recipe.json").write_bytes(data)
    recipes.load_recipe(folder / "recipe.json")


def _replacing(folder: Path, data: bytes) -> None:
    (folder / "a").write_text("1")
    (folder / "journal.json").write_bytes(data)
    with contextlib.suppress(OSError):  # a rename that fails: whoever calls says so
        replacing.finish(folder / "journal.json", folder)


def _calibration(folder: Path, data: bytes) -> None:
    """The notes of a calibration: its tensors are sound."""
    notes = _answer(data)
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        return
    tensors = {
        "a.mean": attacks.floats(*[0.0] * 128),
        "a.moments": ("F32", [1, 128, 128], bytes(4 * 128 * 128)),
        "a.held": ("BF16", [1, 128], bytes(256)),
    }
    attacks.write(folder / _NAME, tensors, notes)
    file = CalibrationFile(folder / _NAME)
    file.check({"a": (128, 128)}, {"norm": [1.0]})
    for name in file.layers:
        file.inputs(name)


def _sensitivity(folder: Path, data: bytes) -> None:
    (folder / "losses.json").write_bytes(data)
    bits.read_losses(folder / "losses.json")


# -- workflows and servers ---------------------------------------------------------------------------------------------


def _workflow(folder: Path, data: bytes) -> None:
    (folder / "workflow.json").write_bytes(data)
    nodes = graph.load(folder / "workflow.json")
    graph.settable(nodes)
    graph.classes(nodes)
    for act in (
        lambda: graph.assign(nodes, "Positive prompt.text=cat", lenient=True),
        lambda: graph.add_loras(nodes, [("a.safetensors", 1.0)]),
        lambda: graph.add_report(nodes),
        lambda: grid.check(nodes, options=True),
        lambda: graph.reseed(nodes, 1),
    ):
        with contextlib.suppress(errors.HLWQError):
            act()


def _workflow_seeds() -> list[bytes]:
    nodes = json.loads((REPO / "workflows" / "api" / "hlwq_ltx23_text_to_video.json").read_text("utf-8"))
    return [json.dumps(nodes).encode(), json.dumps(dict(list(nodes.items())[:3])).encode()]


def _answer(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


_NODES: graph.Nodes = {"1": {"class_type": "A", "inputs": {"x": "y"}, "_meta": {"title": "T"}}}


class _Said:
    """An answer of a server, as aiohttp hands it out."""

    status, reason, content_length = 200, "OK", None
    headers: dict[str, str] = {}

    def __init__(self, data: bytes, status: int = 200):
        self._data, self.status = data, status

    async def __aenter__(self) -> _Said:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def json(self, **_: object) -> Any:
        return json.loads(self._data)

    async def text(self) -> str:
        return self._data.decode("utf-8", "replace")


def _server(folder: Path, data: bytes) -> None:
    """Each route's answer, and a refusal."""
    (folder / "a.png").write_bytes(b"")

    async def ask() -> None:
        one = client.Client("http://x", patience=0)
        for status in (200, 400):
            said = lambda *_, **__: _Said(data, status)  # noqa: B023, E731
            one._session = mock.Mock(get=said, post=said)
            for act in (
                lambda: one.system(),
                lambda: one.object_info(["A"]),
                lambda: one.upload(folder / "a.png"),
                lambda: one.queue(_NODES),
                lambda: one._ended("p"),
            ):
                with contextlib.suppress(errors.HLWQError):
                    await act()

    asyncio.run(ask())


def _history(folder: Path, data: bytes) -> None:
    """What the history tells of a prompt, and the message of a node that failed."""
    entry = _answer(data)
    if not isinstance(entry, dict):
        return
    one = client.Client("http://x")
    with contextlib.suppress(errors.HLWQError):
        one._judge(entry, _NODES, None)
    with contextlib.suppress(errors.HLWQError):
        client.result_files(entry)
    with contextlib.suppress(errors.HLWQError):
        raise client.failure(_NODES, entry)


def _object_info(folder: Path, data: bytes) -> None:
    """A node's description: files and inputs are looked up in it."""
    info = _answer(data)
    if not isinstance(info, dict):
        return
    nodes = json.loads(json.dumps(_NODES))
    with contextlib.suppress(errors.HLWQError):
        graph.assign(nodes, "T.x=1", {"A": info})
    with contextlib.suppress(errors.HLWQError):
        graph.resolve(nodes, {"A": info})


def _hub(folder: Path, data: bytes) -> None:
    """The hub's listing of a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    answer = _answer(data)
    if not isinstance(answer, dict):
        return
    try:
        info = ModelInfo(**answer)
    except Exception:
        return  # the hub library's own
    with mock.patch.object(HfApi, "model_info", lambda *_, **__: info):
        download._list(("a/b",), "main", None, None)


_HISTORY = {
    "prompt": [0, "p", {}, {}, []],
    "outputs": {"1": {"images": [{"filename": "a.mp4", "subfolder": "video", "type": "output"}]}},
    "status": {
        "status_str": "error",
        "messages": [
            ["execution_start", {"prompt_id": "p"}],
            [
                "execution_error",
                {
                    "node_id": "1",
                    "node_type": "A",
                    "exception_message": "no\nwhat to do: this",
                    "exception_type": "torch.OutOfMemoryError",
                    "traceback": ["  File x\n"],
                },
            ],
        ],
    },
}
_REFUSED = {
    "error": {"type": "prompt_outputs_failed_validation", "message": "m", "details": "", "extra_info": {}},
    "node_errors": {
        "1": {
            "class_type": "A",
            "errors": [
                {
                    "type": "value_not_in_list",
                    "message": "m",
                    "details": "d",
                    "extra_info": {"input_name": "x", "input_config": [["a"], {}], "received_value": "y"},
                }
            ],
        }
    },
}
_INFO = {
    "input": {
        "required": {"x": [["a", "b"], {"image_upload": True}]},
        "optional": {"z": ["COMBO", {"options": ["c"]}]},
    },
    "output": ["INT"],
    "python_module": "nodes",
}
_LISTED = {
    "id": "a/b",
    "sha": "0" * 40,
    "siblings": [
        {"rfilename": "a.safetensors", "size": 3, "lfs": {"size": 3, "sha256": "0" * 64, "pointerSize": 1}},
        {"rfilename": "config.json", "size": 2, "blobId": "0" * 40},
    ],
}


# -- batches -----------------------------------------------------------------------------------------------------------


def _jobs(name: str) -> Callable[[Path, bytes], None]:
    def read(folder: Path, data: bytes) -> None:
        (folder / name).write_bytes(data)
        with mock.patch.object(batch_read, "MOST", 30):  # a range of seeds is as many jobs
            jobs = list(batch_read.read_jobs(folder / name, Request(), [1]))
            assert not [job.name for job in jobs if why_not(job.name + ".mp4") is not None]
            batch_read.check_jobs(jobs)

    return read


_CSV = b'prompt,seed,width,lora,Save.codec,name\r\n"rain, far",1-3,64,a:0.5;b,h265,\r\nwaves,7,,,,x\r\n'
_JOBS = [
    {"prompt": "rain", "seed": [1, "3-4"], "fps": 24, "lora": ["a:1"], "Save.codec": "h265"},
    {"prompt": "b", "name": "x"},
]


def _batch_journal(folder: Path, data: bytes) -> None:
    """A journal, and all that is done by what it says when a batch is called again."""
    state = folder / "out" / results.STATE
    (state / "parts").mkdir(parents=True)
    (state / "parts" / "p").write_bytes(b"film")
    (state / "journal.jsonl").write_bytes(data)
    job = Job(Request(prompt="rain"), "rain", "rain", "ab")
    with journal.Journal(state) as opened:
        outcome = results.Results(folder / "out", opened)
        outcome.begin([job], lambda line: None)
        outcome.write_manifest([job])
    assert sorted(path.name for path in folder.iterdir()) == ["out"]


_FILE = {"name": "rain.mp4", "part": "p", "sha256": hashlib.sha256(b"film").hexdigest(), "size": 4}
_EVENTS = [
    {"event": "begin", "version": journal.VERSION, "tag": {"seed": 7}, "time": 1.5},
    {"event": "queued", "job": "ab", "worker": "http://host", "prompt_id": "0-1"},
    {"event": "failed", "job": "ab", "error": "no", "worker": "w", "final": False},
    {"event": "again", "job": "ab"},
    {
        "event": "made",
        "job": "ab",
        "files": [_FILE],
        "record": {"prompt": "rain", "seconds": 1.5, "node_seconds": {"a": 1}},
    },
    {"event": "lost", "job": "cd"},
]


def _lines(*values: Any) -> Callable[[], list[bytes]]:
    return lambda: [b"".join(json.dumps(value).encode() + b"\n" for value in values)]


def _json(*values: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


READERS: dict[str, Reader] = {
    "header": Reader("a safetensors file", _header_seeds, _header),
    "codes": _tensor(attacks.layer, "packed"),
    "norms": _tensor(attacks.layer, "norms"),
    "meta": _tensor(attacks.layer, "meta"),
    "table": _tensor(_v4, "ct_scaled"),
    "claim": Reader("polar_config.json", _json({"format": "hlwq-q5", "block_size": 128, "bits": 5}), _claim),
    "config": Reader("a model's config", _config_seeds, _config),
    "record": Reader(
        "the record of checksums",
        _json({"format": "hlwq-sha256", "files": {"a/b": {"size": 1, "sha256": "0"}}}),
        _record,
    ),
    "recipe": Reader(
        "a recipe", lambda: [path.read_bytes() for path in sorted(recipes._FOLDER.glob("*.json"))], _recipe
    ),
    "replacement": Reader(
        "the journal of a replacement",
        _json({"format": "hlwq-replacing", "away": [["a", "b"]], "into": [["c", "a"]], "discard": ["b"]}),
        _replacing,
    ),
    "calibration": Reader(
        "the notes of a calibration",
        _json(
            {
                "hlwq.calibration": VERSION,
                "hlwq.samples": "3",
                "hlwq.loras": "off",
                "hlwq.layers": json.dumps({"a": {"count": 9999, "calls": 3, "of": "a"}}),
                "hlwq.identity": json.dumps({"norm": [1.0]}),
            }
        ),
        _calibration,
    ),
    "sensitivity": Reader(
        "a sensitivity file",
        _json(
            {"hlwq.sensitivity": bits.SENSITIVITY, "layers": {"a": {str(n): 1 / n for n in bits.CHOICES}}},
        ),
        _sensitivity,
    ),
    "workflow": Reader("a workflow in API form", _workflow_seeds, _workflow),
    "server": Reader(
        "answers of a ComfyUI",
        _json({"system": {}, "A": _INFO}, {"prompt_id": "p", "node_errors": {}}, _REFUSED, {"p": _HISTORY}),
        _server,
    ),
    "history": Reader("a prompt's history", _json(_HISTORY, _HISTORY["status"]["messages"][1][1]), _history),
    "object_info": Reader("the description of a node", _json(_INFO), _object_info),
    "jobs.csv": Reader("jobs as CSV", lambda: [_CSV], _jobs("jobs.csv")),
    "jobs.jsonl": Reader("jobs as JSON lines", _lines(*_JOBS), _jobs("jobs.jsonl")),
    "jobs.txt": Reader("jobs as text", lambda: [b"# all\r\nrain\r\n\r\nwaves"], _jobs("jobs.txt")),
    "batch_journal": Reader("the journal of a batch", _lines(*_EVENTS), _batch_journal),
    "hub": Reader("the hub's listing of a repository", _json(_LISTED), _hub),
}
