"""A ComfyUI base folder of full-size LTX-2.3 for video.py: weights random, structure and shapes real, so nothing is downloaded.

    python benchmarks/video_base.py FOLDER              80 GB, in two minutes on a GPU machine
    python benchmarks/video_base.py FOLDER --bf16 BIG   core's file of 46 GB in the folder BIG, on another disk, and linked
    python benchmarks/video_base.py FOLDER --tiny       to try it: the tests' tiny model's sizes

Made are the checkpoint packed (the published layout) and as core's one file, Gemma 3 12B packed, the distilled LoRA (rank 111 on
every layer) and the spatial upscaler. One block's tensors stand for all 48, so do those of Gemma's layers; the VAEs' weights make
smooth pictures and tones, as the tests' do. The pack is linked below custom_nodes, and video.json says what video.py shall ask for.
Needs COMFYUI_PATH and sentencepiece.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import REPO, parser

if not (Path(os.environ.get("COMFYUI_PATH", "")) / "comfy").is_dir():
    raise SystemExit("where is ComfyUI? Set COMFYUI_PATH to its folder")
sys.path[:0] = [str(REPO), str(REPO / "scripts"), os.environ["COMFYUI_PATH"]]

import full_size  # noqa: E402
from tiny import build, gemma, structure  # noqa: E402
from tiny import config as tiny_config  # noqa: E402
from tiny.transformer import PREFIX  # noqa: E402

from hlwq_core.codec import codec  # noqa: E402
from hlwq_core.models import ltx23  # noqa: E402

NAME = "LTX-2.3-random-HLWQ-Q5"
BF16 = "ltx23_random_bf16.safetensors"
TEXT_ENCODER = "gemma-3-random-HLWQ-Q5"
LORA = "ltx-2.3-random-distilled-lora.safetensors"
UPSCALER = "ltx-2.3-random-spatial-upscaler-x2.safetensors"
GEMMA = {
    "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    "vision": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 896, "patch_size": 14,
    },
}  # fmt: skip
VOCABULARY = 262208
LORA_RANK, TINY_RANK = 111, 4
UPSCALER_CHANNELS = 1024

State = dict[str, torch.Tensor]


def save(path: Path, tensors: State, metadata: dict[str, str] | None = None) -> None:
    """Write a file; say how large it is and how long it took."""
    begun = time.perf_counter()
    build.save(path, tensors, metadata)
    print(f"{path.stat().st_size / 1e9:6.2f} GB in {time.perf_counter() - begun:5.1f} s  {path.name}", flush=True)


def packed(weights: State, names: list[str], *, dotted: bool) -> State:
    """The tensors of quantized weights, as a writer of V1 (not dotted) or V2 names them; encoded once where a tensor stands for several."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def encode(weight: torch.Tensor) -> State:
        entries = build.entries("", codec.encode(weight.to(device)), dotted=dotted)
        return {part: tensor.cpu() for part, tensor in entries.items()}

    made, parts = full_size.once(encode), {}
    for name in names:
        stem = name if dotted else name.replace(".", "__")
        parts |= {stem + part: tensor for part, tensor in made(weights[name]).items()}
    return parts


def write_checkpoint(models: Path, bf16: Path, config: dict[str, Any]) -> State:
    """The checkpoint, packed and as core's one file; its weights."""
    shapes = structure.transformer_shapes(config)
    weights = full_size.dense_weights({name: ("BF16", shape) for name, shape in shapes.items()})
    weights = {name: value.float() if "scale_shift_table" in name else value for name, value in weights.items()}
    codecs = structure.video_vae(config["vae"]) | structure.audio_vae(config)
    weights |= {name: value.bfloat16() for name, value in codecs.items()}
    names = build.quantized_names(weights)
    folder = models / "hlwq" / NAME
    codes = packed(weights, names, dotted=False)
    save(folder / "polarquant" / "codes" / "chunk_00_codes.safetensors", codes)
    quantized = set(names)
    plain = {name: value for name, value in weights.items() if name not in quantized}
    save(folder / "polarquant" / "bf16" / "ltx23_bf16.safetensors", plain)
    (folder / "config.json").write_text(json.dumps(config))
    save(bf16 / BF16, weights, {"config": json.dumps(config)})
    if bf16.resolve() != (models / "checkpoints").resolve():
        link = models / "checkpoints" / BF16
        link.unlink(missing_ok=True)
        link.symlink_to(bf16.resolve() / BF16)
    return weights


