"""`batch`: make many videos from a file of jobs, on one ComfyUI, on one a card, or on the cards of a Ray cluster."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HLWQError, InputError, printable
from .generate import STOPPED, add_files, add_server, add_set, add_what, base_request, stoppable, where_of

if TYPE_CHECKING:
    from ..batch.driver import Events
    from ..batch.job import Job
    from ..batch.pool import Where
    from ..batch.results import Results
    from ..terminal.batch_progress import BatchProgress


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser = subparsers.add_parser(
        "batch",
        help="make many videos from a file of jobs",
        description="Make many videos: from a text file with a prompt a line, CSV or JSON lines with a column for each "
        "input, or a folder of pictures. Called again after whatever ended it, it goes on where it was.",
        epilog="docs/batch.md has the forms of the file. What is not given stays as in the workflow. "
        "example: python -m hlwq_core batch jobs.csv --gpus all --output videos",
    )
    parser.add_argument("jobs", type=Path, help="a file (.txt, .csv, .jsonl) or a folder of pictures")
    what = parser.add_argument_group("what to make, where a job does not say it itself")
    what.add_argument("--prompt", help="for jobs without one: what is to be seen and heard")
    what.add_argument(
        "--seed", metavar="SEEDS", help="7, 1-10 or 1,5,20-22: each job once with each (default: by the job)"
    )
    add_what(what)
    add_files(parser)
    add_set(parser)
    parser.add_argument("--output", metavar="FOLDER", help="for the results (default: JOBS without its ending)")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON, and nothing else")
    parser.add_argument("--tries", type=int, default=2, metavar="N", help="how often a job may fail (default: 2)")
    parser.add_argument("--retry-failed", action="store_true", help="try jobs again whose tries are used up")
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="jobs in a worker's queue (default: 2)")
    group = add_server(parser, several=True)
    cards = group.add_mutually_exclusive_group()
    cards.add_argument("--gpus", metavar="all|N,N", help="one ComfyUI a card: all, or these by their numbers")
    cards.add_argument("--workers", type=int, metavar="N", help="so many ComfyUIs; without --ray on the CPU")
    group.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster (auto, HOST:PORT, or local): one ComfyUI a card")
    return parser


def run(args: argparse.Namespace) -> int:
    """Make what is left; 0 if all jobs are made, 1 if some failed, 130 if it was stopped."""
    from ..batch.journal import Journal
    from ..batch.results import STATE, Results, output_folder
    from ..terminal.batch_progress import BatchProgress

    for name in ("tries", "depth", "workers"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= 1000:
            raise InputError(f"--{name} is out of range", expected="1 to 1000", found=value, fix=f"--{name} 2")
    where = where_of(args)
    jobs = _jobs(args)
    folder = output_folder(Path(args.output) if args.output else _beside(args.jobs))
    with Journal(folder / STATE) as journal, BatchProgress(args.json) as progress:
        results = Results(folder, journal)
        results.begin(jobs, progress.say)
        if args.retry_failed:
            for job in jobs:
                if results.state(job).failures and results.state(job).made is None:
                    journal.again(job.id)
        return _run(args, where, jobs, results, progress)


def _jobs(args: argparse.Namespace) -> list[Job]:
    from ..batch.read import check_jobs, read_jobs, seeds

    try:
        seed = seeds(args.seed) if args.seed else []
    except ValueError as error:
        raise InputError("this is no seed", expected=error, found=args.seed, fix="--seed 1-10") from None
    if not args.jobs.exists():
        raise InputError(
            "there is no such file",
            file=args.jobs,
            expected="a file of jobs, or a folder of pictures",
            found="nothing",
            fix="correct the path",
        )
    jobs = read_jobs(args.jobs, base_request(args, args.prompt), seed)
    check_jobs(jobs)
    return jobs


def _beside(jobs: Path) -> Path:
    return Path(f"{jobs.resolve().name}-videos" if jobs.is_dir() else jobs.stem)


def _shown_by(progress: BatchProgress) -> Events:
    """What the driver tells, on the terminal."""
    from ..batch.driver import Events

    class Shown(Events):
        def say(self, line: str) -> None:
            progress.say(printable(line))

        def begin(self, total: int, done: int) -> None:
            progress.begin(total, done)

        def made(self, job: Job, worker: str, seconds: float) -> None:
            progress.made(job.name, worker, seconds)

        def failed(self, job: Job, error: str, left: int) -> None:
            progress.failed(job.name, printable(error), left)

        def workers(self, ready: int) -> None:
            progress.workers(ready)

    return Shown()


def _run(args: argparse.Namespace, where: Where, jobs: list[Job], results: Results, progress: BatchProgress) -> int:
    from ..batch.driver import Driver, is_open
    from ..batch.pool import pool
    from ..batch.several import where_it_runs

    error: HLWQError | None = None
    stopped = False
    driver: Driver | None = None
    try:
        with stoppable():
            some = any(is_open(results.state(job), args.tries) for job in jobs)
            workers = pool(where, say=progress.say) if some else []
            events = _shown_by(progress)
            driver = Driver(jobs, workers, results, tries=args.tries, depth=args.depth, events=events)
            asyncio.run(driver.run())
    except KeyboardInterrupt:
        stopped = True
    except HLWQError as caught:
        error = caught
    progress.__exit__()
    try:
        results.write_manifest(jobs)
    except HLWQError as caught:
        error = error or caught
    failed = _tell(args, jobs, results, error)
    left = driver.left if driver is not None else []
    if left:
        print(where_it_runs(left), file=sys.stderr)
    if stopped:
        print(
            "stopped; the same call goes on" if left else "stopped; nothing is left running; the same call goes on",
            file=sys.stderr,
        )
        return STOPPED
    if error is not None:
        raise error
    if failed:
        print("`--retry-failed` tries again what failed", file=sys.stderr)
    return 1 if failed else 0


def _tell(args: argparse.Namespace, jobs: list[Job], results: Results, error: HLWQError | None) -> int:
    """Print what became of the jobs; how many failed."""
    from ..batch.driver import is_open

    states = [results.state(job) for job in jobs]
    made = sum(state.made is not None for state in states)
    left = sum(is_open(state, args.tries) for state in states)
    failed = len(jobs) - made - left
    folder = results.folder.absolute()
    if args.json:
        entries = []
        for job in jobs:
            entry = results.entry(job)
            for file in entry["files"]:
                file["path"] = str(folder / file["name"])
            entries.append(entry)
        told = {"results": entries, "made": made, "failed": failed, "left": left}
        print(json.dumps({**told, "folder": str(folder), "error": str(error) if error else None}, indent=1))
        return failed
    for job, state in zip(jobs, states, strict=True):
        if state.made is None and state.failures and not is_open(state, args.tries):
            print(f"failed: {job.name} (tried {len(state.failures)} times)\n{state.failures[-1]['error']}")
    print(f"{made:,} of {len(jobs):,} made, {failed:,} failed, {left:,} left: {folder}")
    print("what became of each: manifest.jsonl there")
    return failed
