"""Searched norms: the promised quality, the author's norms as the base line, and the edges of float16."""

from __future__ import annotations

import pytest
import torch

from hlwq_core.codec.codec import encode
from hlwq_core.codec.search_norms import encode_blocks, encode_rotated, relative_error
from hlwq_core.format.codebook import centroids
from hlwq_core.format.hadamard import hadamard


def weights(kind: str, rows: int = 1024, width: int = 4096) -> torch.Tensor:
    generator = torch.Generator().manual_seed(20)
    weight = torch.randn(rows, width, generator=generator) * 0.02
    if kind == "student":
        chi_square = sum(torch.randn(rows, width, generator=generator) ** 2 for _ in range(4))
        weight = weight / (chi_square / 4).sqrt()
    if kind == "outliers":
        weight[:, torch.randperm(width, generator=generator)[: width // 1000]] *= 25
    return weight


@pytest.mark.parametrize(("kind", "bound"), [("gauss", 1.95e-3), ("student", 1.90e-3), ("outliers", 1.80e-3)])
def test_five_bits_reach_the_promised_error(kind: str, bound: float) -> None:
    weight = weights(kind)
    error, cosine = relative_error(weight, encode(weight, 5, norms="search").decode())
    assert error <= bound
    assert cosine >= 0.9990


@pytest.mark.parametrize("version", ["infinite", "finite"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_searched_norms_beat_the_authors_at_all_bits(bits: int, version: str) -> None:
    weight = weights("gauss", 64, 1024)
    author, _ = relative_error(weight, encode(weight, bits, version).decode())
    searched, _ = relative_error(weight, encode(weight, bits, version, norms="search").decode())
    assert searched < author * 0.99


def least_error(rotated: torch.Tensor, bits: int, version: str) -> torch.Tensor:
    """The exact optimum of each block's scale and codes, float64 `[n]`: as the scale falls, values pass the edges one by one;
    every code that some scale gives is looked at."""
    levels = centroids(bits, version).double()
    levels = levels[len(levels) // 2 :]
    edges = (levels[1:] + levels[:-1]) / 2
    size = rotated.abs().double()
    count = size.shape[0]
    passes = (size[:, :, None] / edges).reshape(count, -1)
    order = passes.argsort(dim=1, descending=True)
    along = (size[:, :, None] * (levels[1:] - levels[:-1])).reshape(count, -1)
    energy = (levels[1:].square() - levels[:-1].square()).expand(count, 128, -1).reshape(count, -1)
    start = torch.zeros(count, 1, dtype=torch.float64)
    along = torch.cat([start, along.gather(1, order).cumsum(1)], 1) + size.sum(1, keepdim=True) * levels[0]
    energy = torch.cat([start, energy.gather(1, order).cumsum(1)], 1) + 128 * levels[0] ** 2
    return size.square().sum(1) - (along.square() / energy).amax(1)


def blocks_of(kind: str, count: int) -> torch.Tensor:
    """Rotated blocks: of a normal distribution around a mean of so many deviations, or one of the other kinds."""
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randn(count, 128, generator=generator)
    if kind == "student":
        blocks = blocks / (torch.randn(count, 128, 4, generator=generator).square().mean(2)).sqrt()
    elif kind == "outlier":
        blocks[:, 17] *= 30
    elif kind == "sparse":
        blocks = blocks * (torch.rand(count, 128, generator=generator) < 0.05)
        blocks[:, 0] += 1
    else:
        blocks = blocks + float(kind) * torch.randn(count, 1, generator=generator).sign()
    return blocks @ hadamard("cpu")


KINDS = ["0", "0.25", "0.5", "1", "2", "4", "16", "student", "outlier", "sparse"]


@pytest.mark.parametrize("version", ["infinite", "finite"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_search_comes_near_the_exact_optimum(bits: int, kind: str, version: str) -> None:
    rotated = blocks_of(kind, 48 if bits < 8 else 64 if kind == "0" else 12)
    least = float(least_error(rotated, bits, version).sum())
    codes, norms = encode_rotated(rotated, bits, version)
    decoded = centroids(bits, version)[codes.long()] * (norms.float()[:, None] / 128**0.5)
    # Norms are stored as float16: up to half a unit of their last place beside the best one.
    rounding = float((norms.float() * 2**-11).square().sum())
    allowed = 1.003 if bits < 8 else 1.02
    if kind in ("student", "outlier", "sparse"):
        allowed = 1.02 if bits < 8 else 1.15
    assert float((rotated - decoded).double().square().sum()) <= least * allowed + rounding


def test_zero_tiny_and_padded_rows() -> None:
    weight = torch.randn(4, 200, generator=torch.Generator().manual_seed(5)) * 0.05
    weight[1] = 0
    weight[2] *= 1e-6  # norms are float16 subnormals
    weight[3] *= 1e-12  # norms underflow to zero
    encoded = encode(weight, 5, norms="search")
    assert encoded.codes.shape == (4, 256) and int(encoded.codes.max()) < 32
    decoded = encoded.decode()
    assert torch.isfinite(decoded).all()
    assert not decoded[1].any() and not decoded[3].any()
    assert relative_error(weight[0], decoded[0])[0] < 3e-3
    assert relative_error(weight[2], decoded[2])[0] < 0.1


def test_blocks_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory-bounded rounds give what one round over everything gives."""
    blocks = torch.randn(10, 3, 128, generator=torch.Generator().manual_seed(6))
    whole = encode_blocks(blocks, 5, "infinite")
    monkeypatch.setattr("hlwq_core.codec.search_norms._CPU_BLOCKS", 7)
    parts = encode_blocks(blocks, 5, "infinite")
    # A matrix product's summation order depends on its height: norms may differ in the last bit.
    assert torch.allclose(whole[1], parts[1], rtol=2e-3)
    assert (whole[0] != parts[0]).float().mean() < 0.01
