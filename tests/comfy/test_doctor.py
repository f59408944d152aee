"""The doctor asks a real ComfyUI, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from hlwq_core.tools import doctor


def test_a_real_comfyui_is_examined(comfyui_path: Path) -> None:
    found = doctor.examine("1.2.3", comfyui_path)
    facts = found.facts
    assert facts["ComfyUI"].endswith(f" in {comfyui_path}") and facts["ComfyUI"][0].isdigit()
    assert facts["moved in it"] == "nothing that the pack uses"
    assert any(line.startswith("hlwq: ") for line in facts["folders"])
