"""Weights read to the card at once: all of them as the files hold them, or as if nothing had been tried. Stand-ins for what
needs a card: the memory that dynamic VRAM lends, the reader's driver, streams and events."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from .test_file_source import dynamic_vram  # noqa: F401  a fixture
from .test_kept_decoded import Arena

CARD = torch.device("cuda", 0)


class Stream:
    """Copies to the card, in order; they happen when somebody waits, as late as they may."""

    def __init__(self):
        self.copies: list[tuple[int, int, int]] = []
        self.cuda_stream = id(self)
        streams[self.cuda_stream] = self

    def synchronize(self, count=None):
        copies, self.copies = self.copies[:count], self.copies[count:] if count is not None else []
        for target, source, size in copies:
            ctypes.memmove(target, source, size)


class Event:
    """A place in a stream."""

    stream = None

    def record(self, stream):
        self.stream, self.copies = stream, list(stream.copies)

    def synchronize(self):
        if self.stream is not None:
            self.stream.synchronize(len(self.copies))
            self.stream = None


class HostBuffer:
    """aimdo's pinned memory: reads a file into it and sends that to the card."""

    def __init__(self, size, mark_cold):
        assert not mark_cold
        self.memory = (ctypes.c_uint8 * size)()

    def read_file_slice(self, file, place, size, *, offset, stream, device_ptr, device):
        if broken:
            broken.pop()
            raise RuntimeError("the disk is gone")
        assert offset + size <= len(self.memory) and device == 0
        with open(file.name, "rb") as data:
            data.seek(place)
            view = memoryview(self.memory).cast("B")[offset : offset + size]
            assert data.readinto(view) == size
        streams[stream].copies.append((device_ptr, ctypes.addressof(self.memory) + offset, size))


streams: dict[int, Stream] = {}
broken: list[bool] = []


@pytest.fixture
def card(monkeypatch, load, dynamic_vram):  # noqa: F811
    """A model as dynamic VRAM has it before its first step, and what is held of the memory it was lent."""
    import comfy.memory_management
    import comfy_aimdo.host_buffer
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import first_load, packed_ops

    held: list[tuple] = []
    lost: list[int] = []

    def fault(allocation):
        arena, start, size = allocation
        if start + size > arena.watermark - sum(lost):
            return None
        held.append(allocation)
        return (ctypes.c_uint32 * 1)(1)

    vbar = SimpleNamespace(vbar_fault=fault, vbar_unpin=held.remove, vbar_signature_compare=lambda a, b: False)
    for place in (compat, compat.dynamic_vram):
        monkeypatch.setattr(place, "model_vbar", vbar)
        monkeypatch.setattr(place, "aimdo_to_tensor", lambda a, device: a[0].memory[a[1] : a[1] + a[2]])
    monkeypatch.setattr(compat, "room_on_card", lambda *_: True)
    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", HostBuffer)
    monkeypatch.setattr(compat.Reader, "_WINDOW", 1 << 14)  # many layers are larger
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(first_load, "_proven", {})
    monkeypatch.delenv(first_load.SWITCH, raising=False)
    linear = packed_ops.PackedOperations.Linear
    take = linear._load_from_state_dict

    def assign(self, state_dict, prefix, metadata, *rest):
        """As for a patcher of dynamic VRAM: views of the files, not copies."""
        take(self, state_dict, prefix, {**metadata, "assign_to_params_buffers": True}, *rest)

    monkeypatch.setattr(linear, "_load_from_state_dict", assign)
    model = load()[0]
    modules = [module for module in model.model.modules() if isinstance(module, linear)]
    sizes = [comfy.memory_management.vram_aligned_size([m.weight, m.bias]) for m in modules]
    arena = Arena(sum(sizes) + 512 * len(sizes), CARD)
    arena.memory.fill_(255)
    for module, size in zip(modules, sizes, strict=True):
        module._v, module._v_signature = arena.alloc(size), None
    broken.clear()
    yield SimpleNamespace(model=model, modules=modules, arena=arena, lost=lost)
    assert not held, "memory was not given free"


def parts(tensor):
    from comfyui_hlwq.nodes import compat

    return [part.contiguous().view(torch.uint8) for part in compat.dynamic_vram._parts(tensor)]


def arrived(module) -> bool:
    """Whether a layer is on the card, and the card has what the file has."""
    if module._v_signature is None:
        return False
    pairs = ((module.weight, module._v_weight), (module.bias, module._v_bias))
    for here, there in pairs:
        assert all(torch.equal(a, b) for a, b in zip(parts(here), parts(there), strict=True))
    return True