def write_text_encoder(folder: Path, vocabulary: int, sizes: dict[str, Any]) -> None:
    """Gemma 3, packed, with the tests' tokenizer: one layer stands for all."""
    pool = full_size.dense_weights({"embed.weight": ("BF16", (vocabulary, sizes["hidden_size"]))})
    once: State = {}
    weights: State = {}
    for name, shape in gemma.shapes(vocabulary, sizes).items():
        shared = re.sub(r"layers\.\d+\.", "layers.*.", name)
        if name == "model.embed_tokens.weight":
            once[shared] = pool["embed.weight"]
        elif shared not in once:
            once[shared] = gemma.weight(name, shape).bfloat16()
        weights[name] = once[shared]
    names = gemma.quantized_names(weights)
    quantized = set(names)
    tensors = packed(weights, names, dotted=True)
    tensors |= {name: value for name, value in weights.items() if name not in quantized}
    tensors["spiece_model"] = torch.frombuffer(bytearray(gemma.tokenizer()), dtype=torch.uint8)
    save(folder / "model.safetensors", tensors)
    (folder / "polar_config.json").write_text(json.dumps({"format": "hlwq-q5", "bits": 5, "block_size": 128}))


def lora(weights: State, rank: int) -> State:
    """A LoRA of 2 % of each layer's weight under the published names."""
    generator = torch.Generator().manual_seed(1)

    def pair(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = weight.shape
        down = torch.randn(rank, columns, generator=generator) * columns**-0.5
        return down.bfloat16(), (torch.randn(rows, rank, generator=generator) * 0.02 * rank**-0.5).bfloat16()

    made, tensors = full_size.once(pair), {}
    for name in build.quantized_names(weights):
        if name.startswith(PREFIX):
            stem = name.removeprefix("model.").removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = made(weights[name])
    return tensors


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--bf16", type=Path, help="folder for core's checkpoint; else below FOLDER")
    arguments.add_argument("--tiny", action="store_true", help="the sizes of the tests' model")
    args = arguments.parse_args()
    models = args.folder / "models"
    for name in ("output", "user", "input", "custom_nodes", "models/checkpoints", "models/vae"):
        (args.folder / name).mkdir(parents=True, exist_ok=True)
    pack = args.folder / "custom_nodes" / "ComfyUI-HLWQ"
    if not pack.exists():
        pack.symlink_to(REPO, target_is_directory=True)
    config = tiny_config.config() if args.tiny else ltx23.config()
    weights = write_checkpoint(models, args.bf16 or models / "checkpoints", config)
    sizes, vocabulary = (tiny_config.GEMMA, 600) if args.tiny else (GEMMA, VOCABULARY)
    write_text_encoder(models / "text_encoders" / TEXT_ENCODER, vocabulary, sizes)
    save(models / "loras" / LORA, lora(weights, TINY_RANK if args.tiny else LORA_RANK))
    shape = tiny_config.upscaler_config("spatial")
    if not args.tiny:
        shape["mid_channels"] = UPSCALER_CHANNELS
    state = structure.upscaler("spatial", shape)
    save(models / "latent_upscale_models" / UPSCALER, state, {"config": json.dumps(shape)})
    build.write_inputs(args.folder / "input")
    # What video.py asks for.
    files = {"checkpoint": NAME, "text_encoder": TEXT_ENCODER, "lora_name": LORA, "upscaler": UPSCALER}
    (args.folder / "video.json").write_text(
        json.dumps({"bf16": BF16, "files": files, "core_files": {"upscaler": UPSCALER}})
    )


if __name__ == "__main__":
    main()
