"""All CUDA kernels under NVIDIA's compute-sanitizer: memory, races, barriers, reads of what nothing wrote.

    python benchmarks/sanitize.py

Every variant runs at sizes that fill no block, on memory that torch does not pool; the results are compared with their
definitions as well. Needs an NVIDIA GPU and compute-sanitizer on the PATH (it comes with the CUDA toolkit). `--run` runs the
kernels alone.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace

import torch
from common import REPO, parser, save

sys.path.insert(0, str(REPO))
from hlwq_core.backends import eager, eight_bit, proof
from hlwq_core.backends.cuda import activations as cuda_activations
from hlwq_core.backends.cuda import decode as cuda_decode
from hlwq_core.backends.cuda import eight_bit as cuda_eight_bit
from hlwq_core.backends.eight_bit import EightBit

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
VARIANTS = [(bits, p) for bits in range(2, 9) for p in ("msb", "lsb", "byte", "nibble") if p != "nibble" or bits <= 4]
SIZES = ((1, 1, 128), (33, 3, 300))


def _compare_pairs(what: str, found: EightBit, expected: EightBit) -> None:
    proof.compare(what, found.dense().cpu(), expected.dense(), 3e-2)


def run() -> int:
    """Launch every kernel in every variant; the number of launches."""
    generator = torch.Generator().manual_seed(0)
    launches = 0
    for (bits, packing), (rows, num_blocks, in_features) in itertools.product(VARIANTS, SIZES):
        layer = replace(proof.random_layer(rows, num_blocks, bits, packing, generator), shape=(rows, in_features))
        on_card = layer.to("cuda")
        exact = eager.decode(layer, torch.float32)
        for dtype, add in itertools.product(eight_bit.INPUTS, (False, True)):
            out = torch.ones(rows, in_features, dtype=dtype, device="cuda")
            kernel = cuda_decode._kernel(0, bits, packing, dtype, add)
            cuda_decode._launch(kernel, on_card, on_card.table("cuda"), out)()
            proof.compare(f"{bits} bits, {packing}, {dtype}, add {add}", out.float().cpu(), exact + add, 1e-2)
            launches += 1
        for kind in eight_bit.KINDS:
            found = eight_bit.empty(rows, layer.padded, kind, "cuda")
            cuda_eight_bit.once(on_card, found, kind)
            expected = eight_bit.weight(layer, kind)
            _compare_pairs(f"{bits} bits, {packing}, {kind}", found, expected)
            launches += 1
    for (rows, columns), dtype, kind in itertools.product(
        ((1, 128), (48, 328), (3, 4096)), eight_bit.INPUTS, eight_bit.KINDS
    ):
        x = torch.randn(rows, columns, generator=generator).to(dtype)
        found, expected = cuda_eight_bit.rotate(x.cuda(), kind), eight_bit.rotate(x, kind)
        _compare_pairs(f"rotate {dtype} {kind}", found, expected)
        launches += 1
    for dtype, with_bias in itertools.product(eight_bit.INPUTS, (False, True)):
        sums = torch.randint(-9999, 9999, (7, 200), dtype=torch.int32, generator=generator)
        row, column = torch.rand(7, 1, generator=generator), torch.rand(200, 1, generator=generator)
        bias = torch.randn(200, generator=generator).to(dtype) if with_bias else None
        out = torch.empty(7, 200, dtype=dtype, device="cuda")
        cuda_eight_bit.scale(sums.cuda(), row.cuda(), column.cuda(), None if bias is None else bias.cuda(), out)
        expected = sums * row * column.t() + (bias.float() if with_bias else 0)
        proof.compare(f"scale {dtype}", out.float().cpu(), expected, 1e-2)
        launches += 1
    for kind in eight_bit.KINDS:
        cuda_activations.prove(torch.device("cuda", 0), kind)  # every step, with and without the activations themselves
        launches += 9
    torch.cuda.synchronize()
    return launches


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--run", action="store_true", help="run the kernels, without the sanitizer")
    if arguments.parse_args().run:
        print("launches", run())
        return
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    results, clean = {}, True
    for tool in TOOLS:
        # Symbols that a binding asks the driver for in vain are no errors of kernels.
        options = ["--tool", tool, "--report-api-errors", "no"] if tool == "memcheck" else ["--tool", tool]
        command = ["compute-sanitizer", *options, "--error-exitcode", "9", sys.executable, __file__, "--run"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=550)
        print(f"== {tool}", done.stdout[-1500:], done.stderr[-1500:], sep="\n", file=sys.stderr)
        launches = re.search(r"^launches (\d+)", done.stdout, re.M)
        clean = clean and done.returncode == 0 and launches is not None
        results[tool] = {
            "launches": int(launches[1]) if launches else None,
            "summary": [line.strip("= \n") for line in done.stdout.splitlines() if "SUMMARY" in line],
        }
    save("sanitizer", {"tools": results}, {})
    sys.exit(not clean)


if __name__ == "__main__":
    main()
