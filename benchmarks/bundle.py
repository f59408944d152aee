"""What the GPU benchmarks need on a machine without a network: ComfyUI's core, and the wheels that torch does not bring.

    python benchmarks/bundle.py bundle        about 60 MB; then there:
    python -m pip install --no-index --no-deps --target site bundle/*.whl
    PYTHONPATH=site COMFYUI_PATH=bundle/ComfyUI python benchmarks/steps.py --plan speed

Needs COMFYUI_PATH, and pip with an index, where it runs. Wheels are for Python 3.12 on x86-64 Linux unless told otherwise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Versions as in ComfyUI's requirements; torchsde needs trampoline.
WHEELS = ("comfy-kitchen", "comfy-aimdo", "torchsde", "trampoline")
FOLDERS = ("comfy", "comfy_api", "comfy_config", "comfy_execution", "utils")
LEFT_OUT = ("__pycache__", "tokenizer.*", "vocab.*", "merges.txt", "*.png")  # vocabularies are large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="Python of the other machine")
    args = parser.parse_args()
    comfyui = Path(os.environ.get("COMFYUI_PATH", ""))
    if not (comfyui / "comfy").is_dir():
        raise SystemExit("where is ComfyUI? Set COMFYUI_PATH to its folder")
    target = args.folder / "ComfyUI"
    shutil.rmtree(target, ignore_errors=True)
    for name in FOLDERS:
        shutil.copytree(comfyui / name, target / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for file in comfyui.glob("*.py"):
        shutil.copy(file, target)
    required = {
        line.split("=")[0].split(">")[0].strip(): line
        for line in (comfyui / "requirements.txt").read_text().split("\n")
    }
    for wheel in args.folder.glob("*.whl"):
        wheel.unlink()
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (17, 24, 27, 28, 34, 35)] + [
        "--platform=manylinux2014_x86_64"
    ]
    for name in WHEELS:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation=cp",
             f"--python-version={args.python}", *platforms, "-d", str(args.folder), required.get(name, name)],
            check=True,
        )  # fmt: skip
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"{args.folder}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
