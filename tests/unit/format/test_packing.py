"""How many bytes codes take."""

from __future__ import annotations

from hlwq_core.format.packing import row_bytes


def test_row_bytes():
    assert row_bytes(2, 5, "msb") == 160 and row_bytes(2, 4, "nibble") == 128 and row_bytes(2, 6, "byte") == 256
