"""Models that are not LTX's, in tiny form: the table of docs/architectures.md, a few of its lines anew."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]
# The others are run by `scripts/architectures.py`: each takes half a minute.
HERE = ("flux", "hunyuan-video")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/architectures.py, with scripts/ on the path as it has it."""
    monkeypatch.syspath_prepend(REPO / "scripts")
    spec = importlib.util.spec_from_file_location("hlwq_architectures", REPO / "scripts" / "architectures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("key", HERE)
def test_quantize_load_sample_lora_and_save(pack: ModuleType, script: ModuleType, tmp_path: Path, key: str) -> None:
    from tiny.architectures import ARCHITECTURES

    architecture = next(one for one in ARCHITECTURES if one.key == key)
    if not architecture.known():
        pytest.skip(f"this ComfyUI does not know {architecture.name}")
    result = script.check(architecture, tmp_path, pack)
    assert script.failures(result) == []


def test_the_page_is_of_the_results(script: ModuleType) -> None:
    assert (REPO / "docs" / "architectures.md").read_text("utf-8") == script.page()
    results = json.loads(script.RESULTS.read_text("utf-8"))
    assert sum(not result["failures"] for result in results.values()) >= 8


def test_a_failure_is_told(script: ModuleType) -> None:
    good = {"error": 0.001, "lora": 0.001, "lora_off": 0.0, "saved_core": 0.0, "saved_pack": 0.0, "to_original": 0.1}
    good["lora_moves"] = 0.1
    assert script.failures(good) == []
    for key, value in (("error", 0.011), ("lora", float("nan")), ("lora_off", 1e-9), ("saved_pack", 0.2)):
        assert key in script.failures(good | {key: value})[0]
    assert "LoRA" in script.failures(good | {"lora_moves": 0.0})[0]
