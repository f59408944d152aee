"""Under dynamic VRAM core maps the files, so that it can bring packed bytes from the disk straight to the card."""

from __future__ import annotations

import pytest
import torch

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"


def slice_of(tensor: torch.Tensor):
    """What core's reader looks for: the file and place of a tensor's bytes."""
    return getattr(tensor.untyped_storage(), "_comfy_tensor_file_slice", None)


@pytest.fixture
def dynamic_vram(monkeypatch, comfy):
    """ComfyUI as with dynamic VRAM; its mapping needs a GPU's driver, so plain memory stands in for that alone."""
    import mmap
    from types import SimpleNamespace

    import comfy.memory_management
    import comfy_aimdo.model_mmap

    class Mapping:
        def __init__(self, path):
            self.file = open(path, "rb")
            self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)

        def get(self):
            import ctypes

            return ctypes.addressof(ctypes.c_uint8.from_buffer(self.map))

        def get_file_handle(self):
            return SimpleNamespace(name=self.file.name)

    monkeypatch.setattr(comfy_aimdo.model_mmap, "ModelMMAP", Mapping)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)


def test_packed_and_plain_weights_know_their_place_in_the_file(load, sample, distance, dynamic_vram, monkeypatch):
    from comfyui_hlwq.nodes import locations, model_loading
    from comfyui_hlwq.nodes.running import patchers

    model = load()[0]
    packed = [module.weight for _, module in patchers.packed_modules(model)]
    assert len(packed) == 2 * 28 + 2
    for weight in packed:
        codes, norms = weight._qdata, weight._params.scale
        for tensor in (codes, norms):
            place = slice_of(tensor)
            # Core refuses slices that are not the whole of the tensor.
            assert place.size == tensor.nbytes and tensor.storage_offset() == 0 and tensor.is_contiguous()
        place = slice_of(codes)
        with open(place.file_ref.name, "rb") as file:
            file.seek(place.offset)
            assert file.read(place.size) == codes.numpy().tobytes()
    opened = model_loading.open_complete(locations.checkpoint(CHECKPOINT))
    plain = opened.checkpoint.plain("model.diffusion_model.patchify_proj.bias")
    assert slice_of(plain).size == plain.nbytes
    monkeypatch.undo()
    assert distance(sample(model, steps=1), sample(load()[0], steps=1)) == 0


def test_without_dynamic_vram_the_pack_maps_the_files(load, pack):
    from comfyui_hlwq.nodes import compat
    from comfyui_hlwq.nodes.running import patchers

    assert compat.file_source() is None
    weight = patchers.packed_modules(load()[0])[0][1].weight
    assert slice_of(weight._qdata) is None
