"""Kill -9 of a batch at random moments: of its ComfyUIs, of Ray's actors, of the batch itself. Called again until it ends, each of 12
jobs has exactly one output, and no process of it is left.

    python tests/attacks/batches.py                                   stand-ins for ComfyUI, until 20 kills
    python tests/attacks/batches.py stand-ins --kills 200 --seed 7 --results tests/attacks/results/batches.json
    COMFYUI_PATH=… python tests/attacks/batches.py comfyui --kills 30        ComfyUI with the tiny model, two at a time
    COMFYUI_PATH=… python tests/attacks/batches.py ray --kills 30            the same as Ray's actors

Results are written after every round. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from hlwq_core.media import probe  # noqa: E402
from tests.attacks import keep  # noqa: E402

JOBS = 12
# A variable that each process of a round inherits: who has it is of the round.
MARK = "HLWQ_ROUND"
PROMPT = "A cat playing piano in a jazz club"
SMALL = ["--width", "64", "--height", "64", "--frames", "9", "--fps", "12", "--steps", "1"]


@dataclass(frozen=True)
class Call:
    """A batch that is killed.

    Attributes:
        folder: its log, jobs and temporary files; `output` in it.
        words: the command's arguments.
        variables: its environment.
        start: seconds until the first ComfyUI answers, about; after a kill before that nothing was made.
        patience: seconds that the rest has to follow a batch that was killed.
        whole: raises AssertionError if a file is none of its outputs.
    """

    folder: Path
    words: list[str]
    variables: dict[str, str]
    start: float
    whole: Callable[[Path], None]
    patience: float = 40

    @property
    def output(self) -> Path:
        """Where the videos go."""
        return self.folder / "out"

    @property
    def log(self) -> Path:
        """What the calls said."""
        return self.folder / "log"

    def made(self) -> list[Path]:
        """The outputs."""
        return sorted(self.output.glob("*.mp4"))

    def processes(self) -> dict[str, list[int]]:
        """Whose process is alive, by kind: `comfyui`, `actor`, `other`; the batch itself left out."""
        found: dict[str, list[int]] = {"comfyui": [], "actor": [], "other": []}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if state == "Z" or f"{MARK}={self.folder}".encode() not in variables or b"batch" in command:
                continue
            kind = "other"
            if any(word.endswith(b"/main.py") for word in command):
                kind = "comfyui"
            elif command[0].startswith(b"ray::Actor"):
                kind = "actor"
            found[kind].append(int(entry.name))
        return found

    def left(self) -> tuple[float, list[str]]:
        """Seconds until nobody is alive, and whose commands are then."""
        begun = time.monotonic()
        while any(alive := self.processes().values()) and time.monotonic() - begun < self.patience:
            time.sleep(0.1)
        return time.monotonic() - begun, [_command(pid) for pids in alive for pid in pids]


def _command(pid: int) -> str:
    try:
        return (
            f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')[:300]}"
        )
    except OSError:
        return f"{pid}, gone by now"


def stand_ins(folder: Path, number: int) -> Call:
    """Two stand-ins for ComfyUI (tests/unit/batch/fake_comfyui.py)."""
    from tests.unit.batch.conftest import Place

    place = Place(folder)
    jobs = place.jobs(*(f"prompt {number} {n}" for n in range(JOBS)))
    variables = {"FAKE_RUNS": str(place.runs), "FAKE_PIDS": str(place.pids), "FAKE_SECONDS": "0.15"}

    def whole(path: Path) -> None:
        assert path.read_text().count(f"film of prompt {number} ") == 50

    return Call(folder, place.arguments(jobs), _variables(folder, **variables), 1.5, whole)


def comfyui(folder: Path, number: int, ray: bool = False) -> Call:
    """Two ComfyUIs on the CPU with the tiny model."""
    base = folder / "base"
    path = make_base(base)
    jobs = folder / "jobs.txt"
    jobs.write_text("\n".join([PROMPT] * JOBS))
    words = ["batch", str(jobs), *SMALL, "--workers", "2", "--comfyui", str(path), "--output", str(folder / "out")]
    words += ["--base-directory", str(base), "--start-timeout", "900", *(["--ray", "local"] if ray else [])]
    words += ["--comfyui-args", "--cpu", "--disable-api-nodes"]
    more = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if ray:
        there = _environment().ray_folder(_here())
        # As tests/unit/batch/test_rounds.py; sockets have short paths.
        more |= {"PYTHONPATH": f"{there}{os.pathsep}{REPO}", "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
        more |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

    def whole(path: Path) -> None:
        info = probe(path)
        assert info.video is not None and info.audio is not None, info
        assert (info.video.width, info.video.height, info.video.frames) == (64, 64, 9), info

    return Call(folder, words, _variables(folder, **more), *((40.0, whole, 150) if ray else (25.0, whole)))


def make_base(base: Path) -> Path:
    """A base directory with the tiny model and the pack; the folder of ComfyUI."""
    environment, here = _environment(), _here()
    tiny = environment.tiny_model(here)
    for folder in ("output", "user", "custom_nodes"):
        (base / folder).mkdir(parents=True)
    environment.link_tree(tiny / "models", base / "models")
    shutil.copytree(tiny / "input", base / "input")
    (base / "custom_nodes" / "ComfyUI-HLWQ").symlink_to(REPO, target_is_directory=True)
    return Path(here.comfyui)


def _environment() -> Any:
    from scripts import environment

    return environment


def _here() -> Any:
    given = os.environ.get("COMFYUI_PATH", "")
    if not (Path(given) / "main.py").is_file():
        sys.exit("set COMFYUI_PATH to the folder of a ComfyUI, and call this with its Python")
    cache = Path(os.environ.get("HLWQ_CACHE") or "~/.cache/comfyui-hlwq").expanduser()
    return _environment().Environment(Path(sys.executable), Path(given).resolve(), cache)


def _variables(folder: Path, **more: str) -> dict[str, str]:
    (folder / "temp").mkdir()
    return {**os.environ, MARK: str(folder), "TMPDIR": str(folder / "temp"), "PYTHONPATH": str(REPO), **more}


CALLS: dict[str, Callable[[Path, int], Call]] = {
    "stand-ins": stand_ins,
    "comfyui": comfyui,
    "ray": lambda folder, number: comfyui(folder, number, ray=True),
}


def _wait(call: Call, driver: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Until a random moment: while it starts, or after some more outputs."""
    begun, count = time.monotonic(), 0
    patience = chance.uniform(0, call.start)
    if chance.random() < 0.6:
        patience, count = 20 * call.start, len(call.made()) + chance.randint(1, 2)
    while driver.poll() is None and time.monotonic() - begun < patience and (not count or len(call.made()) < count):
        time.sleep(0.02)
    if count:
        time.sleep(chance.uniform(0, 0.1 * call.start))


