"""The codec against data made by the author's own code (tests/golden)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hlwq_core.backends import eager
from hlwq_core.codec.codec import encode
from hlwq_core.errors import HLWQError, UnsupportedError
from hlwq_core.format import codebook
from hlwq_core.format.codebook import BLOCK, register_stored
from hlwq_core.format.hadamard import hadamard, rotate
from hlwq_core.format.packed import PackedLayer
from hlwq_core.format.packing import pack, row_bytes, unpack
from hlwq_core.format.sizes import BITS

SKILL = [
    f"{name}_{version}" for name in ("gauss_8x128", "t3_16x384", "pad_zero_5x200") for version in codebook.VERSIONS
]
LEGACY = ("gauss_8x128", "pad_zero_5x200", "outlier_32x1024")


def bf16_steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance in representable bf16 values."""

    def order(x):
        bits = x.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (order(a) - order(b)).abs()


def assert_decodes(found: torch.Tensor, author: torch.Tensor, norms: torch.Tensor) -> None:
    rows, width = author.shape
    found = found[:rows]
    scale = norms[:rows].float().repeat_interleave(BLOCK, 1)[:, :width]
    assert bool(((found - author).abs() <= 1e-5 * scale).all())
    steps = bf16_steps(found.bfloat16(), author.bfloat16())
    # Around zero one float32 rounding can cross many tiny bf16 values: only differences that the norm can show count.
    steps = steps[author.abs() > 1e-5 * scale]
    assert steps.numel() == 0 or (int(steps.max()) <= 1 and float((steps == 0).float().mean()) >= 0.999)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", SKILL)
def test_author_quantizer_both_directions(golden, name, bits):
    data = load_file(golden / f"skill_{name}.safetensors")
    version = name.rsplit("_", 1)[1]
    weight = load_file(golden / f"skill_{name.replace('_finite', '_infinite')}.safetensors")["weight"]
    made = encode(weight, bits, version)
    packed, norms = data[f"q{bits}__packed"], data[f"q{bits}__norms"]
    assert torch.equal(made.codes, data[f"q{bits}_codes"])
    assert torch.equal(made.norms, norms)
    assert torch.equal(made.packed().reshape(-1), packed)
    rows = packed.reshape(len(norms), -1)
    assert torch.equal(unpack(rows, bits), data[f"q{bits}_codes"])
    decoded = eager.decode(PackedLayer(rows, norms, bits, "msb", version, tuple(weight.shape)), torch.float32)
    assert_decodes(decoded, data[f"q{bits}_dequant_f32"], norms)


@pytest.mark.parametrize("bits, packing", [(3, "nibble"), (4, "nibble"), (5, "lsb"), (8, "byte")])
@pytest.mark.parametrize("name", LEGACY)
def test_author_engine_files(golden, name, bits, packing):
    data = load_file(golden / f"legacy_{name}.safetensors")
    codes, norms, table = (data[f"q{bits}.{part}"] for part in ("codes", "norms", "ct_scaled"))
    unpacked = data[f"q{bits}_codes_unpacked"].view(torch.uint8)
    assert torch.equal(unpack(codes, bits, packing), unpacked)
    assert torch.equal(pack(unpacked, bits, packing), codes.view(torch.uint8))
    author = data[f"q{bits}_dequant_f32"]
    stored = PackedLayer(codes, norms, bits, packing, register_stored(table), (len(codes), author.shape[1]))
    found = eager.decode(stored, torch.float32)
    finite = torch.isfinite(author).all(1)
    assert_decodes(found[: len(author)][finite], author[finite], norms[: len(author)][finite])


def test_codebooks_are_the_files_constants(golden):
    author = load_file(golden / "centroids.safetensors")
    for version in codebook.VERSIONS:
        for bits in BITS:
            assert torch.equal(codebook.centroids(bits, version), author[f"{version}_{bits}"])


def test_a_better_codebook_would_break_decoding(golden):
    """The trap of the format page: the converged table is a worse decoder of what exists."""
    weight = torch.randn(32, 1024, generator=torch.Generator().manual_seed(1))
    made = encode(weight)
    right = made.decode()
    converged = (codebook.converged(5) / codebook.SQRT_BLOCK).float()
    wrong = eager.decode(replace(made.layer(), codebook=register_stored(converged)), torch.float32)
    error = [float(((x - weight) ** 2).sum() / (weight**2).sum()) for x in (right, wrong)]
    assert error[0] < 0.0032 and error[1] > 0.03


def test_hadamard_is_the_authors(golden):
    (author,) = load_file(golden / "hadamard128.safetensors").values()
    assert torch.equal(hadamard(), author)
    x = torch.randn(3, 256)
    assert torch.allclose(rotate(rotate(x)), x, atol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bits=st.sampled_from(BITS), packing=st.sampled_from(("msb", "lsb", "nibble", "byte")), rows=st.integers(1, 5),
    blocks=st.integers(1, 3), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_packing_is_a_bit_stream(bits, packing, rows, blocks, seed):
    if packing == "nibble" and bits > 4:
        with pytest.raises(UnsupportedError):
            pack(torch.zeros(1, BLOCK, dtype=torch.uint8), bits, packing)
        return
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, blocks * BLOCK), dtype=np.uint8)
    packed = pack(torch.from_numpy(codes), bits, packing)
    assert packed.shape == (rows, row_bytes(blocks, bits, packing))
    assert torch.equal(unpack(packed, bits, packing), torch.from_numpy(codes))
    if packing in ("msb", "lsb"):
        order = 1 if packing == "lsb" else -1
        stream = ((codes[..., None] >> np.arange(bits)[::order]) & 1).reshape(rows, -1)
        expected = np.packbits(stream, axis=1, bitorder="little" if packing == "lsb" else "big")
        assert np.array_equal(packed.numpy(), expected)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.integers(1, 40), width=st.integers(1, 400), start=st.integers(0, 39), bits=st.sampled_from(BITS))
def test_a_range_of_rows_is_the_same_as_the_whole(rows, width, start, bits):
    made = encode(torch.randn(rows, width, generator=torch.Generator().manual_seed(rows * 1000 + width)), bits)
    packed = made.layer()
    whole = eager.decode(packed, torch.float32)
    part = eager.decode(packed.rows(slice(start, None)), torch.float32)
    # A matrix product of another height may sum in another order: equal but for float32 rounding.
    assert part.shape == whole[start:].shape and torch.allclose(whole[start:], part, rtol=0, atol=1e-5)


def test_quality_is_the_published_one():
    weight = torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
    found = encode(weight).decode()
    assert 2.8e-3 < float(((found - weight) ** 2).sum() / (weight**2).sum()) < 3.0e-3


@pytest.mark.parametrize(
    "weight, options",
    [
        (torch.zeros(4), {}),
        (torch.full((2, 128), float("nan")), {}),
        (torch.zeros(2, 128), {"bits": 7}),
        (torch.zeros(2, 128), {"version": "best"}),
        (torch.zeros(2, 128), {"norms": "guess"}),
    ],
)
def test_what_cannot_be_encoded_is_refused(weight, options):
    with pytest.raises(HLWQError):
        encode(weight, **options)
