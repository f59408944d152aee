"""The device that a tool works on."""

from __future__ import annotations

import torch

from ..errors import InputError


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        InputError: CUDA is asked for and not there, or the name is unknown.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            "unknown device", expected="auto, cpu, cuda, cuda:1", found=device, fix="take one of these"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here", expected="auto or cpu", found=device, fix="use --device cpu")
    return chosen
