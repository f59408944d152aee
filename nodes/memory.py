"""How much memory a run holds, for the report under the loader."""

from __future__ import annotations

from typing import Any

import psutil
import torch

GRAPHICS = "GPU"
PROGRAM = "RAM"


def most(device: torch.device) -> dict[str, Any]:
    """The most bytes of a CUDA card in use since the last call; of any other device, what this process holds now.

    ComfyUI keeps weights outside torch's allocator too, so it is what the card lacks now (other programs' included), and what
    torch had taken beyond that in between.
    """
    if device.type != "cuda":
        return {"bytes": psutil.Process().memory_info().rss, "device": PROGRAM}
    free, total = torch.cuda.mem_get_info(device)
    between = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"bytes": total - free + max(between, 0), "device": GRAPHICS}
