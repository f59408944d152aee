"""How good quantized weights are, on real models: bits, the error of weights and outputs, and what comes out in the end.

    python benchmarks/quality.py                      # both models, all methods: about half an hour on two cores
    python benchmarks/quality.py --models whisper --methods search5 q5_k

Models, their licences and where they come from stand in quality_models.py, methods in quality_methods.py. All linear layers are
quantized, embeddings are not. `weight_mse` is the relative squared error over all their weights; `output` the mean over layers of
the relative squared error of a layer's outputs, for the original's inputs of held-out data; `end` the model's own metric there
(Whisper: KL divergence of the next token from the original's; MPNet: 1 − cosine of the embedding). Calibrations are of other data.
`end_deviation` is its standard error over the held-out pieces, `pieces` what it is for each. Results are added to
results/quality.json; report.py takes them to docs/quality.md and, as `quality_{model}_{method}_{bits|weight_mse|output|end}`, to
results/summary.json.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import REPO, RESULTS, machine, parser

sys.path.insert(0, str(REPO))

import torch
from quality_methods import GGML_TYPES, Made, Method, fp8, ggml, hlwq, int8_rotated, int8_rows
from quality_models import CACHE, MODELS, Real

from hlwq_core.backends import eight_bit
from hlwq_core.codec import codec
from hlwq_core.codec.calibration import Calibration, LayerInputs
from hlwq_core.codec.fisher import losses_by_gradients
from hlwq_core.format.codebook import BLOCK
from hlwq_core.tools.bits import CHOICES, allocate, output_power

MEAN = 4.6
ROWS = 128


class Bench:
    """A model, its calibration, and what the original gives on held-out data."""

    def __init__(self, real: Real):
        self.real = real
        self.weights = {name: layer.weight.detach().clone() for name, layer in real.layers.items()}
        self.biases = {n: layer.bias.detach().clone() for n, layer in real.layers.items() if layer.bias is not None}
        self.inputs: dict[str, torch.Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda module, args, name=name: self._keep(name, args[0]))
            for name, layer in real.layers.items()
        ]
        self.truth = list(real.run(real.held))
        for hook in hooks:
            hook.remove()

    def _keep(self, name: str, inputs: torch.Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1])
        rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
        self.inputs[name] = torch.cat([self.inputs[name], rows]) if name in self.inputs else rows.clone()

    @functools.cached_property
    def calibrations(self) -> dict[str, dict[str, LayerInputs | None]]:
        """What is known of each layer's inputs, by kind of moments; the original runs, its weights must be in place."""
        calibration = Calibration(self.real.layers, moments="full")
        with calibration.watching():
            for _ in self.real.run(self.real.batches):
                pass
        full = {name: calibration.inputs(name) for name in self.real.layers}
        return {"full": full, "blocks": {name: _of_blocks(found) for name, found in full.items()}}

    def known(self, kind: str) -> Any:
        """What `hlwq` asks for."""
        return self.calibrations[kind].get

    def measure(self, method: Method, fast: str | None = None) -> dict[str, Any]:
        """Quantize all layers, look, and put the original back."""
        error = power = 0.0
        bits = 0
        outputs: list[float] = []
        ways: dict[str, int] = {}
        hooks = []
        for name, layer in self.real.layers.items():
            weight = self.weights[name]
            with torch.no_grad():
                made = method(name, weight, name in self.biases)
                error += float((made.weight - weight).double().square().sum())
                power += float(weight.double().square().sum())
                bits += made.bits
                outputs.append(self._output_error(name, made))
                layer.weight.copy_(made.weight)
                if made.bias is not None:
                    layer.bias.add_(made.bias)
            if made.way:
                ways[made.way] = ways.get(made.way, 0) + 1
            if fast is not None and made.packed is not None:
                hooks.append(_in_eight_bits(layer, made, fast))
        pieces = [self.real.end(original, found) for original, found in zip(self.truth, self.real.run(self.real.held))]
        for layer in hooks:
            del layer.forward
        self._restore()
        weights = sum(weight.numel() for weight in self.weights.values())
        return {
            "bits": bits / weights,
            "weight_mse": error / power,
            "output": sum(outputs) / len(outputs),
            "end": _ratio(pieces),
            "end_deviation": deviation(pieces),
            "parts": self._parts(pieces),
            "pieces": [float(f"{apart / count:.4g}") for apart, count in pieces],
            "ways": ways,
        }

    def _parts(self, pieces: Sequence[tuple[float, int]]) -> dict[str, float]:
        """The end metric of each kind of held-out pieces."""
        found, first = {}, 0
        for part, count in self.real.parts.items():
            found[part] = _ratio(pieces[first : first + count])
            first += count
        return found

    def _output_error(self, name: str, made: Made) -> float:
        x = self.inputs[name]
        apart = x @ (self.weights[name] - made.weight).T
        if made.bias is not None:
            apart = apart - made.bias
        return float(apart.square().sum() / (x @ self.weights[name].T).square().sum())

    def _restore(self) -> None:
        with torch.no_grad():
            for name, layer in self.real.layers.items():
                layer.weight.copy_(self.weights[name])
                if name in self.biases:
                    layer.bias.copy_(self.biases[name])

    # -- bits where they matter ------------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {name: (weight.shape[0], weight.shape[1]) for name, weight in self.weights.items()}

    @functools.cache  # noqa: B019 - there is one of it
    def by_gradients(self) -> dict[str, int]:
        """Of the calibration's samples."""
        loss, model = self.real.loss, self.real.model
        assert loss is not None
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        losses = losses_by_gradients(self.real.layers, (loss(model, batch) for batch in self.real.batches), CHOICES)
        for layer in self.real.layers.values():
            layer.weight.requires_grad_(False).grad = None
        return allocate(self.shapes(), losses, MEAN)

    def by_moments(self) -> dict[str, int]:
        """As `quantize --mean-bits --calibration`, of full moments."""
        losses = {}
        for name, weight in self.weights.items():
            inputs = self.calibrations["full"][name]
            assert inputs is not None and inputs.moments is not None
            power = output_power(weight, inputs.moments)
            decoded = {bits: codec.encode(weight, bits, norms="search").decode() for bits in CHOICES}
            losses[name] = {bits: output_power(weight - d, inputs.moments) / power for bits, d in decoded.items()}
        return allocate(self.shapes(), losses, MEAN)

    def first_and_last(self) -> dict[str, int]:
        """5 bits in the first and the last blocks of each stack as far as the mean allows, 4 elsewhere: the usual guess."""
        found = dict.fromkeys(self.weights, 4)
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        room = (MEAN - 4) * sum(sizes.values())
        for name in sorted(self.weights, key=_from_the_ends):
            if sizes[name] <= room:
                found[name], room = 5, room - sizes[name]
        return found


