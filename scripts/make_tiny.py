#!/usr/bin/env python3
"""Make a tiny LTX-2.3 of real structure: same modules and tensor names, a few channels wide, seeded random weights.

    python scripts/make_tiny.py DEST --comfyui PATH_OF_COMFYUI

Every test, the demo and the screenshots run on it. ComfyUI's own classes give names and shapes, so ComfyUI's own code
loads, samples and decodes it; nothing in the pack knows that it is tiny. The pictures are drifting blobs of colour, the
sound a texture of tones; both depend on seed, prompt, start image and LoRA.

What is made (about 45 MB, the same bytes on every run of one machine):

    DEST/models/hlwq/LTX-2.3-tiny-HLWQ-Q5/      the checkpoint in the published layout
        polarquant/codes/chunk_00_codes.safetensors …   4 chunks, variant V1, 5 bits, MSB-first, "infinite" codebook
        polarquant/bf16/ltx23_bf16.safetensors          everything else, without metadata
        upscalers/ltx-2.3-{spatial-upscaler-x2-1.1,temporal-upscaler-x2-1.0}.safetensors   without metadata
        config.json                                     the tiny widths: the one file the published folder lacks
    DEST/models/reference/ltx23_tiny_bf16.safetensors   the same weights decoded, in core's format, with config metadata:
                                                        for core's CheckpointLoaderSimple and LTXVAudioVAELoader
    DEST/models/text_encoders/gemma_3_tiny.safetensors  48 narrow layers, a vision tower, a sentencepiece model.
                                                        Core's LTXAVTextEncoderLoader knows only Gemma 3 12B's widths;
                                                        HLWQLoadTextEncoder reads them from the file
    DEST/models/hlwq/gemma-3-tiny-HLWQ-Q5/              the same Gemma quantized (V2 naming, 5 bits)
    DEST/models/loras/ltx-2.3-tiny-distilled-lora.safetensors   rank 4, every block linear and the output projections
    DEST/models/latent_upscale_models/…                 the upscalers with config metadata, for core's loader
    DEST/input/start.png, DEST/input/voice.wav          768×512 picture; 3 s of stereo tones

Quantized, as in the published checkpoint (28 a block and 3): every attention q, k, v, out and feed-forward weight of every
block, `proj_out`, `audio_proj_out`, and `vocoder.mel_stft.mel_basis`, which is no Linear and 257 wide. The audio stream is
96 wide, so its blocks are padded; the video stream is 256, two whole blocks. Two blocks instead of 48.

The smallest video is 64×64, 9 frames; 64×64×25 with 20 steps takes a few seconds on one core, most of it the 1,024
tokens that the text encoder always pads to.
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
