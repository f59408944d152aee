"""The command line: `python -m hlwq_core COMMAND`. Each command is a module of `hlwq_core/commands`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from . import __version__, commands
from .errors import HLWQError, missing_module

ERROR = 2
INTERRUPTED = 130


def parser(name: str = "python -m hlwq_core") -> argparse.ArgumentParser:
    """The parser with all commands, for a program of this name."""
    top = argparse.ArgumentParser(
        prog=name,
        description="HLWQ checkpoints: make, check, complete, and generate video with them.",
    )
    top.add_argument("--version", action="version", version=f"ComfyUI-HLWQ {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(commands.__path__):
        command = importlib.import_module(f".{module.name}", commands.__name__)
        command.add_parser(subparsers).set_defaults(run=command.run, parser=parser)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done; 1 done, and something is wrong with what was looked at; 2 an error; 130 interrupted.
    """
    try:
        args = parser().parse_args(arguments)
        return int(args.run(args) or 0)
    except HLWQError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except ModuleNotFoundError as error:
        print(missing_module(error), file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except Exception:
        # Python's own exit code would be 1, which says that something is wrong with what was looked at.
        traceback.print_exc()
        return ERROR
