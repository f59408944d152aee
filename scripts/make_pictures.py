"""Draw images/icon.png and images/banner.png from corners of the Hadamard matrix that the format rotates its blocks with.

    python scripts/make_pictures.py

The README's screenshots come from the browser tests: HLWQ_PICTURES=images python3 scripts/test.py tests/browser
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).resolve().parent.parent / "images"
DARK, TEAL, AMBER, WHITE = (18, 22, 33), (45, 158, 156), (246, 178, 76), (240, 243, 248)


def hadamard(n: int) -> np.ndarray:
    """Signs of the Walsh-Hadamard matrix in Sylvester order, [n, n]."""
    matrix = np.ones((1, 1), dtype=np.int8)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def pattern(n: int, cell: int) -> Image.Image:
    """The matrix as a picture: teal for +1, and -1 fading from dark to amber down the rows."""
    signs = hadamard(n)
    fade = np.linspace(0, 1, n)[:, None, None]
    minus = (1 - fade) * np.array(DARK) + fade * np.array(AMBER) + np.zeros((n, n, 1))
    pixels = np.where(signs[..., None] > 0, np.array(TEAL), minus).astype(np.uint8)
    return Image.fromarray(pixels).resize((n * cell, n * cell), Image.Resampling.NEAREST)


def icon() -> Image.Image:
    """400 x 400, as the Comfy Registry wants it."""
    picture = Image.new("RGB", (400, 400), DARK)
    picture.paste(pattern(16, 22), (24, 24))
    return picture


def banner() -> Image.Image:
    """21:9, as the Comfy Registry wants it."""
    picture = Image.new("RGB", (1260, 540), DARK)
    picture.paste(pattern(64, 8), (734, 14))
    draw = ImageDraw.Draw(picture)
    draw.text((60, 150), "ComfyUI-HLWQ", WHITE, ImageFont.load_default(84))
    draw.text((64, 270), "LTX-2.3 at 5 bits a weight:", TEAL, ImageFont.load_default(40))
    draw.text((64, 322), "picture and sound, packed in memory", AMBER, ImageFont.load_default(36))
    return picture


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, picture in (("icon", icon()), ("banner", banner())):
        path = IMAGES / f"{name}.png"
        picture.quantize(64).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
