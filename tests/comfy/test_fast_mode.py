"""Fast mode in a whole model. Without a GPU its definition in torch runs in place of the kernels."""

from __future__ import annotations

import pytest
import torch

from .conftest import each_version


def flat(latents) -> torch.Tensor:
    return torch.cat([part.flatten().double() for part in latents])


@pytest.fixture
def fast_model(load, pack, monkeypatch):
    """`fast_model(kind)`: the tiny model, its layers multiplying in 8 bits."""
    from comfyui_hlwq.hlwq_core.running import fast
    from comfyui_hlwq.nodes.running import as_chosen

    monkeypatch.setattr(fast, "MIN_ROWS", 32)  # the tiny model never has as many rows as pay on a GPU

    def make(kind):
        model = load()[0]
        as_chosen.make_fast(model.model, kind)
        return model

    return make


@pytest.fixture
def rotations(monkeypatch, pack):
    """The inputs that were rotated, in order."""
    from comfyui_hlwq.hlwq_core.backends import eight_bit

    seen = []
    original = eight_bit.rotate

    def rotate(x, kind):
        seen.append(tuple(x.shape))
        return original(x, kind)

    monkeypatch.setattr(eight_bit, "rotate", rotate)
    return seen


def long_latent():
    """Enough tokens that layers are fast: 2 · 4 · 4 of video."""
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor([torch.zeros(1, 128, 2, 4, 4), torch.zeros(1, 8, 33, 16)])


@each_version
@pytest.mark.parametrize("kind, least", [("fp8", 0.996), ("int8", 0.999)])
def test_latents_are_those_of_exact_decoding(fast_model, load, sample, rotations, kind, least):
    """One step from noise to the end, which shows a model's error whole; a step of a real schedule goes a part of the way."""
    exact = flat(sample(load()[0], steps=1, latent=long_latent()))
    assert not rotations
    found = flat(sample(fast_model(kind), steps=1, latent=long_latent()))
    assert rotations, "no layer was fast"
    assert not torch.equal(found, exact)
    assert float(torch.nn.functional.cosine_similarity(found, exact, dim=0)) > least


@each_version
def test_projections_share_the_rotated_input(fast_model, rotations):
    attention = fast_model("fp8").model.diffusion_model.transformer_blocks[0].attn1
    x = torch.randn(1, 40, attention.to_q.in_features).bfloat16()
    with torch.inference_mode():
        attention(x)
    # q, k and v have one input, the output projection another.
    assert len(rotations) == 2
    assert attention.to_q.shared is attention.to_k.shared is attention.to_v.shared
    assert attention.to_q.shared._input is None


def test_a_short_context_leaves_no_input_behind(fast_model, rotations):
    """The query's layer is fast and the others, with few rows, are not: what they would have shared is forgotten."""
    attention = fast_model("fp8").model.diffusion_model.transformer_blocks[0].audio_to_video_attn
    x = torch.randn(1, 40, attention.to_q.in_features).bfloat16()
    context = torch.randn(1, 8, attention.to_k.in_features).bfloat16()
    with torch.inference_mode():
        attention(x, context)
    assert len(rotations) == 2 and attention.to_q.shared._input is None


def test_few_rows_and_gradients_stay_exact(fast_model, rotations):
    module = fast_model("fp8").model.diffusion_model.transformer_blocks[0].attn1.to_q
    few = torch.randn(1, 8, module.in_features).bfloat16()
    with torch.inference_mode():
        module(few)
    x = torch.randn(1, 64, module.in_features).bfloat16().requires_grad_()
    module(x).sum().backward()
    assert not rotations and x.grad is not None


def test_a_layer_without_a_fast_product_stays_exact(fast_model, monkeypatch, caplog):
    from comfyui_hlwq.hlwq_core.backends import eight_bit

    module = fast_model("fp8").model.diffusion_model.transformer_blocks[0].attn1.to_q
    x = torch.randn(1, 64, module.in_features).bfloat16()
    kind, module.eight_bit = module.eight_bit, None
    exact = module(x)
    module.eight_bit = kind

    def refuse(*args):
        raise RuntimeError("not supported")

    def no_memory(*args):
        raise torch.OutOfMemoryError("full")

    with torch.inference_mode():
        monkeypatch.setattr(eight_bit, "multiply", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            module(x)
        assert module.eight_bit == kind
        monkeypatch.setattr(eight_bit, "multiply", refuse)
        assert torch.equal(module(x), exact)
    assert module.eight_bit is None and "stays exact: not supported" in caplog.text


def test_lora_in_fast_mode(fast_model):
    """Added to the output: what 8 bits lose of the weight does not touch the LoRA."""
    import comfy.model_management
    import comfy.sd

    model = fast_model("fp8")
    module = model.model.diffusion_model.transformer_blocks[0].attn1.to_q
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(module.out_features, 4, generator=generator) * 0.1
    down = torch.randn(4, module.in_features, generator=generator) * 0.1
    tensors = {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    x = torch.randn(1, 64, module.in_features, generator=generator).bfloat16()
    with torch.inference_mode():
        before = module(x)
        patched = comfy.sd.load_lora_for_models(model, None, tensors, 0.5, 0)[0]
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
        try:
            delta = (module(x) - before).float()
        finally:
            comfy.model_management.unload_all_models()
    expected = 0.5 * x.float() @ down.t() @ up.t()
    assert float((delta - expected).norm() / expected.norm()) < 0.05


def test_a_fast_linear_compiles_without_graph_breaks(fast_model):
    """Layers that share their input transform it once; for the others that is part of their product's operator."""
    from torch._dynamo.backends.debugging import aot_eager

    attention = fast_model("fp8").model.diffusion_model.transformer_blocks[0].attn1
    operators = []

    def projections(x):
        alone = attention.to_out[0](attention.to_v(x))
        return torch.cat([attention.to_q(x), attention.to_k(x), attention.to_v(x), alone], dim=-1)

    def backend(graph, inputs):
        operators.append([str(node.target) for node in graph.graph.nodes if "hlwq" in str(node.target)])
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = torch.compile(projections, backend=backend, fullgraph=True)
        for rows in (40, 48, 56):
            x = torch.randn(1, rows, attention.to_q.in_features).bfloat16()
            assert torch.allclose(compiled(x).float(), projections(x).float(), atol=2e-2, rtol=2e-2)
    torch._dynamo.reset()
    assert len(operators) == 2  # once for the first size, once for any
    names = [name.split(".")[1] for name in operators[0]]
    assert names == ["rotate_rows", "fast_linear", "rotate_and_multiply", "rotate_rows", *["fast_linear"] * 3]


def test_without_a_gpu_the_report_says_why_and_decoding_is_exact(load, sample, distance):
    model, _, _, report = load(mode="fast")
    assert "fast mode: not available, decoded exactly: cpu is no CUDA device" in report
    assert all(getattr(module, "eight_bit", None) is None for module in model.model.modules())
    assert not hasattr(model.model.diffusion_model, "hlwq_recordings") and "CUDA graph" not in report
    assert distance(sample(model, steps=1), sample(load()[0], steps=1)) == 0
