"""Whole workflows through a ComfyUI server: seconds from Queue to the file, as a user waits, and seconds a node.

    python benchmarks/video.py --base FOLDER                 of video_base.py
    python benchmarks/video.py --base FOLDER --bf16 ltx23_bf16.safetensors --fp8 ltx23_fp8.safetensors \\
        --files '{"checkpoint": "LTX-2.3-HLWQ-Q5"}' --core-files '{"text_encoder": "…", "upscaler": "…"}'

FOLDER is a ComfyUI base folder with models/ (an HLWQ checkpoint, core's one-file checkpoints, text encoder, LoRA, upscaler) and
custom_nodes/ with this pack in it; video_base.py makes one of random weights.

For each format, in turn and as often as `--rounds` says, a server is started and gets three
prompts: the first after the start, one with another text, one with another seed only. *text to video* is 768×512×121 with 8
steps, *two stages* 1536×1024×121 with 8 + 3. HLWQ runs the shipped workflows; BF16 and FP8 run the same graph with core's own nodes
in the places of the pack's. `--free GIB` leaves so much of the card, as a card of that size would.

Needs COMFYUI_PATH. `--tiny` tries it at small sizes, on a CPU too: without --base with the tests' model (python scripts/test.py
makes it).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import REPO, hold, parser, save

sys.path.insert(0, str(REPO))
from hlwq_core.client.client import Client
from hlwq_core.client.node_progress import NodeProgress
from hlwq_core.client.server import LocalServer

Graph = dict[str, dict[str, Any]]
WORKFLOWS = {"t2v": "hlwq_ltx23_text_to_video", "two_stage": "hlwq_ltx23_two_stage"}
SIZES = {"t2v": (768, 512, 121), "two_stage": (1536, 1024, 121)}
TINY_SIZES = {"t2v": (96, 64, 17), "two_stage": (128, 128, 9)}
KINDS = ("bf16", "fp8", "exact", "fast")
CASES = ("first", "next", "seed")
TEXTS = (
    "A ginger cat sits at an upright piano in a small jazz club and plays a slow tune. Soft piano, brushed drums.",
    "A small boat crosses a lake at dawn, mist over the water, a bell rings twice. Calm water, birds.",
)


def graph_of(workflow: str, size: tuple[int, int, int]) -> Graph:
    """A shipped workflow in API form, for pictures and length of `size`."""
    graph = json.loads((REPO / "workflows" / "api" / f"{WORKFLOWS[workflow]}.json").read_text("utf-8"))
    for title, value in zip(("Width", "Height", "Length"), size, strict=True):
        _titled(graph, title)["inputs"]["value"] = value
    return graph


def _titled(graph: Graph, title: str) -> dict[str, Any]:
    (node,) = [node for node in graph.values() if node["_meta"]["title"] == title]
    return node


def _of_class(graph: Graph, kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(number, node) for number, node in graph.items() if node["class_type"] == kind]


def with_files(graph: Graph, files: dict[str, str]) -> Graph:
    """The graph with the names of files that are there: checkpoint, text encoder, LoRA, upscaler."""
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][name] = files.get(name, value)
    return graph


def by_core(graph: Graph, checkpoint: str, files: dict[str, str]) -> Graph:
    """The graph with core's nodes in the places of the pack's, as the official template has them.

    Args:
        graph: of the pack; it is changed.
        checkpoint: the file in models/checkpoints.
        files: names of core's text encoder and upscaler; without the first, which core knows at full size only, the text
            encoder is loaded by the pack.
    """
    moved: dict[tuple[str, int], list[Any]] = {}
    added: Graph = {}

    def put(number: str, kind: str, **inputs: Any) -> None:
        old = graph.get(number, {}).get("_meta", {"title": kind})
        (graph if number in graph else added)[number] = {"class_type": kind, "inputs": inputs, "_meta": old}

    for number, _ in _of_class(graph, "HLWQLoadCheckpoint"):
        put(number, "CheckpointLoaderSimple", ckpt_name=checkpoint)
        put(f"{number}a", "LTXVAudioVAELoader", ckpt_name=checkpoint)
        moved[number, 1], moved[number, 2] = [number, 2], [f"{number}a", 0]
    for number, _ in _of_class(graph, "HLWQLoadTextEncoder") if "text_encoder" in files else ():
        put(
            number, "LTXAVTextEncoderLoader",
            text_encoder=files["text_encoder"], ckpt_name=checkpoint, device="default",
        )  # fmt: skip
    for number, _ in _of_class(graph, "HLWQLoadUpscaler"):
        put(number, "LatentUpscaleModelLoader", model_name=files["upscaler"])
    for number, node in _of_class(graph, "HLWQUpscaleLatent"):
        given = node["inputs"]
        put(f"{number}s", "LTXVSeparateAVLatent", av_latent=given["latent"])
        put(
            f"{number}u", "LTXVLatentUpsampler",
            samples=[f"{number}s", 0], upscale_model=given["spatial_upscaler"], vae=given["vae"],
        )  # fmt: skip
        put(number, "LTXVConcatAVLatent", video_latent=[f"{number}u", 0], audio_latent=[f"{number}s", 1])
        moved[number, 1] = given["frame_rate"]
    for number, node in _of_class(graph, "HLWQDecodeSave"):
        given = node["inputs"]
        put(f"{number}p", "LTXVSeparateAVLatent", av_latent=given["latent"])
        put(
            f"{number}i", "VAEDecodeTiled", samples=[f"{number}p", 0], vae=given["vae"],
            tile_size=768, overlap=64, temporal_size=4096, temporal_overlap=4,
        )  # fmt: skip
        put(f"{number}a", "LTXVAudioVAEDecode", samples=[f"{number}p", 1], audio_vae=given["audio_vae"])
        put(f"{number}v", "CreateVideo", images=[f"{number}i", 0], fps=given["frame_rate"], audio=[f"{number}a", 0])
        put(
            number, "SaveVideo",
            video=[f"{number}v", 0], filename_prefix="video/core", format="auto", codec="auto",
        )  # fmt: skip
    graph |= added
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and len(value) == 2:
                node["inputs"][name] = moved.get((value[0], value[1]), value)
    left = {node["class_type"] for node in graph.values() if node["class_type"].startswith("HLWQ")}
    assert left <= ({"HLWQLoadTextEncoder"} if "text_encoder" not in files else set()), f"core has nothing for {left}"
    return graph


def prompts(kind: str, workflow: str, args: argparse.Namespace) -> Iterator[tuple[str, Graph]]:
    """What is queued one after another: the case and the graph."""
    for case in args.cases.split(","):
        graph = graph_of(workflow, (TINY_SIZES if args.tiny else SIZES)[workflow])
        graph = with_files(graph, args.files)
        if kind in ("bf16", "fp8"):
            graph = by_core(graph, getattr(args, kind), args.core_files)
        else:
            ((_, loader),) = _of_class(graph, "HLWQLoadCheckpoint")
            loader["inputs"]["mode"] = kind
        _of_class(graph, "CLIPTextEncode")[0][1]["inputs"]["text"] = TEXTS[case != "first"]
        for _, node in _of_class(graph, "RandomNoise"):
            node["inputs"]["noise_seed"] = CASES.index(case)
        yield case, graph


async def seconds_of(server: LocalServer, graph: Graph) -> dict[str, Any]:
    """From the POST to the file in place, and of each node that ran, by its class."""
    async with Client(server.url) as client:
        begun = time.perf_counter()
        prompt_id = await client.queue(graph)
        with NodeProgress(graph, quiet=True) as watch:
            await client.follow(prompt_id, graph, watch)
        whole = time.perf_counter() - begun
    nodes: dict[str, float] = {}
    for number, seconds in watch.seconds.items():
        kind = graph[number]["class_type"] if number in graph else number
        nodes[kind] = nodes.get(kind, 0) + seconds
    return {"seconds": whole, "nodes": nodes}


@contextmanager
def served(args: argparse.Namespace) -> Iterator[LocalServer]:
    """A ComfyUI of the base folder, on a card of which only a part is free if so asked."""
    holder = hold(args.free) if args.free else None
    try:
        extra = ["--disable-api-nodes", *args.server]
        with LocalServer(Path(os.environ["COMFYUI_PATH"]), base=args.base, extra=extra, timeout=300) as server:
            yield server
    finally:
        del holder


def measure(args: argparse.Namespace, keep: Callable[[dict[str, Any], dict[str, float | None]], None]) -> None:
    """Every format in turn, in rounds; `keep` gets all figures after each server."""
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(args.rounds):
        for kind in args.kinds.split(","):
            for workflow in args.workflows.split(","):
                with served(args) as server:
                    for case, graph in prompts(kind, workflow, args):
                        told = asyncio.run(seconds_of(server, graph))
                        found.setdefault(f"{kind}_{workflow}_{case}", []).append(told)
                        slow = sorted(told["nodes"].items(), key=lambda item: -item[1])[:4]
                        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in slow)
                        print(f"{turn} {kind:5} {workflow:9} {case:5} {told['seconds']:6.1f} s  {parts}", flush=True)
                keep(*figures(found, args))


def figures(
    found: dict[str, list[dict[str, Any]]], args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """The result and its part of the summary, of what was measured so far."""
    summary: dict[str, float | None] = {}
    end = f"_{args.free:.0f}gb" if args.free else ""
    medians = {name: statistics.median(told["seconds"] for told in runs) for name, runs in found.items()}
    for name, seconds in medians.items():
        kind, _, rest = name.partition("_")
        if not args.free:
            summary[f"video_s_{name}"] = seconds
        if kind in ("exact", "fast") and f"bf16_{rest}" in medians:
            summary[f"video_ratio_{name}{end}"] = seconds / medians[f"bf16_{rest}"]
    return {"runs": found, "free_gib": args.free, "sizes": TINY_SIZES if args.tiny else SIZES}, summary


def is_whole(result: dict[str, Any]) -> bool:
    """Whether a result has every figure that the documentation's tables are made of."""
    kinds = [kind for kind in KINDS if kind != "fp8"]
    return all(
        f"{kind}_{workflow}_{case}" in result["runs"] for kind in kinds for workflow in WORKFLOWS for case in CASES
    )


