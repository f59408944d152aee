"""A workflow's picture for the template browser."""

from __future__ import annotations

import math
from pathlib import Path

# Input, what happens in between, frames drawn, their height in pixels.
PICTURES = {
    "hlwq_ltx23_text_to_video": ("text", "8 steps", 4, 110),
    "hlwq_ltx23_image_to_video": ("image", "8 steps", 4, 110),
    "hlwq_ltx23_two_stage": ("text", "8 steps, spatial x2, 3 steps", 3, 170),
    "hlwq_ltx23_image_to_video_two_stage": ("image", "8 steps, spatial x2, 3 steps", 3, 170),
    "hlwq_ltx23_temporal_upscale": ("text", "8 steps, temporal x2, 3 steps", 8, 110),
    "hlwq_ltx23_audio_to_video": ("sound", "8 steps", 4, 110),
    "hlwq_ltx23_extend": ("image", "last frames first, 8 steps", 6, 110),
    "hlwq_ltx25_text_to_video": ("text", "8 steps, spatial x2, 3 steps", 3, 170),
    "hlwq_ltx25_image_to_video": ("image", "8 steps, spatial x2, 3 steps", 3, 170),
    "hlwq_ltx23_long_video": ("text", "8 steps in windows", 8, 80),
}


def thumbnail(path: Path, title: str, source: str, between: str, frames: int, height: int) -> None:
    """A diagram of the workflow: what goes in, what happens, film and sound that come out."""
    from PIL import Image, ImageDraw, ImageFont

    size = (768, 432)
    image = Image.new("RGB", size, "#14161f")
    draw = ImageDraw.Draw(image)
    font = {n: ImageFont.load_default(n) for n in (20, 24, 34)}
    draw.text((36, 28), title.removeprefix("HLWQ ").replace("×", "x"), font=font[34], fill="#f2efe6")
    draw.text((36, 76), f"HLWQ: packed weights; {between}", font=font[20], fill="#9aa3b8")

    def waves(box: tuple[int, int, int, int], color: str) -> None:
        left, top, right, bottom = box
        middle = (top + bottom) / 2
        for x in range(left, right, 6):
            part = (x - left) / (right - left)
            swing = (bottom - top) / 2 * abs(math.sin(9 * part) * math.cos(23 * part)) * (0.4 + 0.6 * part) + 2
            draw.line((x, middle - swing, x, middle + swing), fill=color, width=3)

    def scene(box: tuple[int, int, int, int], part: float) -> None:
        left, top, right, bottom = box
        for y in range(top, bottom):
            t = (y - top) / (bottom - top)
            draw.line((left, y, right, y), fill=(int(40 + 150 * t), int(50 + 60 * t), int(110 - 40 * t)))
        x, y = (
            left + (right - left) * (0.2 + 0.6 * part),
            bottom - (bottom - top) * (0.3 + 0.4 * math.sin(math.pi * part)),
        )
        radius = min((bottom - top) * 0.13, (right - left) * 0.19)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="#ffd27a")
        draw.rectangle(box, outline="#f2efe6", width=2)

    box = (36, 170, 216, 290)
    if source == "image":
        scene(box, 0.0)
    elif source == "sound":
        waves(box, "#7ac7ff")
    else:
        for line, length in enumerate((170, 150, 175, 120, 90)):
            draw.rounded_rectangle((36, 176 + 24 * line, 36 + length, 188 + 24 * line), 6, fill="#5f6b85")
    draw.line((236, 230, 280, 230), fill="#f2efe6", width=4)
    draw.polygon(((280, 220), (300, 230), (280, 240)), fill="#f2efe6")
    gap, left, right = 8, 320, 736
    width = (right - left - gap * (frames - 1)) // frames
    top = 225 - height // 2
    for k in range(frames):
        x = left + k * (width + gap)
        scene((x, top, x + width, top + height), k / (frames - 1))
    waves((left, 330, right, 395), "#7ac7ff")
    image.save(path, "JPEG", quality=85, optimize=True)
