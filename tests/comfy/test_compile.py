"""TorchCompileModel: the decode is one operator with a fake kernel, so compiled models sample as others do."""

from __future__ import annotations

import pytest
import torch

from .conftest import each_version


def test_the_operator_passes_torchs_own_checks(pack):
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.hlwq_core.running import operators

    encoded = codec.encode(torch.randn(4, 200, generator=torch.Generator().manual_seed(0)))
    arguments = (*operators.fields(encoded.layer()), torch.bfloat16, "eager")
    assert operators.decode(*arguments).shape == (4, 200)
    torch.library.opcheck(operators.decode, arguments)


@each_version
def test_a_compiled_part_samples_the_same(load, sample, distance):
    """As TorchCompileModel does it, but one attention instead of the whole model, which takes minutes to trace."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = load()[0]
    plain = sample(model, steps=1)
    compiled = model.clone(disable_dynamic=True)
    torch._dynamo.reset()
    set_torch_compile_wrapper(model=compiled, backend="aot_eager", keys=["diffusion_model.transformer_blocks.0.attn1"])
    try:
        assert distance(sample(compiled, steps=1), plain) < 0.01
    finally:
        torch._dynamo.reset()


@each_version
@pytest.mark.slow
def test_a_whole_model_compiles(load, sample, distance, monkeypatch):
    """As TorchCompileModel has it; blocks that could be recorded are traced like others."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfyui_hlwq.nodes.running import recorded_blocks

    plain = sample(load()[0], steps=5)
    monkeypatch.setattr(recorded_blocks, "DEVICE", "cpu")
    compiled = load()[0].clone(disable_dynamic=True)
    assert hasattr(compiled.model.diffusion_model, "hlwq_recordings")
    torch._dynamo.reset()
    set_torch_compile_wrapper(model=compiled, backend="aot_eager")
    try:
        assert distance(sample(compiled, steps=5), plain) < 0.01
    finally:
        torch._dynamo.reset()


def test_core_node_takes_the_model(load):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    compiled = TorchCompileModel.execute(load()[0], "inductor").args[0]
    assert "torch.compile" in str(compiled.wrappers)


@each_version
def test_a_linear_compiles_without_graph_breaks(load):
    model = load()[0]
    module = model.model.diffusion_model.transformer_blocks[0].attn1.to_q
    x = torch.randn(3, module.in_features)
    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(x), module(x), atol=1e-2, rtol=1e-2)
    torch._dynamo.reset()
