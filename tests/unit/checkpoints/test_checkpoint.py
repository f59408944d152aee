"""Opening checkpoints: every variant, what the data tells, what is refused, and how much memory it takes."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hlwq_core
from hlwq_core.checkpoints.find import find_checkpoints
from hlwq_core.codec.codec import encode
from hlwq_core.errors import FormatError, HLWQError, IncompleteError, InputError, UnsupportedError
from hlwq_core.format.codebook import scaled_table
from hlwq_core.format.packing import pack
from hlwq_core.format.sizes import BITS

REPO = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["mini_msb_infinite", "mini_lsb_infinite", "mini_dotted_meta5"])
def test_author_files_decode(golden, name):
    expected = load_file(golden / name / "expected_bf16.safetensors")
    folder = golden / name
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    path = folder / "model.safetensors" if name == "mini_dotted_meta5" else folder / "polarquant"
    ckpt = hlwq_core.open_checkpoint(path, shapes=shapes)
    ckpt.resolve_names(expected)
    quantized = set(ckpt.names())
    assert quantized == set(expected)
    for key in quantized:
        info = ckpt.info(key)
        assert info.shape == shapes[key] and info.bits == 5 and info.codebook == "infinite"
        assert info.packing == ("lsb" if "lsb" in name else "msb")
        assert info.variant == ("V2" if "dotted" in name else "V1")
        found = ckpt.decode(key)
        assert float((found == expected[key]).float().mean()) >= 0.999
        assert torch.equal(ckpt.decode(key, rows=slice(3, 9)), found[3:9])
    original = load_file(golden / "mini_original_bf16.safetensors")
    for key in set(ckpt.plain_names()) & set(original):
        assert torch.equal(ckpt.plain(key), original[key])


def legacy(golden, folder: Path, bits: int) -> Path:
    data = load_file(golden / "legacy_outlier_32x1024.safetensors")
    path = folder / "model.safetensors"
    save_file({f"blocks.0.q.{part}": data[f"q{bits}.{part}"] for part in ("codes", "norms", "ct_scaled")}, path)
    return path


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_v4(golden, tmp_path, bits):
    ckpt = hlwq_core.open_checkpoint(legacy(golden, tmp_path, bits))
    assert ckpt.names() == ["blocks.0.q.weight"]
    info = ckpt.info("blocks.0.q.weight")
    assert (info.variant, info.bits, info.shape) == ("V4", bits, (32, 1024))
    author = load_file(golden / "legacy_outlier_32x1024.safetensors")[f"q{bits}_dequant_f32"]
    found = ckpt.decode("blocks.0.q.weight", dtype=torch.float32)[: len(author)]
    assert torch.allclose(
        found,
        author,
        rtol=1e-4,
        atol=1e-5 * float(author[torch.isfinite(author)].abs().max()),
        equal_nan=True,
    )


def test_v3(golden, tmp_path):
    data = load_file(golden / "skill_t3_16x384_infinite.safetensors")
    save_file(
        {"a.b.weight__codes": data["q5_codes"].view(torch.int8), "a.b.weight__norms": data["q5__norms"]},
        tmp_path / "m.safetensors",
    )
    ckpt = hlwq_core.open_checkpoint(tmp_path)
    assert ckpt.info("a.b.weight").variant == "V3"
    assert torch.allclose(ckpt.decode("a.b.weight", torch.float32), data["q5_dequant_f32"], atol=1e-5)


def one_layer(folder: Path, bits: int, variant: str, claim: str | None = None, table: int | None = None) -> Path:
    """A file with one random layer in a variant; `claim` goes into polar_config.json, `table` is another codebook's bits."""
    made = encode(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)), 8 if bits == 7 else bits)
    if variant == "V3":
        tensors = {"a.b.weight__codes": made.codes.view(torch.int8), "a.b.weight__norms": made.norms}
    elif variant == "V4":
        packing = "lsb" if bits == 5 else "nibble" if bits < 5 else "byte"
        levels = scaled_table("infinite", table or bits)
        tensors = {"a.b.codes": pack(made.codes, bits, packing), "a.b.norms": made.norms, "a.b.ct_scaled": levels}
    else:
        packed = made.codes >> 1 if bits == 7 else pack(made.codes, bits)
        tensors = {"a__b__weight__packed": packed.reshape(-1)}
        tensors |= {"a__b__weight__norms": made.norms, "a__b__weight__meta": torch.tensor([64, 2, 128, 64 * 256])}
    save_file(tensors, folder / "model.safetensors")
    if claim:
        (folder / "polar_config.json").write_text(json.dumps({"format": claim}))
    return folder / "model.safetensors"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("variant", ["V1", "V3", "V4"])
