#!/usr/bin/env python3
"""Whether models that are not LTX's work packed: in tiny form, each against ComfyUI running the same decoded weights.

    python scripts/architectures.py run --comfyui PATH [KEY ...]   run them, write tests/architectures/results.json
    python scripts/architectures.py page                           write docs/architectures.md of that file

Each: quantize, load packed, sample; a LoRA on and off; save with ComfyUI's own node, load again in ComfyUI and in the pack.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tests" / "architectures" / "results.json"
PAGE = ROOT / "docs" / "architectures.md"
BOUND = 0.01


def relative(found: Any, expected: Any) -> float:
    """Relative L2 distance of two latents."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _sample(model: Any, architecture: Any) -> Any:
    import comfy.sample
    import torch

    latent = torch.zeros(architecture.latent)
    noise, text = comfy.sample.prepare_noise(latent, 0), architecture.prompt()
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, architecture.steps, 1.0, "euler", "normal", text, text, latent, seed=0, disable_pbar=True
        )


def _lora(tensors: dict[str, Any]) -> dict[str, Any]:
    """Rank 4 on every matrix of a block, about a tenth of each weight's size."""
    import torch

    generator, lora = torch.Generator().manual_seed(3), {}
    for name, value in tensors.items():
        if value.dim() == 2 and name.endswith(".weight") and "." in name.removesuffix(".weight"):
            stem = f"diffusion_model.{name.removesuffix('.weight')}"
            rows, columns = value.shape
            down = torch.randn(4, columns, generator=generator) * columns**-0.5
            lora |= {
                f"{stem}.lora_A.weight": down,
                f"{stem}.lora_B.weight": torch.randn(rows, 4, generator=generator) * 0.02,
            }
    return lora


def check(architecture: Any, folder: Path, pack: Any) -> dict[str, Any]:
    """Everything about one of them; relative L2 distances of latents, from ComfyUI's of the same weights in BF16.

    Args:
        folder: an empty one, for files.
        pack: the pack as ComfyUI imports it.
    """
    import comfy.model_management
    import comfy.sd
    import torch
    from comfy_extras.nodes_model_merging import ModelSave
    from safetensors.torch import save_file

    quantize = importlib.import_module(f"{pack.__name__}.hlwq_core.tools.quantize").quantize
    open_checkpoint = importlib.import_module(f"{pack.__name__}.hlwq_core").open_checkpoint
    load_checkpoint = importlib.import_module(f"{pack.__name__}.nodes.load_checkpoint").load_checkpoint

    tensors = architecture.tensors()
    lora = _lora(tensors)
    result: dict[str, Any] = {"name": architecture.name, "weights": sum(value.numel() for value in tensors.values())}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "dense.safetensors")
    del tensors
    norms = "author" if architecture.large else "search"  # searched ones take minutes of a CPU for hundreds of millions
    report = quantize(folder / "dense.safetensors", folder / "packed.safetensors", layout="single", norms=norms)
    ckpt = open_checkpoint(folder / "packed.safetensors")
    decoded = {name: ckpt.decode(name) for name in ckpt.names()}
    decoded |= {name: ckpt.plain(name).clone() for name in ckpt.plain_names()}
    save_file(decoded, folder / "decoded.safetensors")
    del decoded

    def ours(name: str) -> Any:
        with torch.inference_mode():
            return load_checkpoint(folder / name, vaes=False)[0]

    def cores(name: str) -> Any:
        return comfy.sd.load_diffusion_model(str(folder / name))

    def with_lora(model: Any) -> Any:
        return comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0)[0]

    def latents(load: Any, name: str, patch: Any = lambda model: model) -> Any:
        made = _sample(patch(load(name)), architecture)
        comfy.model_management.unload_all_models()
        gc.collect()
        return made

    packed = ours("packed.safetensors")
    result["class"] = type(packed.model).__name__
    result["packed"] = sum(hasattr(value, "_qdata") for value in packed.model.state_dict().values())
    assert result["packed"] == report.layers, f"{result['packed']} packed, {report.layers} made"
    exact, patched = _sample(packed, architecture), _sample(with_lora(packed), architecture)
    off = _sample(packed, architecture)
    saver = ModelSave()
    saver.output_dir = str(folder)
    with torch.inference_mode():
        saver.save(packed, "again")
    del packed
    comfy.model_management.unload_all_models()
    (again,) = folder.glob("again*.safetensors")
    reference, reference_lora = latents(cores, "decoded.safetensors"), latents(cores, "decoded.safetensors", with_lora)
    original = latents(cores, "dense.safetensors")
    assert torch.isfinite(reference).all() and float(reference.std()) > 0
    result["error"] = relative(exact, reference)
    result["to_original"] = relative(exact, original)
    result["lora"] = relative(patched, reference_lora)
    result["lora_moves"] = relative(patched, exact)
    result["lora_off"] = relative(off, exact)
    result["saved_core"] = relative(latents(cores, again.name), reference)
    quantize(folder / again.name, folder / "requantized.safetensors", layout="single", norms=norms)
    result["saved_pack"] = relative(latents(ours, "requantized.safetensors"), reference)
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """What of a result is not as it should be."""
    bounds = {"error": BOUND, "lora": BOUND, "lora_off": 0.0, "saved_core": BOUND}
    found = [f"{key} {result[key]:.4f}, at most {most}" for key, most in bounds.items() if not result[key] <= most]
    # Quantizing again what was decoded moves it no further than the first time did.
    if not result["saved_pack"] <= result["to_original"]:
        found.append(f"saved_pack {result['saved_pack']:.4f}, further than {result['to_original']:.4f}")
    if not result["lora_moves"] > 0.001:
        found.append(f"the LoRA moves the latents by {result['lora_moves']:.4f} only")
    return found