def _of_blocks(inputs: LayerInputs | None) -> LayerInputs | None:
    """What would have been gathered of blocks of 128: the diagonal of the full moments."""
    if inputs is None or inputs.moments is None:
        return inputs
    width = inputs.moments.shape[0]
    padded = torch.nn.functional.pad(inputs.moments, (0, -width % BLOCK) * 2)
    blocks = [padded[i : i + BLOCK, i : i + BLOCK] for i in range(0, len(padded), BLOCK)]
    return LayerInputs(inputs.count, inputs.mean, torch.stack(blocks), inputs.held)


def _ratio(pieces: Sequence[tuple[float, int]]) -> float:
    return sum(apart for apart, _ in pieces) / sum(count for _, count in pieces)


def deviation(pieces: Sequence[tuple[float, int]]) -> float:
    """The standard error of the end metric over the held-out pieces (jackknife)."""
    without = [_ratio([*pieces[:i], *pieces[i + 1 :]]) for i in range(len(pieces))] if len(pieces) > 1 else [0.0]
    mean = sum(without) / len(without)
    return math.sqrt((len(without) - 1) / len(without) * sum((value - mean) ** 2 for value in without))


def encode_once() -> None:
    """A dozen methods ask for the same searched codes of the same weights: make them once."""
    made: dict[tuple[Any, ...], codec.Encoded] = {}
    encode = codec.encode

    def remembered(weight: torch.Tensor, bits: int, codebook: str = "infinite", norms: str = "author") -> codec.Encoded:
        content = hashlib.blake2b(weight.detach().contiguous().numpy()).digest()
        key = (content, tuple(weight.shape), bits, codebook, norms)
        if key not in made:
            made[key] = encode(weight, bits, codebook, norms)
        return made[key]

    codec.encode = remembered  # type: ignore[assignment]