def one_round(call: Call, chance: random.Random, most: int) -> dict[str, Any]:
    """Call it, kill, call it again, until it ends after at most so many kills.

    Returns:
        `kills` by kind, `calls`, `gone` (the longest time until the rest had followed a killed batch), `faults`.
    """
    kills: Counter[str] = Counter()
    faults: list[str] = []
    calls, gone, code = 0, 0.0, -9
    while code == -9 and not faults:
        calls += 1
        first_starts, before = 0, len(call.made())
        with call.log.open("ab") as log:
            command = [sys.executable, "-m", "hlwq_core", *call.words]
            driver = subprocess.Popen(command, env=call.variables, cwd=REPO, stdout=log, stderr=log)
        try:
            while driver.poll() is None and kills.total() < most:
                _wait(call, driver, chance)
                alive = call.processes()
                kind = chance.choice(["driver", *(kind for kind in ("comfyui", "actor") if alive[kind])])
                if driver.poll() is None:
                    kills[kind] += 1
                    first_starts += kind == "comfyui" and len(call.made()) == before
                    os.kill(driver.pid if kind == "driver" else chance.choice(alive[kind]), signal.SIGKILL)
                    if kind == "driver":
                        break
            code = driver.wait(40 * call.start)
        except ProcessLookupError:  # it ended by itself
            code = driver.wait(40 * call.start)
        except subprocess.TimeoutExpired:
            faults.append(f"it did not end within {40 * call.start:.0f} s")
        finally:
            driver.kill()
            driver.wait()
        seconds, left = call.left()
        gone = max(gone, seconds)
        # Where two ComfyUIs died before its first output it may have none left, and says so; the next call goes on.
        if code == 2 and first_starts >= 2:
            code = -9
        if left:
            faults.append(f"left after {'a kill' if code == -9 else 'the end'}: {left}")
    if code not in (0, -9):
        faults.append(f"exit {code}: {call.log.read_text(errors='replace')[-1500:]}")
    if not faults:
        faults += check(call)
    return {"kills": dict(kills), "calls": calls, "gone": round(gone, 1), "faults": faults}