def test_every_number_of_bits(tmp_path, bits, variant):
    """Also where no size and no config tells them: the codes do."""
    path = one_layer(tmp_path, bits, variant)
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    expected = encode(weight, bits).decode()
    for place in (tmp_path, path):
        ckpt = hlwq_core.open_checkpoint(place, codebook="infinite")
        info = ckpt.info("a.b.weight")
        assert (info.bits, info.variant) == (bits, variant)
        assert torch.allclose(ckpt.decode("a.b.weight", torch.float32), expected, atol=1e-5)
        ckpt.check_data("a.b.weight")


@pytest.mark.parametrize("inside", ["", "polarquant", "hlwq"])
def test_a_config_claims_bits(tmp_path, inside):
    """Also that beside a file that is opened alone."""
    (tmp_path / inside).mkdir(exist_ok=True)
    path = one_layer(tmp_path / inside, 4, "V3", "polarquant-q4")
    for place in (tmp_path, path):
        ckpt = hlwq_core.open_checkpoint(place)
        assert ckpt.claim == {"format": "polarquant-q4", "bits": 4} and ckpt.info("a.b.weight").bits == 4


CONTRADICTIONS = {
    "V1, 4 bits, 5 claimed": (4, "V1", "hlwq-q5", None, "5 bits", "4 bits"),
    "V1, 7 bits": (7, "V1", None, None, "8 bits", "7 bits"),
    "V3, 4 bits, 5 claimed": (4, "V3", "hlwq-q5", None, "5 bits", "4 bits"),
    "V3, 6 bits, 5 claimed": (6, "V3", "hlwq-q5", None, "5 bits", "6 bits"),
    "V4, 5 bits, table of 4": (5, "V4", None, 4, "16 levels", "5 bits"),
    "V4, 4 bits, table of 5": (4, "V4", None, 5, "32 levels", "4 bits"),
    "V4, 3 bits, table of 4": (3, "V4", None, 4, "4 bits", "3 bits"),
    "V4, 4 bits, table of 3": (4, "V4", None, 3, "3 bits", "4 bits"),
    "V4, 6 bits, table of 8": (6, "V4", None, 8, "8 bits", "6 bits"),
    "V4, 8 bits, table of 6": (8, "V4", None, 6, "6 bits", "8 bits"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_codes_of_other_bits_than_claimed(tmp_path, case):
    bits, variant, claim, table, expected, found = CONTRADICTIONS[case]
    path = one_layer(tmp_path, bits, variant, claim, table)
    with pytest.raises(FormatError) as caught:
        hlwq_core.open_checkpoint(tmp_path).info("a.b.weight")
    assert caught.value.file == str(path) and caught.value.tensor.startswith(("a.b", "a__b")) and caught.value.fix
    assert expected in str(caught.value.expected) and found in str(caught.value.found)


@pytest.mark.parametrize("variant, bits", [("V3", 5), ("V4", 3), ("V4", 6)])
def test_a_single_code_that_the_codebook_lacks(tmp_path, variant, bits):
    """One bad byte that no sample sees: refused by `check_data` and at decoding, not looked up beyond the table."""
    path = one_layer(tmp_path, bits, variant)
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("codes"))
    (tmp_path / "bad").mkdir()
    big = {name: value.repeat(64, 1) if value.dim() == 2 else value for name, value in tensors.items()}
    spoiled = big[key].view(torch.uint8).clone()
    spoiled[64 * 64 - 3, 5] = 0xF0
    save_file(big | {key: spoiled}, tmp_path / "bad" / "m.safetensors")
    ckpt = hlwq_core.open_checkpoint(tmp_path / "bad")
    for call in (ckpt.check_data, ckpt.decode, lambda name: ckpt.decode(name, rows=slice(64 * 63, None))):
        with pytest.raises(FormatError, match="codebook") as caught:
            call("a.b.weight")
        assert caught.value.tensor == key
    assert ckpt.decode("a.b.weight", rows=slice(0, 64)).shape == (64, 256)


def write(path: Path, bits=5, version="infinite", order="msb", layers=6, meta=True, **changes) -> Path:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for i in range(layers):
        made = encode(torch.randn(64, 256, generator=generator) * 0.02, bits, version)
        base = f"model__diffusion_model__transformer_blocks__{i}__attn1__to_q__weight"
        tensors[f"{base}__packed"] = pack(made.codes, bits, order).reshape(-1)
        tensors[f"{base}__norms"] = made.norms
        tensors[f"{base}__meta"] = torch.tensor([64, 2, 128, 64 * 256])
    tensors.update(changes.get("replace", {}))
    for key in changes.get("drop", ()):
        del tensors[key]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


BASE = "model__diffusion_model__transformer_blocks__0__attn1__to_q__weight"


@pytest.mark.parametrize("bits", [3, 5, 6])
@pytest.mark.parametrize("version", ["infinite", "finite"])
@pytest.mark.parametrize("order", ["msb", "lsb"])
def test_bit_order_and_codebook_are_found_in_the_data(tmp_path, bits, version, order):
    ckpt = hlwq_core.open_checkpoint(write(tmp_path / "x.safetensors", bits, version, order))
    info = ckpt.info(ckpt.names()[0])
    assert info.packing == order
    if bits >= 5:  # the two versions of smaller codebooks differ by less than the data can show
        assert info.codebook == version


def test_the_user_may_insist(tmp_path):
    path = write(tmp_path / "x.safetensors")
    ckpt = hlwq_core.open_checkpoint(path, codebook="finite", bit_order="lsb")
    assert (ckpt.info(ckpt.names()[0]).packing, ckpt.info(ckpt.names()[0]).codebook) == ("lsb", "finite")
    with pytest.raises(InputError):
        hlwq_core.open_checkpoint(path, codebook="best")


@pytest.mark.parametrize("norms_dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_report_reads_a_sample_and_maps_nothing(tmp_path, monkeypatch, norms_dtype):
    """Touching a mapping brings megabytes of neighbours along: at full size all 11 GB of codes, for 1,347 metas."""
    path = write(tmp_path / "x.safetensors")
    tensors = load_file(path)
    save_file({k: v.to(norms_dtype) if k.endswith("norms") else v for k, v in tensors.items()}, path)

    def mapped(*_: object):
        raise AssertionError("the file is mapped")

    with monkeypatch.context() as patch:
        patch.setattr("hlwq_core.format.safefile.SafeFile.tensor", mapped)
        report = hlwq_core.open_checkpoint(path).report()
    assert report["detected"][0]["sure"] and report["codebooks"] == {"infinite": 6}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the page cache")
def test_building_the_tensors_touches_no_page(tmp_path):
    """Codes and norms are views: whoever builds them reads nothing of them yet."""
    from hlwq_core.running import packed_tensor

    path = tmp_path / "x.safetensors"
    rows = 4096
    tensors = {}
    for i in range(4):
        base = f"blocks.{i}.weight"
        tensors[f"{base}__packed"] = torch.zeros(rows * 32 * 80, dtype=torch.uint8)
        tensors[f"{base}__norms"] = torch.ones(rows, 32, dtype=torch.float16)
        tensors[f"{base}__meta"] = torch.tensor([rows, 32, 128, rows * 4096, 4096])
    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    ckpt = hlwq_core.open_checkpoint(path, codebook="infinite", bit_order="msb")
    ckpt.report()
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = resident(path)
    made = [packed_tensor.quantized_tensor(ckpt.packed(name)) for name in ckpt.names()]
    if before < 0.1:  # tmpfs cannot forget
        assert resident(path) < 0.1
    assert float(made[3].dequantize()[7, 7]) == float(ckpt.decode("blocks.3.weight")[7, 7])


def resident(path: Path) -> float:
    """The part of a file that the page cache holds."""
    size = path.stat().st_size
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as mapped,
    ):
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), pages) == 0
        return sum(page & 1 for page in pages) / len(pages)


