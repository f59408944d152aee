"""Opening a full-size LTX-2.3 folder and building its 1,347 packed tensors, and inspecting it: headers and samples, no weights.

python benchmarks/open_build.py

The folder has real headers and norms, but holes for codes (290 MB on the disk, in --folder or the temporary one).
`open_build_s` is the median of some calls in one process; `first_s` is the first one, with what Python imports then;
`inspect_cold_s` follows after the system was asked to forget the files (where it can be asked).
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import REPO, parser, save

sys.path.insert(0, str(REPO))
sys.path.append(str(REPO / "scripts"))

from make_full import make_full

from hlwq_core.checkpoints.checkpoint import open_checkpoint
from hlwq_core.models import ltx23
from hlwq_core.running import packed_tensor
from hlwq_core.tools.inspect import inspect


def build(folder: Path) -> int:
    """What the loader does first; the number of tensors."""
    checkpoint = open_checkpoint(folder)
    checkpoint.resolve_names(ltx23.tensors())
    return len([packed_tensor.quantized_tensor(checkpoint.packed(name)) for name in checkpoint.names()])


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def forget(folder: Path) -> bool:
    """Ask the system to drop the files from its cache; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--folder", help="where the sparse folder is made (default the temporary folder)")
    arguments.add_argument("--repeat", type=int, default=7)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = make_full(Path(temporary) / "LTX-2.3-22B-HLWQ-Q5", norms=True)
        first, tensors = timed(lambda: build(folder))
        warm = [timed(lambda: build(folder))[0] for _ in range(args.repeat)]
        warm_inspect = [timed(lambda: inspect(folder))[0] for _ in range(args.repeat)]
        cold_inspect, found = timed(lambda: inspect(folder)) if forget(folder) else (None, inspect(folder))
        if not found.complete or tensors != found.report["quantized"]:
            raise SystemExit("the folder is not read as it was made")
    figures = {
        "tensors": tensors,
        "first_s": first,
        "open_build_s": statistics.median(warm),
        "open_build_min_s": min(warm),
        "inspect_s": statistics.median(warm_inspect),
        "inspect_cold_s": cold_inspect,
    }
    save("open_build", figures, {"open_build_s": figures["open_build_s"]})


if __name__ == "__main__":
    main()
