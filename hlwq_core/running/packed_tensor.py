"""Packed weights as quantized tensors of comfy_kitchen, which ComfyUI moves, offloads and counts like its own formats.

The stored bytes are the tensor's data (uint8 `[out, row_bytes]`, a view of the mapped file), the norms its one tensor
parameter. Codebook and Hadamard matrix are shared by all layers and stay outside. Shape, dtype and device are the logical
ones. A packed weight is never quantized again: the format is not idempotent, and a patch of 2 % would be lost in it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from comfy_kitchen.tensor import QuantizedLayout, QuantizedTensor, register_layout_class
from comfy_kitchen.tensor.base import LAYOUTS, BaseLayoutParams

from .. import backends
from ..errors import InputError
from ..format.codebook import BLOCK, scaled_table
from . import fast, operators

if TYPE_CHECKING:
    from ..format.packed import PackedLayer


def _decode_by_name(
    codes: torch.Tensor,
    norms: torch.Tensor,
    codebook: str,
    bits: int,
    packing: str,
    in_features: int,
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    table = scaled_table(codebook, bits, str(codes.device))
    return backends.choose(codes.device, backend).decode(codes, norms, table, bits, packing, in_features, dtype)


# Operators go when their library does.
_libraries: list[torch.library.Library] = []


def _operator(function: Callable, fake: Callable) -> Any:
    """Register an operator of torch under the function's name.

    Compiled code cannot hold tensors that are not its inputs, as the codebook is: hence operators that take its name. Each
    copy of the pack in a process has its own, because each has its own stored codebooks. Not by `torch.library.custom_op`,
    whose checks of every call take 3 of its 15 µs on the host.
    """
    namespace, name = "hlwq", function.__name__.strip("_")
    while hasattr(getattr(torch.ops, namespace), name):
        namespace += "_"
    library = torch.library.Library(namespace, "FRAGMENT")
    _libraries.append(library)
    library.define(name + torch.library.infer_schema(function, mutates_args=()))
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    return getattr(getattr(torch.ops, namespace), name).default


_decode_named = _operator(
    _decode_by_name,
    lambda codes, *rest: codes.new_empty((codes.shape[0], rest[-3]), dtype=rest[-2]),
)


def _rotate_rows(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    values, scales = fast.rotate(x.reshape(-1, x.shape[-1]), kind)
    return values, scales


def _fake_rotate(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = math.prod(x.shape[:-1])
    values = x.new_empty((rows, -(-x.shape[-1] // BLOCK) * BLOCK), dtype=fast.DTYPES[kind])
    return values, x.new_empty((rows, 1), dtype=torch.float32)


def _fast_linear(
    values: torch.Tensor,
    scales: torch.Tensor,
    codes: torch.Tensor,
    norms: torch.Tensor,
    bias: torch.Tensor | None,
    codebook: str,
    bits: int,
    packing: str,
    kind: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    table = scaled_table(codebook, bits, str(codes.device))
    weight = fast.weight(codes, norms, table, bits, packing, kind)
    return fast.multiply(fast.EightBit(values, scales), weight, bias, dtype)


def _rotate_and_multiply(
    x: torch.Tensor,
    codes: torch.Tensor,
    norms: torch.Tensor,
    bias: torch.Tensor | None,
    codebook: str,
    bits: int,
    packing: str,
    kind: str,
) -> torch.Tensor:
    return _fast_linear(*_rotate_rows(x, kind), codes, norms, bias, codebook, bits, packing, kind, x.dtype)


_rotate_operator = _operator(_rotate_rows, _fake_rotate)
_fast_linear_operator = _operator(
    _fast_linear,
    lambda values, scales, codes, *rest: values.new_empty((values.shape[0], codes.shape[0]), dtype=rest[-1]),
)
# For layers that share their input with no other: getting in and out of an operator is half of its time on the host.
_rotate_and_multiply_operator = _operator(
    _rotate_and_multiply,
    lambda x, codes, *rest: x.new_empty((math.prod(x.shape[:-1]), codes.shape[0])),
)
_rotations = {kind: functools.partial(_rotate_rows, kind=kind) for kind in fast.KINDS}


class HLWQLayout(QuantizedLayout):
    """Codes of 2 to 8 bits and a float16 norm a block of 128."""

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """`scale` holds the norms, float16 `[out, num_blocks]`; `codebook` is a name that `scaled_table` knows."""

        bits: int = 5
        packing: str = "msb"
        codebook: str = "infinite"
        backend: str = "auto"

        def copy_from(self, src: HLWQLayout.Params, non_blocking: bool = False) -> None:
            """As the base class, but in one thread where both are in memory.

            A model's layers load one by one, and torch's threads spin for a while after a copy that they shared: they would
            take the processors from ComfyUI's threads that read the next layer (an H100 with 16 cores: 12 s for 6).
            """
            if not (self.scale.is_cpu and src.scale.is_cpu):
                super().copy_from(src, non_blocking)
                return
            self.scale.numpy()[...] = src.scale.numpy()
            for field in dataclasses.fields(self):
                if field.name not in self._tensor_fields():
                    object.__setattr__(self, field.name, getattr(src, field.name))

    @classmethod
    def quantize(cls, tensor: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        """Refused: see the module's text."""
        raise InputError(
            "an HLWQ weight is never quantized again: patches are added after decoding",
            tensor=f"{tuple(tensor.shape)}",
            expected="a patch after decoding",
            found="a dense weight to be packed again",
            fix="this is a bug of the pack or of a node that rewrites weights: please report it with the workflow",
        )

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Any) -> torch.Tensor:
        """The weight `[out, in]` in the logical dtype, in memory of its own."""
        return _decode_named(
            qdata,
            params.scale,
            params.codebook,
            params.bits,
            params.packing,
            params.orig_shape[1],
            params.orig_dtype,
            params.backend,
        )

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor, ...]:
        """Codes and norms."""
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Any) -> dict[str, torch.Tensor]:
        """Saved files are dense: HLWQ files are written by the quantizer."""
        return {"": cls.dequantize(qdata, params)}


