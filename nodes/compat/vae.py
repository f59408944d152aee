"""Core's VAE from inside: LTX's decoder hands out frames as they are ready, which ComfyUI's own nodes collect first.

Sources: ComfyUI 0.30.0, `comfy/sd.py` (VAE.decode, decode_tiled), `comfy/ldm/lightricks/vae/causal_video_autoencoder.py`
(Decoder.run_up writes to its `output_buffer` chunk by chunk, in order).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import contract

ltx_vae = contract.module("comfy.ldm.lightricks.vae.causal_video_autoencoder")
_management = contract.module("comfy.model_management")

_CPU_PIECE = 4 << 20
_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN_PAGES = 128 << 10  # bytes from which on a tensor has pages of its own


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


def decode_into(
    vae: Any, latent: torch.Tensor, take: Callable[[torch.Tensor], None], frames: int = 0, piece: int = 0
) -> None:
    """Decode a latent [1, channels, frames, height, width]; `take` is given [t, H, W, 3] in 0..1, in order, on the
    VAE's device: what VAE.decode would return, piece by piece.

    Args:
        frames: latent frames that go in at a time; 0: all of them.
        piece: bytes of a piece inside the decoder; 0: `chunk_bytes`.
    """

    def finished(frames: torch.Tensor) -> None:
        pixels = frames.to(dtype=vae.vae_output_dtype(), copy=True)
        vae.process_output(pixels)
        take(pixels[0].movedim(0, -1))

    model, sink = vae.first_stage_model, _Sink(finished)
    pieces, pages = _pieces(piece or chunk_bytes(vae)), _own_pages(vae.device)
    with _management.cuda_device_context(vae.device), pieces, pages:
        samples = latent.to(device=vae.device, dtype=vae.vae_dtype)
        if not can_slice(vae) or not 0 < frames < samples.shape[2]:
            model.decode(samples, output_buffer=sink)
            return
        try:
            _in_slices(model, samples, sink, frames)
        finally:
            _forget(model.decoder)


def can_slice(vae: Any) -> bool:
    """Whether the latent can go into the decoder slice by slice. LTX's first versions mix noise into all of it."""
    return streams(vae) and not vae.first_stage_model.timestep_conditioning


def _in_slices(model: Any, samples: torch.Tensor, sink: _Sink, frames: int) -> None:
    """As Decoder.forward_orig, which gives its first block the whole length: every convolution keeps the frames that its
    next piece begins with, so that nothing changes where the latent comes in slices."""
    decoder = model.decoder
    limit, offset = ltx_vae.get_max_chunk_size(samples.device), [0]
    slices = torch.split(model.per_channel_statistics.un_normalize(samples), frames, dim=2)
    for number, part in enumerate(slices, 1):
        ended = number == len(slices)
        if ended:
            ltx_vae.mark_conv3d_ended(decoder.conv_in)
        features = [decoder.conv_in(part, causal=decoder.causal)]  # a list, so that the block can free it
        if features[0].shape[2]:
            decoder.run_up(0, features, ended, None, None, lambda block: block, sink, offset, limit)


def _forget(decoder: Any) -> None:
    """The frames that convolutions kept, as Decoder.forward does at its end."""
    for module in decoder.modules():
        if hasattr(module, "temporal_cache_state"):
            module.temporal_cache_state.pop(threading.get_ident(), None)


@contextlib.contextmanager
def _pieces(nbytes: int) -> Iterator[None]:
    """Pieces of this size inside the decoder: where memory is short smaller ones than core chooses for the card, and on a
    CPU those that fit its caches. At its peak the decoder has dozens of them."""
    chosen = ltx_vae.get_max_chunk_size
    ltx_vae.get_max_chunk_size = lambda device: nbytes
    try:
        yield
    finally:
        ltx_vae.get_max_chunk_size = chosen


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where that is glibc."""
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (AttributeError, OSError, TypeError):
        return None


@contextlib.contextmanager
def _own_pages(device: torch.device) -> Iterator[None]:
    """On a CPU, memory for tensors that is the system's again when they are freed. In glibc's heap, where it would come from,
    pieces of so many sizes lie between what lives longer that the heap grows with the video, and from one video to the next."""
    library = _glibc() if device.type == "cpu" else None
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES)
    try:
        yield
    finally:
        if library is not None:
            # Once it is set, glibc does not adapt it any more: what it comes to by itself where tensors are large.
            library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            library.malloc_trim(0)


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


def first_features(vae: Any) -> int:
    """Numbers that a latent pixel becomes in the decoder's first layer."""
    return vae.first_stage_model.decoder.conv_in.out_channels


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
