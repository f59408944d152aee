"""What no header tells: bit order and codebook version, found from a sample of the codes.

Blocks have length √128 in units of the codebook, so RMS(level of code) over many blocks is close to 1 when both are
right: 1.0004 to 1.0007 for 5 bits; 0.993 and 1.0085 with the other version, about 1.69 with the wrong bit order.
Strongly smooth rows break the rule for a single layer, hence the median over layers.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass

import numpy as np
import torch

from ..format.codebook import BLOCK, VERSIONS, centroids
from ..format.packing import unpack

SAMPLE_LAYERS = 15
SAMPLE_BLOCKS = 1024
# How far the best hypothesis may be from its expectation and still count as found in the data.
TOLERANCE = 0.003


@dataclass(frozen=True)
class Detection:
    """Bit order and codebook version of a group of layers.

    Attributes:
        packing: `msb`, `lsb`, `nibble` or `byte`.
        codebook: codebook version.
        rms: median RMS of the levels under this reading.
        sure: whether the data decides; if not, the published files' way is assumed.
    """

    packing: str
    codebook: str
    rms: float
    sure: bool


@functools.lru_cache(maxsize=64)
def expected_rms(bits: int, version: str, written: str | None = None) -> float:
    """RMS of the levels of normally distributed coordinates, written with one version (by default the same) and read with another."""
    levels = centroids(bits, written or version).double()
    edges = torch.cat((torch.tensor([-40.0]), (levels[1:] + levels[:-1]) / 2, torch.tensor([40.0])))
    below = torch.special.ndtr(edges)
    mass = below[1:] - below[:-1]
    return float((centroids(bits, version).double() ** 2 * mass).sum().sqrt())


def sample_rows(rows: int, num_blocks: int) -> list[int]:
    """The rows of a layer that are looked at: whole rows rather than single blocks, so that few pages are touched."""
    wanted = min(rows, max(1, SAMPLE_BLOCKS // num_blocks))
    return [i * (rows // wanted) for i in range(wanted)]


def sample_codes(codes: torch.Tensor, norms: torch.Tensor, bits: int, packing: str) -> torch.Tensor | None:
    """The codes of up to `SAMPLE_BLOCKS` non-zero blocks spread over a layer; None if all blocks are zero.

    Args:
        codes: uint8 `[out, row_bytes]`.
        norms: float16 `[out, num_blocks]`.

    Returns:
        uint8 `[blocks, 128]`.
    """
    rows, num_blocks = norms.shape
    picked = torch.tensor(sample_rows(rows, num_blocks))
    keep = norms[picked] > 0
    if not bool(keep.any()):
        picked = (norms > 0).any(dim=1).nonzero().flatten()[: len(picked)]
        keep = norms[picked] > 0
        if not bool(keep.any()):
            return None
    return unpack(codes[picked], bits, packing).reshape(len(picked), num_blocks, BLOCK)[keep]


def level_counts(codes: torch.Tensor, norms: torch.Tensor, bits: int, packing: str) -> torch.Tensor | None:
    """How often each code occurs in a layer's sample (`sample_codes`), int64 `[2**bits]`; None if all blocks are zero."""
    sample = sample_codes(codes, norms, bits, packing)
    if sample is None:
        return None
    # numpy, because torch would start threads for so little, and take ten times as long.
    # Codes above the table are none of its levels: whoever looks at all codes refuses them.
    return torch.from_numpy(np.bincount(sample.numpy().ravel(), minlength=1 << bits)[: 1 << bits])


def counts_rms(counts: torch.Tensor, levels: torch.Tensor) -> float:
    """RMS of the levels (float32 `[2**bits]`, of unit variance) of so many codes."""
    return float((counts.double() @ levels.double().square() / counts.sum()).sqrt())


def level_rms(codes: torch.Tensor, norms: torch.Tensor, bits: int, packing: str, levels: torch.Tensor) -> float | None:
    """RMS of the levels of a layer's sample, see `level_counts`; None if all blocks are zero."""
    counts = level_counts(codes, norms, bits, packing)
    return None if counts is None else counts_rms(counts, levels)


def bits_in_use(codes: torch.Tensor) -> int | None:
    """How many bits the codes of a sample need; None if it is too uniform to tell.

    Half of all codes lie in the upper half of the table, so the largest one shows the table's size.

    Args:
        codes: uint8, of any shape.
    """
    if codes.numel() == 0:
        return None
    bits = int(codes.max()).bit_length()
    return bits if len(codes.unique()) > (1 << bits) // 4 else None


def detect(
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    bits: int,
    packings: tuple[str, ...],
    versions: tuple[str, ...] = VERSIONS,
) -> Detection:
    """Find the reading under which layers look as HLWQ makes them.

    Args:
        layers: codes uint8 `[out, row_bytes]` and norms float16 `[out, num_blocks]` of layers of `bits` bits.
        packings: hypotheses for the packing, the most common first.
        versions: hypotheses for the codebook version.
    """
    best: Detection | None = None
    found: list[tuple[float, Detection]] = []
    for packing in packings:
        samples = [level_counts(codes, norms, bits, packing) for codes, norms in layers]
        counts = [sample for sample in samples if sample is not None]
        if not counts:
            return Detection(packings[0], versions[0], float("nan"), False)
        for version in versions:
            levels = centroids(bits, version)
            rms = statistics.median(counts_rms(sample, levels) for sample in counts)
            found.append((abs(rms - expected_rms(bits, version)), Detection(packing, version, rms, True)))
    found.sort(key=lambda item: item[0])
    distance, best = found[0]
    rivals = [other for other, detection in found[1:] if other - distance < 1e-4]
    if distance <= TOLERANCE and not rivals:
        return best
    # The bit order shows in the histogram even where norms were searched and the RMS is not 1.
    by_packing = {packing: min(d for d, x in found if x.packing == packing) for packing in packings}
    packing = min(packings, key=lambda p: by_packing[p])
    if any(other != packing and by_packing[other] - by_packing[packing] < 0.05 for other in packings):
        packing = packings[0]
    version = versions[0]
    rms = next(x.rms for _, x in found if x.packing == packing and x.codebook == version)
    return Detection(packing, version, rms, False)
