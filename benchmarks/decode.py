"""Decoding alone: bandwidth against a copy, on the GPU if there is one, and the CPU's rate on one thread.

python benchmarks/decode.py --device cpu
python benchmarks/decode.py --device cuda
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

from common import REPO, parser, save, seconds

sys.path.insert(0, str(REPO))

import torch

from hlwq_core import backends
from hlwq_core.codec.codec import encode
from hlwq_core.format.codebook import BLOCK, centroids
from hlwq_core.format.hadamard import hadamard
from hlwq_core.format.packed import PackedLayer

SHAPES = ((2048, 2048), (4096, 4096), (16384, 4096))


def plain_torch(packed: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """The format's definition written down in torch, one step a line, as published decoders do it: the yardstick."""
    rows = norms.shape[0]
    groups = packed.reshape(-1, 5).to(torch.int64)
    word = sum(groups[:, k] << (8 * (4 - k)) for k in range(5))
    codes = torch.stack([(word >> (5 * (7 - i))) & 31 for i in range(8)], 1).reshape(-1)
    levels = centroids(5).to(packed.device)[codes] / BLOCK**0.5
    weight = (levels.reshape(-1, BLOCK) @ hadamard(str(packed.device))) * norms.reshape(-1, 1).float()
    return weight.reshape(rows, -1).to(torch.bfloat16)


def measure(shape: tuple[int, int], device: str) -> dict[str, float]:
    """Figures of one layer of a shape."""
    made = encode((torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(device))
    packed = made.layer()
    backend = backends.choose(device)

    def ours() -> torch.Tensor:
        return backend.decode(packed, torch.bfloat16)

    def plain() -> torch.Tensor:
        return plain_torch(packed.codes, packed.norms)

    decoded = ours()
    same = float((decoded == plain()).float().mean())
    if same < 0.999:
        raise SystemExit(f"the decoder is wrong: {same:.4f} of the values agree")
    repeat = 50 if device == "cuda" else 5
    # Interleaved, so that both see the same machine.
    rounds = [(seconds(ours, repeat, device=device), seconds(plain, repeat, 1, device)) for _ in range(3)]
    time, time_plain = (min(times) for times in zip(*rounds, strict=True))
    result = {
        "decode_us": time * 1e6,
        "output_MB_s": decoded.nbytes / time / 1e6,
        "speedup_over_plain_torch": time_plain / time,
    }
    if device == "cuda":
        result |= against_copy(packed)
    return result


def against_copy(packed: PackedLayer) -> dict[str, float]:
    """The kernel against a copy that reads and writes as many bytes, both replayed from graphs over more than the cache holds."""
    moved = packed.codes.nbytes + packed.norms.nbytes + packed.shape[0] * packed.shape[1] * 2
    sets = max(8, -(-(1 << 30) // moved))
    runs, copies = [], []
    for _ in range(sets):
        out = torch.empty(packed.shape, dtype=torch.bfloat16, device="cuda")
        copied = replace(packed, codes=packed.codes.clone(), norms=packed.norms.clone())
        runs.append((backends.choose("cuda").prepare(copied, torch.bfloat16), out))
        source = torch.randint(0, 255, (moved // 2,), dtype=torch.uint8, device="cuda")
        copies.append((source, torch.empty_like(source)))

    def decode_all() -> None:
        for run, out in runs:
            run(out, False)

    def copy_all() -> None:
        for source, target in copies:
            target.copy_(source)

    time, time_copy = (graph_seconds(function) / sets for function in (decode_all, copy_all))
    return {
        "kernel_us": time * 1e6,
        "kernel_TB_s": moved / time / 1e12,
        "copy_TB_s": moved / time_copy / 1e12,
        "copy_fraction": time_copy / time,
    }


def graph_seconds(function: Callable[[], None], repeat: int = 20) -> float:
    """Median device time of a function, replayed from a CUDA graph: no time of the host is in it."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    times = []
    for _ in range(3 + repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = arguments.parse_args().device
    torch.set_num_threads(1)
    shapes = SHAPES if device == "cuda" else SHAPES[1:2]
    figures = {"x".join(map(str, shape)): measure(shape, device) for shape in shapes}
    large = figures["4096x4096"]
    if device == "cuda":
        summary = {f"decode_copy_fraction_{s}": figures[s]["copy_fraction"] for s in ("4096x4096", "16384x4096")}
        summary["decode_speedup_vs_author"] = large["speedup_over_plain_torch"]
    else:
        summary = {"cpu_decode_vs_author": large["speedup_over_plain_torch"]}
    save(f"decode_{device}", {"backend": backends.choose(device).name, "shapes": figures}, summary)


if __name__ == "__main__":
    main()
