"""HLWQ Decode + Save at full size: its time beside that of decoding alone and of coding alone, and its memory.

    python benchmarks/decode_save.py [--sizes 768,1536] [--long 1441]

LTX-2.3's video VAE has its real shapes and random weights, the latent is smooth noise: the pictures are soft blobs that move.
Needs COMFYUI_PATH, and a GPU unless it is only tried (`--sizes 64 --frames 9 --long 17 --rounds 1`). Times are medians of runs in
turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import core
from common import parser, save

core.boot()

import torch  # noqa: E402  after ComfyUI has chosen its allocator

RATE = Fraction(24)
SIZES = {768: (768, 512), 1536: (1536, 1024), 64: (64, 96)}


def full_size_vae() -> Any:
    """Core's VAE with LTX-2.3's video decoder, weights random: each layer keeps the strength of what it is given."""
    import comfy.sd

    from hlwq_core.models import ltx23

    config, generator = ltx23.config(), torch.Generator().manual_seed(0)
    state = {}
    for name, (_, shape) in ltx23.tensors().items():
        if not name.startswith("vae."):
            continue
        name = name.removeprefix("vae.")
        if name.endswith(".weight"):
            fan_in = 1
            for n in shape[1:]:
                fan_in *= n
            weight = torch.randn(shape, generator=generator).mul_(fan_in**-0.5)
        else:
            weight = torch.ones(shape) if "std" in name else torch.zeros(shape)
        state[name] = weight.bfloat16()
    return comfy.sd.VAE(sd=state, metadata={"config": json.dumps(config)})


def smooth_latent(frames: int, width: int, height: int) -> torch.Tensor:
    """Noise [1, 128, frames, height / 32, width / 32] that changes slowly in space and time."""
    size = (frames, height // 32, width // 32)
    coarse = torch.randn(1, 128, *(max(2, n // 4) for n in size), generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True)


class Peak:
    """While it is entered, the most anonymous memory of the process and the most memory of the card in use, in bytes."""

    def __enter__(self) -> Peak:
        self._idle, self.host, self.card, self._ended = anonymous(), 0, 0, threading.Event()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.host = max(self.host, anonymous() - self._idle)
            if torch.cuda.is_available():
                free, total = torch.cuda.mem_get_info()
                self.card = max(self.card, total - free)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.torch = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0

    def figures(self) -> dict[str, float]:
        return {
            "host_growth_gb": round(self.host / 1e9, 3),
            "card_gb": round(self.card / 1e9, 2),
            "torch_gb": round(self.torch / 1e9, 2),
        }


def anonymous() -> int:
    """Bytes of anonymous memory that the process has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this kernel does not count anonymous memory")


