"""Attacks that can be run alone, each with what must come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def keep(file: Path | None, name: str, result: dict[str, Any]) -> None:
    """Put a result into a JSON file under its name, and leave those of others there; nothing where there is no file."""
    if file is None:
        return
    there = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**there, name: result}, indent=1) + "\n")