def test_all_weights_arrive_as_the_files_hold_them(card, caplog):
    from comfyui_hlwq.hlwq_core.running import packed_tensor
    from comfyui_hlwq.nodes.running import first_load

    with caplog.at_level("INFO", "hlwq"):
        first_load.load(card.model, CARD)
    assert all(map(arrived, card.modules))
    packed = [module for module in card.modules if packed_tensor.is_packed(module.weight)]
    assert len(packed) == 2 * 28 + 2
    for module in packed:
        assert (
            packed_tensor.is_packed(module._v_weight)
            and module._v_weight._qdata.data_ptr() != module.weight._qdata.data_ptr()
        )
    assert f"{len(card.modules)} layers" in caplog.text and "read to the card" in caplog.text
    # The next sampling finds them there.
    card.arena.memory.fill_(7)
    first_load.load(card.model, CARD)
    assert bool((card.arena.memory == 7).all())


def test_a_disk_that_fails_is_named_and_nothing_is_taken_for_weights(card):
    from comfyui_hlwq.hlwq_core.errors import InputError
    from comfyui_hlwq.nodes.running import first_load

    broken.append(True)
    with pytest.raises(InputError, match=r"the disk is gone[\s\S]*HLWQ Verify") as caught:
        first_load.load(card.model, CARD)
    assert any(name and name in str(caught.value) for name, _ in card.model.model.named_modules())
    assert not any(map(arrived, card.modules))
    first_load.load(card.model, CARD)  # the disk is back
    assert all(map(arrived, card.modules))


def test_what_has_no_room_is_left_to_core(card, monkeypatch):
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import first_load

    monkeypatch.setattr(compat, "room_on_card", lambda *_: False)
    first_load.load(card.model, CARD)
    assert not any(map(arrived, card.modules))
    monkeypatch.setattr(compat, "room_on_card", lambda *_: True)
    card.lost.append(len(card.arena.memory) // 2)  # somebody takes it meanwhile
    first_load.load(card.model, CARD)
    assert 0 < sum(map(arrived, card.modules)) < len(card.modules)


def test_what_other_dynamic_models_hold_is_room(pack, monkeypatch):
    """They make room on demand, so a text encoder that is still on the card is no reason to load layer by layer."""
    import comfy.cli_args
    from comfyui_hlwq.nodes import compat

    def patcher(size, dynamic=True, device=CARD):
        return SimpleNamespace(
            is_dynamic=lambda: dynamic, load_device=device, model=object(), loaded_size=lambda: size << 30
        )

    own, text = patcher(3), patcher(8)
    others = [own, text, patcher(50, dynamic=False), patcher(50, device=torch.device("cuda", 1))]
    management = compat.model_management
    monkeypatch.setattr(management, "current_loaded_models", [SimpleNamespace(model=m) for m in [*others, None]])
    monkeypatch.setattr(management, "get_free_memory", lambda device: 10 << 30)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 1 << 30)
    assert compat.room_on_card(17 << 30, own.model, CARD)
    assert not compat.room_on_card(18 << 30, own.model, CARD)
    switches = [(comfy.cli_args.args, "high_ram"), (comfy.cli_args.args, "disable_pinned_memory")]
    # Where newer ones have the last one, which has another default on some systems.
    for place, switch in [*switches, (management, "DISABLE_PINNED_MEMORY")]:
        with monkeypatch.context() as patch:
            patch.setattr(place, switch, True, raising=False)
            assert not compat.room_on_card(1, own.model, CARD)


def test_layers_with_pins_patches_or_casts_are_left_to_core(card):
    from comfyui_hlwq.nodes.running import first_load

    pinned, patched, cast = card.modules[:3]
    pinned._pins = {"weights-loaded": {"pin": torch.empty(1)}}
    patched.weight_lowvram_function = object()
    cast.weight._model_dtype = torch.float64
    first_load.load(card.model, CARD)
    assert [arrived(module) for module in card.modules[:4]] == [False, False, False, True]


