"""`generate`: a video with sound from a prompt, on a running ComfyUI or on one started for the call."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..format.bounded import read_bytes

if TYPE_CHECKING:
    from ..batch.pool import Where
    from ..batch.several import Outcome, Target
    from ..client.generate import Request

STOPPED = 130  # what shells report for Ctrl-C


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser = subparsers.add_parser(
        "generate",
        help="make a video with sound from a prompt",
        description="Make a video with sound from a prompt. Uses a running ComfyUI (--server), or starts one for "
        "the call and ends it (--comfyui, or the variable COMFYUI_PATH).",
        epilog="What is not given stays as in the workflow (workflows/README.md). "
        'example: python -m hlwq_core generate --prompt "A cat at a piano" --server --output cat.mp4',
    )
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that makes videos of prompts."""
    what = parser.add_argument_group("what to make")
    what.add_argument(
        "--prompt", action="append", default=[], help="what is to be seen and heard; again: one more video"
    )
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with a prompt on each line")
    what.add_argument(
        "--seed",
        type=int,
        help="the same seed makes the same video (default: another each time; with --workflow, the file's)",
    )
    add_what(what)
    add_files(parser)
    add_common(parser)


def add_what(group: Any) -> None:
    """The options that say what a video is, besides prompt and seed."""
    group.add_argument("--negative", metavar="TEXT", help="what is not wanted (has an effect only with cfg above 1)")
    group.add_argument("--width", type=int, help="pixels of the result, a multiple of 32 (64 with --upscale spatial)")
    group.add_argument("--height", type=int, help="as --width")
    group.add_argument("--frames", type=int, help="frames to sample, 8 n + 1; --upscale temporal makes 2 x that - 1")
    group.add_argument("--seconds", type=float, help="length, instead of --frames")
    group.add_argument("--fps", type=float, help="frames a second to sample; --upscale temporal plays twice as many")
    group.add_argument("--steps", type=int, help="sampling steps (of the first stage)")
    group.add_argument("--image", type=Path, metavar="FILE", help="picture to start from")
    group.add_argument("--audio", type=Path, metavar="FILE", help="sound that the picture follows")
    group.add_argument("--upscale", choices=("none", "spatial", "temporal"), default="none", help="second stage")


def add_files(parser: argparse.ArgumentParser) -> None:
    """The options that say what a video is made with."""
    files = parser.add_argument_group("what to make it with (names as ComfyUI lists them, or a part of the name)")
    files.add_argument("--checkpoint", metavar="NAME", help="HLWQ checkpoint")
    files.add_argument("--text-encoder", metavar="NAME", help="Gemma file")
    files.add_argument(
        "--lora", action="append", default=[], metavar="NAME[:STRENGTH]", help="a LoRA (strength 1), can be repeated"
    )
    files.add_argument("--workflow", type=Path, metavar="FILE", help="a workflow of your own in API form, same titles")


