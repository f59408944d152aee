"""The doctor: what is wrong is named with a way out, and nothing says whose machine it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlwq_core.cli import main
from hlwq_core.tools import doctor


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of somebody called jane, without a card, and without a ComfyUI."""
    home = tmp_path / "jane"
    home.mkdir()
    for name, value in {"HOME": str(home), "USERPROFILE": str(home), "LOGNAME": "jane", "USER": "jane"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("COMFYUI_PATH", str(home / "ComfyUI"))
    monkeypatch.setattr(doctor, "driver", lambda: "none")
    return home


def test_no_comfyui_is_told_with_what_to_do(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["facts"]["backend"][0] == "eager, on cpu"
    (problem,) = [p for p in told["problems"] if "ComfyUI" in p["what"]]
    assert "COMFYUI_PATH" in problem["fix"]


def test_neither_token_nor_name_nor_home_is_shown(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLWQ_BACKEND", "eager")
    found = doctor.examine("1.2.3")
    found.wrong(f"{machine}/models is not there", "look at /mnt/jane/models and C:\\Users\\jane")
    text = found.text()
    assert "hf_secret" not in text and "jane" not in text and str(machine) not in text
    assert "~/models is not there" in text and "/mnt/USER/models" in text and "HLWQ_BACKEND: eager" in text
    assert "janet" in doctor.anonymous(f"{machine}t/x"), "another's folder"


def test_what_comfyui_said_becomes_facts_and_problems(tmp_path: Path) -> None:
    found = doctor.Examination()
    seen = {
        "version": "0.99.0",
        "floor": "0.30.0",
        "too_old": None,
        "moved": ["comfy.ops.cast_bias_weight is gone"],
        "folders": {"hlwq": [str(tmp_path / "none")]},
        "checkpoints": {"broken": str(tmp_path / "none")},
        "text_encoders": [],
        "upscalers": ["x2.safetensors"],
        "not_listed": [],
    }
    doctor._tell(found, tmp_path, seen)
    text = found.text()
    assert "cast_bias_weight is gone" in text and "(not there)" in text and "broken: cannot be read" in text
    assert "there is no text encoder" in text and all(problem["fix"] for problem in found.problems)


def test_an_old_comfyui_is_told_to_update(tmp_path: Path) -> None:
    found = doctor.Examination()
    doctor._tell(found, tmp_path, {"version": "0.29.0", "floor": "0.30.0", "too_old": "too old"})
    assert found.problems == [{"what": "too old", "fix": "update ComfyUI to 0.30.0 or newer"}]


def test_versions_are_compared_by_number() -> None:
    assert doctor._numbers("1.10.0+cu130") > doctor._numbers("1.9.5")