def _from_the_ends(name: str) -> int:
    """How many blocks lie between a layer and the nearer end of its stack of 4 or 12."""
    number = next((int(part) for part in name.split(".") if part.isdigit()), 0)
    depth = 4 if "model." in name else 12
    return min(number, depth - 1 - number)


def _in_eight_bits(layer: torch.nn.Linear, made: Made, kind: str) -> torch.nn.Linear:
    """Let a layer multiply as fast mode is defined."""
    assert made.packed is not None
    weight = eight_bit.weight(made.packed, kind)

    def forward(x: torch.Tensor) -> torch.Tensor:
        rotated = eight_bit.rotate(x.reshape(-1, x.shape[-1]), kind)
        return eight_bit.multiply(rotated, weight, layer.bias, x.dtype).reshape(*x.shape[:-1], -1)

    layer.forward = forward  # type: ignore[method-assign]
    return layer


def methods(bench: Bench) -> dict[str, Any]:
    """Name → what makes the method; those by gradients only where a model has a loss."""
    found: dict[str, Any] = {
        "author5": lambda: hlwq(5, "author"),
        "search5": lambda: hlwq(5),
        "search4": lambda: hlwq(4),
        "search6": lambda: hlwq(6),
        "bias5": lambda: hlwq(5, inputs={n: _means(found) for n, found in bench.calibrations["blocks"].items()}.get),
        "blocks5": lambda: hlwq(5, inputs=bench.known("blocks")),
        "full5": lambda: hlwq(5, inputs=bench.known("full")),
        "full4": lambda: hlwq(4, inputs=bench.known("full")),
    }
    found |= {name: lambda name=name: ggml(name, CACHE) for name in GGML_TYPES}
    found |= {"fp8": lambda: fp8, "int8_rows": lambda: int8_rows, "int8_rotated": lambda: int8_rotated}
    found |= {
        "ends_4_6": lambda: hlwq(bench.first_and_last()),
        "moments_4_6": lambda: hlwq(bench.by_moments()),
    }
    if bench.real.loss is not None:
        found |= {
            "fisher_4_6": lambda: hlwq(bench.by_gradients()),
            "fisher_4_6_full": lambda: hlwq(bench.by_gradients(), inputs=bench.known("full")),
        }
    return found


FAST = ("search5_fp8", "search5_int8")


def _means(inputs: LayerInputs | None) -> LayerInputs | None:
    return None if inputs is None else LayerInputs(inputs.count, inputs.mean)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments.add_argument("--methods", nargs="+", help="only these (default: all)")
    args = arguments.parse_args()
    torch.manual_seed(0)
    encode_once()
    path = Path(os.environ.get("OUT", RESULTS)) / "quality.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"models": {}}
    for model in args.models:
        bench = Bench(MODELS[model]())
        every = methods(bench)
        for name in args.methods or [*every, *FAST]:
            if name not in every and name not in FAST:
                continue
            fast = name.rpartition("_")[2] if name in FAST else None
            figures = bench.measure(every["search5" if fast else name](), fast)
            result["models"].setdefault(model, {})[name] = figures
            told = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float))
            print(f"{model} {name}: {told}", flush=True)
            result["machine"] = machine()
            path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
