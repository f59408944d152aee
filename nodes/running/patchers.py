"""Patchers of models with packed weights: a LoRA is added after decoding, at every use, and never written back.

ComfyUI's dynamic patcher would quantize the patched weight again and keep that (a 2 % LoRA is gone after one step), its
other patcher would bake patches into the weights, and saving would hand packed tensors to safetensors.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch

from ...hlwq_core.running import packed_tensor, scratch
from .. import compat
from ..compat.saving import StateDict
from . import as_chosen, first_load, fitting, kept_decoded, recorded_blocks, still_loaded
from .low_rank import LowRank, is_plain, is_plain_lora


class PatchAfterDecoding:
    """The patches of one weight as a function of the decoded weight. Factors are kept on the device that asks for them."""

    is_lowvram_patch = True

    def __init__(self, key: str, patches: dict[str, list[tuple]]):
        self.key = key
        self.patches = patches
        self._device: torch.device | None = None
        self._dtype = torch.float32
        self._on_device: list[tuple] = []

    def move_to(self, device: torch.device | None = None) -> int:
        """Move the factors to a device; returns the bytes they take there. ComfyUI calls it as it loads and offloads."""
        if device is None or torch.device(device) == self._device:
            return 0
        counted, device = [0], torch.device(device)
        patches = self.patches[self.key]
        # Products of plain LoRA factors are exact enough in bfloat16 (they are summed in float32), and much faster there.
        fast = device.type != "cpu" and all(is_plain_lora(value) for _, value, *_ in patches)
        self._on_device = [(strength, _move(value, device, counted), *rest) for strength, value, *rest in patches]
        # Only now: without memory for them they are not there.
        self._device, self._dtype = device, torch.bfloat16 if fast else torch.float32
        return counted[0]

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        self.move_to(weight.device)
        # What a hook that makes a LoRA of a model subtracts; core has it from the patcher, where ours is packed.
        differs = any(isinstance(value, tuple) and value[0] == "model_as_lora" for _, value, *_ in self._on_device)
        original = {self.key: [(weight.clone(),)]} if differs else None
        return compat.calculate_weight(
            self._on_device, weight, self.key, intermediate_dtype=self._dtype, original_weights=original
        )


def _move(value: Any, device: torch.device, counted: list[int]) -> Any:
    """A patch's value with its tensors on `device`. Lists are whole weights of other models: they stay where they are."""
    if isinstance(value, torch.Tensor):
        counted[0] += value.nbytes
        return value.to(device)
    if isinstance(value, compat.WeightAdapterBase):
        return type(value)(value.loaded_keys, _move(value.weights, device, counted))
    if isinstance(value, tuple):
        return tuple(_move(item, device, counted) for item in value)
    return value


def packed_modules(patcher: Any) -> list[tuple[str, Any]]:
    """The layers of a patcher's model whose weight is packed, with the key of that weight."""
    return [
        (f"{name}.weight", module)
        for name, module in patcher.model.named_modules()
        if packed_tensor.is_packed(getattr(module, "weight", None))
    ]


def route_patches(patcher: Any, device: torch.device, *unused: Any) -> None:
    """After a load, under either patcher: each packed weight's patches are added after decoding, at every use."""
    loaded = 0
    modules = packed_modules(patcher)
    for key, module in modules:
        # The dynamic patcher's own hook for patches writes the re-quantized weight back: it must not see them.
        module.weight_lowvram_function = None
        functions = [f for f in module.weight_function if not isinstance(f, (PatchAfterDecoding, compat.LowVramPatch))]
        patches = patcher.patches.get(key, [])
        if patches:
            compat.require(compat.Feature.LORA)
        plain = bool(patches) and all(is_plain(patch, module.weight.shape) for patch in patches)
        if not plain:
            module.low_rank = None
        elif module.low_rank is None or not module.low_rank.is_of(patches):
            module.low_rank = None  # its memory first
            module.low_rank = LowRank(patches, module.weight.dtype, device)
        if plain:
            module.low_rank.move_to(device)
            loaded += module.low_rank.nbytes
        elif patches:
            patch = PatchAfterDecoding(key, patcher.patches)
            loaded += patch.move_to(device)
            functions.insert(0, patch)
        module.weight_function = functions
    if not patcher.is_dynamic():
        patcher.model.model_loaded_weight_memory += loaded
    elif kept_decoded.wanted(patcher.model) and device.type != "cpu":
        kept_decoded.lend_places(patcher.model, [module for _, module in modules], device)


def eject_misfits(patcher: Any) -> None:
    """Bypass adapters that do not fit their layer go again before anything is sampled."""
    fitting.eject_misfits(patcher.model)


def after_sampling(patcher: Any, *unused: Any) -> None:
    """The run has ended; the scratch buffer goes back, unless recordings that are kept for the next one hold it anyway."""
    as_chosen.end_run(patcher)
    if not recorded_blocks.end_run(patcher.model):
        scratch.release(patcher.load_device)


# What core keeps of a weight that it replaces for a while.
_Backup = namedtuple("_Backup", ["weight", "inplace_update"])


