"""Kill -9 at random moments of what writes files: before or after, nothing in between, and no litter after the next run.

    python tests/attacks/kills.py                                   every work, 20 times
    python tests/attacks/kills.py quantize save --kills 200 --seed 7 --results tests/attacks/results/kills.json

At each rename rather than at random moments: `tests/unit/tools/test_quantize.py`, `test_replacing.py`, `test_download.py` and
`tests/unit/media/test_partial.py`. A batch of prompts has its own, in `batches.py`.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from hlwq_core import media  # noqa: E402
from hlwq_core.tools.download import download  # noqa: E402
from hlwq_core.tools.quantize import quantize  # noqa: E402
from hlwq_core.tools.repair import repair  # noqa: E402
from tests.attacks import keep  # noqa: E402

Contents = dict[str, bytes]


@dataclass(frozen=True)
class Work:
    """`prepare(folder)` makes what `act(folder)` starts from. `wholes(folder)`: the states that a user may find, each the files
    that count by name; with `resumes`, parts of the last of them are fine too, as long as nobody takes them for a whole."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], object]
    resumes: bool = False


def contents(folder: Path, hidden: bool = False) -> Contents:
    """The files of a folder by name; those whose name, or whose folder's, begins with a dot only if asked for."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (hidden or not any(part.startswith(".") for part in name.split("/"))):
            found[name] = path.read_bytes()
    return found


@functools.cache
def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        f"blocks.{i}.{name}.weight": torch.randn(128, 256, generator=generator).bfloat16()
        for i in range(3)
        for name in ("attn", "mlp")
    } | {"norm.weight": torch.ones(256)}


_OPTIONS: dict[str, Any] = {"rules": "plain", "chunk_bytes": 50_000}


def _dense(folder: Path) -> None:
    save_file(_tensors(), folder / "dense.safetensors")


def _older(folder: Path) -> None:
    _dense(folder)
    quantize(folder / "dense.safetensors", folder / "out", bits=4, **_OPTIONS)


def _quantize(folder: Path, **more: Any) -> None:
    quantize(folder / "dense.safetensors", folder / "out", bits=6, **_OPTIONS, **more)


def _cut(folder: Path) -> None:
    _older(folder)
    sorted((folder / "out" / "polarquant" / "codes").iterdir())[1].unlink()
    shutil.rmtree(folder / "out" / "polarquant" / "bf16")


@functools.cache
def _hub() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "0"
    from tests.unit.tools.test_download import Hub

    hub = Hub()
    numbers = random.Random(1)
    for name in ("old", "new"):
        hub.models[f"we/{name}"] = {f"{i}.safetensors": numbers.randbytes(3_000_000) for i in "abc"}
    return hub


def _earlier_download(folder: Path) -> None:
    download("we/old", folder / "out", endpoint=_hub().url)


def save(target: str | Path) -> None:
    """Write a small video to a folder under the next free name, or over a file."""
    folder, over = Path(target), Path(target).suffix == ".mp4"
    place = folder if over else media.Place(folder, "video", 1)
    frames = torch.linspace(0, 1, 40).view(-1, 1, 1, 1).repeat(1, 64, 96, 3)
    sound = media.Sound(0.3 * torch.sin(torch.arange(80_000) / 9).repeat(2, 1), 48_000)
    media.write_video(place, frames, media.frame_rate(24), sound)


def _nothing(folder: Path) -> None:
    pass


WORKS = {
    "quantize": Work(_dense, _quantize),
    "quantize --force": Work(_older, functools.partial(_quantize, force=True)),
    "repair": Work(_cut, lambda folder: repair(folder / "out", folder / "dense.safetensors"), resumes=True),
    "download": Work(_nothing, lambda folder: download("we/new", folder / "out", endpoint=_hub().url), resumes=True),
    "download over another revision": Work(
        _earlier_download, lambda folder: download("we/new", folder / "out", endpoint=_hub().url)
    ),
    "save": Work(_nothing, lambda folder: save(folder / "video.mp4")),
}


def _forked(work: Work, folder: Path, after: float | None) -> bool:
    """Run it in a forked process that is killed after some seconds; whether it came to its end before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work.act(folder)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"it failed: {code}"
    return code == 0


def _settled(before: Contents, after: Contents, now: Contents, work: Work) -> bool:
    if now in (before, after):
        return True
    # Where whole files come one by one, each of them is as it will be, and none of before is lost.
    return work.resumes and all(after.get(name) == data for name, data in now.items()) and before.keys() <= now.keys()


def kill(name: str, kills: int, seed: int, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Kill one work again and again.

    Args:
        report: is given every 20 kills what is returned at the end.

    Returns:
        `kills`, how many came too late (`ended`), and `faults`, each a line.
    """
    work, numbers, faults, ended = WORKS[name], random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as home:
        start, right = Path(home) / "start", Path(home) / "right"
        start.mkdir()
        work.prepare(start)
        shutil.copytree(start, right)
        begun = time.monotonic()
        _forked(work, right, None)
        longest = 1.1 * (time.monotonic() - begun)
        before, after = contents(start), contents(right)
        clean = sorted(contents(right, hidden=True))
        for number in range(kills):
            folder = Path(home) / "folder"
            shutil.copytree(start, folder)
            moment = numbers.uniform(0, longest)
            ended += _forked(work, folder, moment)
            where = f"kill {number} after {moment:.3f} s"
            # A replacement that was killed between two renames is finished by the next run: its journal says so.
            unfinished = [path for path in folder.rglob("*replacing.json") if path.is_file()]
            if not unfinished and not _settled(before, after, contents(folder), work):
                faults.append(f"{where}: neither before nor after: {sorted(contents(folder, hidden=True))}")
            try:
                _forked(work, folder, None)
            except AssertionError:
                if contents(folder) != after:  # a checkpoint that is there already is not written again
                    faults.append(f"{where}: the next run failed")
            if contents(folder) != after:
                faults.append(f"{where}: after the next run it is another")
            if (left := sorted(contents(folder, hidden=True))) != clean:
                faults.append(f"{where}: litter after the next run: {sorted(set(left) - set(clean))}")
            shutil.rmtree(folder)
            told = {
                "kills": number + 1,
                "ended": ended,
                "seed": seed,
                "seconds": round(longest, 3),
                "faults": faults[:20],
            }
            if (number + 1) % 20 == 0 or number + 1 == kills:
                report(told)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, help="a JSON file that takes the results, those of other works kept")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not come along into a fork
    faults = 0
    for name in args.names or WORKS:

        def report(result: dict[str, Any], name: str = name) -> None:
            print(f"{name}: {result}", flush=True)
            keep(args.results, name, result)

        faults += len(kill(name, args.kills, args.seed, report)["faults"])
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
