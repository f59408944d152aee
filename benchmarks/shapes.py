"""Every backend against its definition on thousands of random weights: shapes, bits, packings, dtypes, adding or not, both kinds of 8 bits.

    python benchmarks/shapes.py                 10,000 weights on the card (without one: on the CPU)
    python benchmarks/shapes.py --count 200 --seed 7
    python benchmarks/shapes.py --jobs 12       in processes side by side
    python benchmarks/shapes.py --triton 5      on the CPU: every fifth weight by Triton's kernel as well, in its interpreter

Decoding is compared with a second definition, written in NumPy for this file alone. Each result is made twice, the second time in
another place in memory and beside other work on the card: not a bit may differ. Kernels are compiled for a variant (bits, packing,
dtype, adding) and Triton's for a kind of size as well (see `Group`): each group is one variant and one kind of size, within which rows,
columns and contents are random. `--groups 24`: one for each packing of each number of bits; more take other dtypes and sizes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from common import REPO, parser, save

sys.path.insert(0, str(REPO))
from hlwq_core import backends
from hlwq_core.backends import eight_bit, proof
from hlwq_core.format.packed import PackedLayer

VARIANTS = [(bits, p) for bits in range(2, 9) for p in ("msb", "lsb", "byte", "nibble") if p != "nibble" or bits <= 4]
# Triton compiles anew where a number is 1, or a multiple of 16.
KINDS_OF_SIZE = ("one block", "16 blocks", "other blocks, whole", "other blocks, cut")


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that one compiled kernel decodes."""

    bits: int
    packing: str
    dtype: torch.dtype
    add: bool
    size: str

    def shape(self, numbers: random.Random) -> tuple[int, int, int]:
        """Rows, blocks and columns of a random weight."""
        rows = numbers.choice((1, 2, 31, 32, 33, numbers.randrange(1, 300)))
        if self.size == "16 blocks":
            rows, blocks = 1 + rows // 8, 16 * numbers.randrange(1, 4)
        else:
            blocks = 1 if self.size == "one block" else numbers.choice((2, 3, 5, numbers.randrange(2, 16)))
        whole = self.size.endswith("whole") or (self.size != "other blocks, cut" and numbers.random() < 0.5)
        cut = 0 if whole else numbers.choice((1, 8, 127, numbers.randrange(1, 128)))
        return rows, blocks, blocks * 128 - cut


