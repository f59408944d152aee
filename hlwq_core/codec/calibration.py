"""What the inputs of linear layers look like, gathered while a model runs, and the file that it lies in.

    calibration = Calibration({"blocks.0.attn.weight": model.blocks[0].attn, …})
    with calibration.watching():
        sample(model)
    calibration.save("moments.safetensors")

Of each layer are kept: the mean of its inputs; their second moments `E[x xᵀ]`, of the blocks of 128 that HLWQ codes (`512 · in`
bytes) or, where they fit, of all of the input (`4 · in²`); and some inputs that the moments do not know, every 8th call's, to see
afterwards whether coding for these moments was of use. Layers that get the same tensor (q, k and v) share all of it. Moments are
multiplied where the inputs are, in rounds of 64 MB, and summed in the host's memory: a GPU needs room for one layer at a time.

The file is safetensors, metadata `hlwq.calibration` = its version. A tensor for each of `NAME.mean` F32 `[in]`, `NAME.moments` F32
`[blocks, 128, 128]` or `[in, in]` and `NAME.held` BF16 `[rows, in]`; which layers share them and how many inputs were seen stands in
`hlwq.layers`, and in `hlwq.identity` what tells the model from others.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import FormatError, InputError
from ..format.safefile import SafeFile
from ..format.sizes import BLOCK
from ..format.writer import Producer, write_safetensors
from .options import MOMENTS

VERSION = "1"
# Every so manieth call's inputs are held out, and of them so many rows are kept.
HOLD_EVERY = 8
HELD_ROWS = 256
_HELD_A_CALL = 64
_ROUND_BYTES = 64 << 20
# Fewer inputs say nothing of the moments of a block.
FEWEST = 256
FULL_BYTES = 4 << 30
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_AGAIN = "gather it again, from the model that is quantized"


def bare(name: str) -> str:
    """A tensor's name without what stands before it in files that hold more than the diffusion model."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


@dataclass
class LayerInputs:
    """What is known of a layer's inputs.

    Attributes:
        count: how many the moments are of.
        mean: float32 `[in]`.
        moments: float32, of the blocks of 128 `[blocks, 128, 128]` (the last one zero-padded), or of all `[in, in]`; or None.
        held: inputs that are not in them, float `[rows, in]`; or None.
    """

    count: int
    mean: torch.Tensor
    moments: torch.Tensor | None = None
    held: torch.Tensor | None = None


