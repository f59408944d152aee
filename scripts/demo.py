"""From a fresh clone to a video with sound, in one command.

    python3 scripts/demo.py --prompt "A cat playing piano in a jazz club"

Makes an environment and a tiny LTX-2.3 in the published layout, installs the pack into a ComfyUI of its own and asks
`python -m hlwq_core generate` for the video, as a user with the real checkpoint would. The tiny model has random
weights: it shows that everything works, not a cat. Options that are not named here go to `generate`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
from pathlib import Path

from environment import REPO, Environment, SetupError, add_arguments, ensure, link_tree, say, tiny_model

# What two CPU cores do in a few seconds; the workflow's own values are for the real model.
SMALL = {"width": 128, "height": 128, "frames": 25, "fps": 24, "steps": 8}


def base_directory(environment: Environment) -> Path:
    """A ComfyUI base directory with the tiny's models, and this checkout as a custom node."""
    tiny = tiny_model(environment)
    base = environment.cache / "demo" / tiny.name
    link_tree(tiny, base)
    for folder in ("custom_nodes", "output", "user"):
        (base / folder).mkdir(exist_ok=True)
    node = base / "custom_nodes" / "ComfyUI-HLWQ"
    if not node.exists() or node.resolve() != REPO:
        if node.is_symlink():
            node.unlink()
        shutil.rmtree(node, ignore_errors=True)
        try:
            node.symlink_to(REPO, target_is_directory=True)
        except OSError:  # Windows without the right to make links
            shutil.copytree(REPO, node, ignore=shutil.ignore_patterns(".git", "tests", "__pycache__"))
    return base


def generate(environment: Environment, base: Path, options: list[str]) -> int:
    """Run the command that users have. It ends its ComfyUI itself, also on Ctrl-C: the signal is handed on, and
    the command waited for."""
    command = [str(environment.python), "-m", "hlwq_core", "generate"]
    # The user's options last: --comfyui-args takes all that follows.
    command += ["--comfyui", str(environment.comfyui), "--base-directory", str(base), *options]
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: caught.append(number))
    own_group = os.name != "nt"  # else a terminal's Ctrl-C would arrive twice; Windows cannot be sent one
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(REPO)}, start_new_session=own_group)
    while True:
        if caught and own_group:
            process.send_signal(caught.pop())
        try:
            return process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--prompt", default="A cat playing piano in a jazz club")
    parser.add_argument("--output", default="hlwq-demo.mp4", help="default: %(default)s")
    for name, value in SMALL.items():
        parser.add_argument(f"--{name}", default=value, type=int, help="default: %(default)s")
    args, rest = parser.parse_known_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # pip must not go on without us
    try:
        environment = ensure(args.comfyui, args.python)
        base = base_directory(environment)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; the next start begins where this one was")
        return 130
    options = ["--prompt", args.prompt, "--output", args.output]
    for name in SMALL:
        options += [f"--{name}", str(getattr(args, name))]
    return generate(environment, base, [*options, *rest])


if __name__ == "__main__":
    raise SystemExit(main())