def groups(count: int) -> list[Group]:
    """The first so many: each packing of each number of bits, then again with another dtype, size and adding."""
    found = []
    for i in range(count):
        turn, place = divmod(i, len(VARIANTS))
        bits, packing = VARIANTS[place]
        dtype = eight_bit.INPUTS[(place + turn) % 3]
        size = KINDS_OF_SIZE[(place // 2 + turn // 3) % 4]
        found.append(Group(bits, packing, dtype, (place + turn // 2) % 2 == 1, size))
    return found


def definition(layer: PackedLayer) -> np.ndarray:
    """`w = (level[code] · H) · norm` in float64, from the words of docs/format.md: `[rows, columns]`."""
    rows, blocks = layer.norms.shape
    raw = layer.codes.numpy().reshape(rows * blocks, -1)
    if layer.packing == "byte":
        codes = raw & ((1 << layer.bits) - 1)
    elif layer.packing == "nibble":
        codes = np.concatenate([raw & 15, raw >> 4], axis=1)
    else:
        order = "big" if layer.packing == "msb" else "little"
        places = np.unpackbits(raw, axis=1, bitorder=order).reshape(len(raw), 128, layer.bits).astype(np.int64)
        weights = 1 << np.arange(layer.bits)
        codes = places @ (weights[::-1] if layer.packing == "msb" else weights)
    levels = layer.table("cpu").numpy().astype(np.float64)[codes]
    signs = np.array([[bin(i & j).count("1") % 2 for j in range(128)] for i in range(128)])
    values = levels @ ((1 - 2.0 * signs) / np.sqrt(128)) * layer.norms.numpy().astype(np.float64).reshape(-1, 1)
    return values.reshape(rows, -1)[:, : layer.shape[1]]


class Comparison:
    """What is compared on a device, and how often it was."""

    def __init__(self, device: torch.device, seed: int):
        self.device, self.count = device, 0
        self.numbers, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.done: Counter[str] = Counter()

    def weight(self, group: Group, interpreted: bool = False) -> None:
        """Decode a random weight by every backend of the device, Triton's interpreter too if asked for, and multiply by it in 8 bits.

        Raises:
            RuntimeError: a result differs from its definition, or from itself.
        """
        rows, blocks, width = group.shape(self.numbers)
        layer = proof.random_layer(rows, blocks, group.bits, group.packing, self.generator)
        layer = dataclasses.replace(layer, shape=(rows, width))
        what = f"[{rows}, {width}], {group}"
        whole = torch.from_numpy(definition(dataclasses.replace(layer, shape=(rows, 128 * blocks))))
        self._decode(group, layer, whole[:, :width], what, interpreted)
        self._eight_bit(group, layer, whole, what)
        self.count += 1

    def _decode(self, group: Group, layer: PackedLayer, exact: torch.Tensor, what: str, interpreted: bool) -> None:
        before = torch.randn(layer.shape, generator=self.generator).to(group.dtype)
        expected = exact + (before.double() if group.add else 0)
        allowed = float(expected.abs().max()) * proof.ALLOWED[group.dtype]
        there = layer.to(self.device)

        def decode(name: str, out: torch.Tensor) -> None:
            if name == "triton" and interpreted:
                from hlwq_core.backends import triton

                triton.launch(there.contiguous(), out, group.add)
            else:
                backends.get(name).decode(there, group.dtype, out, group.add)

        for name, reason in backends.unavailable_reasons(self.device).items():
            if reason is not None and not (name == "triton" and interpreted):
                continue
            found = [before.to(self.device, copy=True) for _ in range(2)]
            other = torch.empty(self.numbers.randrange(1, 1 << 16), device=self.device)  # the second lies elsewhere
            for out in found:
                decode(name, out)
            del other
            difference = float((found[0].double().cpu() - expected).abs().max())
            if not difference <= allowed:
                raise RuntimeError(f"{name}, {what}: differs by {difference:.3g}, {allowed:.3g} are allowed")
            if not torch.equal(*found):
                raise RuntimeError(f"{name}, {what}: not the same twice")
            self.done[name] += 1

    def _eight_bit(self, group: Group, layer: PackedLayer, whole: torch.Tensor, what: str) -> None:
        rows, width = layer.shape
        lines = self.numbers.choice((1, 16, 47, self.numbers.randrange(1, 200)))
        x = torch.randn(lines, width, generator=self.generator).to(group.dtype)
        there = layer.to(self.device)
        for kind in eight_bit.KINDS:
            fast = backends.fast_mode(self.device, kind)
            twice = []
            for _ in range(2):
                weight = eight_bit.empty(rows, layer.padded, kind, self.device)
                fast.weight(there, weight)
                twice.append((fast.rotate(x.to(self.device)), weight))
            for part, (first, second), expected in (
                ("rotate", [t[0] for t in twice], eight_bit.rotate(x, kind)),
                ("weight", [t[1] for t in twice], eight_bit.weight(layer, kind)),
            ):
                proof.compare(f"{kind} {part}, {what}", first.dense().cpu(), expected.dense(), 3e-2)
                same = torch.equal(first.values.float(), second.values.float())
                if not (same and torch.equal(first.scales, second.scales)):
                    raise RuntimeError(f"{kind} {part}, {what}: not the same twice")
            # In 8 bits it is still the weight: multiplied by it, rotated both, only rounding is left: of a part of the product, and of
            # what sums of so many terms of any sign come to, since a single sum may be nothing.
            rotated, eight = (part.dense().cpu().double() for part in twice[0])
            product = x.double() @ whole[:, :width].t()
            difference = float((rotated @ eight.t() - product).norm())
            usual = max(float(product.norm()), float(x.double().norm() * whole.norm()) / layer.padded**0.5)
            # Of a few columns or rows a sum's error is that of a few roundings, and no mean of many.
            allowed = 0.1 if min(rows, width) >= 8 else 0.5
            if not difference <= allowed * usual:
                raise RuntimeError(f"{kind} product, {what}: differs by {difference / usual:.3g}, {allowed} is allowed")
            self.done[kind] += 1


def compare(
    device: torch.device, numbers: range, seed: int, count_of_groups: int, seconds: float, interpret: int
) -> dict[str, Any]:
    """The random weights of these numbers, the groups in turn, for at most so many seconds unless they are 0."""
    comparison = Comparison(device, seed)
    chosen, reached = groups(count_of_groups), set()
    faults: list[str] = []
    begun = told = time.monotonic()
    with torch.inference_mode():
        for number in numbers:
            now = time.monotonic()
            if seconds and now - begun > seconds:
                break
            if now - told > 20:
                told = now
                print(
                    f"{now - begun:5.0f} s: {comparison.count} weights, {len(faults)} differ",
                    file=sys.stderr,
                    flush=True,
                )
            turn, place = divmod(number, len(chosen))
            reached.add(place)
            try:
                comparison.weight(chosen[place], bool(interpret) and (turn + place) % interpret == 0)
            except RuntimeError as error:
                faults.append(str(error).splitlines()[0])
                comparison.count += 1
    return {
        "device": device.type,
        "triton_interpreted": bool(interpret),
        "seed": seed,
        "weights": comparison.count,
        "groups": sorted(reached),
        "seconds": round(time.monotonic() - begun),
        "compared": dict(comparison.done),
        "faults": faults,
    }


def side_by_side(jobs: int, device: torch.device, count: int, seed: int, *options: Any) -> dict[str, Any]:
    """So many in several processes, each of its own seed and, as far as their numbers go, its own groups; what they found, together."""
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(compare, device, range(i, count, jobs), seed + i, *options) for i in range(jobs)]
        found = [future.result() for future in running]
    compared: Counter[str] = Counter()
    for part in found:
        compared.update(part["compared"])
    return found[0] | {
        "seed": f"{seed} to {seed + jobs - 1}",
        "weights": sum(part["weights"] for part in found),
        "groups": sorted({place for part in found for place in part["groups"]}),
        "seconds": max(part["seconds"] for part in found),
        "compared": dict(compared),
        "faults": [fault for part in found for fault in part["faults"]],
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--seconds", type=float, default=0, help="at most")
    arguments.add_argument(
        "--jobs", type=int, default=1, help="processes side by side; one takes half an hour, 12 two minutes"
    )
    arguments.add_argument("--groups", type=int, default=2 * len(VARIANTS))
    arguments.add_argument("--triton", type=int, default=0, metavar="N", help="on the CPU: every Nth weight by Triton")
    args = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    interpret = args.triton if device.type == "cpu" else 0
    if interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before it is imported
    options = (min(args.groups, args.count), args.seconds, interpret)
    if args.jobs > 1:
        figures = side_by_side(args.jobs, device, args.count, args.seed, *options)
    else:
        figures = compare(device, range(args.count), args.seed, *options)
    faults = figures["faults"]
    figures |= {"groups": len(figures["groups"]), "faults": faults[:100]}
    print(figures)
    save(f"shapes_{device.type}", figures, {})
    if faults:
        sys.exit(f"{len(faults)} of {figures['weights']} differ")


if __name__ == "__main__":
    main()
