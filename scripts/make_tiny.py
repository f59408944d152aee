#!/usr/bin/env python3
"""Make a tiny LTX-2.3 of real structure: same modules and tensor names, few channels, seeded random weights.

    python scripts/make_tiny.py DEST --comfyui PATH_OF_COMFYUI

Every test, the demo and the screenshots run on it. ComfyUI's own classes give names and shapes, so ComfyUI's
own code loads, samples and decodes it; nothing in the pack knows that it is tiny. The pictures are drifting
blobs of colour, the sound a texture of tones; both depend on seed, prompt, start image and LoRA.

What is made (57 MB in a second, and 20 MB of the other versions, the same bytes on every run of one machine), under DEST:

    models/hlwq/LTX-2.3-tiny-HLWQ-Q5/             the checkpoint in the published layout
        polarquant/codes/chunk_NN_codes.safetensors   4 chunks, V1 naming, 5 bits, MSB-first, infinite codebook
        polarquant/bf16/ltx23_bf16.safetensors        everything else, without metadata
        upscalers/ltx-2.3-*.safetensors               spatial and temporal, without metadata
        config.json                                   the tiny widths: what the published folder lacks
    models/text_encoders/gemma_3_tiny.safetensors     48 narrow layers, vision tower, sentencepiece model
    models/text_encoders/gemma-3-tiny-HLWQ-Q5/        the same quantized (V2 naming, 5 bits)
    models/reference/ltx23_tiny_bf16.safetensors      the checkpoint decoded, one file with config metadata
    ltx25/models/                                 LTX-2.5, where ComfyUI knows it: beside models/, not in its lists
        diffusion_models/ltx25_tiny_bf16.safetensors  the transformer alone, with config metadata; HLWQ beside it
        text_encoders/gemma4_tiny_with_proj.safetensors   48 narrow layers and the projection; HLWQ beside it
        vae/ltx-2.5-tiny-{video,video-conv,audio}-vae.safetensors   for core's Load VAE
        latent_upscale_models/, loras/            as of LTX-2.3
    ltx2/models/diffusion_models/ltx2_tiny_bf16.safetensors     a transformer of LTX-2 alone
    ltx2/models/checkpoints/LTX-2-tiny-HLWQ-Q5.safetensors      the whole of it, packed
    models/loras/ltx-2.3-tiny-distilled-lora.safetensors        rank 4, on every quantized Linear
    models/latent_upscale_models/ltx-2.3-*-tiny.safetensors     the upscalers with config metadata
    input/start.png, input/voice.wav              768×512 picture; 3 s of stereo tones

The reference file is for core's CheckpointLoaderSimple and LTXVAudioVAELoader (put its folder on the path of
`checkpoints`). Core's LTXAVTextEncoderLoader knows only Gemma 3 12B's widths; HLWQLoadTextEncoder reads them
from the file.

Quantized, as in the published checkpoint (28 a block and 3): the attentions' q, k, v, out and the feed-forward
weights of every block, `proj_out`, `audio_proj_out`, and `vocoder.mel_stft.mel_basis`, which is no Linear and
257 wide. The audio stream is 96 wide, so its blocks are padded; the video stream is 256, two whole blocks. Two
transformer blocks instead of 48.

The smallest video is 64×64, 9 frames. On one core 64×64×25 with 20 steps takes 0.7 s and each prompt 0.5 s (the
text encoder always pads to 1,024 tokens).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, make the files, say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dest", type=Path, help="folder to fill; files there are replaced")
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder, for its model classes")
    parser.add_argument("--layout", choices=("published",), default="published")
    args = parser.parse_args(argv)
    if not (args.comfyui / "comfy" / "ldm" / "lightricks").is_dir():
        parser.error(f"no ComfyUI with LTX-2 in {args.comfyui}; give the folder that holds main.py")
    for path in (args.comfyui, HERE.parent, HERE):
        sys.path.insert(0, str(path.resolve()))

    from tiny import build

    start = time.monotonic()
    build.everything(args.dest)
    size = sum(p.stat().st_size for p in args.dest.rglob("*") if p.is_file())
    print(f"{args.dest}: {size / 1e6:.1f} MB in {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
