"""Packed weights as quantized tensors of comfy_kitchen, which ComfyUI moves, offloads and counts like its own formats.

The stored bytes are the tensor's data (uint8 `[out, row_bytes]`, a view of the mapped file), the norms its one tensor
parameter. Codebook and Hadamard matrix are shared by all layers and stay outside. Shape, dtype and device are the logical
ones. A packed weight is never quantized again: the format is not idempotent, and a patch of 2 % would be lost in it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from comfy_kitchen.tensor import QuantizedLayout, QuantizedTensor, register_layout_class
from comfy_kitchen.tensor.base import LAYOUTS, BaseLayoutParams

from ..errors import InputError
from ..format.packed import PackedLayer
from ..format.sizes import BLOCK
from . import operators


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
        return decode(qdata, params, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor, ...]:
        """Codes and norms."""
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Any) -> dict[str, torch.Tensor]:
        """Saved files are dense: HLWQ files are written by the quantizer."""
        return {"": cls.dequantize(qdata, params)}


def decode(qdata: torch.Tensor, params: Any, dtype: torch.dtype) -> torch.Tensor:
    """Codes and parameters of a quantized tensor as `[out, in]` of `dtype`, in memory of its own."""
    columns = params.orig_shape[1]
    return operators.decode(
        qdata, params.scale, params.bits, params.packing, params.codebook, columns, dtype, params.backend
    )


def layer_of(weight: QuantizedTensor) -> PackedLayer:
    """A packed tensor's layer: the same codes and norms."""
    params = weight._params
    shape = tuple(params.orig_shape)
    return PackedLayer(weight._qdata, params.scale, params.bits, params.packing, params.codebook, shape)


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
        if torch.is_inference_mode_enabled() and getattr(func, "is_view", False) and not args[0].is_inference():
            # torch hands a view the version of what it views, which only a tensor from outside of inference mode can have.
            # ComfyUI unloads outside and loads inside: parameters, `state_dict` and `to` of a module need views (`detach`).
            with torch.inference_mode(False):
                return cls.__torch_dispatch__(func, types, args, kwargs)
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
    # Directly: torch.nn.Parameter would make a view first, to the same end.
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
