"""What a backend is: what it asks for, as data, and what it does."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..format.packed import PackedLayer
from .activations import Steps
from .eight_bit import EightBit

# `run(out, accumulate)` decodes into `out` `[out_features, in_features]`, or adds to what it holds before the one rounding.
Run = Callable[[torch.Tensor, bool], object]
# `run(out)` writes the weight in 8 bits, still rotated, `[out_features, padded]`.
EightBitRun = Callable[[EightBit], object]


@dataclass(frozen=True)
class Constraints:
    """What something asks of a device and of what it is given. What is empty asks for nothing.

    Attributes:
        devices: types of torch's devices, and the words for "is no such device".
        capability: least compute capability of a CUDA device, and what is said of an older one.
        cuda: torch must be built for CUDA, not for ROCm, which calls its devices so too.
        packages: modules that must be there; they are not imported, which may take long.
        imports: modules that must import.
        dtypes: of results.
        blocks: fewer blocks of 128 weights than this.
    """

    devices: tuple[str, ...] = ()
    no_device: str = ""
    capability: tuple[int, int] = (0, 0)
    too_old: str = ""
    cuda: bool = False
    packages: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    blocks: int | None = None

    def refuses(self, device: torch.device) -> str | None:
        """Why this cannot be used on `device`; None if it can, as far as can be told without trying."""
        if self.devices and device.type not in self.devices:
            return f"{device.type} {self.no_device}"
        if self.cuda and torch.version.cuda is None:
            return "this torch is built for ROCm, not for CUDA"
        if self.cuda and not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if self.capability != (0, 0) and torch.cuda.get_device_capability(device) < self.capability:
            return self.too_old
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"the package {package} is not installed"
        for module in self.imports:
            try:
                importlib.import_module(module)
            except ImportError as error:
                return f"the module {module} cannot be imported: {error}"
        return None

    def takes(self, packed: PackedLayer, dtype: torch.dtype) -> bool:
        """Whether this decodes such a weight to such a dtype."""
        if self.dtypes and dtype not in self.dtypes:
            return False
        return self.blocks is None or packed.norms.numel() < self.blocks


@dataclass(frozen=True)
class Fast:
    """Fast mode in one kind of 8 bits, see `eight_bit`, which defines each of these.

    Attributes:
        kind: one of `eight_bit.KINDS`.
        constraints: what it asks of a device.
        prove: compares all of this with its definition on a device; raises RuntimeError or OSError where it differs.
        rotate: activations `[rows, columns]` of one of `eight_bit.INPUTS` to 8 bits.
        prepare: a packed weight's way to 8 bits; what it gives is called again and again.
        multiply: `multiply(x, w, bias, dtype)`, the product of two matrices in 8 bits.
        once: `once(packed, out)`, as `prepare` for a single use, where that is cheaper.
        rotate_after: `rotate_after(x, steps, dense)`: as `rotate` of what `activations.apply` gives, in one pass, and that
            itself in the dtype of `x`, or None if not `dense`.
        add_product, norm_rope: as of the same names in `activations`.
    """

    kind: str
    constraints: Constraints
    prove: Callable[[torch.device], None]
    rotate: Callable[[torch.Tensor], EightBit]
    prepare: Callable[[PackedLayer], EightBitRun]
    multiply: Callable[[EightBit, EightBit, torch.Tensor | None, torch.dtype], torch.Tensor]
    once: Callable[[PackedLayer, EightBit], object] | None = None
    rotate_after: Callable[[torch.Tensor, Steps, bool], tuple[EightBit, torch.Tensor | None]] | None = None
    add_product: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None
    norm_rope: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor] | None = None

    def weight(self, packed: PackedLayer, out: EightBit) -> None:
        """Write a packed weight in 8 bits to `out`, for once."""
        if self.once is not None:
            self.once(packed, out)
        else:
            self.prepare(packed)(out)


@dataclass(frozen=True)
class Backend:
    """What decodes packed weights.

    Attributes:
        name: as users choose it; the module's name.
        constraints: what it asks of a device.
        prepare: `prepare(packed, dtype)` lays down all but the place to decode to, for a weight that is decoded again and
            again. It takes any weight: where the backend cannot decode it, eager does.
        fast: fast mode by kind of 8 bits, where the backend has it.
    """

    name: str
    constraints: Constraints
    prepare: Callable[[PackedLayer, torch.dtype], Run]
    fast: Mapping[str, Fast] = field(default_factory=dict)

    def unavailable_reason(self, device: torch.device | str) -> str | None:
        """Why it cannot run on `device`; None if it can."""
        return self.constraints.refuses(torch.device(device))

    def decode(
        self, packed: PackedLayer, dtype: torch.dtype, out: torch.Tensor | None = None, accumulate: bool = False
    ) -> torch.Tensor:
        """Decode once.

        Args:
            packed: a weight, on the device that decodes it.
            dtype: of the result; the arithmetic is float32.
            out: `[out_features, in_features]` of `dtype` to write into.
            accumulate: add to what `out` holds (a patch of the weight), before the one rounding.

        Returns:
            `[out_features, in_features]` of `dtype`, on the weight's device.
        """
        if out is None:
            out = torch.empty(packed.shape, dtype=dtype, device=packed.codes.device)
        self.prepare(packed, dtype)(out, accumulate)
        return out
