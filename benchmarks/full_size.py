"""One format of the full-size LTX-2.3 transformer in real ComfyUI: time of a sampling step, memory, bytes over the bus.

    python benchmarks/full_size.py --format hlwq --tokens 6144,24576

Weights are random and shapes real; one block's tensors stand for all 48 on the host, each block has its own on the GPU. The
last line is the result as JSON, after the word RESULT. `steps.py` runs this for every format and compares.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import core
from common import hold

# What the loader is asked for (choices.Choices), less than it does by itself: each measures one thing. `installed` is as it is.
HLWQ: dict[str, dict[str, Any]] = {
    "hlwq": {"keep_decoded": False, "record_blocks": False, "attention": "comfyui"},
    "hlwq_packed": {"keep_decoded": False, "record_blocks": False, "attention": "comfyui"},
    "hlwq_kept": {"record_blocks": False, "attention": "comfyui"},
    "hlwq_graphs": {"keep_decoded": False, "attention": "comfyui"},
    "hlwq_fast": {"mode": "fast", "keep_decoded": False},
    "hlwq_fast_kept": {"mode": "fast"},
    "hlwq_installed": {},
}
FORMATS = ("bf16", "fp8", "gguf_q5k", *HLWQ)
PREFIX = "model.diffusion_model."
# Video latents of 768×512×121, 1536×1024×121 and a small one, by their number of tokens: frames, height, width.
SIZES = {96: (2, 6, 8), 2048: (8, 16, 16), 6144: (16, 16, 24), 24576: (16, 32, 48)}
TEXT_TOKENS = 1024


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--tokens", default="6144", help=f"numbers of video tokens, with commas: {list(SIZES)}")
    parser.add_argument("--steps", type=int, default=6, help="steps a run; the first two are not counted")
    parser.add_argument("--blocks", type=int, default=48, help="blocks of the model")
    parser.add_argument("--free", type=float, help="GiB of the card to leave free; a second process holds the rest")
    parser.add_argument("--lora", type=int, help="a LoRA of this rank on every linear layer of the blocks")
    parser.add_argument("--attention", choices=("core", "cudnn"), help="core's, or fast mode's (default there)")
    parser.add_argument("--compile", action="store_true", help="torch.compile, block by block")
    parser.add_argument("--plain-patcher", action="store_true", help="without dynamic VRAM")
    parser.add_argument("--host", action="store_true", help="also the host's time of one linear layer")
    parser.add_argument(
        "--peak", action="store_true", help="also the most memory in use; its measurement disturbs times"
    )
    parser.add_argument("--serve", action="store_true", help="take runs from standard input, as steps.py gives them")
    parser.add_argument("--small", action="store_true", help="narrow layers: to try this program on a CPU")
    return parser.parse_args()


ARGUMENTS = arguments() if __name__ == "__main__" else argparse.Namespace(plain_patcher=False)
# TorchCompileModel takes a model out of dynamic VRAM, so compiling is measured without it; and with torch's own allocator,
# without which compiled blocks are not recorded as a CUDA graph.
DYNAMIC = (
    core.boot(dynamic=not (ARGUMENTS.plain_patcher or ARGUMENTS.compile), cuda_malloc=not ARGUMENTS.compile)
    if __name__ == "__main__"
    else False
)

import torch  # noqa: E402  after ComfyUI has chosen its allocator


def configuration(blocks: int, small: bool) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
    """The model's config, and dtype and shape of each tensor by its name."""
    from hlwq_core.models import ltx23

    config, tensors = ltx23.config(), ltx23.tensors()
    if small:
        sys.path.insert(0, str(core.REPO / "scripts"))
        import comfy.ops
        from comfy.ldm.lightricks.av_model import LTXAVModel
        from tiny.config import config as tiny_config

        config = tiny_config()
        model = LTXAVModel(**config["transformer"], device="meta", operations=comfy.ops.disable_weight_init)
        tensors = {PREFIX + name: ("BF16", tuple(value.shape)) for name, value in model.state_dict().items()}
    depth = min(blocks, config["transformer"]["num_layers"])
    config["transformer"]["num_layers"] = depth
    kept = {
        name: value
        for name, value in tensors.items()
        if name.startswith(PREFIX) and ("transformer_blocks." not in name or _block(name) < depth)
    }
    return config, kept


