"""`torch.ops.hlwq.decode`: decoding as an operator that torch.compile sees as one piece, and the scratch it decodes into."""

from __future__ import annotations

import torch

from .. import backends


def _decode(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    in_features: int,
    dtype: torch.dtype,
    backend: str = "auto",
) -> torch.Tensor:
    return backends.choose(codes.device, backend).decode(codes, norms, table, bits, packing, in_features, dtype)


def _register() -> None:
    # The pack may be imported twice in a process (as a custom node and as a library); the operator exists once.
    if hasattr(torch.ops.hlwq, "decode"):
        return
    operator = torch.library.custom_op("hlwq::decode", _decode, mutates_args=())

    @operator.register_fake
    def _(
        codes: torch.Tensor,
        norms: torch.Tensor,
        table: torch.Tensor,
        bits: int,
        packing: str,
        in_features: int,
        dtype: torch.dtype,
        backend: str = "auto",
    ) -> torch.Tensor:
        return codes.new_empty((codes.shape[0], in_features), dtype=dtype)


_register()


def decode(
    codes: torch.Tensor,
    norms: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    packing: str,
    in_features: int,
    dtype: torch.dtype,
    backend: str = "auto",
) -> torch.Tensor:
    """Decode packed rows; arguments and result as `backends.eager.decode`, `backend` as in `backends.choose`."""
    return torch.ops.hlwq.decode(codes, norms, table, bits, packing, in_features, dtype, backend)


# One buffer a device and use, as bytes: layers run one after another, so the next may overwrite the last.
_scratch: dict[tuple[torch.device, str], torch.Tensor] = {}
# Views of it by shape and dtype: making one costs the host more than launching a decode.
_views: dict[tuple[torch.device, str, torch.dtype, int, int], torch.Tensor] = {}


def scratch(rows: int, columns: int, dtype: torch.dtype, device: torch.device, use: str = "weights") -> torch.Tensor:
    """A `[rows, columns]` view of the device's scratch buffer, valid until the next call; grown to the largest layer.

    Args:
        use: `weights`, or `scales` for the small buffer of 8-bit weights' scales.
    """
    key = (device, use, dtype, rows, columns)
    view = _views.get(key)
    if view is not None:
        return view
    size = rows * columns * dtype.itemsize
    buffer = _scratch.get((device, use))
    # A plain tensor even when sampling runs in inference mode: later calls may come from outside of it.
    with torch.inference_mode(False):
        if buffer is None or buffer.numel() < size:
            del buffer
            _release(device, use)
            buffer = _scratch[device, use] = torch.empty(size, dtype=torch.uint8, device=device)
        view = _views[key] = buffer[:size].view(dtype).view(rows, columns)
    return view


def _release(device: torch.device | None, use: str | None) -> None:
    def meant(key: tuple) -> bool:
        return device in (None, key[0]) and use in (None, key[1])

    for view in filter(meant, list(_views)):
        del _views[view]
    for buffer in filter(meant, list(_scratch)):
        del _scratch[buffer]


def release_scratch(device: torch.device | None = None) -> None:
    """Give the scratch buffers of a device (or of all) back to torch's allocator."""
    _release(device, None)


def scratch_bytes(device: torch.device) -> int:
    """Size of the device's scratch buffers."""
    return sum(buffer.numel() for buffer in scratch_buffers(device))


def scratch_buffers(device: torch.device) -> list[torch.Tensor]:
    """The device's scratch buffers, for whoever needs them to stay where they are."""
    return [buffer for (owner, _), buffer in _scratch.items() if owner == device]