class _Packed:
    """What both patchers have in common."""

    patches: dict[str, list[tuple]]

    def add_patches(
        self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """As in core, without those that do not fit their weights: they are named now, not while the model samples."""
        fit = fitting.fitting(self.model, patches, self.patches)  # type: ignore[attr-defined]
        added = super().add_patches(fit, strength_patch, strength_model)  # type: ignore[misc]
        # Core says "not loaded" of what is missing here; those were named already, with the reason.
        return [*added, *(target for target in patches if target not in fit)]

    def add_hook_patches(
        self, hook: Any, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """The same for a hook's patches."""
        fit = fitting.fitting(self.model, patches, self.patches)  # type: ignore[attr-defined]
        added = super().add_hook_patches(hook, fit, strength_patch, strength_model)  # type: ignore[misc]
        return [*added, *(target for target in patches if target not in fit)]

    def is_packed_key(self, key: str) -> bool:
        """Whether `key` names a packed weight of the model."""
        return packed_tensor.is_packed(compat.get_key_weight(self.model, key)[0])  # type: ignore[attr-defined]

    def patch_weight_to_device(
        self,
        key: str,
        device_to: Any = None,
        inplace_update: bool = False,
        return_weight: bool = False,
        force_cast: bool = False,
    ) -> Any:
        """As in core, but packed weights are only moved, by whoever moves the module: patches come after decoding."""
        if self.is_packed_key(key):
            if return_weight:
                return self.patched_weight(key, device_to)
            if force_cast:
                self._move_packed(key, device_to)
            return None
        return super().patch_weight_to_device(  # type: ignore[misc]
            key,
            device_to=device_to,
            inplace_update=inplace_update,
            return_weight=return_weight,
            force_cast=force_cast,
        )

    def _move_packed(self, key: str, device: torch.device) -> None:
        """What the dynamic patcher does with small layers: to the device, and remember the original."""
        packed = compat.get_key_weight(self.model, key)[0]  # type: ignore[attr-defined]
        backup = self.backup  # type: ignore[attr-defined]
        backup.setdefault(key, _Backup(packed, False))
        compat.utils.set_attr(self.model, key, packed_tensor.as_parameter(packed.to(device=device)))  # type: ignore[attr-defined]

    def patched_weight(self, key: str, device: torch.device | None = None) -> torch.Tensor:
        """A packed weight decoded, with its patches, in its logical dtype: what a saved file gets."""
        packed = compat.get_key_weight(self.model, key)[0]  # type: ignore[attr-defined]
        weight = packed_tensor.decode(packed._qdata, packed._params, torch.float32)
        if device is not None:
            weight = weight.to(device)
        if key in self.patches:
            weight = PatchAfterDecoding(key, self.patches)(weight)
        return weight.to(packed.dtype)

    def model_state_dict_for_saving(self, model: Any = None, prefix: str = "") -> dict[str, torch.Tensor]:
        """As in core; packed weights are decoded one by one as the file is written."""
        compat.require(compat.Feature.SAVING)
        model = self.model if model is None else model  # type: ignore[attr-defined]
        packed = {name: value for name, value in model.state_dict().items() if packed_tensor.is_packed(value)}
        state_dict = super().model_state_dict_for_saving(_Without(model, packed), prefix)  # type: ignore[misc]
        order = list(model.state_dict())
        for name, value in packed.items():
            state_dict[name] = DecodedOnSaving(self, prefix + name, value)
        return {name: state_dict[name] for name in order if name in state_dict}

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> StateDict:
        """As in core, with the metadata that the model was detected by: without it the file would be another model."""
        state_dict = super().state_dict_for_saving(*args, **kwargs)  # type: ignore[misc]
        return StateDict(state_dict, getattr(self.model, "hlwq_metadata", {}))  # type: ignore[attr-defined]

    def patch_hook_weight_to_device(
        self, hooks: Any, combined_patches: dict[str, Any], key: str, original_weights: Any, memory_counter: Any
    ) -> Any:
        """Hooks patch a packed weight as a LoRA does: after decoding."""
        if not self.is_packed_key(key):
            return super().patch_hook_weight_to_device(  # type: ignore[misc]
                hooks, combined_patches, key, original_weights, memory_counter
            )
        if key in combined_patches:
            compat.require(compat.Feature.LORA)
            module = compat.utils.get_attr(self.model, key.rpartition(".")[0])  # type: ignore[attr-defined]
            module.weight_function = [*_without_hooks(module), _HookPatch(key, combined_patches)]
            self.model.__dict__.setdefault("hlwq_hooked", []).append(module)  # type: ignore[attr-defined]
        return None

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        """Take the hooks' patches off again."""
        for module in self.model.__dict__.pop("hlwq_hooked", []):  # type: ignore[attr-defined]
            module.weight_function = _without_hooks(module)
        super().unpatch_hooks(whitelist_keys_set)  # type: ignore[misc]


class _HookPatch(PatchAfterDecoding):
    pass


def _without_hooks(module: Any) -> list[Callable]:
    return [f for f in module.weight_function if not isinstance(f, _HookPatch)]


class PackedPatcher(_Packed, compat.ModelPatcher):
    """ComfyUI's ModelPatcher for packed weights."""

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        """As in core, and packed layers forget their patches."""
        if unpatch_weights:
            recorded_blocks.release(self.model)  # weights are about to move
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            scratch.release(self.load_device)  # of a text encoder, which is not sampled: nobody else would
            for _, module in packed_modules(self):
                module.weight_function = []
                module.low_rank = None

    def partially_unload(
        self, device_to: torch.device | None, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> Any:
        """As in core; the patches of what was offloaded are there already, as functions of the decoded weight."""
        recorded_blocks.release(self.model)
        freed = super().partially_unload(device_to, memory_to_free, force_patch_weights)
        for _, module in packed_modules(self):
            module.weight_function = [f for f in module.weight_function if not isinstance(f, compat.LowVramPatch)]
        return freed


class PackedPatcherDynamic(_Packed, compat.ModelPatcherDynamic):
    """ComfyUI's ModelPatcherDynamic for packed weights."""

    def load(self, *args: Any, **kwargs: Any) -> None:
        """As in core, but not again where nothing changed, and packed weights on the card stay good when the patches change:
        they are never written into them. What is still in the files is then read at once."""
        as_chosen.before_load(self)
        if not kwargs.get("dirty") and still_loaded.is_loaded(self):
            compat.use_again(self)
            kept_decoded.use_again(self.model, self.load_device)
            return
        still_loaded.forget(self)
        with compat.places_kept([module for _, module in packed_modules(self)]):
            super().load(*args, **kwargs)
        try:
            first_load.load(self, self.load_device)
        except compat.InterruptProcessingException:
            self.detach()  # as core does after an error, of which Cancel is none: core would not know of a model that is loaded
            raise
        still_loaded.note(self)

    def restore_loaded_backups(self) -> Any:
        """As in core: small weights leave the card."""
        still_loaded.forget(self)
        return super().restore_loaded_backups()

    def partially_unload(
        self, device_to: torch.device | None, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> Any:
        """As in core, after decoded weights that were kept and recordings; where all of it is too little, the LoRAs' factors go
        as well. They come back at their next use."""
        freed = kept_decoded.give_back(self.model, self.load_device, memory_to_free)
        if freed < memory_to_free:
            freed += recorded_blocks.release(self.model)
        if freed < memory_to_free:
            freed += super().partially_unload(device_to, memory_to_free - freed, force_patch_weights)
        if freed < memory_to_free:
            low_ranks = [module.low_rank for _, module in packed_modules(self) if module.low_rank is not None]
            freed += sum(low_rank.move_to(self.offload_device) for low_rank in low_ranks)
            scratch.release(self.load_device)
        return freed


class _Without:
    """A module as core's saving code looks at it, less some names of its state dict."""

    def __init__(self, module: Any, names: dict[str, torch.Tensor]):
        self._module = module
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self._module.state_dict().items() if name not in self._names}


_LazyDevice = namedtuple("_LazyDevice", ["type", "index"])
_LAZY_DEVICE = _LazyDevice("decoded-on-saving", 0)


class DecodedOnSaving(torch.nn.Parameter):
    """Stands for a dense weight in a state dict that is about to be written; `.to("cpu")` makes it."""

    def __new__(cls, patcher: Any, key: str, weight: torch.Tensor) -> DecodedOnSaving:
        return super().__new__(cls, torch.empty(weight.shape, dtype=weight.dtype, device="meta"), False)

    def __init__(self, patcher: Any, key: str, weight: torch.Tensor):
        self.patcher = patcher
        self.key = key

    @property
    def device(self) -> Any:  # type: ignore[override]  # in torch it is an attribute that can be set
        """No device that safetensors knows, so that it asks for the tensor on the CPU."""
        return _LAZY_DEVICE

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The dense weight on the CPU, whatever is asked for: safetensors asks for that."""
        return self.patcher.patched_weight(self.key, self.patcher.load_device).cpu()


def adopt(patcher: Any) -> Any:
    """Make a patcher that core built one for packed weights, and every clone of it as well; returns it."""
    if not isinstance(patcher, _Packed):
        patcher.__class__ = PackedPatcherDynamic if patcher.is_dynamic() else PackedPatcher
    # Cached hook weights would hold plain weights only, and leave the packed ones unpatched on the second use.
    patcher.hook_mode = compat.EnumHookMode.MinVram
    for call, callback in (
        (compat.CallbacksMP.ON_LOAD, route_patches),
        (compat.CallbacksMP.ON_CLONE, _adopt_clone),
        (compat.CallbacksMP.ON_PRE_RUN, as_chosen.begin_run),
        (compat.CallbacksMP.ON_INJECT_MODEL, eject_misfits),
        (compat.CallbacksMP.ON_CLEANUP, after_sampling),
    ):
        patcher.remove_callbacks_with_key(call, "hlwq")
        patcher.add_callback_with_key(call, "hlwq", callback)
    return patcher


def _adopt_clone(original: Any, clone: Any) -> None:
    # Core makes plain patchers of a dynamic one's non-dynamic clones.
    adopt(clone)