# ---- the command -------------------------------------------------------------------------------------------------------


def _load_pack() -> Any:
    spec = importlib.util.spec_from_file_location(
        "comfyui_hlwq", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_hlwq"] = pack
    spec.loader.exec_module(pack)
    return pack


def run(comfyui: Path, keys: list[str]) -> int:
    """Run them on a ComfyUI; the results so far are written after each."""
    for path in (comfyui.resolve(), ROOT, ROOT / "scripts"):
        sys.path.insert(0, str(path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfyui_version
    from tiny.architectures import ARCHITECTURES

    pack, bad = _load_pack(), 0
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    for architecture in ARCHITECTURES:
        if keys and architecture.key not in keys or not architecture.known():
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = check(architecture, Path(folder), pack)
                result["failures"] = failures(result)
            except Exception as error:
                if keys:
                    raise
                result = {"name": architecture.name, "failures": [f"{type(error).__name__}: {error}"]}
        result["comfyui"] = comfyui_version.__version__
        bad += bool(result["failures"])
        print(json.dumps(result), flush=True)
        known[architecture.key] = result
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if bad else 0


def page() -> str:
    """docs/architectures.md of the results."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from tiny.architectures import ARCHITECTURES, UNTRIED

    results = json.loads(RESULTS.read_text("utf-8"))
    rows = []
    for architecture in ARCHITECTURES:
        result = results.get(architecture.key)
        if result is None:
            continue
        if result["failures"]:
            rows.append(f"| {architecture.name} | {'; '.join(result['failures'])} |  |  |  |  |  |")
            continue
        cells = [
            f"{architecture.name}{' *' if architecture.large else ''}",
            f"{result['packed']}",
            *(f"{100 * result[key]:.2f}" for key in ("error", "to_original", "lora", "saved_core", "saved_pack")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(sorted({result["comfyui"] for result in results.values()}))
    late = ", ".join(one.name for one in ARCHITECTURES if one.key not in results)
    more = {late: "in the script's table, but as wide as the real model: not run yet"} if late else {}
    untried = "\n".join(f"- **{names}**: {reason}." for names, reason in (more | UNTRIED).items())
    return f"""# Other models

What is not LTX's loads as well: `quantize` takes it by the recipe `plain`, *HLWQ Load Diffusion Model* loads it packed. Below is
what was tried, in tiny form: ComfyUI's own classes with few or narrow blocks and seeded random weights, found again by ComfyUI's
own detection, two steps of its own sampler (one in wide ones), on a CPU, 5 bits, norms searched (where marked, the author's). It
shows that names, layers, LoRAs and files fit; no real model's picture was looked at. Made by `python scripts/architectures.py` with
a ComfyUI that calls itself {versions}.

Distances are relative L2 of latents in percent. *Error* is from ComfyUI running the same decoded weights in BF16, at most
{100 * BOUND:.0f}; *to the original* is what 5 bits cost these random weights; *LoRA* is the error with a LoRA of rank 4 on every
matrix (off again, all are bit for bit as before); *saved* is what *Save Model* wrote, loaded in ComfyUI, and quantized and loaded in
the pack again.

| model | packed layers | error | to the original | LoRA | saved, ComfyUI | saved, the pack |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

\\* as wide as the real model, with as few blocks as ComfyUI's detection allows.

Not tried:

{untried}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    running = what.add_parser("run", help="run them")
    running.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    running.add_argument("keys", nargs="*", help="only these")
    what.add_parser("page", help="write the page")
    args = parser.parse_args()
    if args.what == "run":
        return run(args.comfyui, args.keys)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
