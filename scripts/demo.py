"""From a fresh clone to a video with sound, in one command.

    python3 scripts/demo.py --prompt "A cat playing piano in a jazz club"

Makes an environment and a tiny LTX-2.3 in the published layout, installs the pack into a ComfyUI of its own and asks
`python -m hlwq_core generate` for the video, as a user with the real checkpoint would. The tiny model has random
weights: it shows that everything works, not a cat. Options that are not named here go to `generate`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from environment import REPO, Environment, SetupError, add_arguments, ensure, link_tree, say, tiny_model

# What two CPU cores do in a few seconds; the workflow's own values are for the real model.
SMALL = {"width": 128, "height": 128, "frames": 25, "fps": 24.0, "steps": 8}
# Ctrl-C, kill, and a terminal that is closed (not on Windows).
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
if STOPS[2:] and signal.getsignal(STOPS[2]) is signal.SIG_IGN:
    STOPS.pop()  # nohup: it shall go on
PROMPT = "A cat playing piano in a jazz club"


def base_directory(environment: Environment) -> Path:
    """A ComfyUI base directory with the tiny's models, and this checkout as a custom node.

    Each checkout has its own: another one's demo may run at the same time, with other nodes.
    """
    tiny = tiny_model(environment)
    base = environment.cache / "demo" / f"{tiny.name}-{hashlib.sha256(str(REPO).encode()).hexdigest()[:8]}"
    base.mkdir(parents=True, exist_ok=True)
    link_tree(tiny, base)
    link_tree(tiny / "ltx25" / "models", base / "models")  # where this ComfyUI knows LTX-2.5
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
    command += ["--comfyui", str(environment.comfyui), "--base-directory", str(base), *options]
    caught: list[int] = []
    for number in STOPS:
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


def read_options(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The demo's own options, and all that `generate` gets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--prompt", action="append", help=f"default: {PROMPT}; again: one more video")
    parser.add_argument("--output", default="hlwq-demo.mp4", help="default: %(default)s")
    for name, value in SMALL.items():
        parser.add_argument(f"--{name}", type=type(value), help=f"default: {value:g}")
    args, rest = parser.parse_known_args(arguments)

    def given(option: str) -> bool:
        return any(word == option or word.startswith(option + "=") for word in rest)

    options = []
    for prompt in args.prompt or ([] if given("--prompts") or given("--workflow") else [PROMPT]):
        options += ["--prompt", prompt]
    options += ["--output", args.output]
    for name, value in SMALL.items():
        wanted = getattr(args, name)
        if wanted is None and (name == "frames" and given("--seconds") or given("--workflow")):
            continue
        options += [f"--{name}", f"{value if wanted is None else wanted}"]
    # Last, because --comfyui-args takes all that follows.
    return args, [*options, *rest]


def main() -> int:
    args, options = read_options()
    for number in STOPS:
        signal.signal(number, signal.default_int_handler)  # pip must not go on without us
    try:
        environment = ensure(args.comfyui, args.python)
        base = base_directory(environment)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; the next start begins where this one was")
        return 130
    return generate(environment, base, options)


if __name__ == "__main__":
    raise SystemExit(main())
