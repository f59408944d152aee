"""Dynamic VRAM: where ComfyUI has a layer's weights on the card, how they come there, and memory that it lends.

Sources: ComfyUI 0.30.0 to 0.33.0, `comfy/{ops,model_patcher,memory_management,pinned_memory,utils}.py`; comfy-aimdo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from . import contract
from .contract import Feature

model_vbar = contract.module("comfy_aimdo.model_vbar")
aimdo_to_tensor = contract.get("comfy_aimdo.torch.aimdo_to_tensor")
QuantizedTensor = contract.get("comfy_kitchen.tensor.base.QuantizedTensor")
_host_buffer = contract.module("comfy_aimdo.host_buffer")
_interpret_gathered_like = contract.get("comfy.memory_management.interpret_gathered_like")
_load_torch_file = contract.get("comfy.utils.load_torch_file")
_args = contract.module("comfy.cli_args").args
_management = contract.module("comfy.model_management")
_memory = contract.module("comfy.memory_management")


# Asked at every use of a layer, hence looked up once.
_fast_path = contract.works(Feature.FAST_PATH)


def take_resident(module: Any, device: torch.device) -> tuple[Any, Any, Any] | None:
    """Weight and bias of a layer that dynamic VRAM has on `device`, as `cast_bias_weight` would give them, in a quarter of
    the host's time. The third item goes to `release_resident` after use. None: ask `cast_bias_weight`."""
    state = module.__dict__
    allocation = state.get("_v")
    if allocation is None or not _fast_path or module._parameters["weight"].device == device:
        return None
    prefetch = state.get("_prefetch")
    if prefetch is not None:  # looked at, and held, for the whole block
        return (state["_v_weight"], state["_v_bias"], None) if prefetch["resident"] else None
    signature = model_vbar.vbar_fault(allocation)
    if signature is None:
        return None
    if model_vbar.vbar_signature_compare(signature, state.get("_v_signature")):
        return state["_v_weight"], state["_v_bias"], allocation
    model_vbar.vbar_unpin(allocation)
    return None


def release_resident(held: Any) -> None:
    """Let dynamic VRAM take a layer's memory again, if it needs it."""
    model_vbar.vbar_unpin(held)


def file_source() -> Any:
    """How to map files so that dynamic VRAM reads weights from the disk straight to the card, as it does with core's own
    files; None where ComfyUI runs without it."""
    if not contract.works(Feature.FROM_FILES) or not _memory.aimdo_enabled:
        return None
    return lambda path: _load_torch_file(str(path))


@contextlib.contextmanager
def places_kept(modules: list[torch.nn.Module]) -> Iterator[None]:
    """A load of ComfyUI's after which what these layers have on the card counts as good, as before."""
    resident = [(module, module._v_signature) for module in modules if hasattr(module, "_v_signature")]
    yield
    for module, signature in resident:
        if "_v" in module.__dict__:
            module._v_signature = signature


# ---- from the file straight to the card (first_load.py): what the first use of a layer comes to ------------------------


def _parts(tensor: Any) -> list[torch.Tensor]:
    """The plain tensors that a weight is stored as, in core's order."""
    if tensor is None:
        return []
    if not isinstance(tensor, QuantizedTensor):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def awaits_first_load(module: torch.nn.Module) -> bool:
    """Whether a layer's weights are still in their file alone, and come to the card as they are there."""
    state = module.__dict__
    if "_v" not in state or state.get("_v_signature") is not None:
        return False
    if any("pin" in pin for pin in state.get("_pins", {}).values()):
        return False
    for name in ("weight", "bias"):
        tensor = getattr(module, name)
        if tensor is not None and getattr(tensor, "_model_dtype", tensor.dtype) != tensor.dtype:
            return False
        if getattr(module, f"{name}_lowvram_function", None) is not None:
            return False
        if not all(hasattr(part.untyped_storage(), "_comfy_tensor_file_slice") for part in _parts(tensor)):
            return False
    return True


