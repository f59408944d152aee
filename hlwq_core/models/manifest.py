"""What a whole LTX-2.3 22B is: its tensors' names, dtypes and shapes, its config, and where it is published."""

from __future__ import annotations

import functools
import gzip
import json
import re
from pathlib import Path
from typing import Any

# The same checkpoint under its first and its present name.
REPOSITORIES = ("caiovicentino1/LTX-2.3-22B-HLWQ-Q5", "caiovicentino1/LTX-2.3-22B-PolarQuant-Q5")
REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_DATA = Path(__file__).parents[1] / "data"


@functools.lru_cache(maxsize=1)
def expected() -> dict[str, tuple[str, tuple[int, ...]]]:
    """The 5,947 tensors of LTX-2.3 22B: name → (safetensors dtype, shape)."""
    tensors = {}
    with gzip.open(_DATA / "ltx23_manifest.tsv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            name, dtype, shape = line.rstrip("\n").split("\t")
            tensors[name] = (dtype, tuple(int(n) for n in shape.split(",") if n))
    return tensors


@functools.lru_cache(maxsize=1)
def undotted_names() -> dict[str, str]:
    """V1's names (`__` for `.`) → the model's names."""
    return {name.replace(".", "__"): name for name in expected()}


def shape(name: str) -> tuple[int, ...] | None:
    """The shape that LTX-2.3 22B gives a tensor; None if it has none of this name."""
    found = expected().get(name)
    return found[1] if found else None


@functools.lru_cache(maxsize=1)
def _config_text() -> str:
    return (_DATA / "ltx23_config.json").read_text(encoding="utf-8")


def ltx23_config() -> dict[str, Any]:
    """The `config` of LTX-2.3 22B, which the published files lack; a fresh copy."""
    return json.loads(_config_text())
