"""Which backend decodes, and which multiplies in 8 bits: the table."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hlwq_core import backends
from hlwq_core.backends.contract import Constraints
from hlwq_core.backends.eight_bit import KINDS
from hlwq_core.errors import InputError

from .layers import layer

REPO = Path(__file__).resolve().parents[3]


def test_choice(monkeypatch):
    monkeypatch.delenv(backends.SWITCH, raising=False)
    assert backends.choose("cpu").name == "eager"
    assert "CUDA" in backends.unavailable_reasons("cpu")["cuda"]
    assert "Triton" in backends.unavailable_reasons("cpu")["triton"]
    with pytest.raises(InputError, match="cannot run on cpu"):
        backends.choose("cpu", "cuda")
    with pytest.raises(InputError, match="unknown HLWQ backend"):
        backends.choose("cpu", "quick")
    monkeypatch.setenv(backends.SWITCH, "eager")
    assert backends.choose("cpu", "auto").name == "eager"


def test_every_backend_bears_its_files_name():
    assert [backends.get(name).name for name in backends.names()] == list(backends.names())


def test_no_gpu_no_fast_mode():
    device = torch.device("cpu")
    kind, reason = backends.choose_fast(device)
    assert kind is None and "CUDA" in reason and backends.fast_unavailable_reason(device) == reason
    assert backends.fast_mode(device, "int8") is backends.get("eager").fast["int8"]


@pytest.mark.parametrize(
    ("capability", "kind", "says"),
    [((6, 1), None, "Volta|8-bit"), ((7, 0), None, "Turing"), ((7, 5), "int8", ""), ((8, 9), "fp8", "")],
)
def test_fast_mode_follows_from_the_cards_capability(monkeypatch, capability, kind, says):
    card = torch.device("cuda", 0)
    cuda = backends.get("cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    without = {k: dataclasses.replace(f, constraints=dataclasses.replace(f.constraints, imports=()), prove=lambda d: None)
               for k, f in cuda.fast.items()}  # fmt: skip
    monkeypatch.setattr(backends, "get", lambda name: dataclasses.replace(cuda, fast=without))
    backends.choose_fast.cache_clear()
    try:
        chosen, reason = backends.choose_fast(card)
    finally:
        backends.choose_fast.cache_clear()
    assert chosen == kind and (reason is None if kind else __import__("re").search(says, reason))


def test_constraints_say_what_is_not_met():
    cpu = torch.device("cpu")
    assert Constraints().refuses(cpu) is None
    assert Constraints(devices=("cuda",), no_device="is no card").refuses(cpu) == "cpu is no card"
    assert "no_such_package is not installed" in str(Constraints(packages=("no_such_package",)).refuses(cpu))
    assert "no_such_package" in str(Constraints(imports=("no_such_package.inner",)).refuses(cpu))
    packed = layer(4, 256)
    assert not Constraints(dtypes=(torch.float16,)).takes(packed, torch.bfloat16)
    assert not Constraints(blocks=8).takes(packed, torch.bfloat16) and Constraints(blocks=9).takes(
        packed, torch.float64
    )


BACKEND = '''"""A backend as a stranger would write it: it negates what eager decodes, so that its work is seen."""

from . import eager
from .contract import Backend, Constraints, Fast

CPU = Constraints(devices=("cpu",), no_device="is no CPU")


def prepare(packed, dtype):
    run = eager.prepare(packed, dtype)

    def negated(out, accumulate):
        run(out, accumulate)
        out.neg_()

    return negated


def fast(kind):
    by_eager = eager.BACKEND.fast[kind]

    def multiply(x, w, bias, dtype):
        return -by_eager.multiply(x, w, bias, dtype)

    return Fast(kind, CPU, lambda device: None, by_eager.rotate, by_eager.prepare, multiply)


BACKEND = Backend("negative", CPU, prepare, {"int8": fast("int8")})
'''
USE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from hlwq_core import backends
from hlwq_core.codec.codec import encode
from hlwq_core.running import fast, packed_tensor
made = encode(torch.randn(32, 256, generator=torch.Generator().manual_seed(0)))
weight = packed_tensor.quantized_tensor(made.layer())
x = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
exact = x.float() @ made.decode().t()
kind, _ = backends.choose_fast(torch.device("cpu"))
product = fast.linear(x, weight, None, kind).float()
print(json.dumps({
    "names": backends.names(),
    "chosen": backends.choose("cpu").name,
    "kind": kind,
    "decoded": float((weight.dequantize().float() + made.decode()).abs().max()),
    "product": float((product + exact).norm() / exact.norm()),
}))
"""


def test_a_new_backend_is_a_file_and_its_name(tmp_path):
    """In a copy of the library: exact decoding and fast mode go through it, with nothing else touched."""
    shutil.copytree(REPO / "hlwq_core", tmp_path / "hlwq_core", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "hlwq_core" / "backends"
    (folder / "negative.py").write_text(BACKEND)
    table = (folder / "__init__.py").read_text()
    line = next(line for line in table.splitlines() if line.startswith("_TABLE = "))
    (folder / "__init__.py").write_text(table.replace(line, line.replace("(", '("negative", ', 1)))
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"][0] == found["chosen"] == "negative" and found["kind"] == "int8" and "int8" in KINDS
    assert found["decoded"] < 0.02 and found["product"] < 0.05