# The pack may be imported twice in a process; each copy's tensors must find that copy's tables.
LAYOUT = "HLWQLayout" if "HLWQLayout" not in LAYOUTS else f"HLWQLayout@{__name__}"
register_layout_class(LAYOUT, HLWQLayout)


class HLWQTensor(QuantizedTensor):
    """A packed weight. Shape and dtype are the logical ones; `nbytes` is what it takes: codes and norms."""

    # Shape, dtype and device are asked for at every use of a layer, and cost 2 µs each through the Python hook.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def nbytes(self) -> int:
        """Bytes of codes and norms (the base class forgets the norms, 2.4 % at 5 bits)."""
        return self._qdata.nbytes + self._params.scale.nbytes

    def _copy_with(
        self, qdata: torch.Tensor | None = None, params: Any = None, clone_params: bool = True
    ) -> HLWQTensor:
        if params is None:
            params = self._params.clone() if clone_params else self._params
        return HLWQTensor(self._qdata if qdata is None else qdata, self._layout_cls, params)

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        """As the base class, but looked up once: ComfyUI asks for it at every use of a layer, to know its size."""
        kept = self.__dict__.get("_flattened")
        if kept is None or kept[0] is not self._params:
            kept = self._flattened = self._params, super().__tensor_flatten__()
        return kept[1]

    @staticmethod
    def __tensor_unflatten__(
        inner_tensors: dict[str, torch.Tensor], ctx: dict, outer_size: Any, outer_stride: Any
    ) -> Any:
        base = QuantizedTensor.__tensor_unflatten__(inner_tensors, ctx, outer_size, outer_stride)
        return HLWQTensor(base._qdata, base._layout_cls, base._params)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            # The base class clones the norms here, at every state_dict(): they must stay views of the mapped file.
            return args[0]._copy_with(clone_params=False)
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], QuantizedTensor):
            # Into a plain tensor: what is no linear weight is decoded at load.
            return args[0].copy_(args[1].dequantize()[:, : args[0].shape[-1]])
        return super().__torch_dispatch__(func, types, args, kwargs)


