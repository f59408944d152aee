"""A reader written from the format's description alone, in numpy, to check what the pack writes: it shares no code with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1", "BF16": "<u2"}


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a safetensors file (BF16 widened to float32), and its metadata."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        raw = np.frombuffer(data[8 + length + start : 8 + length + stop], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = raw.reshape(entry["shape"])
    return tensors, metadata


def hadamard(n: int = 128) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def decode(packed: np.ndarray, norms: np.ndarray, meta: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """V1 and V2: MSB-first bit stream over [out, blocks, 128]; float64 `[out, blocks · 128]`."""
    out, blocks, size, total = meta[:4]
    assert (size, total) == (128, out * blocks * 128)
    bits = 8 * packed.size // total
    stream = np.unpackbits(packed).reshape(-1, bits)
    codes = (stream * (1 << np.arange(bits - 1, -1, -1))).sum(1).reshape(out, blocks, 128)
    values = levels[codes].astype(np.float64) / np.sqrt(128) @ hadamard()
    return (values * norms.astype(np.float64)[..., None]).reshape(out, blocks * 128)


def weights(path: Path, levels: dict[int, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a checkpoint's folder or file by the model's name (V1's `__` undone), decoded."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, notes = read(file)
        tensors |= found
        metadata |= notes
    result = {}
    for name, value in tensors.items():
        base, _, part = name.rpartition("__")
        if part == "packed":
            meta = tensors[f"{base}__meta"]
            bits = 8 * value.size // meta[3]
            dense = decode(value, tensors[f"{base}__norms"], meta, levels[int(bits)])
            model_name = base if "." in base else base.replace("__", ".")
            result[model_name] = dense[:, : meta[4]] if len(meta) == 5 else dense
        elif part not in ("norms", "meta"):
            result[name] = value
    return result, metadata