def check(call: Call) -> list[str]:
    """What is wrong with what a batch that ended has made."""
    faults = []
    made = call.made()
    state = call.output / ".hlwq-batch"
    lines = [json.loads(line) for line in (call.output / "manifest.jsonl").read_text().splitlines()]
    named = sorted(file["name"] for line in lines for file in line["files"])
    if len(made) != JOBS or named != [path.name for path in made]:
        faults.append(f"{len(made)} outputs, {len(named)} in the manifest")
    for path in made:
        try:
            call.whole(path)
        except Exception as error:
            faults.append(f"{path.name}: {type(error).__name__}: {error}")
    if any(line["tries"] != 1 for line in lines):
        faults.append(f"tries {[line['tries'] for line in lines]}: a dead worker costs none")
    if (count := (state / "journal.jsonl").read_text().count('"event": "made"')) != JOBS:
        faults.append(f"{count} made in the journal")
    litter = [*(state / "parts").iterdir(), *(call.folder / "temp").glob("hlwq-*")]
    if litter:
        faults.append(f"litter: {litter}")
    return faults


def rounds(name: str, kills: int, seed: int, most: int, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Rounds until there were so many kills; `report` is given the sums after each."""
    totals: Counter[str] = Counter()
    sums: dict[str, Any] = {"rounds": 0, "outputs": 0, "seed": seed, "gone": 0.0, "seconds": 0, "faults": []}
    begun = time.monotonic()
    while totals.total() < kills and len(sums["faults"]) < 3:
        with tempfile.TemporaryDirectory(prefix="hlwq-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            call = CALLS[name](Path(folder), sums["rounds"])
            result = one_round(call, random.Random(f"{seed} {sums['rounds']}"), most)
            totals.update(result["kills"])
            sums["rounds"] += 1
            sums["outputs"] += len(call.made())
            sums["kills"] = dict(sorted(totals.items()))
            sums["gone"] = max(sums["gone"], result["gone"])
            sums["faults"] += [f"round {sums['rounds']}: {fault}" for fault in result["faults"]]
            sums["seconds"] = round(time.monotonic() - begun)
            report(sums)
    return sums


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CALL", help=", ".join(CALLS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=6, help="kills of one round")
    parser.add_argument("--results", type=Path, help="a JSON file that takes the results, those of other calls kept")
    args = parser.parse_args()
    faults = 0
    for name in args.names or ["stand-ins"]:

        def report(sums: dict[str, Any], name: str = name) -> None:
            print(f"{name}: {sums}", flush=True)
            keep(args.results, name, sums)

        faults += len(rounds(name, args.kills, args.seed, args.most, report)["faults"])
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
