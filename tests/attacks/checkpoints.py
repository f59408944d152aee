"""Checkpoints that are not what they claim: each attack spoils a small sound one.

Runnable alone: `python tests/attacks/checkpoints.py FOLDER [NAME …]`; without names it makes all, a folder each.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, BLOCKS, WIDTH = 16, 2, 256
BASE = "m__blocks__{}__attn__weight"
SIZES = {"U8": 1, "I8": 1, "F16": 2, "F32": 4, "I64": 8, "BF16": 2}
Tensors = dict[str, tuple[str, list[int], bytes]]


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata is not None else {}
    position, data = 0, []
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(raw)]}
        position += len(raw)
        data.append(raw)
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(data))
    return path


def u8(*shape: int, seed: int = 0, below: int = 256) -> tuple[str, list[int], bytes]:
    count = 1
    for n in shape:
        count *= n
    numbers = random.Random(seed)
    return "U8", list(shape), bytes(numbers.randrange(below) for _ in range(count))


def halves(*shape: int, value: float = 1.0) -> tuple[str, list[int], bytes]:
    count = 1
    for n in shape:
        count *= n
    return "F16", list(shape), struct.pack("<e", value) * count


def ints(*values: int) -> tuple[str, list[int], bytes]:
    return "I64", [len(values)], struct.pack(f"<{len(values)}q", *values)


def floats(*values: float) -> tuple[str, list[int], bytes]:
    return "F32", [len(values)], struct.pack(f"<{len(values)}f", *values)


def layer(number: int = 0) -> Tensors:
    base = BASE.format(number)
    return {
        f"{base}__packed": u8(ROWS * BLOCKS * 80, seed=number),
        f"{base}__norms": halves(ROWS, BLOCKS),
        f"{base}__meta": ints(ROWS, BLOCKS, 128, ROWS * WIDTH),
    }


def sound(folder: Path, layers: int = 3) -> Path:
    """Layers of V1 in `codes`, plain tensors in `bf16`."""
    tensors = {name: value for i in range(layers) for name, value in layer(i).items()}
    write(folder / "polarquant" / "codes" / "chunk_00_codes.safetensors", tensors)
    write(folder / "polarquant" / "bf16" / "rest_bf16.safetensors", {"m.norm.weight": halves(WIDTH)})
    return folder


def original(path: Path, layers: int = 3) -> Path:
    """A dense model of the same names and shapes."""
    tensors = {f"m.blocks.{i}.attn.weight": halves(ROWS, WIDTH, value=0.5) for i in range(layers)}
    return write(path, tensors | {"m.norm.weight": halves(WIDTH)})


def codes(
    changes: Tensors, drop: tuple[str, ...] = (), metadata: dict[str, str] | None = None
) -> Callable[[Path], None]:
    """The file of codes with tensors added or replaced (`{base}` is the first layer's), and others left out."""

    def make(folder: Path) -> None:
        tensors = {name: value for i in range(3) for name, value in layer(i).items()}
        tensors |= {name.replace("{base}", BASE.format(0)): value for name, value in changes.items()}
        for name in drop:
            del tensors[name.replace("{base}", BASE.format(0))]
        write(folder / "polarquant" / "codes" / "chunk_00_codes.safetensors", tensors, metadata)

    return make


def only(tensors: Tensors, **files: str) -> Callable[[Path], None]:
    """Another checkpoint instead."""

    def make(folder: Path) -> None:
        (folder / "polarquant" / "codes" / "chunk_00_codes.safetensors").unlink()
        write(folder / "model.safetensors", tensors)
        for name, text in files.items():
            (folder / f"{name}.json").write_text(text)

    return make


def v4(table: tuple[str, list[int], bytes], **changes: tuple[str, list[int], bytes]) -> Callable[[Path], None]:
    parts = {"codes": u8(ROWS, BLOCKS * 80), "norms": halves(ROWS, BLOCKS), "ct_scaled": table} | changes
    return only({f"a.b.{part}": value for part, value in parts.items()})


def side(name: str, content: bytes | str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def sparse(name: str, size: int = 1 << 30) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return make


def special(name: str, kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        if kind == "FIFO":
            os.mkfifo(folder / name)
        elif kind == "folder":
            (folder / name).mkdir()
        elif kind == "loop":
            (folder / name).symlink_to(name)
        else:
            (folder / name).symlink_to("/dev/zero")

    return make


DEEP = "[" * 100_000 + "]" * 100_000
LONG = "n" * 300
TABLE = floats(*(i / 100 for i in range(32)))
V3 = {"a.b.weight__codes": u8(ROWS, WIDTH, below=32), "a.b.weight__norms": halves(ROWS, BLOCKS)}
_ABOVE = bytearray(V3["a.b.weight__codes"][2])
_ABOVE[300] = 200

CODES: dict[str, Callable[[Path], None]] = {
    "V3, a code above the claimed bits": only(
        V3 | {"a.b.weight__codes": ("U8", [ROWS, WIDTH], bytes(_ABOVE))}, polar_config='{"bits": 5}'
    ),
    "V3, all codes zero": only(V3 | {"a.b.weight__codes": ("U8", [ROWS, WIDTH], bytes(ROWS * WIDTH))}),
    "V4, a table of no levels": v4(floats()),
    "V4, a table of one level": v4(floats(1.0)),
    "V4, a table of 300 levels": v4(floats(*range(300))),
    "V4, a table of NaN": v4(floats(*[float("nan")] * 32)),
    "V4, a table of infinities": v4(floats(*[float("inf")] * 32)),
    "V4, a table of ints": v4(ints(*range(32))),
    "V4, a table of no rank": v4(("F32", [], struct.pack("<f", 1.0))),
    "V4, no table": only({"a.b.codes": u8(ROWS, BLOCKS * 80), "a.b.norms": halves(ROWS, BLOCKS)}),
    "V4, codes of no rank": v4(TABLE, codes=("U8", [], b"\1")),
    "V4, no codes": v4(TABLE, codes=u8(0)),
    "V4, all norms zero": v4(TABLE, norms=halves(ROWS, BLOCKS, value=0.0)),
    "codes of no bytes": codes({"{base}__packed": u8(0)}),
    "norms of three dimensions": codes({"{base}__norms": halves(ROWS, BLOCKS, 1)}),
    "norms of no rows": codes({"{base}__norms": halves(0, BLOCKS)}),
    "norms of more rows": codes({"{base}__norms": halves(ROWS * 5, BLOCKS)}),
    "norms transposed": codes({"{base}__norms": halves(BLOCKS, ROWS)}),
    "norms negative": codes({"{base}__norms": halves(ROWS, BLOCKS, value=-1.0)}),
    "norms NaN": codes({"{base}__norms": halves(ROWS, BLOCKS, value=float("nan"))}),
    "meta of floats": codes({"{base}__meta": floats(1, 2, 3, 4)}),
    "meta of two": codes({"{base}__meta": ints(1, 2)}),
    "meta of six": codes({"{base}__meta": ints(1, 2, 3, 4, 5, 6)}),
    "meta of no rank": codes({"{base}__meta": ("I64", [], bytes(8))}),
    "meta negative": codes({"{base}__meta": ints(-ROWS, BLOCKS, 128, ROWS * WIDTH)}),
    "meta huge": codes({"{base}__meta": ints(ROWS, BLOCKS, 128, ROWS * WIDTH, 2**62)}),
    "meta says no columns": codes({"{base}__meta": ints(ROWS, BLOCKS, 128, ROWS * WIDTH, 0)}),
    "meta says negative columns": codes({"{base}__meta": ints(ROWS, BLOCKS, 128, ROWS * WIDTH, -5)}),
    "a layer cut, its norms of another shape": codes(
        {"{base}__norms": halves(ROWS + 3, BLOCKS)}, drop=("{base}__packed",)
    ),
    "a layer cut, its codes of another size": codes({"{base}__packed": u8(7)}, drop=("{base}__norms",)),
    "a layer cut, its codes of floats": codes({"{base}__packed": floats(1.0)}, drop=("{base}__norms",)),
    "a layer cut, its norms infinite": codes(
        {"{base}__norms": halves(ROWS, BLOCKS, value=float("inf"))}, drop=("{base}__packed",)
    ),
    "a layer cut, its meta wrong": codes({"{base}__meta": ints(9, 9)}, drop=("{base}__norms",)),
    "nothing but metas": only({f"{BASE.format(i)}__meta": ints(1, 1, 128, 128) for i in range(3)}),
    "a block of number 9,999,999": codes({"m.blocks.9999999.w": halves(2, 2)}),
    "layers of number 9,999,999": codes(
        {f"{BASE.format(9999999)}__{p}": v for p, v in zip(("packed", "norms", "meta"), layer(1).values())}
    ),
    "a block of a number of 5,000 digits": codes({f"m.blocks.{'9' * 5000}.w": halves(2, 2)}),
    "a block of number ²": codes({"m.blocks.².w": halves(2, 2), "m.blocks.٣.w": halves(2, 2)}),
    "many stacks with gaps": codes({f"s{i}.blocks.{j * 50_000}.w": halves(1) for i in range(40) for j in range(2)}),
    "a name of nothing": codes({"": halves(1), "__packed": u8(80), ".codes": u8(1), "..": halves(1)}),
    "a name of 100,000 letters": codes({"n" * 100_000 + ".weight": halves(1)}),
    "notes of no sense": codes(
        {}, metadata={"hlwq.bit_order": "up", "hlwq.codebook": "…", "hlwq.norms": "loud", "hlwq.recipe": "../x"}
    ),
    "a chunk of number 99,999,999,999": lambda folder: (
        (folder / "chunk_00_codes.safetensors")
        .with_name("chunk_99999999999_codes.safetensors")
        .write_bytes(
            (folder / "polarquant" / "bf16" / "rest_bf16.safetensors").read_bytes().replace(b"m.norm", b"x.norm")
        )
        and None
    ),
}

LTX = "model.diffusion_model."
_LTX_TENSORS = {
    f"{LTX}audio_patchify_proj.weight": halves(4, 4),
    f"{LTX}patchify_proj.weight": halves(4, 4),
    f"{LTX}transformer_blocks.0.audio_attn1.to_q.weight": halves(4, 4),
}


def ltx_config(content: str | bytes) -> Callable[[Path], None]:
    """A checkpoint with an LTX model's marks, and a config.json."""

    def make(folder: Path) -> None:
        codes(_LTX_TENSORS)(folder)
        side("config.json", content)(folder)

    return make


def ltx_metadata(content: str) -> Callable[[Path], None]:
    return codes(_LTX_TENSORS, metadata={"config": content})


CONFIGS: dict[str, str | bytes] = {
    "UTF-16": '{"transformer": {}}'.encode("utf-16"),
    "UTF-16 without a mark": '{"transformer": {}}'.encode("utf-16-le"),
    "Latin-1": b'{"transformer": {"a": "caf\xe9"}}',
    "nested deeply": DEEP,
    "an object nested deeply": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "a list": "[]",
    "null": "null",
    "a number of 5,000 digits": "9" * 5000,
    "an infinite number": '{"transformer": {"num_layers": 1e400}}',
    "NaN": '{"transformer": {"num_layers": NaN}}',
    "transformer: 5": '{"transformer": 5}',
    "transformer: null": '{"transformer": null}',
    "transformer: list": '{"transformer": []}',
    "vae: 5": '{"transformer": {}, "vae": 5}',
    "vocoder: text": '{"transformer": {}, "vocoder": "x"}',
    "vocoder: numbers": '{"transformer": {}, "vocoder": {"vocoder": 5, "bwe": []}}',
    "half a character": '{"transformer": {"a\\ud800": "\\udfff"}}',
    "nothing": "",
} | {
    f"{key}: {value[:12]}": '{"transformer": {"KEY": VALUE}}'.replace("KEY", key).replace("VALUE", value)
    for key in ("num_layers", "connector_num_layers", "num_attention_heads", "in_channels", "caption_channels")
    for value in ('"48"', "-1", "999999999", "4.5", "null", "[]", "{}", "true", "1" + "0" * 400)
}  # fmt: skip

SIDES: dict[str, Callable[[Path], None]] = {
    **{f"config.json {name}": ltx_config(content) for name, content in CONFIGS.items()},
    **{f"config {name}": ltx_metadata(text) for name, text in CONFIGS.items() if isinstance(text, str)},
    **{
        f"{file} {name}": side(file, content)
        for file in ("polar_config.json", "hlwq.sha256.json")
        for name, content in CONFIGS.items()
        if "transformer" not in name and ": " not in name
    },
    **{
        f"polar_config.json {text[:40]}": side("polar_config.json", text)
        for text in (
            '{"bits": 5.0}', '{"bits": "5"}', '{"bits": null}', '{"bits": true}', '{"bits": [5]}', '{"bits": {}}',
            '{"bits": 1e300}', '{"bits": -5}', '{"format": "hlwq-q²"}', '{"format": "hlwq-q5"}', '{"format": 5}',
            '{"format": "hlwq-q' + "9" * 5000 + '"}', '{"format": null, "block_size": 128.0}', '{"block_size": "128"}',
            '{"block_size": []}', '{"format": ["hlwq-q5"]}',
        )
    },
    **{
        f"record {name}": side("hlwq.sha256.json", json.dumps({"files": files}))
        for name, files in {
            "with NUL": {"a\0b": {"size": 1, "sha256": "x"}},
            "with a long name": {LONG: {"size": 1, "sha256": "x"}},
            "with a deep name": {"a/" * 5000: {"size": 1, "sha256": "x"}},
            "with half a character": {"a\ud800": {"size": 1, "sha256": "x"}},
            "outside": {"../../etc/passwd": {"size": 1, "sha256": "x"}, "/etc/passwd": {"size": 1, "sha256": "x"}},
            "of a folder": {"polarquant": {"size": 1, "sha256": "x"}, "": {"size": 1, "sha256": "x"}},
            "of negative size": {"a": {"size": -1, "sha256": "x"}},
            "of a large size": {"a": {"size": 10**400, "sha256": "x"}},
            "of half a byte": {"a": {"size": 1.5, "sha256": "x"}},
            "of a text for a size": {"a": {"size": "1", "sha256": "x"}},
            "of a number for a sum": {"a": {"size": 1, "sha256": 5}},
            "of a list": [1, 2],
            "of texts": {"a": "b"},
            "of null": None,
        }.items()
    },
    "record of 1e400": side("hlwq.sha256.json", '{"files": {"a": {"size": 1e400, "sha256": "x"}}}'),
    "record of a FIFO": lambda folder: (
        side("hlwq.sha256.json", '{"files": {"pipe": {"size": 0, "sha256": "x"}}}')(folder), os.mkfifo(folder / "pipe")
    ) and None,
    **{
        f"{name} is a {kind}": special(name, kind)
        for name in ("polar_config.json", "hlwq.sha256.json", "config.json")
        for kind in ("FIFO", "folder", "device", "loop")
    },
    **{f"{name} of 1 GB": sparse(name) for name in ("polar_config.json", "hlwq.sha256.json", "config.json")},
    "a file of 1 GB of nothing": sparse("more.safetensors"),
    "a chunk is a FIFO": special("polarquant/codes/chunk_01_codes.safetensors", "FIFO"),
    "a chunk is a link to nothing": lambda folder: (folder / "polarquant" / "codes" / "chunk_01.safetensors").symlink_to("x"),
}  # fmt: skip
ATTACKS = CODES | SIDES

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("\n".join([__doc__ or "", *ATTACKS]))
    for name in sys.argv[2:] or ATTACKS:
        target = sound(Path(sys.argv[1]) / name[:80].replace("/", "_"))
        ATTACKS[name](target)