def tiny_base(folder: Path, args: argparse.Namespace) -> Path:
    """A base folder of the tests' tiny model."""
    sys.path.insert(0, str(REPO / "scripts"))
    import environment

    comfyui = Path(os.environ["COMFYUI_PATH"])
    cache = Path(os.environ.get("HLWQ_CACHE") or "~/.cache/comfyui-hlwq").expanduser()
    tiny = environment.tiny_model(environment.Environment(Path(sys.executable), comfyui, cache))
    for name in ("output", "user", "custom_nodes"):
        (folder / name).mkdir()
    environment.link_tree(tiny / "models", folder / "models")
    shutil.copytree(tiny / "input", folder / "input")
    (folder / "custom_nodes" / "ComfyUI-HLWQ").symlink_to(REPO, target_is_directory=True)
    (folder / "models" / "checkpoints").mkdir(exist_ok=True)
    for file in (tiny / "models" / "reference").glob("*.safetensors"):
        (folder / "models" / "checkpoints" / file.name).symlink_to(file)
    args.bf16 = args.fp8 = "ltx23_tiny_bf16.safetensors"
    args.files = {
        "checkpoint": "LTX-2.3-tiny-HLWQ-Q5",
        "text_encoder": "gemma_3_tiny.safetensors",
        "lora_name": "ltx-2.3-tiny-distilled-lora.safetensors",
    }
    args.core_files = {"upscaler": "ltx-2.3-spatial-upscaler-x2-1.1-tiny.safetensors"}
    return folder


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--base", type=Path, help="ComfyUI's base folder")
    arguments.add_argument("--bf16", help="core's checkpoint in BF16, below models/checkpoints")
    arguments.add_argument("--fp8", help="and in its fp8")
    arguments.add_argument("--files", type=json.loads, default={}, help="JSON: input of a node to the name of its file")
    arguments.add_argument(
        "--core-files", type=json.loads, default={}, help="JSON: text_encoder and upscaler of core's"
    )
    arguments.add_argument(
        "--kinds", help="of bf16, fast, exact and fp8; else the first three, and fp8 where a file is given"
    )
    arguments.add_argument("--workflows", default=",".join(WORKFLOWS))
    arguments.add_argument("--cases", default=",".join(CASES))
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--free", type=float, help="GiB of the card to leave free")
    arguments.add_argument("--server", action="append", default=[], help="one more argument for ComfyUI")
    arguments.add_argument("--tiny", action="store_true", help="the tests' model at small sizes: to try this program")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny and args.base is None:
            args.base = tiny_base(Path(folder), args)
        elif (made := args.base / "video.json").is_file():
            for name, value in json.loads(made.read_text()).items():
                setattr(args, name, getattr(args, name) or value)
        args.kinds = args.kinds or ",".join(kind for kind in KINDS if kind != "fp8" or args.fp8)
        summary: dict[str, float | None] = {}
        name = "video" + (f"_{args.free:.0f}gb" if args.free else "")

        def keep(result: dict[str, Any], so_far: dict[str, float | None]) -> None:
            summary.update(so_far)
            # A part of the figures does not take the place of all of them.
            if not args.tiny and (os.environ.get("OUT") or is_whole(result)):
                save(name, result, so_far)

        measure(args, keep)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
