"""How much memory a run holds, for the report under the loader."""

from __future__ import annotations

from typing import Any

import psutil
import torch

GRAPHICS = "GPU"
PROGRAM = "RAM"


def most(device: torch.device) -> dict[str, Any]:
    """The most bytes that torch held on a CUDA device since the last call; of any other device, what this process holds."""
    if device.type != "cuda":
        return {"bytes": psutil.Process().memory_info().rss, "device": PROGRAM}
    held = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"bytes": held, "device": GRAPHICS}
