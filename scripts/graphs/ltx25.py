"""LTX-2.5's loaders in a graph: each part is a file of its own, the VAEs by core's loader."""

from __future__ import annotations

from .parts import HUGGING_FACE, MODEL_COLOR, Models
from .workflow import Node, Workflow

CHECKPOINT = "ltx-2.5-22b-distilled-HLWQ-Q5.safetensors"
TEXT_ENCODER = "gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot.safetensors"
VIDEO_VAE = "ltx-2.5-video-vae-bf16.safetensors"
AUDIO_VAE = "ltx-2.5-audio-vae-bf16.safetensors"
SPATIAL = "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors"
METHOD = "euler_ancestral"  # as in ComfyUI's own templates

REPOSITORY = f"{HUGGING_FACE}/Lightricks/LTX-2.5"


def _url(directory: str, name: str) -> str:
    return f"{REPOSITORY}/resolve/main/{directory}/{name}"


def _line(label: str, directory: str, name: str) -> str:
    return f"- {label}: [{name}]({_url(directory, name)}) into **models/{directory}/**"


WHERE = f"""## Which file goes where

- Load Diffusion Model: **{CHECKPOINT}** into **models/diffusion_models/**. Make it of the transformer of
  [LTX-2.5]({REPOSITORY}) with *HLWQ Quantize*, or `python -m hlwq_core quantize FILE {CHECKPOINT} --layout single`.
{_line("Load Text Encoder", "text_encoders", TEXT_ENCODER)}
{_line("Video VAE", "vae", VIDEO_VAE)}
{_line("Audio VAE", "vae", AUDIO_VAE)}
{_line("Spatial upscaler", "latent_upscale_models", SPATIAL)}
"""


def models(graph: Workflow) -> Models:
    """Transformer and text encoder packed, both VAEs, the spatial upscaler."""

    def link(directory: str, name: str) -> list[dict[str, str]]:
        return [{"name": name, "url": _url(directory, name), "directory": directory}]

    def vae(title: str, name: str) -> Node:
        return graph.add("VAELoader", title, vae_name=name, models=link("vae", name), color=MODEL_COLOR)

    graph.column()
    graph.group("Models")
    # Room for the report, which says line by line what the checkpoint does not hold.
    model = graph.add(
        "HLWQLoadDiffusionModel", "Load Diffusion Model", wide=460, lines=6, checkpoint=CHECKPOINT, backend="auto",
        color=MODEL_COLOR,
    )  # fmt: skip
    encoder = graph.add(
        "HLWQLoadTextEncoder", "Load Text Encoder", text_encoder=TEXT_ENCODER, checkpoint=CHECKPOINT,
        models=link("text_encoders", TEXT_ENCODER), color=MODEL_COLOR,
    )  # fmt: skip
    video, audio = vae("Video VAE", VIDEO_VAE), vae("Audio VAE", AUDIO_VAE)
    upscaler = graph.add(
        "HLWQLoadUpscaler", "Spatial upscaler", upscaler=SPATIAL, models=link("latent_upscale_models", SPATIAL),
        color=MODEL_COLOR,
    )  # fmt: skip
    return Models(model["MODEL"], encoder["CLIP"], video["VAE"], audio["VAE"], {"spatial": upscaler})