def test_layers_that_begin_with_zero_rows_are_sampled_elsewhere(tmp_path):
    made = encode(torch.cat((torch.zeros(63, 65536), torch.randn(1, 65536))), 5, "finite")
    base = BASE.replace("to_q", "to_k")
    tensors = {
        f"{base}__packed": made.packed().reshape(-1),
        f"{base}__norms": made.norms,
        f"{base}__meta": torch.tensor([64, 512, 128, 64 * 65536]),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    (found,) = hlwq_core.open_checkpoint(tmp_path).report()["detected"]
    assert found["sure"] and found["codebook"] == "finite"


@pytest.mark.parametrize("dotted", [True, False])
def test_a_files_own_meta_comes_before_what_a_model_says(tmp_path, dotted):
    """LTX-2.3 has this tensor with 128 columns; this file says 100."""
    name = "model.diffusion_model.patchify_proj.weight"
    made = encode(torch.randn(4096, 100, generator=torch.Generator().manual_seed(0)), 5)
    base = name if dotted else name.replace(".", "__")
    meta = torch.tensor([4096, 1, 128, 4096 * 128, 100])
    tensors = {f"{base}__packed": made.packed().reshape(-1), f"{base}__norms": made.norms, f"{base}__meta": meta}
    save_file(tensors, tmp_path / "x.safetensors")
    ckpt = hlwq_core.open_checkpoint(tmp_path, shapes={name: (4096, 120)})
    assert ckpt.info(name).shape == (4096, 100) and torch.equal(ckpt.decode(name, torch.float32), made.decode())


def test_report_counts_bits(tmp_path):
    report = hlwq_core.open_checkpoint(write(tmp_path / "x.safetensors")).report()
    assert report["bits_a_weight"] == 5.125 and report["quantized"] == 6
    json.dumps(report)


BAD = {
    "packed missing": ({"drop": [f"{BASE}__packed"]}, IncompleteError, "__norms"),
    "norms missing": ({"drop": [f"{BASE}__norms"]}, IncompleteError, "__packed"),
    "meta missing": ({"drop": [f"{BASE}__meta"]}, IncompleteError, "__packed"),
    "codes short": (
        {"replace": {f"{BASE}__packed": torch.zeros(1000, dtype=torch.uint8)}},
        FormatError,
        "__packed",
    ),
    "meta contradicts": (
        {"replace": {f"{BASE}__meta": torch.tensor([64, 3, 128, 64 * 384])}},
        FormatError,
        "__meta",
    ),
    "codes of floats": ({"replace": {f"{BASE}__packed": torch.zeros(10240)}}, FormatError, "__packed"),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_named(tmp_path, case):
    changes, kind, where = BAD[case]
    with pytest.raises(kind) as caught:
        ckpt = hlwq_core.open_checkpoint(write(tmp_path / "x.safetensors", **changes))
        ckpt.info("model.diffusion_model.transformer_blocks.0.attn1.to_q.weight")
    text = str(caught.value)
    assert "x.safetensors" in text and BASE in text and (where in text or where == "__meta")
    assert all(part in text for part in ("expected: ", "found: ", "what to do: "))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_norms_that_are_not_finite(tmp_path, value):
    norms = torch.ones(64, 2, dtype=torch.float16)
    norms[3, 1] = value
    ckpt = hlwq_core.open_checkpoint(write(tmp_path / "x.safetensors", replace={f"{BASE}__norms": norms}))
    with pytest.raises(FormatError, match="not finite"):
        ckpt.check_norms(ckpt.names()[0])


def test_claimed_bits(tmp_path, golden):
    shutil.copytree(golden / "mini_dotted_meta5", tmp_path / "m")
    (tmp_path / "m" / "expected_bf16.safetensors").unlink()
    (tmp_path / "m" / "polar_config.json").write_text('{"format": "hlwq-q4", "block_size": 128}')
    with pytest.raises(FormatError, match="claims"):
        hlwq_core.open_checkpoint(tmp_path / "m")


def attacks(path: Path) -> dict[str, bytes]:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def with_header(change) -> bytes:
        copy = json.loads(json.dumps(header))
        change(copy)
        raw = json.dumps(copy).encode()
        return len(raw).to_bytes(8, "little") + raw + whole[8 + length :]

    first = next(key for key in header if key.endswith("__packed"))
    return {
        "empty": b"",
        "seven bytes": whole[:7],
        "cut in the header": whole[:100],
        "cut in the data": whole[:-1000],
        "a tail": whole + b"x",
        "header of 2**63 bytes": (1 << 63).to_bytes(8, "little") + whole[8:],
        "no JSON": whole[:8] + b"{" * length + whole[8 + length :],
        "a list": (2).to_bytes(8, "little") + b"[]",
        "overlap": with_header(lambda h: h[first].update(data_offsets=[8, 8 + 10240])),
        "negative": with_header(lambda h: h[first].update(shape=[-1])),
        "unknown dtype": with_header(lambda h: h[first].update(dtype="F4")),
        "shape lies": with_header(lambda h: h[first].update(shape=[5])),
        "gguf": b"GGUF" + whole[4:],
        "pickle": b"PK\x03\x04" + whole[4:],
    }


ATTACKS = [
    "empty", "seven bytes", "cut in the header", "cut in the data", "a tail", "header of 2**63 bytes", "no JSON", "a list",
    "overlap", "negative", "unknown dtype", "shape lies", "gguf", "pickle",
]  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_broken_files_are_refused_by_name(tmp_path, name):
    path = write(tmp_path / "x.safetensors")
    data = attacks(path)
    assert sorted(data) == sorted(ATTACKS)
    path.write_bytes(data[name])
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        hlwq_core.open_checkpoint(path)
    assert "x.safetensors" in str(caught.value)
    assert all(part in str(caught.value) for part in ("expected: ", "found: ", "what to do: "))


def test_other_formats_are_named(tmp_path):
    save_file(
        {"a.codes": torch.zeros(8, dtype=torch.uint8), "a.scales": torch.zeros(2)},
        tmp_path / "eoq.safetensors",
    )
    with pytest.raises(UnsupportedError, match="EOQ"):
        hlwq_core.open_checkpoint(tmp_path)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="GGUF"):
        hlwq_core.open_checkpoint(tmp_path / "g")
    with pytest.raises(InputError):
        hlwq_core.open_checkpoint(tmp_path / "nothing")
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "g" / "plain.safetensors")
    with pytest.raises(FormatError, match="no quantized"):
        hlwq_core.open_checkpoint(tmp_path / "g")


