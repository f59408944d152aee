"""Completion is made from the parser: by shtab, where it is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hlwq_core.cli import main
from hlwq_core.commands.completion import SHELLS


def test_without_shtab_it_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_the_program_and_is_made_from_the_parser(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complete(parser: object, shell: str) -> str:
        return f"# {parser.prog} in {shell}\n# {parser.format_help()}".replace("\n", "\n# ")  # type: ignore[attr-defined]

    monkeypatch.setitem(sys.modules, "shtab", SimpleNamespace(complete=complete))
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"# hlwq in {shell}" in script and "quantize" in script
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    flags = ["-f"] if shell == "zsh" else []
    done = subprocess.run(
        [shell, *flags, "-c", f"{script}\nhlwq --version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("ComfyUI-HLWQ "), done.stderr


def test_bash_completes_commands_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    ask = "COMP_WORDS=(hlwq quan); COMP_CWORD=1; _shtab_hlwq hlwq quan hlwq; echo ${COMPREPLY[@]}"
    script = f"{capsys.readouterr().out}\n{ask}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "quantize"
