"""A kernel that is wrong is not proven."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hlwq_core.backends import eager, proof
from hlwq_core.format.codebook import register_stored

from .layers import VARIANTS


@pytest.mark.parametrize("bits, packing", VARIANTS)
def test_a_wrong_kernel_is_not_proven(bits, packing):
    def right(packed, out, accumulate):
        eager.decode(packed, out.dtype, out, accumulate)

    def wrong(packed, out, accumulate):
        flipped = register_stored(packed.table().flip(0))
        right(dataclasses.replace(packed, codebook=flipped), out, accumulate)

    for accumulate in (False, True):
        proof.prove(right, torch.device("cpu"), bits, packing, torch.bfloat16, accumulate)
        with pytest.raises(RuntimeError, match="differs from eager"):
            proof.prove(wrong, torch.device("cpu"), bits, packing, torch.bfloat16, accumulate)
