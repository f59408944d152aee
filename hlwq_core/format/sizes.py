"""The numbers that the format allows, apart from what works with tensors: whoever only describes them imports no torch."""

from __future__ import annotations

BLOCK = 128  # weights that share a norm
BITS = (2, 3, 4, 5, 6, 8)  # of a code
