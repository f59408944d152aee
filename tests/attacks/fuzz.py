"""Coverage-guided fuzzing of every reader (`readers.py`) with atheris: no bare error, no hang, no memory beyond bounds.

    pip install atheris                                      Linux, Python 3.11 to 3.13
    python tests/attacks/fuzz.py                             all readers, 10,000 inputs each
    python tests/attacks/fuzz.py header config --runs 1000000 --seed 7 --results tests/attacks/results/fuzz.json

A fault ends that reader's run; its input lies under --found, and `python tests/attacks/fuzz.py READER FILE` reads it again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
HANG = 5  # seconds
MEMORY = 2048  # MB of the whole process, torch included

# Values at the borders of what a reader may expect in place of any other.
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, "", "0", "a", "..", "/", "\x00", "é", "\ud800",
    "../../x", "A" * 300, [], {}, [[]], [{}], {"": {}}, [1, 2], ["a", "b"],
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value, as far as it does not hold itself a thousand times."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 10_000:
        value = waiting.pop()
        items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inside in items:
            found.append((value, key))
            waiting.append(inside)
    return found


def mutate_json(data: bytes, numbers: random.Random) -> bytes | None:
    """Another JSON of the same form but for a value, a key or a length; None if `data` is none."""
    try:
        value = json.loads(data)
        places = _places(value)
    except (ValueError, RecursionError):
        return None
    for _ in range(numbers.choice((1, 1, 1, 2, 4))):
        if not places:
            value = numbers.choice(_ODD)
            break
        container, key = numbers.choice(places)
        try:
            present = container[key]
        except (KeyError, IndexError):
            continue
        act = numbers.randrange(6)
        if isinstance(present, str) and present[:1] in "{[" and numbers.random() < 0.7:
            # A text that is JSON itself, as metadata are.
            inside = mutate_json(present.encode("utf-8", "surrogatepass"), numbers)
            container[key] = present if inside is None else inside.decode("utf-8", "surrogatepass")
        elif act == 0:
            del container[key]
        elif act == 1 and isinstance(container, dict):
            container[str(numbers.choice(_ODD))] = present
        elif act == 2 and isinstance(container, list):
            container.insert(key, present)
        elif act == 3:
            container[key] = numbers.choice(places)[0]
            try:
                json.dumps(value)
            except (ValueError, RecursionError):  # it holds itself
                container[key] = present
        else:
            container[key] = numbers.choice(_ODD)
        places = _places(value)
    try:
        return json.dumps(value, ensure_ascii=numbers.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None


def spoil(data: bytes, numbers: random.Random) -> bytes:
    """The data with something changed, without libFuzzer."""
    if numbers.random() < 0.7 and (changed := mutate_json(data, numbers)) is not None:
        return changed
    spoiled = bytearray(data)
    for _ in range(numbers.choice((1, 1, 2, 8))):
        at = numbers.randrange(len(spoiled) + 1)
        act = numbers.randrange(4)
        if act == 0:
            del spoiled[at : at + numbers.choice((1, 2, 8, 1000))]
        elif act == 1:
            spoiled[at:at] = numbers.randbytes(numbers.choice((1, 2, 8)))
        else:
            spoiled[at : at + 1] = bytes([numbers.choice((0, 1, 0x7F, 0x80, 0xFF, numbers.randrange(256)))])
    return bytes(spoiled)


def _one(name: str, arguments: list[str]) -> None:
    """Fuzz one reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["hlwq_core"]):
        sys.path.insert(0, str(REPO))
        from tests.attacks import readers
    reader = readers.READERS[name]

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        numbers = random.Random(seed)
        if numbers.random() < 0.6 and (changed := mutate_json(data, numbers)) is not None and len(changed) <= most:
            return changed
        return bytes(atheris.Mutate(data, most))

    # In memory until the end: the reader's folder is removed after every input.
    atheris.Setup(
        [sys.argv[0], *arguments], lambda data: readers.attempt(reader, data) and None, custom_mutator=mutator
    )
    atheris.Fuzz()


def fuzz(name: str, runs: int, seed: int, found: Path, seconds: int = 0) -> dict[str, Any]:
    """Fuzz one reader in a process of its own, for at most so many seconds unless they are 0."""
    sys.path.insert(0, str(REPO))
    from tests.attacks import readers

    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryDirectory(prefix="hlwq-fuzz-", dir=memory) as home:
        for number, data in enumerate(readers.READERS[name].seeds()):
            (Path(corpus) / str(number)).write_bytes(data)
        found.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        done = subprocess.run(
            [
                sys.executable, __file__, "--one", name, "--", f"-runs={runs}", f"-seed={seed}", f"-timeout={HANG}",
                f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={found}/{name}-", "-max_len=8192", "-print_final_stats=1",
                f"-max_total_time={seconds}", "-len_control=0", corpus,
            ],
            capture_output=True, text=True, errors="replace", env=os.environ | {"OMP_NUM_THREADS": "1", readers.HOME: home},
        )  # fmt: skip
    told = done.stderr + done.stdout
    count = re.search(r"number_of_executed_units:\s*(\d+)", told)
    peak = re.search(r"peak_rss_mb:\s*(\d+)", told)
    covered = re.findall(r"cov: (\d+)", told)
    result: dict[str, Any] = {
        "runs": int(count[1]) if count else 0,
        "seed": seed,
        "seconds": round(time.monotonic() - begun),
        "covered": int(covered[-1]) if covered else 0,
        "peak_mb": int(peak[1]) if peak else 0,
        "fault": None,
    }
    if done.returncode:
        lines = [line for line in told.splitlines() if line.strip()]
        named = [
            line for line in lines if re.match(r"\s*(Exception|[A-Za-z.]*(Error|Exception)\b|.*ERROR: libFuzzer)", line)
        ]
        result["fault"] = (named or lines)[0].strip()[:300] if lines else f"exit {done.returncode}"
        result["told"] = "\n".join(lines[-40:])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="READER", help="readers; the last may be a file that is read once")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=0, help="at most, for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir()) / "hlwq-found")
    parser.add_argument("--results", type=Path, help="a JSON file that takes the results, those of other readers kept")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        _one(args.one, args.names)
        return 0
    sys.path.insert(0, str(REPO))
    from tests.attacks import keep, readers

    if len(args.names) == 2 and args.names[1] not in readers.READERS:
        print(readers.attempt(readers.READERS[args.names[0]], Path(args.names[1]).read_bytes()))
        return 0
    names = args.names or list(readers.READERS)
    faults = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        running = {pool.submit(fuzz, name, args.runs, args.seed, args.found, args.seconds): name for name in names}
        for future in concurrent.futures.as_completed(running):
            name, result = running[future], future.result()
            told = result.pop("told", "")
            faults += result["fault"] is not None
            print(f"{name}: {result}", *([told] if told else []), sep="\n", flush=True)
            keep(args.results, name, result)
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
