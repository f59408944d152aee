"""What the shipped workflows have in common: texts, files, and the groups of nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from .workflow import Node, Out, Workflow

CHECKPOINT = "LTX-2.3-22B-HLWQ-Q5"
TEXT_ENCODER = "gemma_3_12B_it.safetensors"
LORA = "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors"
SPATIAL = "ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
TEMPORAL = "ltx-2.3-temporal-upscaler-x2-1.0.safetensors"

HUGGING_FACE = "https://huggingface.co"
LORA_URL = f"{HUGGING_FACE}/Comfy-Org/ltx-2.3/resolve/main/split_files/loras/{LORA}"
GEMMA_URL = f"{HUGGING_FACE}/Comfy-Org/ltx-2/resolve/main/split_files/text_encoders/{TEXT_ENCODER}"
CHECKPOINT_URL = f"{HUGGING_FACE}/caiovicentino1/LTX-2.3-22B-HLWQ-Q5"

# The distilled model's own noise schedule, and the part of it that refines an upscaled latent.
SIGMAS_1 = "1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"
SIGMAS_2 = "0.85, 0.725, 0.421875, 0.0"

PROMPT = (
    "A ginger cat sits at an upright piano in a small jazz club and plays a slow tune. Its paws press the keys in time "
    "with the music. Warm lamps, smoke in the air, a double bass player out of focus behind. The camera moves slowly "
    "closer. "
    "Soft piano, brushed drums, quiet murmur of the audience."
)
PROMPT_IMAGE = (
    "The scene comes to life: the subject moves naturally, hair and clothes follow, light shifts softly. The camera "
    "moves slowly closer. Quiet sounds of the place."
)
PROMPT_NEXT = (
    "The scene goes on without a cut: the same subject, the same place and light. The movement continues and comes to rest, "
    "the camera follows slowly. The sounds of the place go on."
)
PROMPT_AUDIO = (
    "A singer stands at a microphone on a small stage and sings with feeling, lips and breath following the voice. "
    "Warm light, dark background, steady camera at chest height."
)
NEGATIVE = "blurry, low quality, distorted, watermark, subtitles, static picture, noise, clipped sound"

WHERE = f"""## Which file goes where

