"""Not LTX alone: a Wan-like model, quantize → load → sample; and the text encoder by the gemma recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def wan(comfy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-video Wan 2.1 of two narrow blocks, in core's own names."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    torch.manual_seed(3)
    model = WanModel(
        dim=256,
        ffn_dim=512,
        num_heads=2,
        num_layers=2,
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.manual_cast,
    )
    tensors = {name: torch.randn_like(value) * 0.05 for name, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("wan") / "wan_tiny.safetensors"
    save_file({name: value.bfloat16() for name, value in tensors.items()}, path)
    return path


def latents(sample: Callable[..., list[torch.Tensor]], model: Any) -> torch.Tensor:
    text = [[torch.randn(1, 32, 4096, generator=torch.Generator().manual_seed(1)), {}]]
    (video,) = sample(model, steps=2, latent=torch.zeros(1, 16, 3, 8, 8), text=text)
    return video


@pytest.mark.parametrize("layout", ["single", "published"])
def test_wan_quantize_load_sample(
    pack: ModuleType, wan: Path, sample: Callable[..., list[torch.Tensor]], tmp_path: Path, layout: str
) -> None:
    import comfy.sd
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize
    from comfyui_hlwq.nodes.load_checkpoint import load_checkpoint

    target = tmp_path / ("wan.safetensors" if layout == "single" else "wan")
    report = quantize(wan, target, bits=8, norms="search", rules="plain", layout=layout)
    assert report.layers >= 2 * 10, "the linear layers of both blocks"
    model, vae, audio_vae, said = load_checkpoint(target)
    assert vae is None and audio_vae is None and "WAN21" in said
    packed = [name for name, value in model.model.state_dict().items() if hasattr(value, "_qdata")]
    assert len(packed) == report.layers
    dense = comfy.sd.load_diffusion_model(str(wan))
    a, b = latents(sample, model), latents(sample, dense)
    assert a.shape == (1, 16, 3, 8, 8) and torch.isfinite(a).all()
    assert float((a - b).norm() / b.norm()) < 0.05, "8 bits stay close to the dense model"


def test_gemma_recipe_makes_what_the_text_encoder_loads(pack: ModuleType, tiny: Path, tmp_path: Path) -> None:
    import nodes
    from comfyui_hlwq.hlwq_core.tools.quantize import quantize
    from comfyui_hlwq.nodes.text_encoder import load_text_encoder

    source = tiny / "models" / "text_encoders" / "gemma_3_tiny.safetensors"
    target = tmp_path / "gemma.safetensors"
    report = quantize(source, target, bits=8, norms="search", rules="gemma", layout="single")
    # The language model's layers, the embeddings, and the vision tower's two layers.
    assert report.layers == 48 * 7 + 1 + 2 * 6
    checkpoint = tiny / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5"

    def encoded(path: Path) -> torch.Tensor:
        with torch.inference_mode():
            return nodes.CLIPTextEncode().encode(load_text_encoder(path, checkpoint), "a cat at a piano")[0][0][0]

    a, b = encoded(target), encoded(source)
    assert float((a - b).norm() / b.norm()) < 0.1
