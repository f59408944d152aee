"""A workflow's picture for the template browser: what goes in, and a film with sound that comes out, in motion.

ComfyUI asks for `STEM.jpg` of a pack's workflow, whatever it is: a browser tells a picture's format by its first bytes. So
the file is an animated WebP under that name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

# What goes in, and what is done: `grow` (twice as large), `smooth` (twice as many frames), `long`, or nothing more.
PICTURES = {
    "hlwq_ltx23_text_to_video": ("text", ""),
    "hlwq_ltx23_image_to_video": ("image", ""),
    "hlwq_ltx23_two_stage": ("text", "grow"),
    "hlwq_ltx23_image_to_video_two_stage": ("image", "grow"),
    "hlwq_ltx23_temporal_upscale": ("text", "smooth"),
    "hlwq_ltx23_audio_to_video": ("sound", ""),
    "hlwq_ltx23_extend": ("video", "long"),
    "hlwq_ltx23_long_video": ("text", "long"),
    "hlwq_ltx25_text_to_video": ("text", "grow"),
    "hlwq_ltx25_image_to_video": ("image", "grow"),
}
SIZE = 448
FRAMES = 16
MILLISECONDS = 120
GROUND, LIGHT, BLUE, SUN, GREY = "#14161f", "#f2efe6", "#7ac7ff", "#ffd27a", "#5f6b85"
Box = tuple[float, float, float, float]


def _scene(draw: Any, box: Box, part: float) -> None:
    """A sun that crosses the sky over two hills; `part` of its way is 0 to 1."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    for y in range(int(top), int(bottom)):
        t = (y - top) / height
        draw.line((left, y, right, y), fill=(int(40 + 150 * t), int(50 + 60 * t), int(110 - 40 * t)))
    x = left + width * (0.12 + 0.76 * part)
    y = bottom - height * (0.3 + 0.45 * math.sin(math.pi * part))
    radius = height * 0.11
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=SUN)
    for middle, tall, color in ((0.3, 0.3, "#2b3047"), (0.72, 0.4, "#22263a")):
        hill = [
            (left + width * k / 24, bottom - height * tall * math.exp(-(((k / 24 - middle) / 0.2) ** 2)))
            for k in range(25)
        ]
        draw.polygon([(left, bottom), *hill, (right, bottom)], fill=color)
    draw.rectangle(box, outline=LIGHT, width=2)


def _waves(draw: Any, box: Box, played: float) -> None:
    """A sound, light as far as it was played."""
    left, top, right, bottom = box
    middle = (top + bottom) / 2
    for x in range(int(left), int(right), 7):
        part = (x - left) / (right - left)
        swing = (bottom - top) / 2 * abs(math.sin(9 * part) * math.cos(23 * part)) * (0.4 + 0.6 * part) + 2
        draw.line((x, middle - swing, x, middle + swing), fill=BLUE if part <= played else GREY, width=4)


def _source(draw: Any, source: str) -> None:
    box = (36, 24, 156, 92)
    if source == "image":
        _scene(draw, box, 0.0)
    elif source == "sound":
        _waves(draw, box, 1.0)
    elif source == "video":
        for k in range(3):
            _scene(draw, (36 + 42 * k, 36, 74 + 42 * k, 80), k / 6)
    else:
        for line, length in enumerate((118, 104, 120, 70)):
            draw.rounded_rectangle((36, 28 + 17 * line, 36 + length, 37 + 17 * line), 4, fill=GREY)
    draw.line((176, 58, 206, 58), fill=LIGHT, width=4)
    draw.polygon(((206, 48), (226, 58), (206, 68)), fill=LIGHT)


def _film(draw: Any, done: str, part: float) -> None:
    """The film, and below it the strip of its frames."""
    big = (36, 112, 412, 324)
    if done == "grow" and part < 0.4:
        middle, half = (224, 218), (94, 53)
        _scene(draw, (middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]), part)
        draw.rectangle(big, outline=GREY, width=2)
    else:
        _scene(draw, big, part if done != "smooth" or part > 0.5 else math.floor(part * 8) / 8)
    _waves(draw, (36, 336, 412, 376), part)
    count = {"long": 16, "smooth": 8 if part <= 0.5 else 16}.get(done, 8)
    for k in range(count):
        left = 36 + 376 * k / count
        draw.rectangle((left, 390, left + 376 / count - 4, 408), fill=SUN if k / count <= part else GREY)


def thumbnail(path: Path, source: str, done: str) -> None:
    """Write the picture of a workflow: what goes in, and the film that comes out."""
    from PIL import Image, ImageDraw

    images = []
    for number in range(FRAMES):
        image = Image.new("RGB", (SIZE, SIZE), GROUND)
        draw = ImageDraw.Draw(image)
        _source(draw, source)
        _film(draw, done, number / (FRAMES - 1))
        images.append(image)
    images[0].save(
        path, "WEBP", save_all=True, append_images=images[1:], duration=MILLISECONDS, loop=0, quality=70, method=6
    )
