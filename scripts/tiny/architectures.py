"""Other models in tiny form: ComfyUI's own classes give names and shapes, its own detection finds them again.

Where detection reads widths from the tensors, a model is two narrow blocks; where it takes them from the architecture's name
alone, it is as wide as the real one and has as few blocks as can be (`large`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .noise import normal

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """A model that is not LTX's.

    Attributes:
        key: for files and results.
        name: as users know it.
        made: `module.Class` under comfy.ldm.
        values: its constructor's arguments.
        latent: the shape that is sampled.
        text: tokens and width of the prompt.
        more: what else comes with a prompt.
        large: as wide as the real one.
        steps: of the sampler.
    """

    key: str
    name: str
    made: str
    values: Mapping[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, int]
    more: Mapping[str, Any] = field(default_factory=dict)
    large: bool = False
    steps: int = 2

    def known(self) -> bool:
        """Whether this ComfyUI has the class."""
        module, _, name = self.made.rpartition(".")
        try:
            return hasattr(importlib.import_module(f"comfy.ldm.{module}"), name)
        except ImportError:
            return False

    def tensors(self) -> State:
        """Every tensor under the name that ComfyUI loads it by, in BF16."""
        import comfy.ops

        module, _, name = self.made.rpartition(".")
        make = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
        model = make(**self.values, device="cpu", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
        buffers = {key for key, _ in model.named_buffers()}
        state = model.state_dict()
        return {key: value if key in buffers else _weight(key, value) for key, value in state.items()}

    def prompt(self) -> list[Any]:
        """A conditioning, as core's text encoders give it."""
        text = torch.randn(1, *self.text, generator=torch.Generator().manual_seed(1))
        more = {key: value() if callable(value) else value for key, value in self.more.items()}
        return [[text, more]]