def add_set(parser: argparse.ArgumentParser) -> None:
    """The option for any input of a workflow."""
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="TITLE.INPUT=VALUE",
        help="set any input of any node by the node's title (or id), can be repeated",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every command which runs a workflow has."""
    add_set(parser)
    parser.add_argument("--output", metavar="PATH", help="file or folder for the result (default: the current folder)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    add_server(parser)


def add_server(parser: argparse.ArgumentParser, several: bool = False) -> Any:
    """The options that say where a workflow is run; `several`: on more than one ComfyUI at once."""
    group = parser.add_argument_group("where to make it")
    group.add_argument(
        "--server",
        nargs="?",
        const="http://127.0.0.1:8188",
        metavar="URL",
        action="append",
        help="a running ComfyUI (alone: port 8188 of this machine)" + ("; again: one more" if several else ""),
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE|@FILE",
        help="sent to that server alone, such as a token; @FILE keeps it out of the list of processes",
    )
    group.add_argument("--comfyui", metavar="FOLDER", help="ComfyUI to start for the call (default: COMFYUI_PATH)")
    group.add_argument("--base-directory", metavar="FOLDER", help="its folder of models, custom_nodes, input, user")
    group.add_argument("--python", metavar="PROGRAM", help="the Python that has ComfyUI's requirements (default: this)")
    group.add_argument("--start-timeout", type=float, default=300.0, metavar="SECONDS", help="default: 300")
    group.add_argument("--comfyui-log", metavar="FILE", help="keep what it writes")
    group.add_argument(
        "--comfyui-args",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="ARGS",
        help="everything behind this is handed on to it, such as: --comfyui-args --lowvram --reserve-vram 2",
    )
    return group


def run(args: argparse.Namespace) -> int:
    """Make the videos; 0 if all were made, 1 if some failed, 130 if it was stopped."""
    from ..batch.several import target_of

    requests = _requests(args)
    return execute(args, requests, [], target_of(args.output, requests))


def execute(args: argparse.Namespace, requests: Sequence[Request], labels: Sequence[str], target: Target) -> int:
    """Make what the requests ask for on the chosen ComfyUI, and print what comes out."""
    from ..batch.pool import pool
    from ..batch.several import make_all, unless_failed, watcher

    def say(line: str) -> None:
        if not args.json:
            print(line, file=sys.stderr, flush=True)

    def warn(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if len(args.server or ()) > 1:
        raise InputError(
            "this uses one server", expected="one --server", found=len(args.server), fix="`batch` uses several"
        )
    workers = pool(where_of(args), say=say, watcher=watcher(args.json))
    try:
        with stoppable():
            outcome = asyncio.run(make_all(requests, workers, target, labels=labels, say=say, warn=warn))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    _print(args, outcome)
    return 1 if any(result.error for result in unless_failed(outcome)) else 0


def _print(args: argparse.Namespace, outcome: Outcome) -> None:
    from ..batch.several import as_json, describe

    if args.json:
        error = {"error": str(outcome.error)} if outcome.error else {}
        print(json.dumps({"results": [as_json(r) for r in outcome.results], **error}, indent=1))
        return
    # Of the only one an error is told elsewhere.
    told = [r for r in outcome.results if len(outcome.results) > 1 or not r.error]
    if told:
        print("\n".join(describe(r) for r in told))


def where_of(args: argparse.Namespace) -> Where:
    """Where the options say that it is made."""
    from ..batch.pool import Where, check
    from ..client.address import read_headers

    where = Where(
        servers=args.server or (),
        headers=read_headers(args.header),
        comfyui=args.comfyui,
        base=args.base_directory,
        python=args.python,
        timeout=args.start_timeout,
        log=args.comfyui_log,
        extra=args.comfyui_args,
        gpus=getattr(args, "gpus", None),
        workers=getattr(args, "workers", None),
        ray=getattr(args, "ray", None),
    )
    check(where)
    return where


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and a closed terminal end the call as Ctrl-C does, so that it cleans up."""

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        if stopped:  # a service manager sends several: the clean-up that one began is not to be ended by the next
            return
        stopped = True
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)  # asyncio's handler, while that runs
        else:  # a shell's background job ignores SIGINT
            raise KeyboardInterrupt

    names = [n for n in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]
    names = [n for n in names if signal.getsignal(getattr(signal, n)) is not signal.SIG_IGN]  # nohup: it shall go on
    before = {n: signal.signal(getattr(signal, n), stop) for n in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _requests(args: argparse.Namespace) -> list[Request]:
    from dataclasses import replace

    from ..batch.several import target_of
    from ..client.generate import build

    prompts = list(args.prompt)
    if args.prompts:
        try:
            lines = read_bytes(args.prompts, "a list of prompts").decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as e:
            raise InputError(
                "the prompts cannot be read",
                file=args.prompts,
                expected="text in UTF-8",
                found=f"other bytes from {e.start:,} on",
                fix="save the file as UTF-8",
            ) from e
        prompts += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts and not args.workflow:
        raise InputError("there is no prompt", fix='--prompt "A cat playing piano in a jazz club"')
    for path in (args.image, args.audio):
        if path and not path.is_file():
            raise InputError("there is no such file", file=path, fix="correct the path")
    request = replace(base_request(args), seed=args.seed)
    requests = [replace(request, prompt=p) for p in prompts or [None]]
    # What is wrong with the options is said before ComfyUI is started.
    build(requests[0])
    target_of(args.output, requests)
    return requests


def base_request(args: argparse.Namespace, prompt: str | None = None) -> Request:
    """What the options ask for, without a seed."""
    from ..batch.read import lora
    from ..client.generate import Request

    return Request(
        prompt=prompt,
        negative=args.negative,
        checkpoint=args.checkpoint,
        text_encoder=args.text_encoder,
        width=args.width,
        height=args.height,
        frames=args.frames,
        seconds=args.seconds,
        fps=args.fps,
        steps=args.steps,
        image=args.image,
        audio=args.audio,
        loras=[lora(text) for text in args.lora],
        upscale=args.upscale,
        workflow=args.workflow,
        settings=args.settings,
        calibration=getattr(args, "calibration", None),
        moments=getattr(args, "moments", "blocks"),
    )