- Load Checkpoint: the folder [{CHECKPOINT}]({CHECKPOINT_URL}) into **models/hlwq/**
- Load Text Encoder: [{TEXT_ENCODER}]({GEMMA_URL}) into **models/text_encoders/**
- Distilled LoRA: [{LORA}]({LORA_URL}) into **models/loras/**
"""
WHERE_UPSCALERS = """
The upscalers come with the checkpoint, in its folder **upscalers/**.
"""

MODEL_COLOR = ("#223", "#335")
INPUT_COLOR = ("#232", "#353")


@dataclass
class Base:
    """What the later parts of a graph connect to."""

    model: Out
    vae: Out
    audio_vae: Out
    width: Node
    height: Node
    length: Node
    rate: Node
    seed: Node
    conditioning: Node
    positive: Node
    negative: Node
    upscalers: dict[str, Node] = field(default_factory=dict)


@dataclass
class Models:
    """The outputs of a graph's loaders."""

    model: Out
    clip: Out
    vae: Out
    audio_vae: Out
    upscalers: dict[str, Node]


def read_me(graph: Workflow, text: str, *, where: str = WHERE, upscalers: bool = False, height: int = 520) -> None:
    graph.column()
    graph.group("Read me", "#a1309b")
    graph.note(graph.name, text.strip() + "\n\n" + where + (WHERE_UPSCALERS if upscalers else ""), (560, height))


def models(graph: Workflow, kinds: dict[str, str]) -> Models:
    """LTX-2.3: one checkpoint with its VAEs, the distillation LoRA, Gemma 3."""
    graph.column()
    graph.group("Models")
    # Room for the report that web/hlwq.js puts under the widgets.
    checkpoint = graph.add(
        "HLWQLoadCheckpoint", "Load Checkpoint", wide=460, lines=1, checkpoint=CHECKPOINT, backend="auto",
        color=MODEL_COLOR,
    )  # fmt: skip
    lora = graph.add(
        "LoraLoaderModelOnly", "Distilled LoRA", model=checkpoint["MODEL"], lora_name=LORA, strength_model=0.5,
        models=[{"name": LORA, "url": LORA_URL, "directory": "loras"}], color=MODEL_COLOR,
    )  # fmt: skip
    encoder = graph.add(
        "HLWQLoadTextEncoder", "Load Text Encoder", text_encoder=TEXT_ENCODER, checkpoint=CHECKPOINT,
        models=[{"name": TEXT_ENCODER, "url": GEMMA_URL, "directory": "text_encoders"}], color=MODEL_COLOR,
    )  # fmt: skip
    loaders = {
        kind: graph.add("HLWQLoadUpscaler", f"{kind.capitalize()} upscaler", upscaler=file, color=MODEL_COLOR)
        for kind, file in kinds.items()
    }
    return Models(lora["MODEL"], encoder["CLIP"], checkpoint["VAE"], checkpoint["AUDIO VAE"], loaders)


def opening(graph: Workflow, prompt: str, kinds: dict[str, str] | None = None, loaded: Models | None = None) -> Base:
    """Models (LTX-2.3's, where none are given), size and prompts: what every workflow begins with."""
    loaded = loaded or models(graph, kinds or {})
    graph.column()
    graph.group("Size, length and seed")
    width = graph.add("PrimitiveInt", "Width", value=768, after=["fixed"], color=INPUT_COLOR)
    height = graph.add("PrimitiveInt", "Height", value=512, after=["fixed"], color=INPUT_COLOR)
    length = graph.add("PrimitiveInt", "Length", value=121, after=["fixed"], color=INPUT_COLOR)
    rate = graph.add("PrimitiveFloat", "Frame rate", value=24.0, color=INPUT_COLOR)
    seed = graph.add("RandomNoise", "Seed", noise_seed=42, after=["randomize"], color=INPUT_COLOR)
    graph.column()
    graph.group("Prompt")
    clip = loaded.clip
    positive = graph.add("CLIPTextEncode", "Prompt", wide=460, lines=10, clip=clip, text=prompt, color=INPUT_COLOR)
    negative = graph.add("CLIPTextEncode", "Negative prompt", lines=4, clip=clip, text=NEGATIVE, color=INPUT_COLOR)
    conditioning = graph.add(
        "LTXVConditioning",
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        frame_rate=rate["FLOAT"],
    )
    return Base(
        loaded.model, loaded.vae, loaded.audio_vae, width, height, length, rate, seed, conditioning, positive, negative,
        loaded.upscalers,
    )  # fmt: skip


def empty_latents(graph: Workflow, base: Base, *, half: bool = False) -> tuple[Out, Out]:
    """The empty video latent (at half the size if asked) and the empty audio latent."""
    width, height = base.width["INT"], base.height["INT"]
    graph.group("Empty latents")
    if half:
        width = graph.add("ComfyMathExpression", "Half the width", expression="a / 2", values__a=width)["INT"]
        height = graph.add("ComfyMathExpression", "Half the height", expression="a / 2", values__a=height)["INT"]
    video = graph.add("EmptyLTXVLatentVideo", width=width, height=height, length=base.length["INT"], batch_size=1)
    audio = graph.add(
        "LTXVEmptyLatentAudio", frames_number=base.length["INT"], frame_rate=base.rate["FLOAT"], batch_size=1,
        audio_vae=base.audio_vae,
    )  # fmt: skip
    return video["LATENT"], audio["Latent"]


def sample(
    graph: Workflow, base: Base, latent: Out, *, second: bool = False, conditioning: Node | None = None,
    model: Out | None = None, method: str = "euler",
) -> Node:  # fmt: skip
    """A sampler and what feeds it: the distilled model's 8 steps, or the 3 that refine an upscaled latent."""
    conditioning = conditioning or base.conditioning
    suffix = ", stage 2" if second else ""
    noise = base.seed
    if second:
        noise = graph.add("RandomNoise", "Seed, stage 2", noise_seed=42, after=["fixed"])
    guider = graph.add(
        "CFGGuider",
        model=model or base.model,
        positive=conditioning["positive"],
        negative=conditioning["negative"],
        cfg=1.0,
    )
    sampler = graph.add("KSamplerSelect", sampler_name=method)
    sigmas = graph.add("ManualSigmas", f"Sigmas{suffix}", sigmas=SIGMAS_2 if second else SIGMAS_1, wide=460)
    return graph.add(
        "SamplerCustomAdvanced", f"Sampler{suffix}", noise=noise["NOISE"], guider=guider["GUIDER"],
        sampler=sampler["SAMPLER"], sigmas=sigmas["SIGMAS"], latent_image=latent,
    )  # fmt: skip


def closing(
    graph: Workflow, base: Base, latent: Out, rate: Out, *, audio: Out | None = None, **more: Out
) -> Node:  # fmt: skip
    """Decode picture and sound into one file. `audio` is saved as it is in place of the latent's own."""
    graph.column()
    graph.group("Result", "#88a06e")
    sound = {"audio": audio} if audio is not None else {"audio_vae": base.audio_vae}
    return graph.add(
        "HLWQDecodeSave", "Save", wide=560, lines=18, latent=latent, vae=base.vae, frame_rate=rate,
        filename_prefix=f"video/{graph.stem}", codec="h264", quality="high", audio_codec="auto", color=INPUT_COLOR,
        **sound, **more,
    )  # fmt: skip


def joint(graph: Workflow, video: Out, audio: Out) -> Out:
    return graph.add("LTXVConcatAVLatent", video_latent=video, audio_latent=audio)["latent"]


def start_image(graph: Workflow, base: Base) -> Out:
    """The start image at the video's size, with the compression marks that the model was trained to move."""
    graph.column()
    graph.group("Start image")
    image = graph.add("LoadImage", "Start image", lines=14, image="example.png", after=["image"], color=INPUT_COLOR)
    scaled = graph.add(
        "ImageScale", image=image["IMAGE"], upscale_method="lanczos", width=base.width["INT"],
        height=base.height["INT"], crop="center",
    )  # fmt: skip
    return graph.add("LTXVPreprocess", image=scaled["IMAGE"], img_compression=18)["output_image"]


def begin_with(graph: Workflow, base: Base, image: Out, video: Out, strength: float = 1.0) -> Out:
    """A video latent whose first frame is the image; it brings the image to the latent's size itself."""
    begun = graph.add("LTXVImgToVideoInplace", vae=base.vae, image=image, latent=video, strength=strength, bypass=False)
    return begun["latent"]