def quantized_tensor(packed: PackedLayer, dtype: torch.dtype = torch.bfloat16, backend: str = "auto") -> HLWQTensor:
    """A packed layer as a tensor of shape `[out, in]` and dtype `dtype`, without reading or copying its bytes.

    Args:
        packed: codes and norms, views of the mapped files.
        dtype: the dtype that the weight stands for.
        backend: which backend decodes it (`backends.choose`).
    """
    params = HLWQLayout.Params(
        scale=packed.norms,
        orig_dtype=dtype,
        orig_shape=tuple(packed.shape),
        bits=packed.bits,
        packing=packed.packing,
        codebook=packed.codebook,
        backend=backend,
    )
    return HLWQTensor(packed.codes, LAYOUT, params)


def as_parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    """A tensor, packed or plain, as a parameter without gradient."""
    if not is_packed(tensor):
        if not torch.is_inference_mode_enabled() and tensor.is_inference():
            tensor = tensor.clone()
        return torch.nn.Parameter(tensor, requires_grad=False)
    # torch.nn.Parameter detaches wrappers, which fails between inference mode and the world outside of it.
    packed: Any = tensor
    parameter = HLWQTensor(packed._qdata, packed._layout_cls, packed._params)
    parameter._is_param = True
    return parameter


def with_width(tensor: HLWQTensor, in_features: int) -> HLWQTensor:
    """The same weight, cut to the width that the model has: files do not always tell where a row's padding begins."""
    shape = (tensor.shape[0], in_features)
    params = dataclasses.replace(tensor._params, orig_shape=shape)
    return HLWQTensor(tensor._qdata, tensor._layout_cls, params)


