"""The groups of processes that torch.distributed makes: NCCL between cards, gloo in memory.

The backends are made directly, not by `init_process_group`: a process has one default group, which may be another pack's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

# The processes are of one machine: nobody else can reach them.
HOST, LOOPBACK = "127.0.0.1", "lo"
# torch's own watch over NCCL would end the process, and ComfyUI with it: we watch ourselves.
OURS_TO_WATCH = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
}


def unavailable_reason(device: torch.device) -> str | None:
    """Why processes cannot work together on devices of this kind; None if they can."""
    if not torch.distributed.is_available():
        return "this torch has no torch.distributed"
    if not torch.distributed.is_gloo_available():
        return "this torch has no gloo"
    if device.type == "cuda" and not torch.distributed.is_nccl_available():
        return "this torch has no NCCL, which cards exchange by (on Windows there is none: use Linux, or WSL)"
    if device.type not in ("cuda", "cpu"):
        return f"nothing exchanges tensors between {device.type} devices"
    return None


class Groups:
    """A rank's groups, of processes of one machine.

    Args:
        meeting: a file by which they find one another; in a folder that only their user can read.
        rank, ranks: which of how many.
        device: that it computes on.
        meeting_s, timeout: seconds that one waits for another to come; later, in memory. Cards are not waited for.

    Attributes:
        data: for tensors on the device.
        control: for tensors in memory.
    """

    def __init__(
        self,
        meeting: Path,
        rank: int,
        ranks: int,
        device: torch.device,
        meeting_s: float = 60.0,
        timeout: float = 600.0,
    ):
        store = torch.distributed.FileStore(str(meeting), ranks)
        options = torch.distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [torch.distributed.ProcessGroupGloo.create_device(hostname=HOST)]
        options._timeout = timedelta(seconds=meeting_s)
        self.control: Any = torch.distributed.ProcessGroupGloo(_prefix("control", store), rank, ranks, options)
        self.data: Any
        if device.type == "cuda":
            with _environment(OURS_TO_WATCH, {"NCCL_SOCKET_IFNAME": LOOPBACK}):
                nccl = torch.distributed.ProcessGroupNCCL.Options()
                self.data = torch.distributed.ProcessGroupNCCL(_prefix("data", store), rank, ranks, nccl)
                self.data.broadcast([torch.zeros(1, device=device)]).wait()  # it reads the environment now
        else:
            self.data = torch.distributed.ProcessGroupGloo(_prefix("data", store), rank, ranks, options)
            _have_time(self.data, timeout)
        _have_time(self.control, timeout)

    def abort(self) -> None:
        """Let go whoever waits in an exchange: another rank will never come. What they were given is of no use."""
        for group in (self.data, self.control):
            with contextlib.suppress(Exception):
                group.abort()


def _have_time(group: Any, seconds: float) -> None:
    if hasattr(group, "_set_default_timeout"):
        group._set_default_timeout(timedelta(seconds=seconds))


def _prefix(name: str, store: Any) -> Any:
    return torch.distributed.PrefixStore(name, store)


@contextlib.contextmanager
def _environment(values: dict[str, str], unless_set: dict[str, str]) -> Iterator[None]:
    values = {**unless_set, **{name: os.environ[name] for name in unless_set if name in os.environ}, **values}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
