"""Core's VAE from inside: LTX's decoder hands out frames as they are ready, which ComfyUI's own nodes collect first.

Sources: ComfyUI 0.30.0, `comfy/sd.py` (VAE.decode, decode_tiled), `comfy/ldm/lightricks/vae/causal_video_autoencoder.py`
(Decoder.run_up writes to its `output_buffer` chunk by chunk, in order).
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import contract

ltx_vae = contract.module("comfy.ldm.lightricks.vae.causal_video_autoencoder")
_management = contract.module("comfy.model_management")

_CPU_PIECE = 1 << 20


def streams(vae: Any) -> bool:
    """Whether the VAE hands out its frames as they are decoded."""
    model = vae.first_stage_model
    return (
        bool(getattr(model, "comfy_has_chunked_io", False))
        and "output_buffer" in inspect.signature(model.decode).parameters
    )


class _Sink:
    """In place of the buffer that core's decoder fills: it hands on what is written to it."""

    def __init__(self, take: Callable[[torch.Tensor], None]):
        self._take = take

    def __getitem__(self, index: object) -> _Sink:
        return self

    def copy_(self, frames: torch.Tensor) -> None:
        self._take(frames)


def decode_into(vae: Any, latent: torch.Tensor, take: Callable[[torch.Tensor], None]) -> None:
    """Decode a latent [1, channels, frames, height, width]; `take` is given [t, H, W, 3] in 0..1, in order, on the
    VAE's device: what VAE.decode would return, piece by piece."""

    def finished(frames: torch.Tensor) -> None:
        pixels = frames.to(dtype=vae.vae_output_dtype(), copy=True)
        vae.process_output(pixels)
        take(pixels[0].movedim(0, -1))

    with _management.cuda_device_context(vae.device), _small_pieces(vae.device):
        samples = latent.to(device=vae.device, dtype=vae.vae_dtype)
        vae.first_stage_model.decode(samples, output_buffer=_Sink(finished))


@contextlib.contextmanager
def _small_pieces(device: torch.device) -> Iterator[None]:
    """On a CPU, pieces that fit its caches in place of those that core chooses for cards: it needs dozens of them at its
    peak, which is gigabytes of the host's memory."""
    chosen = ltx_vae.get_max_chunk_size
    if device.type == "cpu":
        ltx_vae.get_max_chunk_size = lambda device: _CPU_PIECE
    try:
        yield
    finally:
        ltx_vae.get_max_chunk_size = chosen


def make_room(vae: Any, nbytes: int) -> int:
    """Load the VAE with so much memory free beside it, if it can be had; bytes that are free then."""
    vae.throw_exception_if_invalid()
    _management.load_models_gpu([vae.patcher], memory_required=nbytes, force_full_load=vae.disable_offload)
    return vae.patcher.get_free_memory(vae.device)


def chunk_bytes(vae: Any) -> int:
    """Bytes of the pieces that LTX's decoder works in, which depend on the card's memory."""
    return _CPU_PIECE if vae.device.type == "cpu" else ltx_vae.get_max_chunk_size(vae.device)


def item_bytes(vae: Any) -> int:
    """Bytes of a number in the VAE."""
    return _management.dtype_size(vae.vae_dtype)


def reach(vae: Any) -> int:
    """Latent frames on either side that a frame of LTX's decoder depends on: its receptive field in time."""
    decoder = vae.first_stage_model.decoder
    scale, found = 1, 1.0  # conv_in
    for block in decoder.up_blocks:
        if isinstance(block, ltx_vae.UNetMidBlock3D):
            found += 2 * len(block.res_blocks) / scale
        else:
            found += 1 / scale
            scale *= block.stride[0]
    found += 1 / scale  # conv_out
    return math.ceil(2 * found if decoder.causal else found)


def scales(vae: Any) -> tuple[int, int]:
    """Frames a latent frame becomes, and pixels a side of a latent pixel."""
    return vae.temporal_compression_decode() or 1, vae.spacial_compression_decode()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had too little memory."""
    try:
        _management.raise_non_oom(error)
    except BaseException:
        return False
    return True


def free_cache() -> None:
    """Give back what torch keeps of the device's memory."""
    _management.soft_empty_cache()


def decode_sound(latent: Any, audio_vae: Any) -> dict[str, Any]:
    """An audio latent, or the sound of a joint one, as AUDIO, by core's node."""
    from comfy_extras.nodes_lt_audio import LTXVAudioVAEDecode

    return LTXVAudioVAEDecode.execute({"samples": latent}, audio_vae).args[0]
