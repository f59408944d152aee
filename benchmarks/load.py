"""From the loader's start to the end of the first sampling step: an HLWQ folder against a BF16 file of as many bytes.

    python benchmarks/load.py --folder /fast/disk

Writes both (38 GB; random bytes, one block's stand for all), then loads each in a process of its own, HLWQ through the pack's
loader and BF16 through ComfyUI's, with the files in the system's cache. HLWQ comes at once, also without decoded layers being
kept, and layer by layer, and has to sample the same. Needs a GPU and COMFYUI_PATH; `--tiny MODELS` tries it on a CPU with the
tests' model (the folder that scripts/make_tiny.py makes).
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
TOKENS = {"full": 2048, "tiny": 96}
# What is loaded, and with what in the environment.
LOADS = {
    "hlwq": {},
    "hlwq_not_kept": {"HLWQ_KEEP_DECODED": "0"},
    "hlwq_by_layer": {"HLWQ_LOAD_AT_ONCE": "0"},
    "bf16": {},
}


def write(folder: Path) -> dict[str, Path]:
    """The folder and the file."""
    import core

    core.boot()
    import full_size

    from hlwq_core.codec import codec
    from hlwq_core.format.writer import write_safetensors
    from hlwq_core.models import ltx23

    config, tensors = full_size.configuration(48, False)
    weights = full_size.dense_weights(tensors)
    layers = [name for name, (_, shape) in tensors.items() if full_size.is_layer(name, shape)]
    encode = full_size.once(lambda weight: codec.encode(weight.cuda()))

    codes, plain = [], []
    for name, value in weights.items():
        if name not in layers:
            plain.append((name, value.dtype, tuple(value.shape), lambda value=value: value))
            continue
        made = encode(value)
        packed, norms = made.packed().cpu().reshape(-1), made.norms.cpu()
        meta = full_size.torch.tensor([value.shape[0], norms.shape[1], 128, norms.numel() * 128])
        base = name.replace(".", "__")
        for part, tensor in (("packed", packed), ("norms", norms), ("meta", meta)):
            codes.append((f"{base}__{part}", tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor))
    # The other parts of the checkpoint are there as well: the loader asks for all of it.
    others = {name: kind for name, kind in ltx23.tensors().items() if not name.startswith(full_size.PREFIX)}
    for name, value in full_size.dense_weights(others).items():
        plain.append((name, value.dtype, tuple(value.shape), lambda value=value: value))
    hlwq = folder / "hlwq"
    write_safetensors(hlwq / "polarquant" / "bf16" / "ltx23_bf16.safetensors", plain)
    write_safetensors(hlwq / "polarquant" / "codes" / "chunk_00_codes.safetensors", codes)
    (hlwq / "config.json").write_text(json.dumps(config))
    model = [*codes, *(entry for entry in plain if entry[0].startswith(full_size.PREFIX))]
    size = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape, _ in model)

    # As many blocks in BF16 as make up the same number of bytes.
    blocks, kept = 0, []
    while blocks < 48 and sum(weights[n].nbytes for n in kept) < size:
        blocks += 1
        _, part = full_size.configuration(blocks, False)
        kept = list(part)
    config["transformer"]["num_layers"] = blocks
    entries = [(n, weights[n].dtype, tuple(weights[n].shape), lambda n=n: weights[n]) for n in kept]
    write_safetensors(folder / "bf16.safetensors", entries, {"config": json.dumps(config)})
    return {"hlwq": hlwq, "bf16": folder / "bf16.safetensors"}


def _read_from_disk() -> int:
    """Bytes that this process had read from a disk, rather than from the system's cache."""
    return int(re.findall(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.M)[0])


def into_cache(path: Path) -> None:
    """Read the files once: ComfyUI asks the system to forget what it has read."""
    for file in files_of(path):
        with open(file, "rb", buffering=0) as data:
            while data.read(64 << 20):
                pass


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.safetensors"))


def measure(kind: str, path: Path, size: str, latents: Path) -> dict[str, Any]:
    """One load in this process; what it sampled goes to the file `latents`."""
    import core

    core.boot()
    import comfy.model_management
    import comfy.sample  # ComfyUI's server has long imported it
    import comfy.sd
    import full_size
    import safetensors.torch
    import torch

    packed = kind != "bf16"
    if packed:
        core.pack()
        from comfyui_hlwq.nodes import model_loading
    with torch.inference_mode():
        comfy.model_management.get_torch_device()
        read = _read_from_disk()
        begun = time.perf_counter()
        if packed:
            model = model_loading.diffusion_model(model_loading.open_complete(path))
        else:
            model = comfy.sd.load_diffusion_model(str(path))
        loaded = time.perf_counter() - begun
        run = full_size.sample(model, TOKENS[size], 3, {"bytes": 0})
    safetensors.torch.save_file({"latent": run["latent"]}, str(latents))
    return {
        "format": kind,
        "bytes": sum(file.stat().st_size for file in files_of(path)),
        "model_bytes": model.model_size(),
        "load_s": loaded,
        "first_step_s": run["first_step_s"],
        "step_s": run["step_s"],
        "to_first_step_s": loaded + run["first_step_s"],
        "disk_gb": (_read_from_disk() - read) / 1e9,
        # ru_maxrss would be the parent's, which wrote the files.
        "peak_rss_gb": int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1e6,
    }


def difference(a: Path, b: Path) -> float:
    """Relative difference of two files of latents."""
    from safetensors.torch import load_file

    one, other = (load_file(str(path))["latent"].double() for path in (a, b))
    return float((one - other).norm() / one.norm())


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))))
        return
    from common import parser, save

    arguments = parser(__doc__)
    arguments.add_argument("--folder", help="where the files are written (default: the temporary folder)")
    arguments.add_argument("--tiny", type=Path, metavar="MODELS", help="use this tiny model instead")
    arguments.add_argument("--repeat", type=int, default=2)
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.tiny:
            paths = {
                "hlwq": next((args.tiny / "hlwq").iterdir()),
                "bf16": next((args.tiny / "reference").glob("*bf16*")),
            }
        else:
            paths = write(Path(folder))
        results = []
        for i in range(args.repeat):  # interleaved
            for kind, setting in LOADS.items():
                if i and kind == "hlwq_by_layer":
                    continue  # for its latents, and to be compared with: once is enough
                path = paths[kind.partition("_")[0]]
                into_cache(path)
                size, latents = "tiny" if args.tiny else "full", Path(folder) / f"{kind}.latents"
                command = [sys.executable, __file__, "--measure", kind, str(path), size, str(latents)]
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, timeout=600, env=os.environ | setting, check=True
                )
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(results[-1], file=sys.stderr, flush=True)
        apart = difference(Path(folder) / "hlwq.latents", Path(folder) / "hlwq_by_layer.latents")
    if not apart <= 1e-3:
        raise SystemExit(f"HLWQ samples otherwise when it is loaded at once: relative difference {apart}")
    best = {k: min(r["to_first_step_s"] / r["model_bytes"] for r in results if r["format"] == k) for k in LOADS}
    ratios = {kind: best[kind] / best["bf16"] for kind in LOADS if kind != "bf16"}
    print("to the end of the first step, a byte, BF16 = 1:", ", ".join(f"{k} {r:.2f}" for k, r in ratios.items()))
    if not args.tiny:
        figures = {"results": results, "ratios": ratios, "latents_apart": apart}
        save("load", figures, {"load_ratio_core": ratios["hlwq"]})


if __name__ == "__main__":
    main()
