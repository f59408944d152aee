"""The published folder of LTX-2.3 22B at full size, without its weights: headers real, codes zero, no room taken on the disk.

    python scripts/make_full.py FOLDER

For tests and benchmarks of what reads headers, at the size that users have: 5,947 tensors in five sparse files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parents[1]
if str(REPO) not in sys.path:
    sys.path.append(str(REPO))

from hlwq_core.format.packed import encoded_bytes  # noqa: E402
from hlwq_core.models import ltx23  # noqa: E402
from hlwq_core.models.recipes import load_recipe  # noqa: E402

SIZES = {"BF16": 2, "F32": 4, "F16": 2, "U8": 1, "I64": 8}
BLOCKS_A_CHUNK = 12


def sparse_file(
    path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], values: dict[str, np.ndarray] | None = None
) -> None:
    """A safetensors file of holes, which read as zeros, but for the tensors in `values`."""
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
        for name, value in (values or {}).items():
            file.seek(8 + len(raw) + header[name]["data_offsets"][0])
            file.write(value.tobytes())


def make_full(folder: Path, blocks: range = range(48), plain: bool = True, norms: bool = False) -> Path:
    """Write the folder.

    Args:
        folder: the target, made if it is not there.
        blocks: the blocks of the transformer whose codes are there.
        plain: also the file of all tensors that are not quantized.
        norms: write norms of 1 (290 MB), so that no layer looks empty; else they are holes too.
    """
    known = ltx23.tensors()
    plan = load_recipe("ltx23").plan((name, dtype, shape) for name, (dtype, shape) in known.items())
    chunks: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {}
    values: dict[int, dict[str, np.ndarray]] = {}
    for name, bits in plan.items():
        parts = name.split(".")
        block = int(parts[3]) if parts[2] == "transformer_blocks" else 0
        if block not in blocks:
            continue
        rows, columns = known[name][1]
        base = name.replace(".", "__")
        chunk = chunks.setdefault(block // BLOCKS_A_CHUNK, {})
        chunk[f"{base}__packed"] = ("U8", (encoded_bytes((rows, columns), bits)[0],))
        chunk[f"{base}__norms"] = ("F16", (rows, columns // 128))
        chunk[f"{base}__meta"] = ("I64", (4,))
        written = values.setdefault(block // BLOCKS_A_CHUNK, {})
        written[f"{base}__meta"] = np.array([rows, columns // 128, 128, rows * columns])
        if norms:
            written[f"{base}__norms"] = np.ones((rows, columns // 128), np.float16)
    for number, tensors in chunks.items():
        path = folder / "polarquant" / "codes" / f"chunk_{number:02d}_codes.safetensors"
        sparse_file(path, tensors, values[number])
    if plain:
        rest = {name: found for name, found in known.items() if name not in plan}
        sparse_file(folder / "polarquant" / "bf16" / "ltx23_bf16.safetensors", rest)
    return folder


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("folder", type=Path)
    print(make_full(arguments.parse_args().folder))
