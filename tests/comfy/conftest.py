"""Sampling in this process, through ComfyUI's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"
# Widths of the tiny's video and audio stream, which the text conditioning is made for.
TEXT_WIDTH = 256 + 96


@pytest.fixture(autouse=True)
def one_writer(pack: ModuleType) -> Iterator[None]:
    """Each copy of the pack wraps core's writer of files: a test's own copy takes its wrap with it."""
    import comfy.utils
    from comfyui_hlwq.nodes.compat import saving  # noqa: F401  the wrap is there from now on

    write = comfy.utils.save_torch_file
    yield
    comfy.utils.save_torch_file = write


class Load:
    """The loader as a function: `load(name=CHECKPOINT, **options) -> (model, vae, audio_vae, report)`."""

    default: str | Path = CHECKPOINT

    def __call__(self, name: str | Path | None = None, **options: Any) -> tuple[Any, Any, Any, str]:
        from comfyui_hlwq.nodes import load_checkpoint, locations
        from comfyui_hlwq.nodes.running.choices import Choices

        name = self.default if name is None else name
        path = name if isinstance(name, Path) else locations.checkpoint(name)
        with torch.inference_mode():  # as ComfyUI runs its nodes
            return load_checkpoint.load_checkpoint(path, Choices(**options))


@pytest.fixture(scope="session")
def load(pack: ModuleType, comfy_base: Path) -> Load:
    """The loader; see Load."""
    return Load()


@pytest.fixture(autouse=True)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which LTX `load` loads where it is not told: 2.3, or what a test is parametrized with (see `each_version`)."""
    key: str = getattr(request, "param", "ltx23")
    if key != "ltx23":
        folder = request.getfixturevalue("tiny") / key / "models" / "diffusion_models"
        if not folder.is_dir():
            pytest.skip(f"this ComfyUI does not know {key}")
        monkeypatch.setattr(request.getfixturevalue("load"), "default", folder / "LTX-2.5-tiny-HLWQ-Q5.safetensors")
    return key


# A test that holds of every LTX whose tiny form is packed.
each_version = pytest.mark.parametrize("version", ["ltx23", "ltx25"], indirect=True)


@pytest.fixture(scope="session")
def reference_model(comfy_base: Path) -> Any:
    """The same weights, decoded to BF16, in core's own loader: an independent path."""
    import comfy.sd

    path = comfy_base / "models" / "reference" / "ltx23_tiny_bf16.safetensors"
    return comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]


def joint_latent(frames: int = 2, size: int = 2, audio: int = 5) -> Any:
    """An empty joint latent: video [1, 128, frames, size, size] and audio [1, 8, audio, 16]."""
    import comfy.nested_tensor

    video = torch.zeros(1, 128, frames, size, size)
    return comfy.nested_tensor.NestedTensor([video, torch.zeros(1, 8, audio, 16)])


@pytest.fixture(scope="session")
def sample(comfy: Path) -> Callable[..., list[torch.Tensor]]:
    """`sample(model, seed=0, steps=4) -> [video, audio]`, the final latents of core's sampler (Euler, cfg 1)."""
    import comfy.sample

    def sample(model: Any, seed: int = 0, steps: int = 4, latent: Any = None, text: Any = None) -> list[torch.Tensor]:
        latent = joint_latent() if latent is None else latent
        if text is None:
            context = torch.randn(1, 128, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
            text = [[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 25.0}]]
        noise = comfy.sample.prepare_noise(latent, seed)
        with torch.inference_mode():
            result = comfy.sample.sample(
                model, noise, steps, 1.0, "euler", "normal", text, text, latent, seed=seed, disable_pbar=True
            )
        return list(result.unbind()) if getattr(result, "is_nested", False) else [result]

    return sample


def relative(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Relative L2 distance of `a` from `b`, over all their tensors."""
    difference = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True))
    return (difference / sum(float(y.double().square().sum()) for y in b)) ** 0.5


@pytest.fixture(scope="session")
def distance() -> Callable[[list[torch.Tensor], list[torch.Tensor]], float]:
    """Relative L2 distance of latents."""
    return relative