def _block(name: str) -> int:
    return int(name.split("transformer_blocks.")[1].split(".")[0])


def is_layer(name: str, shape: tuple[int, ...]) -> bool:
    """One of the 28 matrices of a block that the published checkpoint quantizes."""
    return (
        ".transformer_blocks." in name
        and "connector" not in name
        and len(shape) == 2
        and name.endswith(".weight")
        and "gate" not in name
    )


def dense_weights(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """BF16 weights; what one block has stands for all blocks."""
    # Numbers from one pool, whose odd length keeps rows apart: drawing 5e9 anew takes half a minute.
    pool = torch.randn(4_000_037, generator=torch.Generator().manual_seed(0)).bfloat16()
    made: dict[str, torch.Tensor] = {}
    weights = {}
    for name, (_, shape) in tensors.items():
        block = ".transformer_blocks." in name and "connector" not in name
        shared = name.replace(f"transformer_blocks.{_block(name)}.", "transformer_blocks.*.") if block else name
        if shared not in made:
            if len(shape) < 2 and "norm" in name and name.endswith("weight"):
                value = torch.ones(shape)
            else:
                scale = (0.5 if "to_out" in name else 1) * max(shape[-1] if shape else 1, 1) ** -0.5
                if "scale_shift_table" in name or name.endswith("bias"):
                    scale = 0.05
                count = math.prod(shape)
                start = len(made) * 977 % 100_000
                repeats = -(-(start + count) // len(pool))
                value = (pool.repeat(repeats)[start : start + count] * scale).view(shape)
            made[shared] = value.bfloat16()
        weights[name] = made[shared]
    return weights


def once(function: Any) -> Any:
    """The function with its results kept by the tensor: shared tensors stay shared."""
    results: dict[int, Any] = {}

    def call(value: torch.Tensor) -> Any:
        if id(value) not in results:
            results[id(value)] = function(value)
        return results[id(value)]

    return call


def load(kind: str, blocks: int, small: bool) -> Any:
    """The model in a format, as ComfyUI's patcher."""
    import comfy.sd

    config, tensors = configuration(blocks, small)
    weights = dense_weights(tensors)
    layers = [name for name, (_, shape) in tensors.items() if is_layer(name, shape)]
    metadata = {"config": json.dumps(config)}
    options: dict[str, Any] = {}
    if kind == "fp8":
        scale = once(lambda w: (w.abs().max().float() / 448).reshape(()))
        rounded = once(lambda w: (w.float() / scale(w)).to(torch.float8_e4m3fn))
        note = torch.frombuffer(bytearray(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
        for name in layers:
            dense, base = weights[name], name.removesuffix("weight")
            weights |= {name: rounded(dense), f"{base}weight_scale": scale(dense), f"{base}comfy_quant": note}
    elif kind == "gguf_q5k":
        import q5k

        generator = torch.Generator().manual_seed(0)
        packed = once(lambda w: q5k.random_q5k(*w.shape, generator))
        weights |= {name: packed(weights[name]) for name in layers}
        options["custom_operations"] = q5k.operations()
    elif kind.startswith("hlwq"):
        return _load_hlwq(kind, weights, layers, metadata)
    stripped = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    if kind == "gguf_q5k":
        return _load_opaque(stripped, tensors, metadata, options)
    return comfy.sd.load_diffusion_model_state_dict(stripped, model_options=options, metadata=metadata)


def _load_opaque(weights: dict, tensors: dict, metadata: dict, options: dict) -> Any:
    """uint8 weights hide their shapes from ComfyUI's detection: it sees empty ones, and the model then gets the real ones."""
    import comfy.sd

    shown = {}
    for name, value in weights.items():
        shape = tensors[PREFIX + name][1]
        shown[name] = (
            value if value.dtype is not torch.uint8 else torch.empty(shape, dtype=torch.bfloat16, device="meta")
        )
    model = comfy.sd.load_diffusion_model_state_dict(dict(shown), model_options=options, metadata=metadata)
    for name, value in weights.items():
        if value.dtype is torch.uint8:
            module = comfy.utils.get_attr(model.model.diffusion_model, name.rpartition(".")[0])
            module.weight = torch.nn.Parameter(value, requires_grad=False)
    return model


def _load_hlwq(kind: str, weights: dict, layers: list[str], metadata: dict) -> Any:
    import comfy.sd

    core.pack()
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.hlwq_core.format.packed import PackedLayer
    from comfyui_hlwq.hlwq_core.running import packed_tensor
    from comfyui_hlwq.nodes import compat, model_loading
    from comfyui_hlwq.nodes.running import choices, packed_ops

    device = compat.model_management.get_torch_device()

    def encode(dense: torch.Tensor) -> PackedLayer:
        return codec.encode(dense.to(device)).layer().to("cpu")

    encoded = once(encode)
    if kind == "hlwq_packed":
        # As `pack_rest` does at load.
        large = model_loading.PACK_REST_FROM
        layers = [
            n
            for n, w in weights.items()
            if n.endswith("weight") and w.dim() == 2 and (n in layers or w.numel() >= large)
        ]
    for name in layers:
        weights[name] = packed_tensor.quantized_tensor(encoded(weights[name]))
    stripped = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    model = comfy.sd.load_diffusion_model_state_dict(
        stripped, model_options={"custom_operations": packed_ops.PackedOperations}, metadata=metadata
    )
    model_loading.decode_where_no_linear(model.model)
    model = model_loading.run_as_chosen(model, choices.Choices(**HLWQ[kind]))
    layer = model.model.diffusion_model.transformer_blocks[0].attn1.to_q
    if device.type == "cuda" and kind.startswith("hlwq_fast") and layer.eight_bit is None:
        raise SystemExit("fast mode is not available")
    return model


def with_lora(model: Any, rank: int) -> Any:
    """A LoRA of 2 % of each block layer's weight."""
    import comfy.sd

    generator = torch.Generator().manual_seed(1)
    tensors, made = {}, {}
    for name, module in model.model.diffusion_model.named_modules():
        if (
            "transformer_blocks." not in name
            or "connector" in name
            or not hasattr(module, "in_features")
            or "gate" in name
        ):
            continue
        key = name.replace(f"transformer_blocks.{_block(name)}.", "")
        if key not in made:
            up = torch.randn(module.out_features, rank, generator=generator) * 0.02 * rank**-0.5
            down = torch.randn(rank, module.in_features, generator=generator) * module.in_features**-0.5
            made[key] = up.bfloat16(), down.bfloat16()
        tensors[f"diffusion_model.{name}.lora_B.weight"], tensors[f"diffusion_model.{name}.lora_A.weight"] = made[key]
    return comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)[0]


class Peak(threading.Thread):
    """The most memory that this process has on the card, looked at 50 times a second: not while anything is timed."""

    def __init__(self, device: torch.device):
        super().__init__(daemon=True)
        self.device, self.most, self.ended = device, 0, threading.Event()

    def used(self) -> int:
        """By NVML, which knows ComfyUI's own allocations too."""
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(self.device.index or 0)
        mine = [p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == os.getpid()]
        if mine and mine[0]:
            return mine[0]
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, self.used())


def count_bus_bytes() -> dict[str, int]:
    """Let ComfyUI's dynamic VRAM count what it brings to the card: weights that are not resident, at each use."""
    import comfy.memory_management
    import comfy.ops

    counted = {"bytes": 0}
    original = comfy.ops.cast_modules_with_vbar

    def cast(modules, *rest, **options):
        result = original(modules, *rest, **options)
        for module in modules:
            if not module._prefetch["resident"]:
                counted["bytes"] += comfy.memory_management.vram_aligned_size([module.weight, module.bias])
        return result

    comfy.ops.cast_modules_with_vbar = cast
    return counted


def sample(model: Any, tokens: int, steps: int, counted: dict[str, int]) -> dict[str, Any]:
    """Euler, cfg 1, joint latents: seconds a step and until the host had enqueued it, bytes over the bus a step."""
    import comfy.model_management
    import comfy.nested_tensor
    import comfy.sample
    import comfy.samplers

    frames, height, width = SIZES[tokens]
    audio = max(8, int(126 * frames / 16))
    latent = comfy.nested_tensor.NestedTensor(
        [torch.zeros(1, 128, frames, height, width), torch.zeros(1, 8, audio, 16)]
    )
    inner = model.model.diffusion_model
    text_width = inner.inner_dim + inner.audio_inner_dim  # video and audio stream beside each other
    context = torch.randn(1, TEXT_TOKENS, text_width, generator=torch.Generator().manual_seed(1))
    text = [[context, {"unprocessed_ltxav_embeds": True, "frame_rate": 24.0}]]
    noise = comfy.sample.prepare_noise(latent, 0)
    device = comfy.model_management.get_torch_device()
    cuda = device.type == "cuda"
    marks: list[float] = []
    enqueued: list[float] = []
    moved: list[int] = []
    kept: list[torch.Tensor] = []

    def callback(step: int, x0: Any, x: Any, total: int) -> None:
        enqueued.append(time.perf_counter())
        if cuda:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        moved.append(counted["bytes"])
        if step == 1:
            parts = x.unbind() if getattr(x, "is_nested", False) else [x]
            kept.extend(part.float().cpu() for part in parts)

    with torch.inference_mode():
        sigmas = torch.linspace(1.0, 0.0, steps + 1)
        started = time.perf_counter()
        comfy.sample.sample_custom(
            model, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas, text, text, latent,
            callback=callback, disable_pbar=True, seed=0,
        )  # fmt: skip
    whole = [b - a for a, b in zip(marks[1:-1], marks[2:], strict=True)]
    host = [b - a for a, b in zip(marks[1:-1], enqueued[2:], strict=True)]
    return {
        "tokens": tokens,
        "step_s": statistics.median(whole),
        "steps_s": whole,
        "host_s": statistics.median(host),
        "first_step_s": marks[0] - started,
        "bus_gb_step": (moved[-1] - moved[1]) / 1e9 / max(1, len(moved) - 2),
        "latent": torch.cat([part.flatten() for part in kept]) if kept else None,
    }


def host_time(model: Any) -> float:
    """Microseconds of the host for one linear layer of 126 rows and its own square width, not waiting for the device."""
    import comfy.model_management

    module = model.model.diffusion_model.transformer_blocks[0].audio_attn1.to_q
    device = comfy.model_management.get_torch_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(1, 126, module.in_features, dtype=dtype, device=device)
    # On a GPU long enough for the processor to reach its clock; on a CPU, where each call computes, only to have tried.
    rounds, calls = (60, 100) if device.type == "cuda" else (3, 5)
    times = []
    with torch.inference_mode():
        for _ in range(rounds):
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(calls):
                module(x)
            times.append((time.perf_counter() - begun) / calls * 1e6)
    return statistics.median(times[rounds // 3 :])


def weight_error(model: Any) -> float:
    """Relative error of a layer's effective weight against decoded weight plus LoRA, float64, over two calls."""
    import comfy.lora
    import comfy.model_management
    import comfy.ops
    from comfyui_hlwq.hlwq_core.running import packed_tensor

    name = "transformer_blocks.0.audio_attn1.to_q"
    module = comfy.utils.get_attr(model.model.diffusion_model, name)
    device = comfy.model_management.get_torch_device()
    packed = module.weight
    exact = packed_tensor.decode(packed._qdata, packed._params, torch.float32).double().cpu()
    key = f"diffusion_model.{name}.weight"
    exact = comfy.lora.calculate_weight(model.patches[key], exact, key, intermediate_dtype=torch.float64)
    errors = []
    with torch.inference_mode():
        unit = torch.eye(module.in_features, dtype=torch.bfloat16, device=device)
        for _ in range(2):
            weight, bias, stream = comfy.ops.cast_bias_weight(
                module, None, dtype=packed.dtype, device=device, bias_dtype=unit.dtype, offloadable=True
            )
            found = module._multiply(weight, None, unit).t().double().cpu()
            comfy.ops.uncast_bias_weight(module, weight, bias, stream)
            errors.append(float((found - exact).norm() / exact.norm()))
    return max(errors)


def answer(
    model: Any, request: dict[str, Any], steps: int, counted: dict[str, int], device: torch.device
) -> dict[str, Any]:
    """A run, or a figure: what steps.py asks for, one a line.

    Args:
        steps: of a run, unless the request says how many.
        counted: what `count_bus_bytes` counts in.
    """
    if request.get("host"):
        return {"host_us_linear": host_time(model)}
    if request.get("weight_error"):
        return {"lora_weight_error": weight_error(model)}
    if attention := request.get("attention"):
        attend(model, attention)
    peak = None
    if request.get("peak") and device.type == "cuda":
        peak = Peak(device)
        peak.start()
    run = sample(model, request["tokens"], request.get("steps", steps), counted)
    latent = run.pop("latent")
    if request.get("latent") and latent is not None:
        torch.save(latent, request["latent"])
    if peak is not None:
        peak.ended.set()
        run["peak_gb"] = peak.most / 1e9
    return run


def main() -> None:
    args = ARGUMENTS
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    begun = time.perf_counter()
    model = load(args.format, args.blocks, args.small)
    if args.attention:
        attend(model, args.attention)
    if args.lora:
        model = with_lora(model, args.lora)
    result: dict[str, Any] = {"format": args.format, "dynamic": DYNAMIC, "load_s": time.perf_counter() - begun}
    result["model_gb"] = model.model_size() / 1e9
    if args.compile:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        blocks = range(len(model.model.diffusion_model.transformer_blocks))
        keys = [f"diffusion_model.transformer_blocks.{i}" for i in blocks]
        set_torch_compile_wrapper(model=model, backend="inductor" if device.type == "cuda" else "aot_eager", keys=keys)
    counted = count_bus_bytes() if DYNAMIC else {"bytes": 0}
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what encoding took is free too
    holder = hold(args.free) if args.free and device.type == "cuda" else None

    ask = functools.partial(answer, model, steps=args.steps, counted=counted, device=device)
    if args.serve:
        tell(result)
        for line in sys.stdin:
            tell(ask(json.loads(line)))
    else:
        result["runs"] = []
        for tokens in map(int, args.tokens.split(",")):
            result["runs"].append(ask({"tokens": tokens, "peak": args.peak}))
            print(json.dumps(result["runs"][-1]), file=sys.stderr, flush=True)
        for figure, asked in (("host", args.host), ("weight_error", bool(args.lora) and args.format == "hlwq")):
            if asked:
                result |= ask({figure: True})
        tell(result)
    del holder
    sys.stdout.flush()
    os._exit(0)  # threads of the GPU's libraries do not end on their own


def tell(result: dict[str, Any]) -> None:
    """One line of JSON, which steps.py tells from other output by its first word."""
    print("RESULT", json.dumps(result), flush=True)


def attend(model: Any, how: str) -> None:
    """Core's attention, or fast mode's."""
    import comfy.model_management

    options = model.model_options.setdefault("transformer_options", {})
    options.pop("optimized_attention_override", None)
    if how == "cudnn":
        core.pack()
        from comfyui_hlwq.hlwq_core.running import attention
        from comfyui_hlwq.nodes.running import faster_attention

        device = comfy.model_management.get_torch_device()
        reason = attention.unavailable_reason(device)
        if reason is not None and device.type == "cuda":
            raise SystemExit(f"no cuDNN attention: {reason}")
        if reason is None:
            faster_attention.use(model, faster_attention.faster_attention)


if __name__ == "__main__":
    with torch.inference_mode():  # as ComfyUI runs its nodes
        main()