def room_on_card(nbytes: int, model: torch.nn.Module, device: torch.device) -> bool:
    """Whether so much of a model fits on `device` beside what a computation needs at least, and ComfyUI was not told to keep
    a copy in RAM, or to pin nothing. Other models of dynamic VRAM make room as it is asked for: theirs is free."""
    if _args.high_ram or not pins_memory():
        return False
    free = _management.get_free_memory(device) - _management.minimum_inference_memory()
    for loaded in _management.current_loaded_models:
        other = loaded.model
        if other is not None and other.is_dynamic() and other.load_device == device and other.model is not model:
            free += other.loaded_size()
    return nbytes <= free


def pins_memory() -> bool:
    """Whether ComfyUI may pin memory: its switch was an argument, and moved to where it is also turned off for some systems."""
    return not (getattr(_args, "disable_pinned_memory", False) or getattr(_management, "DISABLE_PINNED_MEMORY", False))


def allocation_bytes(module: Any) -> int:
    """What dynamic VRAM sets aside for a layer."""
    return module._v[2]


class Arrival:
    """A layer's memory on the card, held, and what has to be read into it.

    Attributes:
        name: the layer's.
        reads: pairs of a part of the file and the memory it goes to.
        nbytes: of all parts.
    """

    def __init__(self, name: str, module: torch.nn.Module, device: torch.device, signature: Any):
        self.name = name
        self._module, self._signature = module, signature
        memory = aimdo_to_tensor(module._v, device)
        tensors = [module.weight, module.bias]
        self._views = _interpret_gathered_like(tensors, memory)
        pairs = zip(tensors, self._views, strict=True)
        self.reads = [pair for a, b in pairs for pair in zip(_parts(a), _parts(b), strict=True)]
        self.nbytes = sum(part.nbytes for part, _ in self.reads)

    def settle(self) -> None:
        """All was read: the layer is on the card."""
        self._module._v_weight, self._module._v_bias = self._views
        self._module._v_signature = self._signature

    def release(self) -> None:
        """Let dynamic VRAM take the memory again, if it needs it."""
        model_vbar.vbar_unpin(self._module._v)


def arrive(name: str, module: torch.nn.Module, device: torch.device) -> Arrival | None:
    """Hold a layer's memory on `device`; None where dynamic VRAM has none for it."""
    signature = model_vbar.vbar_fault(module._v)
    if signature is None:
        return None
    try:
        return Arrival(name, module, device, signature)
    except BaseException:
        model_vbar.vbar_unpin(module._v)
        raise