def timed(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


class Bench:
    """The ways that are compared, on one VAE."""

    def __init__(self, folder: str):
        import folder_paths

        pack = core.pack()
        folder_paths.set_output_directory(folder)
        import importlib

        name = pack.__name__
        self.node = importlib.import_module(f"{name}.nodes.decode_save").HLWQDecodeSave
        self.decoding = importlib.import_module(f"{name}.nodes.decoding")
        self.media = importlib.import_module(f"{name}.hlwq_core.media")
        self.pixels = importlib.import_module(f"{name}.hlwq_core.media.pixels")
        self.vae, self.folder, self.said = full_size_vae(), Path(folder), ""

    def decode(self, latent: torch.Tensor) -> list[torch.Tensor]:
        """Decoding alone: to bytes on the host, as the node's frames come."""
        kept: list[torch.Tensor] = []
        self.decoding.decode(self.vae, latent, lambda frames: kept.append(self.pixels.to_bytes(frames).cpu()))
        return kept

    def code(self, frames: list[torch.Tensor]) -> None:
        """Coding alone, of the same frames."""
        plan = self.media.plan(self.media.Settings())
        _, height, width, _ = frames[0].shape
        count = sum(part.shape[0] for part in frames)
        with self.media.Writer(self.folder / "coded.mp4", plan, (width, height), count, RATE) as writer:
            for part in frames:
                writer.write(part)
            writer.finish()

    def both(self, latent: torch.Tensor) -> None:
        result = self.node.execute({"samples": latent}, self.vae, frame_rate=24.0, filename_prefix="both")
        self.said = result.ui["text"][0]

    def sizes(self, side: int, frames: int, rounds: int) -> dict[str, Any]:
        """Times and memory of one size."""
        latent = smooth_latent((frames - 1) // 8 + 1, *SIZES[side])
        pictures = self.decode(latent)
        times: dict[str, list[float]] = {"decode": [], "code": [], "both": []}
        for _ in range(rounds):
            times["decode"].append(timed(lambda: self.decode(latent)))
            times["code"].append(timed(lambda: self.code(pictures)))
            times["both"].append(timed(lambda: self.both(latent)))
        with Peak() as peak:
            self.both(latent)
        medians = {name: statistics.median(found) for name, found in times.items()}
        ratio = medians["both"] / max(medians["decode"], medians["code"])
        return {"seconds": times, "both_over_longer": round(ratio, 3), "said": self.said, **peak.figures()}

    def slices(self, side: int, frames: int) -> dict[str, Any]:
        """How near slices and small pieces are to VAE.decode, in levels of 255, and what pieces cost."""
        core_vae = self.decoding.core
        latent = smooth_latent((frames - 1) // 8 + 1, *SIZES[side])
        whole = (self.vae.decode(latent)[0].float().cpu() * 255).round()
        found: dict[str, Any] = {"contrast": float(whole.std())}
        for count, piece in ((16, 128), (16, 32), (16, 8), (4, 32), (4, 4)):
            steps = self.decoding.Steps(count, piece << 20)
            kept: list[torch.Tensor] = []

            def run(steps: Any = steps, kept: list = kept) -> None:
                kept.clear()
                core_vae.decode_into(self.vae, latent, lambda part: kept.append((part.float() * 255).round().cpu()),
                                     steps.frames, steps.piece)  # fmt: skip

            core_vae.make_room(self.vae, 0)
            core_vae.free_cache()
            with Peak() as peak:
                seconds = timed(run)
            off = (torch.cat(kept) - whole).abs()
            found[f"{count} frames, {piece} MiB"] = {
                "seconds": round(seconds, 3),
                "largest_difference": float(off.max()),
                "mean_difference": float(off.mean()),
                "counted_gb": round(self.decoding.needed(self.vae, steps, *latent.shape[3:]) / 1e9, 2),
                **peak.figures(),
            }
        return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", default="768,1536")
    arguments.add_argument("--long", type=int, default=1441, help="frames of the long video, at the last size; 0: none")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--frames", type=int, default=121)
    args: argparse.Namespace = arguments.parse_args()
    figures: dict[str, Any] = {"processors": os.cpu_count()}
    summary: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(folder)
        for side in map(int, args.sizes.split(",")):
            figures[str(side)] = bench.sizes(side, args.frames, args.rounds)
            summary[f"decode_save_over_longer_{side}"] = figures[str(side)]["both_over_longer"]
            print(side, figures[str(side)], flush=True)
            figures[f"slices_{side}"] = bench.slices(side, args.frames)
            print(json.dumps(figures[f"slices_{side}"], indent=1), flush=True)
        if args.long:
            latent = smooth_latent((args.long - 1) // 8 + 1, *SIZES[side])
            with Peak() as peak:
                seconds = timed(lambda: bench.both(latent))
            figures["long"] = {"frames": args.long, "seconds": seconds, "said": bench.said, **peak.figures()}
            summary[f"decode_save_peak_vram_gb_{args.long}_frames"] = round(peak.card / 1e9, 2)
            print(figures["long"], flush=True)
        save("decode_save", figures, summary if torch.cuda.is_available() else {})


if __name__ == "__main__":
    main()
