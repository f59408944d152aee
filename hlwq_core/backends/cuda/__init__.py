"""The CUDA backend: kernels built at run time (see nvrtc.py), for every way of packing and three output types; fast mode too.

Before a variant of a kernel is used, it works on small random data and is compared with its definition: a driver or a card that
would give wrong weights gives a warning and eager decoding instead.
"""

from __future__ import annotations

import dataclasses
import functools

from ..contract import Backend, Constraints, Fast
from ..eight_bit import KINDS
from . import activations, decode, eight_bit

CONSTRAINTS = Constraints(
    devices=("cuda",),
    no_device="is no CUDA device",
    cuda=True,
    capability=(7, 0),
    too_old="the card is older than Volta (compute capability 7.0)",
    imports=("cuda.bindings.driver", "cuda.bindings.nvrtc"),  # cuda-bindings, which torch brings
    dtypes=tuple(decode.OUTPUTS),
    blocks=1 << 31,
)
# What the vendor's 8-bit products ask for.
PRODUCTS = {
    "fp8": dataclasses.replace(
        CONSTRAINTS,
        capability=(8, 9),
        too_old="the card has no FP8 tensor cores (they came with Ada, compute capability 8.9)",
    ),
    "int8": dataclasses.replace(
        CONSTRAINTS,
        capability=(7, 5),
        too_old="the card has no 8-bit tensor cores (they came with Turing, compute capability 7.5)",
    ),
}


def _fast(kind: str) -> Fast:
    return Fast(
        kind,
        PRODUCTS[kind],
        prove=functools.partial(eight_bit.prove, kind=kind),
        rotate=functools.partial(eight_bit.rotate, kind=kind),
        prepare=functools.partial(eight_bit.prepare, kind=kind),
        multiply=eight_bit.multiply_fp8 if kind == "fp8" else eight_bit.multiply_int8,
        once=functools.partial(eight_bit.once, kind=kind),
        rotate_after=functools.partial(activations.rotate_after, kind=kind),
        add_product=activations.add_product,
        norm_rope=activations.norm_rope,
    )


BACKEND = Backend(
    "cuda",
    CONSTRAINTS,
    functools.partial(decode.prepare, constraints=CONSTRAINTS),
    {kind: _fast(kind) for kind in KINDS},
)