class Reader:
    """Reads parts of files to a card by core's threads, through a little pinned memory of its own. For one thread.

    Core's own reader for this may be used by one thread alone, and packed layers are too small to keep its eight busy.

    Attributes:
        stream: what reads are ordered on; whoever uses them waits for it.
    """

    _WINDOW = 32 << 20

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self._device = device.index or 0
        # Two windows: one is read into while the other goes over the bus.
        self._buffer = _host_buffer.HostBuffer(2 * self._WINDOW, mark_cold=False)
        self._window, self._end = 0, 0
        self._sent = [torch.cuda.Event(), torch.cuda.Event()]

    def read(self, part: torch.Tensor, memory: torch.Tensor) -> None:
        """Read the file of `part` into `memory`.

        Raises:
            RuntimeError: the system or the driver refused.
        """
        storage: Any = part.untyped_storage()
        place = storage._comfy_tensor_file_slice
        for done in range(0, place.size, self._WINDOW):
            size = min(self._WINDOW, place.size - done)
            if self._end + size > self._WINDOW:
                self._sent[self._window].record(self.stream)
                self._window, self._end = 1 - self._window, 0
                self._sent[self._window].synchronize()
            self._buffer.read_file_slice(
                place.file_ref,
                place.offset + done,
                size,
                offset=self._window * self._WINDOW + self._end,
                stream=self.stream.cuda_stream,
                device_ptr=memory.data_ptr() + done,
                device=self._device,
            )
            self._end += -(-size // 4096) * 4096


# ---- recorded blocks (recorded_blocks.py) ----------------------------------------------------------------------------


def unused_memory(device: torch.device) -> int:
    """Bytes of `device` that nobody holds, torch's allocator included: a graph cannot use what that keeps for later."""
    if device.type != "cuda":
        return _management.get_free_memory(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def use_again(patcher: Any) -> None:
    """What a load of ComfyUI's dynamic patcher does besides going through the layers: the model comes first on the card again,
    and its pinned memory is in use."""
    vbar = patcher._vbar_get(create=True)
    if vbar is not None:
        vbar.prioritize()
    pins = patcher.model.dynamic_pins[patcher.load_device]
    pins["failed"], pins["active"] = False, True


def others_make_room(nbytes: int, model: torch.nn.Module, device: torch.device) -> bool:
    """Have other models give up so much of `device`, if that is there: dynamic VRAM brings theirs back as they are used."""
    others = [loaded.model for loaded in _management.current_loaded_models]
    others = [
        o for o in others if o is not None and o.is_dynamic() and o.load_device == device and o.model is not model
    ]
    if nbytes > sum(other.loaded_size() for other in others):
        return False
    for other in others:
        if nbytes > 0:
            nbytes -= other.partially_unload(other.offload_device, nbytes)
    return nbytes <= 0


class Whereabouts:
    """Where the weights of some modules are on a device, for work that was recorded with their addresses."""

    def __init__(self, modules: list[Any], device: torch.device):
        self._modules = modules
        self._device = device
        self._state = self._look()
        allocations = sorted(
            {module._v[1]: module._v for module in modules if "_v" in module.__dict__}.values(), key=lambda v: v[1]
        )
        self._ranges: list[tuple[Any, int, int]] = []
        for reservation, start, size in allocations:
            if self._ranges:
                previous, begun, length = self._ranges[-1]
                if previous is reservation and start - (begun + length) < 512:  # as reservations align
                    self._ranges[-1] = previous, begun, start + size - begun
                    continue
            self._ranges.append((reservation, start, size))
        self._signatures = self._pages()

    @classmethod
    def of(cls, root: torch.nn.Module, device: torch.device) -> Whereabouts | None:
        """Of a module and all in it; None where a weight is not on the device, or is patched anew at each use."""
        modules = []
        for module in root.modules():
            if not module._parameters:
                continue
            modules.append(module)
        found = cls(modules, device)
        resident = all(found._is_resident(module) for module in modules if "_v" in module.__dict__)
        return None if found._state is None or found._signatures is None or not resident else found

    def unchanged(self) -> bool:
        """Whether all of them still are where they were, with what was there or what ComfyUI put there since."""
        return self._look() == self._state and self._pages() == self._signatures

    def may_come_back(self) -> bool:
        """Whether all of them belong where they were, though dynamic VRAM took some away: their next use brings them there."""
        return self._look() == self._state

    def came_back(self) -> bool:
        """Whether all of them are where they were again."""
        if not self.may_come_back() or not all(self._is_resident(m) for m in self._modules if "_v" in m.__dict__):
            return False
        signatures = self._pages()
        if signatures is None:
            return False
        self._signatures = signatures
        return True

    def _is_resident(self, module: torch.nn.Module) -> bool:
        resident = take_resident(module, self._device)
        if resident is None:
            return False
        release_resident(resident[2])
        return True

    def _look(self) -> tuple | None:
        found: list[Any] = []
        for module in self._modules:
            state = module.__dict__
            if state.get("weight_function") or state.get("bias_function"):
                return None
            low_rank = state.get("low_rank")
            if low_rank is not None:
                found += (low_rank, low_rank.up.data_ptr(), low_rank.down.data_ptr())
            if "_v" in state:
                if state.get("_v_signature") is None:
                    return None
                found.append(state["_v"])
                continue
            for tensor in module._parameters.values():
                for part in _parts(tensor):
                    if part.device != self._device:
                        return None
                    found.append(part.data_ptr())
        return tuple(found)

    def _pages(self) -> tuple | None:
        """What tells whether dynamic VRAM took pages away, even if it gave others back."""
        signatures = []
        for reservation, start, size in self._ranges:
            signature = reservation.fault(start, size)
            if signature is None:
                return None
            reservation.unpin(start, size)
            signatures.append(bytes(signature))
        return tuple(signatures)