@dataclass
class _Sums:
    """Of the inputs of one layer, or of several that share them."""

    kind: str
    width: int
    count: int = 0
    calls: int = 0
    spoiled: int = 0
    total: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    moments: torch.Tensor | None = None
    held: torch.Tensor | None = None
    held_seen: int = 0

    def __post_init__(self) -> None:
        self.blocks = -(-self.width // BLOCK)
        with torch.inference_mode(False):  # ComfyUI samples in it; what is made there cannot be added to elsewhere
            self.total = torch.zeros(self.width, dtype=torch.float64)
            if self.kind == "full":
                self.moments = torch.zeros(self.width, self.width)
            elif self.kind == "blocks":
                self.moments = torch.zeros(self.blocks, BLOCK, BLOCK)

    def add(self, x: torch.Tensor) -> None:
        """Inputs `[rows, in]`."""
        self.calls += 1
        if self.calls % HOLD_EVERY == 0:
            self._hold(x)
            return
        step = max(1, _ROUND_BYTES // (4 * self.blocks * BLOCK))
        total: torch.Tensor | None = None
        product: torch.Tensor | None = None
        for start in range(0, x.shape[0], step):
            part = x[start : start + step].float()
            here = part.sum(0)
            total = here if total is None else total + here
            square = self._square(part)
            product = square if product is None or square is None else product.add_(square)
        if total is None or not bool(torch.isfinite(total).all()):
            self.spoiled += total is not None
            return
        self.count += x.shape[0]
        self.total += total.cpu().double()
        if self.moments is not None and product is not None:
            self.moments += product.cpu()

    def _square(self, part: torch.Tensor) -> torch.Tensor | None:
        if self.kind == "none":
            return None
        if self.kind == "full":
            return part.T @ part
        padded = torch.nn.functional.pad(part, (0, self.blocks * BLOCK - self.width))
        blocks = padded.reshape(-1, self.blocks, BLOCK).transpose(0, 1)
        return torch.bmm(blocks.transpose(1, 2), blocks)

    def _hold(self, x: torch.Tensor) -> None:
        """Some rows of it; in the place of older ones once there are enough."""
        if self.kind == "none":
            return
        rows = x[:: max(1, x.shape[0] // _HELD_A_CALL)][:_HELD_A_CALL].to("cpu", torch.bfloat16)
        if not bool(torch.isfinite(rows).all()):
            self.spoiled += 1
            return
        with torch.inference_mode(False):
            rows = rows.clone()
            if self.held is None:
                self.held = rows
            elif self.held.shape[0] + rows.shape[0] <= HELD_ROWS:
                self.held = torch.cat([self.held, rows])
            else:
                first = (self.held_seen * _HELD_A_CALL) % HELD_ROWS
                places = torch.arange(first, first + rows.shape[0]) % self.held.shape[0]
                self.held[places] = rows
        self.held_seen += 1

    def copy(self) -> _Sums:
        found = _Sums(self.kind, self.width, self.count, self.calls, self.spoiled)
        with torch.inference_mode(False):
            found.total = self.total.clone()
            found.moments = None if self.moments is None else self.moments.clone()
            found.held = None if self.held is None else self.held.clone()
        found.held_seen = self.held_seen
        return found


def _width(layer: torch.nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return int(getattr(layer, "in_features", weight.shape[1]))


def kinds(widths: Mapping[str, int], moments: str = "blocks", full_bytes: int = FULL_BYTES) -> dict[str, str]:
    """What is gathered of each layer: `full` where that is asked for and all up to this width fit into `full_bytes`."""
    found = dict.fromkeys(widths, "none" if moments == "none" else "blocks")
    if moments == "full":
        room = full_bytes
        for name, width in sorted(widths.items(), key=lambda item: item[1]):
            room -= 4 * width * width
            if room < 0:
                break
            found[name] = "full"
    return found


def memory_bound(widths: Mapping[str, int], moments: str = "blocks", full_bytes: int = FULL_BYTES) -> int:
    """Bytes of the host's memory at most, were no inputs shared."""
    sizes = {"none": lambda n: 0, "blocks": lambda n: 4 * n * BLOCK, "full": lambda n: 4 * n * n}
    planned = kinds(widths, moments, full_bytes)
    held = 0 if moments == "none" else 2 * HELD_ROWS
    return sum(sizes[planned[name]](-(-width // BLOCK) * BLOCK) + (8 + held) * width for name, width in widths.items())


class Calibration:
    """Gathers what the inputs of layers look like, while a model runs; see the module.

    Args:
        layers: weight name → linear layer, or anything with `weight` `[out, in]` that is called with its inputs.
        moments: `blocks`, `full` (as far as `full_bytes` allow) or `none` (means alone, for the bias correction).
        identity: of `identity_of`, of the model.
        loras: whether LoRAs are on, as far as is known.

    Attributes:
        samples: how often the model was run, as whoever runs it counts.
    """

    def __init__(
        self,
        layers: Mapping[str, torch.nn.Module],
        *,
        moments: str = "blocks",
        full_bytes: int = FULL_BYTES,
        identity: Mapping[str, list[float]] | None = None,
        loras: bool = False,
    ):
        if moments not in MOMENTS:
            raise InputError("unknown moments", expected=", ".join(MOMENTS), found=moments, fix="take one of these")
        self._layers = dict(layers)
        self.widths = {name: _width(layer) for name, layer in layers.items()}
        self.identity = dict(identity or {})
        self.loras = loras
        self.samples = 0
        self._kinds = kinds(self.widths, moments, full_bytes)
        self._sums: dict[str, _Sums] = {}
        self._source: dict[str, str] = {}
        self._lock = threading.Lock()
        self._last: tuple[str, weakref.ref[torch.Tensor]] | None = None

    def is_of(self, layers: Mapping[str, torch.nn.Module]) -> bool:
        """Whether it watches these very layers."""
        return self._layers.keys() == layers.keys() and all(self._layers[n] is layer for n, layer in layers.items())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Gather as long as the context is open."""
        handles = [
            layer.register_forward_pre_hook(lambda module, inputs, name=name: self._gather(name, inputs[0]))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def _gather(self, name: str, inputs: torch.Tensor) -> None:
        with self._lock:  # a model may be run by several threads
            self._take(name, inputs)

    def _take(self, name: str, inputs: torch.Tensor) -> None:
        last = self._last[0] if self._last is not None and self._last[1]() is inputs else None
        known = self._source.get(name)
        if last is not None and known == last or known is None and last is not None and name not in self._sums:
            self._source[name] = last  # its sums are this layer's as well
            return
        if known is not None:  # until now they had the same inputs
            self._sums[name] = self._sums[self._source.pop(name)].copy()
        elif name not in self._sums:
            self._sums[name] = _Sums(self._kinds[name], self.widths[name])
        self._last = (name, weakref.ref(inputs))
        self._sums[name].add(inputs.detach().reshape(-1, inputs.shape[-1]))

    @property
    def counts(self) -> dict[str, int]:
        """How many inputs were seen of each layer."""
        return {name: found.count for name in self.widths if (found := self._of(name)) is not None}

    def _of(self, name: str) -> _Sums | None:
        return self._sums.get(self._source.get(name, name))

    def inputs(self, name: str) -> LayerInputs | None:
        """What was gathered of a layer."""
        sums = self._of(name)
        if sums is None or not sums.count:
            return None
        moments = None if sums.moments is None else sums.moments / sums.count
        return LayerInputs(sums.count, (sums.total / sums.count).float(), moments, sums.held)

    # -- the file ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, beside and renamed: it is whole or the one before.

        Raises:
            InputError: nothing was gathered.
        """
        if not any(self.counts.values()):
            raise InputError("no layer was run while the calibration gathered", fix="sample with the model, then save")
        entries: list[tuple[str, torch.dtype, tuple[int, ...], Producer]] = []
        for name, sums in self._sums.items():
            if sums.count:
                entries += _entries(name, sums)
        layers = {
            name: {"count": found.count, "calls": found.calls, "of": self._source.get(name, name)}
            for name in self.widths
            if (found := self._of(name)) is not None and found.count
        }
        write_safetensors(
            path,
            entries,
            {
                "format": "pt",
                "hlwq.calibration": VERSION,
                "hlwq.samples": str(self.samples),
                "hlwq.loras": "on" if self.loras else "off",
                "hlwq.layers": json.dumps(layers),
                "hlwq.identity": json.dumps(self.identity),
            },
        )

    def go_on(self, path: str | os.PathLike[str]) -> None:
        """Take what an earlier run gathered into a file.

        Raises:
            InputError: of another model, or gathered in another way.
        """
        file = CalibrationFile(path)
        file.check_identity(self.identity)
        if file.loras != self.loras or set(file.layers) - set(self.widths):
            raise InputError(
                "this calibration was gathered in another way",
                file=path,
                expected=f"LoRAs {'on' if self.loras else 'off'}, layers of this model",
                found=f"LoRAs {'on' if file.loras else 'off'}, {len(set(file.layers) - set(self.widths))} other layers",
                fix="give the calibration another name, or delete the file to start anew",
            )
        for name, seen in file.layers.items():
            if seen["of"] != name:
                self._source[name] = seen["of"]
                continue
            found = file.inputs(name)
            assert found is not None
            kind = "none" if found.moments is None else "blocks" if found.moments.dim() == 3 else "full"
            sums = _Sums(kind, self.widths[name], found.count, int(seen["calls"]))
            with torch.inference_mode(False):  # they are added to by threads outside of it as well
                sums.total = found.mean.double() * found.count
                sums.moments = None if found.moments is None else found.moments * found.count
                sums.held = None if found.held is None else found.held.clone()
            self._sums[name] = sums
        self.samples = file.samples


def _entries(name: str, sums: _Sums) -> list[tuple[str, torch.dtype, tuple[int, ...], Producer]]:
    """The tensors of a file; moments are divided when their turn has come."""
    moments, held, count = sums.moments, sums.held, sums.count
    mean = (sums.total / count).float()

    def mean_moments() -> torch.Tensor:
        assert moments is not None
        return moments / count

    entries: list[tuple[str, torch.dtype, tuple[int, ...], Producer]] = [
        (f"{name}.mean", torch.float32, tuple(mean.shape), lambda: mean)
    ]
    if moments is not None:
        entries.append((f"{name}.moments", torch.float32, tuple(moments.shape), mean_moments))
    if held is not None:
        kept = held
        entries.append((f"{name}.held", torch.bfloat16, tuple(kept.shape), lambda: kept))
    return entries


class CalibrationFile:
    """A calibration that was saved.

    Attributes:
        layers: weight name → `count` of inputs, `of`: whose sums are its own.
        samples: how often the model was run.
        loras: whether LoRAs were on.

    Raises:
        InputError: no file of this kind, or of a later version.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.file = SafeFile(self.path, mapped=False)
        metadata = self.file.metadata
        version = metadata.get("hlwq.calibration")
        if version != VERSION:
            raise InputError(
                "this is no calibration" if version is None else "this calibration is of another version of the pack",
                file=path,
                expected=f"hlwq.calibration {VERSION} in the file's metadata",
                found=version,
                fix="gather one: the node HLWQ Calibrate, or python -m hlwq_core calibrate",
            )
        try:
            self.layers: dict[str, dict[str, Any]] = {
                str(name): {"count": int(seen["count"]), "calls": int(seen["calls"]), "of": str(seen["of"])}
                for name, seen in json.loads(metadata["hlwq.layers"]).items()
            }
            self.identity = {
                str(name): [float(value) for value in values]
                for name, values in json.loads(metadata["hlwq.identity"]).items()
            }
            self.samples = int(metadata["hlwq.samples"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise FormatError(
                "the calibration's notes cannot be understood", file=path, found=str(error)[:200], fix=_AGAIN
            ) from error
        self.loras = metadata.get("hlwq.loras") == "on"
        self._names = {bare(name): name for name in self.layers}

    def __contains__(self, name: str) -> bool:
        return bare(name) in self._names

    @property
    def has_moments(self) -> bool:
        """Whether there is more in it than means."""
        return any(key.endswith(".moments") for key in self.file)

    def inputs(self, name: str) -> LayerInputs | None:
        """What is known of a layer's inputs; None of a layer that is not in it.

        Raises:
            InputError: it has no mean, or NaN or infinite values.
        """
        ours = self._names.get(bare(name))
        if ours is None:
            return None
        source = self.layers[ours]["of"]
        held, moments = f"{source}.held", f"{source}.moments"
        return LayerInputs(
            self.layers[ours]["count"],
            self._tensor(f"{source}.mean"),
            self._tensor(moments) if moments in self.file else None,
            self._tensor(held) if held in self.file else None,
        )

    def _tensor(self, key: str) -> torch.Tensor:
        if key not in self.file:
            raise InputError(
                "the calibration lacks a tensor that its notes name",
                file=self.path,
                tensor=key,
                expected="it",
                found="none",
                fix=_AGAIN,
            )
        found = self.file.tensor(key)
        if not bool(torch.isfinite(found).all()):
            raise InputError("the calibration has NaN or infinite moments", file=self.path, tensor=key, fix=_AGAIN)
        return found

    def check(self, shapes: Mapping[str, tuple[int, ...]], identity: Mapping[str, list[float]]) -> None:
        """Refuse it for a model that it is not of.

        Args:
            shapes: weight name → `[out, in]` of the layers that are to be quantized.
            identity: of that model, as far as it has the tensors (see `identity_of`).

        Raises:
            InputError: another model's, or too few samples.
        """
        fitting = [name for name in shapes if name in self]
        if not fitting:
            raise InputError(
                "the calibration has no layer of this model",
                file=self.path,
                expected=next(iter(shapes), None),
                found=next(iter(self.layers), None),
                fix="gather it from the model that is quantized",
            )
        for name in fitting:
            self._check_shapes(name, shapes[name][1])
        self.check_identity(identity)
        most = max(self.layers[self._names[bare(name)]]["count"] for name in fitting)
        if most < FEWEST:
            raise InputError(
                "the calibration has too few samples",
                file=self.path,
                expected=f"at least {FEWEST} inputs of a layer",
                found=most,
                fix="let it gather while a few prompts are sampled",
            )

    def _check_shapes(self, name: str, width: int) -> None:
        source = self.layers[self._names[bare(name)]]["of"]
        blocks = -(-width // BLOCK)
        allowed = {
            f"{source}.mean": ("F32", [[width]]),
            f"{source}.moments": ("F32", [[width, width], [blocks, BLOCK, BLOCK]]),
        }
        for key, (dtype, shapes) in allowed.items():
            entry = self.file.entries.get(key)
            if entry is None and key.endswith(".moments"):
                continue
            if entry is None or entry.dtype != dtype or list(entry.shape) not in shapes:
                raise InputError(
                    "the calibration does not fit a layer",
                    file=self.path,
                    tensor=name,
                    expected=f"{dtype} {' or '.join(map(str, shapes))}",
                    found=f"{entry.dtype} {list(entry.shape)}" if entry is not None else "nothing",
                    fix="take the calibration of this very model, or leave --calibration out",
                )
        held = self.file.entries.get(f"{source}.held")
        if held is not None and (held.dtype != "BF16" or len(held.shape) != 2 or held.shape[1] != width):
            raise InputError("the calibration does not fit a layer", file=self.path, tensor=name, fix=_AGAIN)

    def check_identity(self, identity: Mapping[str, list[float]]) -> None:
        """Refuse it where it and a model have tensors of one name and of other values."""
        ours = {bare(name): values for name, values in identity.items()}
        for name, values in self.identity.items():
            there = ours.get(bare(name))
            if there is not None and not _alike(values, there):
                raise InputError(
                    "the calibration is of another model",
                    file=self.path,
                    tensor=name,
                    expected=str(there[:4]),
                    found=str(values[:4]),
                    fix=_AGAIN,
                )


_TENSORS = 32
_VALUES = 16
_LARGEST = 1 << 16


def identity_of(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> list[str]:
    """The names of the tensors that tell a model from others: small ones that quantization keeps, spread over the model.

    Biases are none of them, because they are corrected.
    """
    names = sorted(
        name
        for name, shape in tensors
        if 0 < len(shape) <= 2 and 8 <= _size(shape) <= _LARGEST and not name.endswith("bias")
    )
    return names[:: max(1, len(names) // _TENSORS)][:_TENSORS]


def values_of(tensor: torch.Tensor) -> list[float]:
    """Some values of one of them; dtypes of 16 bits hold them well enough."""
    flat = tensor.detach().reshape(-1)
    picked = flat[:: max(1, flat.numel() // _VALUES)][:_VALUES].float().cpu()
    return [float(f"{value:.6g}") for value in picked.tolist()]


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _alike(a: list[float], b: list[float]) -> bool:
    with contextlib.suppress(ValueError):
        scale = max(map(abs, [*a, *b]), default=0.0)
        return len(a) == len(b) and all(abs(x - y) <= 0.02 * scale for x, y in zip(a, b))
    return False
