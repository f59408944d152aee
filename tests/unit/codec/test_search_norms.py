"""Searched norms: the promised quality, the author's norms as the base line, and the edges of float16."""

from __future__ import annotations

import pytest
import torch

from hlwq_core.codec.codec import encode
from hlwq_core.codec.search_norms import encode_blocks, relative_error, search_scales


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


def test_search_comes_near_the_exact_optimum() -> None:
    """Brute force over 4,000 factors finds at most 0.5 % less error."""
    from hlwq_core.format.codebook import centroids

    blocks = torch.randn(64, 128, generator=torch.Generator().manual_seed(3))
    levels = centroids(5, "infinite")
    edges = (levels[1:] + levels[:-1]) / 2
    rms = blocks.square().mean(1).sqrt()
    best = torch.zeros(64)
    for factor in torch.linspace(0.3, 1.6, 4000):
        coded = levels[torch.bucketize(blocks / (rms * factor)[:, None], edges)]
        best = torch.maximum(best, (blocks * coded).sum(1) ** 2 / coded.square().sum(1))
    optimum = float((blocks.square().sum(1) - best).sum())
    scale = search_scales(blocks, 5, "infinite")[:, None]
    coded = levels[torch.bucketize(blocks / scale, edges)] * scale
    assert float((blocks - coded).square().sum()) <= optimum * 1.005


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
