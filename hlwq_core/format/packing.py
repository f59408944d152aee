"""Packing of codes into bytes: four ways that exist in published files.

A block is 128 codes of `bits` bits. Every packing keeps blocks byte-aligned (128 · bits is a multiple of 8), so rows
and blocks can be cut out of the packed bytes without touching their neighbours.

| packing | layout |
| --- | --- |
| `msb` | a bit stream; the first code takes the top bits of the first byte (V1, V2) |
| `lsb` | a bit stream; the first code takes the low bits (V4, 5 bits) |
| `nibble` | half-block nibbles: the low nibble is code i, the high one code i+64 of the block (V4, up to 4 bits) |
| `byte` | one code a byte (V3; V4 at 6 and 8 bits; 1, 7 and 8 bits of V1) |

Source: the author's `BitPacker`, `pack_codes_q5`, `pack_codes_half_block` as described on the format page.
"""

from __future__ import annotations

import torch

from ..errors import UnsupportedError
from .sizes import BLOCK

PACKINGS = ("msb", "lsb", "nibble", "byte")


def block_bytes(bits: int, packing: str) -> int:
    """Bytes that one block of 128 codes takes."""
    if packing == "byte":
        return BLOCK
    if packing == "nibble":
        return BLOCK // 2
    return BLOCK * bits // 8


def row_bytes(num_blocks: int, bits: int, packing: str) -> int:
    """Bytes of one row of `num_blocks` blocks."""
    return num_blocks * block_bytes(bits, packing)


def _group(bits: int) -> tuple[int, int]:
    """Codes and bytes of the smallest byte-aligned group: (8, 5) for 5 bits, (4, 3) for 6, (8, 3) for 3."""
    codes = 8
    while codes > 1 and (codes // 2) * bits % 8 == 0:
        codes //= 2
    return codes, codes * bits // 8


def _check(bits: int, packing: str) -> None:
    if packing not in PACKINGS:
        raise UnsupportedError("unknown packing", expected=", ".join(PACKINGS), found=packing, fix="take one of these")
    if not 1 <= bits <= 8 or (packing == "nibble" and bits > 4):
        raise UnsupportedError(
            "bits that this packing cannot hold", expected="1 to 8 (nibble: to 4)", found=bits, fix="take one of these"
        )


def pack(codes: torch.Tensor, bits: int, packing: str = "msb") -> torch.Tensor:
    """Pack codes into bytes.

    Args:
        codes: uint8 `[rows, num_blocks · 128]`, each below 2**bits.
        bits: bits a code, 1 to 8.
        packing: one of `PACKINGS`.

    Returns:
        uint8 `[rows, row_bytes]`.
    """
    _check(bits, packing)
    rows, width = codes.shape
    if packing == "byte" or bits == 8:
        return codes.clone()
    if packing == "nibble":
        halves = codes.reshape(rows, -1, 2, BLOCK // 2)
        return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(rows, -1)
    per_group, group_bytes = _group(bits)
    groups = codes.reshape(rows, width // per_group, per_group).to(torch.int64)
    order = range(per_group) if packing == "msb" else range(per_group - 1, -1, -1)
    word = torch.zeros(groups.shape[:2], dtype=torch.int64, device=codes.device)
    for i in order:
        word = (word << bits) | groups[:, :, i]
    shifts = [8 * k for k in range(group_bytes)]
    if packing == "msb":
        shifts.reverse()
    return torch.stack([(word >> s) & 0xFF for s in shifts], dim=-1).to(torch.uint8).reshape(rows, -1)


def unpack(packed: torch.Tensor, bits: int, packing: str = "msb") -> torch.Tensor:
    """The inverse of `pack`.

    Args:
        packed: uint8 or int8 `[rows, row_bytes]`; int8 of 8-bit codes that wrapped negative is read as uint8.
        bits: bits a code.
        packing: one of `PACKINGS`.

    Returns:
        uint8 `[rows, num_blocks · 128]`.
    """
    _check(bits, packing)
    rows = packed.shape[0]
    if packed.dtype == torch.int8:
        packed = packed.view(torch.uint8)
    if packing == "byte" or bits == 8:
        return packed
    if packing == "nibble":
        blocks = packed.reshape(rows, -1, BLOCK // 2)
        return torch.cat((blocks & 0x0F, blocks >> 4), dim=-1).reshape(rows, -1)
    per_group, group_bytes = _group(bits)
    groups = packed.reshape(rows, -1, group_bytes)
    codes = torch.empty((rows, groups.shape[1], per_group), dtype=torch.uint8, device=packed.device)
    mask = (1 << bits) - 1
    for i in range(per_group):
        # A code of up to 8 bits lies in one byte or two neighbours; uint8 shifts drop what leaves the byte, as wanted.
        first, offset = divmod(i * bits, 8)
        if packing == "msb":
            spare = 8 - offset - bits
            if spare >= 0:
                value = groups[:, :, first] >> spare
            else:
                value = (groups[:, :, first] << -spare) | (groups[:, :, first + 1] >> (8 + spare))
        else:
            value = groups[:, :, first] >> offset
            if offset + bits > 8:
                value = value | (groups[:, :, first + 1] << (8 - offset))
        torch.bitwise_and(value, mask, out=codes[:, :, i])
    return codes.reshape(rows, -1)
