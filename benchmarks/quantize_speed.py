"""How fast layers are encoded: author's and searched norms, on CPU or CUDA, scaled to the 18.5 billion weights of LTX-2.3.

    python benchmarks/quantize_speed.py --device cuda

Shapes are those of one LTX-2.3 block (28 matrices, 386 million weights), weights Gaussian, encoded as `quantize` does it:
rows in rounds, packed, the decoded result compared. `encode` is the encoder alone, `whole` includes copying to and from the
device, packing and the comparison. `disk` is the speed at which a file beside --folder is written and read back, for the
ratio of the two.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

from common import REPO, parser, save

sys.path.insert(0, str(REPO))

import torch

from hlwq_core.codec import codec
from hlwq_core.codec.layers import encode_layer
from hlwq_core.codec.search_norms import relative_error
from hlwq_core.models import ltx23
from hlwq_core.tools.quantize import NORMS

LTX_WEIGHTS = 18.522e9


def block_shapes() -> list[tuple[int, int]]:
    """The 28 matrices of a block."""
    from hlwq_core.models.recipes import load_recipe

    recipe = load_recipe("ltx23")
    return [
        (shape[0], shape[1])
        for name, (dtype, shape) in ltx23.tensors().items()
        if ".transformer_blocks.0." in name and recipe.bits_for(name, dtype, shape) is not None
    ]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(device: torch.device, norms: str, bits: int, shapes: list[tuple[int, int]]) -> dict[str, Any]:
    weights = sum(rows * columns for rows, columns in shapes)
    generator = torch.Generator(device).manual_seed(0)
    made = {shape: (torch.randn(shape, generator=generator, device=device) * 0.02).bfloat16() for shape in set(shapes)}
    host = {shape: weight.cpu() for shape, weight in made.items()}
    # Once for each shape and both ways, so that no first use is measured: kernels and memory come then.
    for shape, weight in made.items():
        codec.encode(weight, bits, norms=norms)
        encode_layer(host[shape], bits, norms, "infinite", device, name="weight")
    wait(device)
    started = time.perf_counter()
    for shape in shapes:
        codec.encode(made[shape], bits, norms=norms)
    wait(device)
    encode = time.perf_counter() - started
    started = time.perf_counter()
    for shape in shapes:
        encode_layer(host[shape], bits, norms, "infinite", device, name="weight")
    wait(device)
    whole = time.perf_counter() - started
    error, cosine = relative_error(
        made[shapes[0]][:1024].float(), codec.encode(made[shapes[0]][:1024], bits, norms=norms).decode()
    )
    return {
        "norms": norms,
        "bits": bits,
        "weights": weights,
        "encode_s": encode,
        "whole_s": whole,
        "ltx_encode_s": encode / weights * LTX_WEIGHTS,
        "ltx_whole_s": whole / weights * LTX_WEIGHTS,
        "source_gb_s": weights * 2 / whole / 1e9,
        "relative_error": error,
        "cosine": cosine,
    }


def disk(folder: str | None, nbytes: int = 1 << 30) -> dict[str, float]:
    """GB/s written (flushed) and read, as far as the page cache can be told to forget."""
    data = os.urandom(1 << 24)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(nbytes >> 24):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - started
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        with open(file.name, "rb") as reading:
            while reading.read(1 << 24):
                pass
        read = time.perf_counter() - started
    return {"write_gb_s": nbytes / written / 1e9, "read_gb_s": nbytes / read / 1e9}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--bits", type=int, default=5)
    arguments.add_argument("--layers", type=int, default=28, help="only the first so many matrices (for slow machines)")
    arguments.add_argument("--folder", help="whose disk to measure (default the temporary folder)")
    args = arguments.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result: dict[str, Any] = {"device": name, "disk": disk(args.folder), "runs": []}
    print(f"{name}; disk {result['disk']['write_gb_s']:.2f} GB/s written, {result['disk']['read_gb_s']:.2f} read")
    for norms in NORMS:
        run = measure(device, norms, args.bits, block_shapes()[: args.layers])
        run["ratio_to_disk_read"] = run["source_gb_s"] / result["disk"]["read_gb_s"]
        result["runs"].append(run)
        print(
            f"{norms:7} encode {run['ltx_encode_s']:8.1f} s, whole {run['ltx_whole_s']:8.1f} s for 18.5e9 weights; "
            f"{run['source_gb_s']:.2f} GB/s of BF16, {run['ratio_to_disk_read']:.2f} of the disk's reading; "
            f"relative squared error {run['relative_error']:.3e}"
        )
    save(f"quantize_speed_{device.type}", result, {})


if __name__ == "__main__":
    main()