def test_one_tensor_in_two_chunks(tmp_path):
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors")
    with pytest.raises(FormatError, match="two files"):
        hlwq_core.open_checkpoint(tmp_path)


def test_parts_of_a_layer_may_lie_in_different_chunks(tmp_path):
    data = load_file(write(tmp_path / "x.safetensors"))
    os.remove(tmp_path / "x.safetensors")
    for part in ("packed", "norms", "meta"):
        save_file(
            {key: value for key, value in data.items() if key.endswith(part)},
            tmp_path / f"{part}.safetensors",
        )
    ckpt = hlwq_core.open_checkpoint(tmp_path)
    assert len(ckpt.names()) == 6 and ckpt.decode(ckpt.names()[0]).shape == (64, 256)


def test_find(tmp_path):
    root = tmp_path / "hlwq"
    write(root / "LTX" / "polarquant" / "codes" / "any name.safetensors")
    write(root / "sub" / "Other" / "part1.safetensors")
    write(root / "single.safetensors")
    save_file({"a": torch.zeros(1)}, root / "dense.safetensors")
    (root / "broken.safetensors").write_bytes(b"xx")
    assert list(find_checkpoints([root, tmp_path / "absent"])) == ["LTX", "single.safetensors", "sub/Other"]


def test_errors_survive_their_text():
    error = HLWQError("what", file="f", tensor="t", expected=1, found=2, fix="do this")
    assert str(error) == "what\n  file: f\n  tensor: t\n  expected: 1\n  found: 2\n  what to do: do this"


