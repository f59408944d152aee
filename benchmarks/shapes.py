"""Every backend against its definition on thousands of random weights: shapes, bits, packings, dtypes, adding or not, both kinds of 8 bits.

    python benchmarks/shapes.py                 10,000 weights on the card (without one: on the CPU)
    python benchmarks/shapes.py --count 200 --seed 7

Each result is made twice, the second time in another place in memory and beside other work on the card: not a bit may differ.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections import Counter
from typing import Any

import torch
from common import REPO, parser, save

sys.path.insert(0, str(REPO))
from hlwq_core import backends
from hlwq_core.backends import eager, eight_bit, proof

VARIANTS = [(bits, p) for bits in range(2, 9) for p in ("msb", "lsb", "byte", "nibble") if p != "nibble" or bits <= 4]


def one(numbers: random.Random, device: torch.device, done: Counter[str], generator: torch.Generator) -> None:
    """Decode one random weight by every backend of the device, and multiply by it in 8 bits.

    Raises:
        RuntimeError: a result differs from its definition, or from itself.
    """
    bits, packing = numbers.choice(VARIANTS)
    blocks = numbers.choice((1, 1, 2, 3, numbers.randrange(1, 40)))
    rows = numbers.choice((1, 2, 31, 32, 33, numbers.randrange(1, 700)))
    width = blocks * 128 - numbers.choice((0, 0, 1, 8, 127, numbers.randrange(128)))
    layer = dataclasses.replace(proof.random_layer(rows, blocks, bits, packing, generator), shape=(rows, width))
    dtype, add = numbers.choice(eight_bit.INPUTS), numbers.random() < 0.5
    what = f"[{rows}, {width}] of {bits} bits, {packing}, {dtype}, add {add}"
    on_device = layer.to(device)
    before = torch.randn(rows, width, generator=generator).to(dtype)
    expected = eager.decode(layer, torch.float32) + (before.float() if add else 0)
    for name, reason in backends.unavailable_reasons(device).items():
        if reason is not None:
            continue
        found = [before.to(device, copy=True) for _ in range(2)]
        other = torch.empty(numbers.randrange(1, 1 << 16), device=device)  # the second lies elsewhere
        for out in found:
            backends.get(name).decode(on_device, dtype, out, add)
        del other
        allowed = float(expected.abs().max()) * proof.ALLOWED[dtype]
        difference = float((found[0].float().cpu() - expected).abs().max())
        if not difference <= allowed:
            raise RuntimeError(f"{name}, {what}: differs by {difference:.3g}, {allowed:.3g} are allowed")
        if not torch.equal(*found):
            raise RuntimeError(f"{name}, {what}: not the same twice")
        done[name] += 1
    x = torch.randn(numbers.choice((1, 16, 47, numbers.randrange(1, 200))), width, generator=generator).to(dtype)
    for kind in eight_bit.KINDS:
        fast = backends.fast_mode(device, kind)
        twice = []
        for _ in range(2):
            weight = eight_bit.empty(rows, layer.padded, kind, device)
            fast.weight(on_device, weight)
            twice.append((fast.rotate(x.to(device)), weight))
        for part, (first, second), definition in (
            ("rotate", [t[0] for t in twice], eight_bit.rotate(x, kind)),
            ("weight", [t[1] for t in twice], eight_bit.weight(layer, kind)),
        ):
            proof.compare(f"{kind} {part}, {what}", first.dense().cpu(), definition.dense(), 3e-2)
            if not (
                torch.equal(first.values.float(), second.values.float()) and torch.equal(first.scales, second.scales)
            ):
                raise RuntimeError(f"{kind} {part}, {what}: not the same twice")
        done[kind] += 1


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=1)
    args = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers, generator = random.Random(args.seed), torch.Generator().manual_seed(args.seed)
    done: Counter[str] = Counter()
    faults: list[str] = []
    with torch.inference_mode():
        for _ in range(args.count):
            try:
                one(numbers, device, done, generator)
            except RuntimeError as error:
                faults.append(str(error).splitlines()[0])
    figures: dict[str, Any] = {"device": device.type, "seed": args.seed, "weights": args.count, "compared": dict(done)}
    print({**figures, "faults": faults[:20]})
    save("shapes", {**figures, "faults": faults[:100]}, {})
    if faults:
        sys.exit(f"{len(faults)} of {args.count} differ")


if __name__ == "__main__":
    main()