@pytest.mark.parametrize("where", [-1, 0, 1 << 13, (1 << 13) - 1])
def test_a_card_that_gets_other_bytes_is_not_trusted(card, monkeypatch, caplog, where):
    """A byte at either end of all that was read, or of what is read in one piece."""
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import first_load

    monkeypatch.setattr(first_load, "SPAN", 1 << 13)  # half of what the fixture's reader reads at a time
    monkeypatch.setattr(first_load, "END", 16)
    read = compat.Reader.read

    def wrong(self, part, memory):
        read(self, part, memory)
        self.stream.synchronize()
        there = memory.view(torch.uint8).flatten()
        if where < len(there):
            there[where] ^= 1

    monkeypatch.setattr(compat.Reader, "read", wrong)
    first_load.load(card.model, CARD)
    assert not any(map(arrived, card.modules)) and "not what the files hold" in caplog.text
    monkeypatch.setattr(compat.Reader, "read", read)
    first_load.load(card.model, CARD)
    assert not any(map(arrived, card.modules))


@pytest.mark.parametrize("nbytes", [1, 100, 64 << 10, (64 << 10) + 1, 16 << 20, (16 << 20) + 1, 2 << 30])
def test_little_comes_back_of_what_is_large(pack, nbytes):
    """A text encoder's embeddings are 2 GB: comparing all of them took 4 of the first prompt's seconds."""
    from comfyui_hlwq.nodes.running import first_load

    ends = list(first_load.ends_of(nbytes))
    assert ends[0].start == 0 and ends[-1].stop == nbytes
    assert all(0 < part.stop - part.start <= 64 << 10 for part in ends)
    assert sum(part.stop - part.start for part in ends) <= max(
        2 * nbytes if nbytes < 1 << 18 else 0, 1 << 17, nbytes // 100
    )


def test_it_can_be_turned_off_and_is_for_cuda_alone(card, monkeypatch):
    from comfyui_hlwq.nodes.running import first_load

    first_load.load(card.model, torch.device("cpu"))
    monkeypatch.setenv(first_load.SWITCH, "0")
    first_load.load(card.model, CARD)
    assert not any(map(arrived, card.modules))


def test_without_pinned_memory_core_loads(card, monkeypatch, caplog):
    import comfy_aimdo.host_buffer
    from comfyui_hlwq.nodes.running import first_load

    def none(*args, **kwargs):
        raise RuntimeError("HostBuffer allocation failed")

    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", none)
    first_load.load(card.model, CARD)
    assert not any(map(arrived, card.modules)) and "HostBuffer allocation failed" in caplog.text


def test_stopping_leaves_the_layers_as_they_were(card, monkeypatch):
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import first_load

    def stop():
        raise compat.model_management.InterruptProcessingException

    monkeypatch.setattr(compat.model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(compat.model_management.InterruptProcessingException):
        first_load.load(card.model, CARD)
    assert not any(map(arrived, card.modules))


def test_a_load_that_cancel_ended_leaves_nothing_that_core_does_not_know(load, monkeypatch):
    """Core notes a model as loaded after its load, and takes it off again after errors, of which Cancel is none."""
    import comfy.model_management as management
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import first_load, patchers

    made = load()[0].clone()
    made.__class__ = patchers.PackedPatcherDynamic
    did = []
    monkeypatch.setattr(compat.ModelPatcherDynamic, "load", lambda self, *args, **kwargs: did.append("loaded"))
    monkeypatch.setattr(compat.ModelPatcherDynamic, "__del__", lambda self: None)
    monkeypatch.setattr(patchers.PackedPatcherDynamic, "detach", lambda self, *args: did.append("detached"))
    monkeypatch.setattr(patchers.still_loaded, "note", lambda patcher: did.append("noted"))

    def cancelled(*args):
        raise management.InterruptProcessingException

    monkeypatch.setattr(first_load, "load", cancelled)
    with pytest.raises(management.InterruptProcessingException):
        made.load(torch.device("cpu"))
    assert did == ["loaded", "detached"]
    made.__class__ = patchers.PackedPatcher


def test_norms_are_copied_in_memory_without_torchs_threads(pack, monkeypatch):
    from comfyui_hlwq.hlwq_core.running import packed_tensor

    def params(value, bits):
        norms = torch.full((64, 32), value, dtype=torch.float16)
        return packed_tensor.HLWQLayout.Params(scale=norms, orig_dtype=torch.bfloat16, orig_shape=(64, 4096), bits=bits)

    here, there = params(0.0, 5), params(2.0, 4)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *args, **kwargs: pytest.fail("torch copied, by all its threads"))
    memory = here.scale
    here.copy_from(there)
    assert here.bits == 4 and here.scale is memory and bool((memory == 2).all())
