"""Tokens in file names, as ComfyUI's page fills them in."""

from __future__ import annotations

from datetime import datetime

import pytest

from hlwq_core.media import check_prefix, fill_in

NOW = datetime(2026, 3, 7, 9, 5, 2)
PROMPT = {
    "1": {"class_type": "RandomNoise", "_meta": {"title": "Seed"}, "inputs": {"noise_seed": 42}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": 'a <cat>: "5/5"?', "clip": ["3", 0]}},
    "4": {"class_type": "EmptyLTXVLatentVideo", "_meta": {"title": "Latent v1.5"}, "inputs": {"width": 768}},
}


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [
        ("video/HLWQ", "video/HLWQ"),
        ("%date:yyyy-MM-dd%/x", "2026-03-07/x"),
        ("%date:yy-M-d hh:mm:ss%", "26-3-7 09_05_02"),
        ("%date:hhmmss%", "090502"),
        ("%year%%month%%day%-%hour%%minute%%second%", "20260307-090502"),
        ("x_%width%x%height%", "x_96x64"),
        ("%frames%@%frame_rate%", "121@24"),
        ("%Seed.noise_seed%", "42"),
        ("%RandomNoise.noise_seed%", "42"),
        ("%Latent v1.5.width%", "768"),
        ("%CLIPTextEncode.text%", "a _cat__ _5_5__"),
        ("%CLIPTextEncode.clip%", "%CLIPTextEncode.clip%"),
        ("100%", "100%"),
        ("%unknown%", "%unknown%"),
        ('a<b>c:d"e|f?g*h', "a_b_c_d_e_f_g_h"),
        ("a\0b\udcffc\ud800", "a_b_c_"),
        ("ü 漢字 😀 'q", "ü 漢字 😀 'q"),
        ("aux/nul.x/a./b", "aux/nul.x/a./b"),
    ],
)
def test_tokens(prefix: str, filled: str) -> None:
    values = {"width": 96, "height": 64, "frames": 121, "frame_rate": "24"}
    assert fill_in(prefix, values, PROMPT, NOW) == filled


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [
        ("aux/x", "aux_/x"),
        ("COM3.txt\\x", "COM3.txt_/x"),
        ("video./day /x", "video._/day _/x"),
        ("../x", "../x"),  # refused, not made harmless
        ("con", "con"),  # con_00001_.mp4 is no device
        ("comet/console/x.", "comet/console/x."),
    ],
)
def test_folders_that_windows_does_not_take(prefix: str, filled: str) -> None:
    assert fill_in(prefix, {}, windows=True) == filled


def test_a_long_value_is_cut() -> None:
    prompt = {"1": {"class_type": "T", "inputs": {"text": "ü" * 5000}}}
    filled = fill_in("video/%T.text%", {}, prompt, NOW)
    assert filled == "video/" + "ü" * 50
    check_prefix(filled)


def test_a_value_cannot_leave_the_folder() -> None:
    prompt = {"1": {"class_type": "T", "inputs": {"text": "../../up\\and:out"}}}
    filled = fill_in("video/%T.text%", {}, prompt, NOW)
    assert filled == "video/.._.._up_and_out"