def fits(tensor: HLWQTensor, shape: tuple[int, int]) -> bool:
    """Whether a packed weight is one of `shape`, but for the padding of its rows."""
    return tuple(tensor.shape) == shape or tuple(tensor.shape) == (shape[0], -(-shape[1] // BLOCK) * BLOCK)


def is_packed(weight: object) -> bool:
    """Whether a weight is an HLWQ tensor of this copy of the pack."""
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == LAYOUT


class ScratchDecoder:
    """Decodes one packed weight into its device's scratch buffer, again and again: its launch is prepared once.

    Args:
        weight: the packed tensor.
        dtype: of the result.

    Attributes:
        shape, dtype, device: of the result.
    """

    __slots__ = ("_run", "device", "dtype", "shape")

    def __init__(self, weight: QuantizedTensor, dtype: torch.dtype):
        codes, params = weight._qdata, weight._params
        self.shape: tuple[int, int] = params.orig_shape
        self.dtype, self.device = dtype, codes.device
        table = scaled_table(params.codebook, params.bits, str(codes.device))
        self._run = backends.choose(codes.device, params.backend).prepare(
            codes, params.scale, table, params.bits, params.packing, self.shape[1], dtype
        )

    def __call__(
        self, low_rank: tuple[torch.Tensor, torch.Tensor] | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The weight `[out, in]`, valid until the next layer is decoded.

        Args:
            low_rank: `up [out, rank]` and `down [rank, in]` of `dtype`; their product is added before the result is rounded.
            out: where to decode it to instead of the scratch buffer.
        """
        if out is None:
            out = operators.scratch(*self.shape, self.dtype, self.device)
        if low_rank is None:
            self._run(out, False)
        else:
            torch.mm(*low_rank, out=out)
            self._run(out, True)
        return out


def scratch_decoder(weight: QuantizedTensor, dtype: torch.dtype) -> ScratchDecoder:
    """The decoder of a packed tensor, kept with it: it goes when the tensor's memory does."""
    decoder = weight.__dict__.get("_decoder")
    if decoder is None or decoder.dtype is not dtype:
        decoder = weight._decoder = ScratchDecoder(weight, dtype)
    return decoder


class EightBitDecoder:
    """As ScratchDecoder, but to 8 bits, still rotated (see fast.py).

    Args:
        weight: the packed tensor.
        kind: `fp8` or `int8`.

    Attributes:
        rows, padded, kind, device: of the result.
    """

    __slots__ = ("_run", "device", "kind", "padded", "rows")

    def __init__(self, weight: QuantizedTensor, kind: str):
        codes, params = weight._qdata, weight._params
        self.rows, self.padded = params.scale.shape[0], params.scale.shape[1] * BLOCK
        self.kind, self.device = kind, codes.device
        table = scaled_table(params.codebook, params.bits, str(codes.device))
        self._run = fast.prepare_weight(codes, params.scale, table, params.bits, params.packing, kind)

    def __call__(self, out: fast.EightBit | None = None) -> fast.EightBit:
        """The weight `[out, padded]`, in the scratch buffer (valid until the next layer is decoded) unless told where to."""
        if out is None:
            out = fast.scratch(self.rows, self.padded, self.kind, self.device)
        self._run(out)
        return out


def eight_bit_decoder(weight: QuantizedTensor, kind: str) -> EightBitDecoder:
    """The 8-bit decoder of a packed tensor, kept with it: it goes when the tensor's memory does."""
    decoder = weight.__dict__.get("_eight_bit_decoder")
    if decoder is None or decoder.kind != kind:
        decoder = weight._eight_bit_decoder = EightBitDecoder(weight, kind)
    return decoder


def decode(qdata: torch.Tensor, params: Any, dtype: torch.dtype) -> torch.Tensor:
    """Decode codes and parameters of a quantized tensor to `[out, in]` of `dtype`, in memory of its own."""
    table = scaled_table(params.codebook, params.bits, str(qdata.device))
    return operators.decode(
        qdata, params.scale, table, params.bits, params.packing, params.orig_shape[1], dtype, params.backend
    )


def fast_linear(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None,
    kind: str,
    shared: fast.SharedInput | None = None,
    last: bool = True,
    decoded: fast.EightBit | None = None,
) -> torch.Tensor:
    """`x · Wᵀ + bias` in 8 bits (see fast.py).

    Args:
        x: `[..., in]` of one of `fast.INPUTS`.
        weight: packed, `[out, in]`.
        bias: `[out]`.
        kind: `fp8` or `int8`.
        shared: of the layers that read the same input, in turn.
        last: whether this is the last of them.
        decoded: the weight in 8 bits, where somebody kept it.

    Returns:
        `[..., out]` in the dtype of `x`.
    """
    # An operator of torch costs the host 30 µs; only compiled code needs it.
    if torch.compiler.is_compiling():
        result = _compiled_fast_linear(x, weight, bias, kind, shared, last)
    else:
        rotate = _rotations[kind]
        values, scales = rotate(x) if shared is None else shared.rotate(x, last, rotate)
        if decoded is None:
            decoded = eight_bit_decoder(weight, kind)()
        result = fast.multiply(fast.EightBit(values, scales), decoded, bias, x.dtype)
    return result.view(*x.shape[:-1], result.shape[1])


def _compiled_fast_linear(
    x: torch.Tensor,
    weight: QuantizedTensor,
    bias: torch.Tensor | None,
    kind: str,
    shared: fast.SharedInput | None,
    last: bool,
) -> torch.Tensor:
    codes, params = weight._qdata, weight._params
    named = params.codebook, params.bits, params.packing, kind
    if shared is None:
        return _rotate_and_multiply_operator(x, codes, params.scale, bias, *named)
    values, scales = shared.rotate(x, last, functools.partial(_rotate_operator, kind=kind))
    return _fast_linear_operator(values, scales, codes, params.scale, bias, *named, x.dtype)
