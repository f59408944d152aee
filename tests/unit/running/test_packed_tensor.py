"""Packed weights as tensors: what torch and ComfyUI do with any tensor, in inference mode and outside of it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("comfy_kitchen")

from hlwq_core.codec import codec
from hlwq_core.running import packed_tensor


class Holder(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight


def made(inference: bool) -> torch.nn.Parameter:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(inference):
        return packed_tensor.as_parameter(packed_tensor.quantized_tensor(codec.encode(weight).layer()))


VIEWS = {
    "detach": lambda weight: weight.detach(),
    "parameter": lambda weight: torch.nn.Parameter(weight, requires_grad=False),
    "state dict": lambda weight: Holder(weight).state_dict()["weight"],
    "to of a module": lambda weight: Holder(weight).to("cpu").weight,
    "alias": lambda weight: torch.ops.aten.alias(weight),
    "view": lambda weight: weight.view(weight.shape),
    "clone": lambda weight: weight.clone(),
    "copy to": lambda weight: weight.to("cpu", copy=True),
}


@pytest.mark.parametrize("where", [False, True], ids=["made outside", "made inside"])
@pytest.mark.parametrize("inside", [False, True], ids=["used outside", "used inside"])
@pytest.mark.parametrize("act", VIEWS)
def test_views_in_inference_mode_and_outside(act: str, inside: bool, where: bool) -> None:
    """ComfyUI unloads models outside of inference mode (/free) and loads them in it: both make views of each weight."""
    weight = made(where)
    with torch.inference_mode(inside):
        viewed = VIEWS[act](weight)
    assert torch.equal(viewed.dequantize(), weight.dequantize())
    if act not in ("clone", "copy to", "view") and packed_tensor.is_packed(viewed):
        assert viewed._qdata.data_ptr() == weight._qdata.data_ptr(), "the bytes were copied"