def _weight(name: str, like: torch.Tensor) -> torch.Tensor:
    shape = tuple(like.shape)
    if like.dim() < 2:
        norm = name.endswith(("weight", "scale", "gamma")) and "bias" not in name
        return (normal(name, *shape, std=0.05) + (1.0 if norm else 0.0)).to(like.dtype)
    if shape[0] == 1:  # tables of shifts, scales and gates: a block whose gates are shut would hide its own errors
        return normal(name, *shape, std=0.5).to(like.dtype)
    return normal(name, *shape, std=(like.numel() // shape[0]) ** -0.5).to(like.dtype)


def _pooled(width: int) -> Any:
    return lambda: torch.randn(1, width, generator=torch.Generator().manual_seed(2))


_FLUX: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 256, "mlp_ratio": 4.0,
    "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_FLUX2: dict[str, Any] = _FLUX | {
    "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 512, "mlp_ratio": 3.0,
    "axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False, "global_modulation": True,
    "mlp_silu_act": True, "ops_bias": False, "txt_ids_dims": [3], "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
_CHROMA: dict[str, Any] = {
    key: value for key, value in _FLUX.items() if key not in ("vec_in_dim", "guidance_embed")
} | {
    "in_channels": 64, "out_channels": 64, "hidden_size": 3072, "num_heads": 24, "in_dim": 64, "out_dim": 3072,
    "hidden_dim": 5120, "n_layers": 5, "vec_in_dim": None,
}  # fmt: skip
_HUNYUAN: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 256, "mlp_ratio": 4.0,
    "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2],
    "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_WAN: dict[str, Any] = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 2}
_LUMINA: dict[str, Any] = {
    "patch_size": 2, "in_channels": 16, "dim": 2304, "n_layers": 1, "n_heads": 24, "n_kv_heads": 8, "qk_norm": True,
    "cap_feat_dim": 2304, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}  # fmt: skip
_Z_IMAGE: dict[str, Any] = {
    "patch_size": 2, "in_channels": 16, "dim": 3840, "n_layers": 1, "n_heads": 30, "n_kv_heads": 30, "qk_norm": True,
    "cap_feat_dim": 2560, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip

ARCHITECTURES = (
    Architecture("wan21", "Wan 2.1", "wan.model.WanModel", _WAN, (1, 16, 3, 8, 8), (32, 4096)),
    Architecture(
        "wan22", "Wan 2.2 5B", "wan.model.WanModel", _WAN | {"in_dim": 48, "out_dim": 48}, (1, 48, 3, 4, 4), (32, 4096)
    ),
    Architecture(
        "hunyuan-video", "Hunyuan Video", "hunyuan_video.model.HunyuanVideo", _HUNYUAN, (1, 16, 3, 8, 8), (32, 4096),
        {"pooled_output": _pooled(768), "guidance": 6.0},
    ),
    Architecture(
        "ltxv", "LTX-Video 0.9", "lightricks.model.LTXVModel",
        {"cross_attention_dim": 256, "attention_head_dim": 8, "num_attention_heads": 32, "num_layers": 2},
        (1, 128, 3, 4, 4), (32, 4096), {"frame_rate": 24.0, "attention_mask": lambda: torch.ones(1, 32)},
    ),
    Architecture(
        "cogvideox", "CogVideoX 1.0", "cogvideo.model.CogVideoXTransformer3DModel",
        {"num_attention_heads": 4, "num_layers": 2, "use_rotary_positional_embeddings": True},
        (1, 16, 3, 8, 8), (226, 4096),
    ),
    Architecture(
        "kandinsky5", "Kandinsky 5", "kandinsky5.model.Kandinsky5",
        {"model_dim": 256, "ff_dim": 512, "num_text_blocks": 1, "num_visual_blocks": 2},
        (1, 16, 3, 8, 8), (32, 3584), {"pooled_output": _pooled(768)},
    ),
    Architecture(
        "flux", "Flux.1", "flux.model.Flux", _FLUX, (1, 16, 16, 16), (32, 4096),
        {"pooled_output": _pooled(768), "guidance": 3.5},
    ),
    Architecture("flux2", "Flux.2", "flux.model.Flux", _FLUX2, (1, 128, 8, 8), (32, 512), {"guidance": 4.0}),
    Architecture(
        "sd3", "Stable Diffusion 3.5", "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        {
            "input_size": None, "patch_size": 2, "in_channels": 16, "out_channels": 16, "depth": 4, "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 256}
            },
            "qk_norm": "rms", "num_patches": 1024, "pos_embed_max_size": 32,
        },
        (1, 16, 16, 16), (32, 4096), {"pooled_output": _pooled(2048)},
    ),
    Architecture(
        "pixart", "PixArt-Σ", "pixart.pixartms.PixArtMS",
        {"depth": 2, "micro_condition": False, "pe_interpolation": 1, "input_size": 64}, (1, 4, 64, 64), (32, 4096),
        large=True,
    ),
    Architecture(
        "krea2", "Krea 2", "krea2.model.SingleStreamDiT",
        {"features": 256, "txtdim": 320, "heads": 2, "kvheads": 1, "layers": 2, "txtlayers": 2},
        (1, 16, 1, 16, 16), (32, 640),
    ),
    Architecture(
        "qwen-image", "Qwen-Image", "qwen_image.model.QwenImageTransformer2DModel", {"num_layers": 1},
        (1, 16, 1, 8, 8), (32, 3584), large=True, steps=1,
    ),
    Architecture(
        "z-image", "Z-Image", "lumina.model.NextDiT", _Z_IMAGE, (1, 16, 8, 8), (32, 2560), large=True, steps=1,
    ),
    Architecture(
        "lumina2", "Lumina 2", "lumina.model.NextDiT", _LUMINA, (1, 16, 8, 8), (32, 2304), large=True, steps=1,
    ),
    Architecture(
        "auraflow", "AuraFlow", "aura.mmdit.MMDiT", {"n_layers": 2, "n_double_layers": 1}, (1, 4, 8, 8), (32, 2048),
        large=True, steps=1,
    ),
    Architecture(
        "chroma", "Chroma", "chroma.model.Chroma", _CHROMA, (1, 16, 8, 8), (32, 4096), {"guidance": 0.0}, large=True,
        steps=1,
    ),
)  # fmt: skip

# Why a model that ComfyUI knows is not among them. Nothing of the pack's is in their way: they were not tried.
UNTRIED = {
    "HiDream, OmniGen 2, Mochi, Cosmos, Cosmos Predict 2, Anima": "ComfyUI takes their widths or their number of blocks from "
    "the architecture, not from the file, so there is no form of them that is tiny",
    "Stable Diffusion 1.5, SDXL, Stable Cascade": "ComfyUI knows them by the widths of the real models alone; most of their "
    "weights are convolutions, which `quantize` leaves as they are",
    "ACE-Step, Stable Audio, Hunyuan 3D and others that make no picture": "this table is of models that make pictures and videos",
}
