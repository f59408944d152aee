"""The operations that a model with packed weights is built of: ComfyUI's own, with one Linear that decodes as it multiplies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ...hlwq_core.backends import eight_bit
from ...hlwq_core.errors import is_refusal
from ...hlwq_core.running import cuda_graph, decoders, fast, packed_tensor, scratch
from ...hlwq_core.running.pending import made
from .. import compat
from . import kept_decoded
from .low_rank import LowRank

_log = logging.getLogger("hlwq")
scratch.lasting = compat.lasting_memory


def _keeps_weight(input: torch.Tensor) -> bool:
    """Whether autograd keeps the weight for its backward pass: then it needs memory of its own."""
    return torch.is_grad_enabled() and input.requires_grad


class PackedOperations(compat.manual_cast):
    """`custom_operations` for ComfyUI's loaders; layers with plain weights work as in core."""

    class Linear(compat.manual_cast.Linear):
        """A linear layer whose weight is packed (or plain, for the layers that a checkpoint leaves in BF16).

        Attributes:
            low_rank: LoRAs to add to a packed weight.
            eight_bit: `fp8` or `int8` to multiply in 8 bits where that pays (fast mode); None decodes exactly.
            place: where the decoded weight may be kept.
            shared: in fast mode, what the layers that read the same input have in common; `last_of_shared` is the last one.
            input_is_read_again: in fast mode, whether a layer that is not packed reads the same input after this one.
        """

        low_rank: LowRank | None = None
        eight_bit: str | None = None
        place: kept_decoded.Place | None = None
        shared: fast.SharedInput | None = None
        last_of_shared = True
        input_is_read_again = False

        def __init__(
            self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
        ):
            # No allocation: 18.5e9 weights that the state dict brings anyway.
            torch.nn.Module.__init__(self)
            self.in_features = in_features
            self.out_features = out_features
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
            self.has_bias = bias
            self.weight_comfy_model_dtype = dtype
            self.bias_comfy_model_dtype = dtype

        def _load_from_state_dict(
            self,
            state_dict: dict[str, Any],
            prefix: str,
            local_metadata: dict[str, Any],
            strict: bool,
            missing_keys: list[str],
            unexpected_keys: list[str],
            error_msgs: list[str],
        ) -> None:
            assign = local_metadata.get("assign_to_params_buffers", False)
            shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
            if self.has_bias:
                shapes["bias"] = (self.out_features,)
            for name, shape in shapes.items():
                value = state_dict.get(prefix + name)
                if value is None:
                    missing_keys.append(prefix + name)
                elif (
                    packed_tensor.is_packed(value)
                    and name == "weight"
                    and packed_tensor.fits(value, (self.out_features, self.in_features))
                ):
                    self.weight = packed_tensor.as_parameter(packed_tensor.with_width(value, self.in_features))
                elif tuple(value.shape) != shape:
                    error_msgs.append(
                        f"size mismatch for {prefix}{name}: {tuple(value.shape)} in the file, {shape} here"
                    )
                else:
                    if packed_tensor.is_packed(value):
                        value = value.dequantize()
                    if not assign:
                        value = value.to(dtype=self.weight_comfy_model_dtype, copy=True)
                    setattr(self, name, torch.nn.Parameter(value, requires_grad=False))
            known = {prefix + name for name in shapes}
            unexpected_keys.extend(key for key in state_dict if key.startswith(prefix) and key not in known)

        def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
            # Not detached: detaching a wrapper makes a new one each, for nothing; none of them requires a gradient.
            for name, value in self._parameters.items():
                if value is not None:
                    destination[prefix + name] = value

        def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
            # Module._apply swaps `.data`, which wrapper tensors do not survive.
            for name, value in self._parameters.items():
                if value is not None and (applied := fn(value)) is not value:
                    self._parameters[name] = packed_tensor.as_parameter(applied)
            return self

        def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **kwargs: Any) -> torch.Tensor:
            """The dense weight, for whoever patches or merges it."""
            return weight.dequantize() if packed_tensor.is_packed(weight) else weight

        def set_weight(
            self,
            weight: torch.Tensor,
            inplace_update: bool = False,
            seed: Any = None,
            return_weight: bool = False,
            **kwargs: Any,
        ) -> torch.Tensor | None:
            """Take a patched weight as it is: dense, never quantized again."""
            weight = weight.to(self.weight.dtype)
            if return_weight:
                return weight
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            return None

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            """`input · Wᵀ + b`; W exists only while this runs."""
            compat.run_every_op()
            weight = self._parameters["weight"]
            if not packed_tensor.is_packed(weight):
                return self.forward_comfy_cast_weights(made(input))
            patched = bool(self.weight_function or self.bias_function)
            if not patched and not torch.compiler.is_compiling():
                resident = compat.take_resident(self, input.device)
                if resident is not None:
                    weight, bias, held = resident
                    if bias is not None and bias.dtype is not input.dtype:
                        bias = bias.to(input.dtype)
                    try:
                        return self._multiply(weight, bias, input)
                    finally:
                        compat.release_resident(held)
            # With functions the cast decodes and applies them; in float32, so that a small patch is rounded once, not twice.
            dtype = torch.float32 if self.weight_function else weight.dtype
            weight, bias, stream = compat.cast_bias_weight(
                self, None, dtype=dtype, device=input.device, bias_dtype=input.dtype, offloadable=True
            )
            output = self._multiply(weight, bias, input)
            compat.uncast_bias_weight(self, weight, bias, stream)
            return output

        def _multiply(self, weight: Any, bias: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor:
            """The product with a weight on the input's device, in the way that fits."""
            if self.eight_bit is not None and self._can_be_fast(weight, input):
                output = self._fast(weight, bias, input)
                if output is not None:
                    return output
            input = made(input)
            if self.shared is not None:
                self.shared.clear()  # nobody after this layer would, and an input at full size is large
            place = self._lent_place()
            if place is not None and self._can_be_kept(weight, input):
                return self._kept(place, weight, bias, input)
            return torch.nn.functional.linear(input, self._dense(weight, input), bias)

        def _lent_place(self) -> kept_decoded.Place | None:
            """`place`, but not where the memory may be another's when the work is done: in compiled code and in recordings,
            ours and others'."""
            if (
                self.place is None
                or torch.compiler.is_compiling()
                or cuda_graph.is_recording()
                or scratch.is_captured()
            ):
                return None
            return self.place

        def _can_be_kept(self, weight: Any, input: torch.Tensor) -> bool:
            return (
                packed_tensor.is_packed(weight)
                and input.dtype.itemsize == kept_decoded.BYTES_A_VALUE
                and not _keeps_weight(input)
            )

        def _kept(
            self,
            place: kept_decoded.Place,
            weight: Any,
            bias: torch.Tensor | None,
            input: torch.Tensor,
        ) -> torch.Tensor:
            dense = place.take(decoders.scratch_decoder(weight, input.dtype), self.low_rank)
            if dense is None:
                return torch.nn.functional.linear(input, self._dense(weight, input), bias)
            try:
                return torch.nn.functional.linear(input, dense, bias)
            finally:
                place.release()

        def _can_be_fast(self, weight: Any, input: torch.Tensor) -> bool:
            return (
                packed_tensor.is_packed(weight)
                and input.dtype in eight_bit.INPUTS
                and input.numel() >= fast.MIN_ROWS * self.in_features
                and self.out_features % 16 == 0
                and not _keeps_weight(input)
            )

        def _fast(self, weight: Any, bias: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor | None:
            """The product in 8 bits; None, from now on, where the device's library has none for this layer."""
            kind = self.eight_bit
            assert kind is not None
            place = self._lent_place()
            kept = None if place is None else place.take_eight_bit(decoders.eight_bit_decoder(weight, kind))
            try:
                again = self.input_is_read_again or self.low_rank is not None
                output = fast.linear(input, weight, bias, kind, self.shared, self.last_of_shared, kept, again)
            except RuntimeError as error:
                if not is_refusal(error):
                    raise
                _log.warning(
                    "HLWQ: no fast product for %s × %s, this layer stays exact: %s",
                    tuple(input.shape), tuple(weight.shape), str(error).splitlines()[0],
                )  # fmt: skip
                self.eight_bit = None
                return None
            finally:
                if kept is not None and place is not None:
                    place.release()
            if self.low_rank is not None:
                up, down = self.low_rank.factors(input.device, input.dtype)
                thin = torch.nn.functional.linear(made(input).reshape(-1, self.in_features), down)
                output.view(-1, self.out_features).addmm_(thin, up.t())
            return output

        def _dense(self, weight: Any, input: torch.Tensor) -> torch.Tensor:
            low_rank = self.low_rank
            if packed_tensor.is_packed(weight) and not _keeps_weight(input) and not torch.compiler.is_compiling():
                # Straight from the cast weight's codes: the wrapper's dispatch costs 20 µs a layer on the host.
                decode = decoders.scratch_decoder(weight, input.dtype)
                return decode(None if low_rank is None else low_rank.factors(input.device, input.dtype))
            if low_rank is None:
                return weight.to(input.dtype)
            # Compiled code sees the wrapper, whose operators decode through torch.ops.hlwq.
            return weight.to(torch.float32).add(low_rank.delta(input.device)).to(input.dtype)
