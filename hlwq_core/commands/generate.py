"""`generate`: a video with sound from a prompt, on a running ComfyUI or on one started for the call."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import comfyui
from ..client.server import LocalServer
from ..errors import InputError
from ..format.bounded import read_bytes

if TYPE_CHECKING:
    from ..client.generate import Request, Result

_STOPPED = 130  # what shells report for Ctrl-C


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Describe the command's options."""
    parser = subparsers.add_parser(
        "generate",
        help="make a video with sound from a prompt",
        description="Make a video with sound from a prompt. Uses a running ComfyUI (--server), or starts one for "
        "the call and ends it (--comfyui, or the variable COMFYUI_PATH).",
        epilog="What is not given stays as in the workflow (workflows/README.md).",
    )
    what = parser.add_argument_group("what to make")
    what.add_argument(
        "--prompt", action="append", default=[], help="what is to be seen and heard; again: one more video"
    )
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with a prompt on each line")
    what.add_argument("--negative", metavar="TEXT", help="what is not wanted (has an effect only with cfg above 1)")
    what.add_argument("--width", type=int, help="pixels of the result, a multiple of 32 (64 with --upscale spatial)")
    what.add_argument("--height", type=int, help="as --width")
    what.add_argument("--frames", type=int, help="frames to sample, 8 n + 1; --upscale temporal makes 2 x that - 1")
    what.add_argument("--seconds", type=float, help="length, instead of --frames")
    what.add_argument("--fps", type=float, help="frames a second to sample; --upscale temporal plays twice as many")
    what.add_argument("--seed", type=int, help="the same seed makes the same video (default: another each time)")
    what.add_argument("--steps", type=int, help="sampling steps (of the first stage)")
    what.add_argument("--image", type=Path, metavar="FILE", help="picture to start from")
    what.add_argument("--audio", type=Path, metavar="FILE", help="sound that the picture follows")
    what.add_argument("--upscale", choices=("none", "spatial", "temporal"), default="none", help="second stage")
    files = parser.add_argument_group("what to make it with (names as ComfyUI lists them, or a part of the name)")
    files.add_argument("--checkpoint", metavar="NAME", help="HLWQ checkpoint")
    files.add_argument("--text-encoder", metavar="NAME", help="Gemma file")
    files.add_argument(
        "--lora", action="append", default=[], metavar="NAME[:STRENGTH]", help="a LoRA (strength 1), can be repeated"
    )
    files.add_argument("--workflow", type=Path, metavar="FILE", help="a workflow of your own in API form, same titles")
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every command which runs a workflow has."""
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="TITLE.INPUT=VALUE",
        help="set any input of any node by the node's title (or id), can be repeated",
    )
    parser.add_argument("--output", metavar="PATH", help="file or folder for the result (default: the current folder)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    group = parser.add_argument_group("where to make it")
    group.add_argument(
        "--server", nargs="?", const="http://127.0.0.1:8188", metavar="URL", help="a running ComfyUI (alone: port 8188)"
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


def run(args: argparse.Namespace) -> int:
    """Make the videos; 0 if all were made, 1 if some failed, 130 if it was stopped."""
    requests = _requests(args)
    return execute(args, lambda url, **how: _generate(url, requests, args.output, **how))


async def _generate(url: str, requests: list[Request], output: str | None, **how: Any) -> list[Result]:
    from ..client import generate

    return await generate.generate(url, requests, output, **how)


def execute(args: argparse.Namespace, work: Any) -> int:
    """Run `work(url, check=, say=, quiet=)` on the chosen ComfyUI and print what comes out."""
    from ..client.generate import as_json, describe

    def say(line: str) -> None:
        if not args.json:
            print(line, file=sys.stderr, flush=True)

    try:
        with _stoppable(), _comfyui(args, say) as (url, check):
            results = asyncio.run(work(url, check=check, say=say, quiet=args.json))
    except KeyboardInterrupt:
        print("stopped; nothing is left running", file=sys.stderr)
        return _STOPPED
    if args.json:
        print(json.dumps({"results": [as_json(r) for r in results]}, indent=1))
    else:
        print("\n".join(describe(r) for r in results))
    return 1 if any(r.error for r in results) else 0


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and a closed terminal end the call as Ctrl-C does, so that it cleans up."""

    def stop(*_: object) -> None:
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


@contextlib.contextmanager
def _comfyui(args: argparse.Namespace, say: Any) -> Iterator[tuple[str, Any]]:
    if args.server:
        given = [o for o in ("comfyui", "base_directory", "python", "comfyui_args", "comfyui_log") if getattr(args, o)]
        if given:
            raise InputError(
                "--server uses a ComfyUI that runs; these options are for one that is started",
                found=", ".join("--" + g.replace("_", "-") for g in given),
                fix="leave one or the other away",
            )
        yield args.server, None
        return
    if not 0 < args.start_timeout < float("inf"):
        raise InputError("this is no time to wait", found=args.start_timeout, fix="--start-timeout 300")
    server = LocalServer(
        comfyui.program(args.comfyui),
        base=args.base_directory,
        python=args.python,
        extra=args.comfyui_args,
        timeout=args.start_timeout,
        log=args.comfyui_log,
        say=say,
    )
    with server:
        yield server.url, server.check


def _requests(args: argparse.Namespace) -> list[Request]:
    from ..client.generate import Request, build, random_seed, target_of

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
    request = Request(
        negative=args.negative,
        checkpoint=args.checkpoint,
        text_encoder=args.text_encoder,
        width=args.width,
        height=args.height,
        frames=args.frames,
        seconds=args.seconds,
        fps=args.fps,
        seed=args.seed if args.seed is not None or args.workflow else random_seed(),
        steps=args.steps,
        image=args.image,
        audio=args.audio,
        loras=[_lora(text) for text in args.lora],
        upscale=args.upscale,
        workflow=args.workflow,
        settings=args.settings,
    )
    requests = [replace(request, prompt=p) for p in prompts or [None]]
    # What is wrong with the options is said before ComfyUI is started.
    build(requests[0])
    target_of(args.output, requests)
    return requests


def _lora(text: str) -> tuple[str, float]:
    name, colon, strength = text.rpartition(":")
    if colon:
        with contextlib.suppress(ValueError):
            return name, float(strength)
    return text, 1.0
