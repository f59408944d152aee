"""GGUF's Q5_K decoded layer by layer in plain torch, as ComfyUI runs such files: a yardstick for speed and memory.

The format as llama.cpp describes it: super-blocks of 256 weights in 176 bytes, float16 scale and minimum of the super-block,
6-bit scale and minimum for each of 8 sub-blocks, the fifth bits, the lower four.
"""

from __future__ import annotations

import torch

SUPER, BYTES = 256, 176


def random_q5k(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A weight of random codes, uint8 `[rows, columns / 256 * 176]`, about as large as a trained one."""
    blocks = rows * columns // SUPER
    data = torch.randint(0, 256, (blocks, BYTES), dtype=torch.uint8, generator=generator)
    scales = torch.full((blocks, 2), 2e-5, dtype=torch.float16)
    scales[:, 1] *= 15
    data[:, :4] = scales.view(torch.uint8)
    return data.reshape(rows, -1)


def decode(data: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """`[rows, columns]` of `dtype`."""
    blocks = data.reshape(-1, BYTES)
    count = blocks.shape[0]
    d, smallest, packed, high, low = blocks.split([2, 2, 12, 32, 128], dim=1)
    d, smallest = d.view(torch.float16).to(dtype), smallest.view(torch.float16).to(dtype)
    first, second, third = packed.reshape(count, 3, 4).unbind(1)
    scale = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1)
    minimum = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1)
    d, smallest = (d * scale).reshape(count, 8, 1), (smallest * minimum).reshape(count, 8, 1)
    shifts = torch.tensor([0, 4], dtype=torch.uint8, device=data.device).reshape(1, 1, 2, 1)
    lower = ((low.reshape(count, 4, 1, 32) >> shifts) & 15).reshape(count, 8, 32)
    eight = torch.arange(8, dtype=torch.uint8, device=data.device).reshape(1, 8, 1)
    fifth = (high.reshape(count, 1, 32) >> eight) & 1
    return (d * (lower | (fifth << 4)) - smallest).reshape(-1, columns)


def operations() -> type:
    """ComfyUI operations whose Linear keeps uint8 weights and decodes them as it multiplies."""
    import comfy.ops

    class Operations(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
                torch.nn.Module.__init__(self)
                self.in_features, self.out_features = in_features, out_features
                self.register_parameter("weight", None)
                self.register_parameter("bias", None)

            def _load_from_state_dict(self, state_dict, prefix, *unused):
                for name in ("weight", "bias"):
                    if prefix + name in state_dict:
                        setattr(self, name, torch.nn.Parameter(state_dict[prefix + name], requires_grad=False))

            def forward(self, input):
                comfy.ops.run_every_op()
                if self.weight.dtype is not torch.uint8:
                    return self.forward_comfy_cast_weights(input)
                data, bias, stream = comfy.ops.cast_bias_weight(
                    self, None, dtype=torch.uint8, device=input.device, bias_dtype=input.dtype, offloadable=True
                )
                output = torch.nn.functional.linear(input, decode(data, self.in_features, input.dtype), bias)
                comfy.ops.uncast_bias_weight(self, data, bias, stream)
                return output

    return Operations