MEASURE = """
import sys, threading, torch
sys.path.insert(0, sys.argv[2])
import hlwq_core
from hlwq_core import backends, codec
from hlwq_core.format.packed import PackedLayer
torch.set_num_threads(1)
def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
codes, norms = torch.zeros(1, 80, dtype=torch.uint8), torch.ones(1, 1).half()
backends.decode(PackedLayer(codes, norms, 5, "msb", "infinite", (1, 128)), torch.bfloat16, "eager")
before = anonymous()
samples, done = [], threading.Event()
def watch():
    while not done.wait(0.002):
        samples.append(anonymous() - before)
watcher = threading.Thread(target=watch)
watcher.start()
ckpt = hlwq_core.open_checkpoint(sys.argv[1])
opened = max([*samples, anonymous() - before])
largest = 0
for name in ckpt.names():
    weight = ckpt.decode(name)
    largest = max(largest, weight.numel() * 2)
    del weight
done.set()
watcher.join()
print(opened, max(samples), largest, len(ckpt.names()), len(samples))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_opening_and_decoding_2_gb(tmp_path):
    """2 GB of codes: under 100 MB to open, never more than twice the largest layer while decoding."""
    rows, blocks = 8192, 64
    nbytes = rows * blocks * 80
    count = 2_000_000_000 // nbytes + 1
    header, position = {}, 0
    for i in range(count):
        base = f"model__diffusion_model__transformer_blocks__{i}__ff__net__2__weight"
        for part, dtype, shape, size in (
            ("packed", "U8", [nbytes], nbytes),
            ("norms", "F16", [rows, blocks], rows * blocks * 2),
            ("meta", "I64", [4], 32),
        ):
            header[f"{base}__{part}"] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [position, position + size],
            }
            position += size
    raw = json.dumps(header).encode()
    path = tmp_path / "big.safetensors"
    with open(path, "wb") as file:  # sparse: the holes read as zeros and take no disk
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
        for fields in header.values():
            if fields["dtype"] == "I64":
                file.seek(8 + len(raw) + fields["data_offsets"][0])
                file.write(torch.tensor([rows, blocks, 128, rows * blocks * 128]).numpy().tobytes())
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(REPO)], capture_output=True, text=True, timeout=240
    )
    path.unlink()
    assert result.returncode == 0, result.stderr
    opened, peak, largest, layers, samples = map(int, result.stdout.split())
    assert layers == count and samples > 10 * count
    assert peak > largest, "the measurement did not see a layer in memory"
    assert opened < 100_000_000, f"opening took {opened / 1e6:.0f} MB"
    assert peak < 2 * largest, f"decoding took {peak / 1e6:.0f} MB; the largest layer has {largest / 1e6:.0f}"
