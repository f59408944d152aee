"""What fast mode costs on a real model, on a card's own kernels; how long encoding and gathering take there.

    python benchmarks/quality_card.py

The hidden error of Whisper tiny's encoder (mean square, relative to float32 with the original's weights) over the held-out speech of
quality_models.py: exact, FP8 and INT8, each by the device's kernels and by its definition. Encoding a layer with searched norms
and with compensation, gathering a calibration of 24,576 inputs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from common import REPO, machine, parser, save

sys.path.insert(0, str(REPO))

import torch
import torch.nn.functional as F
from quality_models import HELD_OUT_SPEECH, fetch, people, whisper_weights

from hlwq_core.backends import eight_bit
from hlwq_core.codec import codec, compensate, search_norms
from hlwq_core.codec.calibration import Calibration
from hlwq_core.running import fast, packed_tensor

Linear = Callable[[str, torch.Tensor], torch.Tensor]


class Encoder:
    """Whisper's encoder in plain torch, its linear layers given from outside.

    Args:
        weights: by their names in transformers' model, without `model.encoder.`; on the device where it runs.
        mel: what is heard, `[pieces, 80, frames]`, on the same device.
    """

    def __init__(self, weights: dict[str, torch.Tensor], mel: torch.Tensor):
        self.weights = weights
        self.mel = mel
        self.linear = [n.removesuffix(".weight") for n, w in weights.items() if w.dim() == 2 and "embed" not in n]
        self.width = weights["embed_positions.weight"].shape[1]
        self.layers = len({name.split(".")[1] for name in self.linear})

    @classmethod
    def tiny(cls, device: torch.device) -> Encoder:
        """Whisper tiny's, and the held-out speech."""
        from transformers import WhisperFeatureExtractor

        prefix = "model.encoder."
        weights = {n: w for n, w in whisper_weights(fetch("whisper.bin")).items() if n.startswith(prefix)}
        features = WhisperFeatureExtractor(feature_size=80)
        heard = [
            features(s.numpy(), sampling_rate=16000, return_tensors="pt").input_features
            for s in people(HELD_OUT_SPEECH)
        ]
        return cls({n.removeprefix(prefix): w.to(device) for n, w in weights.items()}, torch.cat(heard).to(device))

    def bias(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        found = self.weights.get(f"{name}.bias")
        return None if found is None else found.to(dtype)

    def dense(self, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Linear:
        """Linear layers of these weights."""
        return lambda name, x: F.linear(x, weights[name].to(dtype), self.bias(name, dtype))

    def run(self, linear: Linear, dtype: torch.dtype) -> torch.Tensor:
        """The last hidden states of all pieces, float32; activations between layers are of `dtype`."""
        return torch.cat([self._one(mel, linear, dtype) for mel in self.mel])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weights = self.weights
        return F.layer_norm(x.float(), (self.width,), weights[f"{name}.weight"], weights[f"{name}.bias"]).to(x.dtype)

    def _one(self, mel: torch.Tensor, linear: Linear, dtype: torch.dtype) -> torch.Tensor:
        w = self.weights
        x = F.gelu(F.conv1d(mel[None], w["conv1.weight"], w["conv1.bias"], padding=1))
        x = F.gelu(F.conv1d(x, w["conv2.weight"], w["conv2.bias"], stride=2, padding=1))
        x = (x.transpose(1, 2) + w["embed_positions.weight"])[0].to(dtype)
        for number in range(self.layers):
            layer = f"layers.{number}"
            y = self._norm(f"{layer}.self_attn_layer_norm", x)
            q, k, v = (
                linear(f"{layer}.self_attn.{n}_proj", y).view(-1, self.width // 64, 64).transpose(0, 1)[None].float()
                for n in "qkv"
            )
            mixed = F.scaled_dot_product_attention(q, k, v)[0].to(dtype).transpose(0, 1).reshape(-1, self.width)
            x = x + linear(f"{layer}.self_attn.out_proj", mixed)
            x = x + linear(f"{layer}.fc2", F.gelu(linear(f"{layer}.fc1", self._norm(f"{layer}.final_layer_norm", x))))
        return self._norm("layer_norm", x).float()


def hidden_errors(encoder: Encoder) -> dict[str, float]:
    """By norms, dtype of the activations, and way."""
    device = encoder.mel.device
    original = {name: encoder.weights[f"{name}.weight"] for name in encoder.linear}
    truth = encoder.run(encoder.dense(original, torch.float32), torch.float32)
    found: dict[str, float] = {}

    def note(key: str, linear: Linear, dtype: torch.dtype) -> None:
        apart = encoder.run(linear, dtype) - truth
        found[f"hidden_{key}"] = float(apart.square().sum() / truth.square().sum())

    for norms in ("author", "search"):
        encoded = {name: codec.encode(weight, 5, norms=norms) for name, weight in original.items()}
        decoded = {name: made.decode() for name, made in encoded.items()}
        for dtype in (torch.bfloat16, torch.float16):
            key = f"{norms}_{str(dtype).removeprefix('torch.')}"
            note(f"{key}_unquantized", encoder.dense(original, dtype), dtype)
            note(f"{key}_exact", encoder.dense(decoded, dtype), dtype)
            layers = {name: made.layer().to(device) for name, made in encoded.items()}
            tensors = {name: packed_tensor.quantized_tensor(layer, dtype) for name, layer in layers.items()}
            for kind in eight_bit.KINDS:
                weights = {name: eight_bit.weight(layer, kind) for name, layer in layers.items()}

                def by_definition(
                    name: str, x: torch.Tensor, kind: str = kind, weights: Any = weights, dtype: torch.dtype = dtype
                ) -> torch.Tensor:
                    return eight_bit.multiply(
                        eight_bit.rotate(x, kind), weights[name], encoder.bias(name, dtype), dtype
                    )

                def by_kernels(
                    name: str, x: torch.Tensor, kind: str = kind, tensors: Any = tensors, dtype: torch.dtype = dtype
                ) -> torch.Tensor:
                    return fast.linear(x, tensors[name], encoder.bias(name, dtype), kind)

                note(f"{key}_{kind}_definition", by_definition, dtype)
                note(f"{key}_{kind}_kernels", by_kernels, dtype)
    return found


def times(device: torch.device, rows: int, columns: int) -> dict[str, float]:
    """Seconds, medians of three."""

    def seconds(function: Callable[[], Any]) -> float:
        def once() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            begun = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - begun

        function()
        return statistics.median(once() for _ in range(3))

    weight = torch.randn(rows, columns, device=device) * 0.02
    x = torch.randn(8192, columns, device=device)
    blocks = x.reshape(-1, columns // 128, 128).transpose(0, 1)
    factors = compensate.block_factors(torch.bmm(blocks.transpose(1, 2), blocks) / len(x))
    whole = compensate.rotated_factor(x.T @ x / len(x))
    found = {
        "search_5_s": seconds(lambda: search_norms.encode_blocks(codec.to_blocks(weight), 5, "infinite")),
        "search_8_s": seconds(lambda: search_norms.encode_blocks(codec.to_blocks(weight), 8, "infinite")),
        "compensate_blocks_s": seconds(lambda: compensate.encode(weight, 5, "infinite", factors)),
        "compensate_full_s": seconds(lambda: compensate.encode(weight, 5, "infinite", whole)),
    }
    layer = torch.nn.Linear(columns, 128, device=device)
    inputs = torch.randn(24576, columns, device=device, dtype=torch.bfloat16)
    for moments in ("blocks", "full"):
        calibration = Calibration({"weight": layer}, moments=moments)
        with calibration.watching():
            found[f"gather_{moments}_s"] = seconds(lambda: layer(inputs.float()))
    found["without_s"] = seconds(lambda: layer(inputs.float()))
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--rows", type=int, default=16384)
    arguments.add_argument("--columns", type=int, default=4096)
    args = arguments.parse_args()
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        figures = {
            **hidden_errors(Encoder.tiny(device)),
            f"layer_{args.rows}x{args.columns}": times(device, args.rows, args.columns),
        }
    for name, value in figures.items():
        print(name, value)
    save("quality_card", {**figures, "on": machine().get("gpu", "cpu")}, {})


if __name__ == "__main__":
    main()
