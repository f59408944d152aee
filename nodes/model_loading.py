"""From an open checkpoint to ComfyUI's models: complete, checked, and the diffusion model's weights still packed."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfyui_version
import torch

from ..hlwq_core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from ..hlwq_core.checkpoints.completeness import Whole, refuse_differences, refuse_incomplete, some, whole
from ..hlwq_core.codec import codec
from ..hlwq_core.errors import ConfigError, UnsupportedError
from ..hlwq_core.format.codebook import VERSIONS
from ..hlwq_core.format.sizes import BITS
from ..hlwq_core.models.family import Config, Family
from ..hlwq_core.running import packed_tensor
from . import compat
from .compat.saving import StateDict
from .running import as_chosen, choices, patchers
from .running.choices import Choices
from .running.packed_ops import PackedOperations

_log = logging.getLogger("hlwq")

AUDIO_PREFIXES = {"audio_vae.": "autoencoder.", "vocoder.": "vocoder."}
# Smaller layers win little by packing, and their errors weigh more.
PACK_REST_FROM = 1 << 20


class SavedWhole(compat.VAE):
    """Core's VAE; what is saved of it says what it is."""

    metadata: dict[str, str]

    def get_sd(self) -> StateDict:
        """As in core, with the metadata that the VAE was built by."""
        return StateDict(super().get_sd(), self.metadata)


@dataclass
class Opened:
    """A checkpoint that passed every check that headers allow.

    Attributes:
        checkpoint: the index.
        whole: what it is, and that it is whole.
        names: every tensor that the checkpoint has, by the model's names.
    """

    checkpoint: Checkpoint
    whole: Whole
    names: list[str]

    @property
    def family(self) -> Family | None:
        """The model's family; None for one that the pack does not know."""
        return self.whole.family

    @property
    def config(self) -> Config | None:
        """The config of a known family."""
        return self.whole.config

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata that ComfyUI's detection reads."""
        return {**self.checkpoint.metadata, **({"config": self.config.json} if self.config else {})}


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """Python's search for garbage walks through all that a full-size model is made of, several times: a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_garbage_kept()
def open_complete(path: Path, codebook: str | None = None, bit_order: str | None = None) -> Opened:
    """Open a checkpoint, choose its config, and count: every tensor that the model needs is there.

    Args:
        path: folder or file.
        codebook, bit_order: None to find them in the data.

    Raises:
        HLWQError: whatever is wrong with files, config or completeness; no weight was read.
    """
    ckpt = open_checkpoint(path, codebook=codebook, bit_order=bit_order, source=compat.file_source())
    result = whole(ckpt)
    refuse_unloadable(path, result)
    return Opened(ckpt, result, [*ckpt.names(), *ckpt.plain_names()])


def refuse_unloadable(path: Path, result: Whole) -> None:
    """Refuse a checkpoint of a known family that is not whole, or that this ComfyUI is too old for.

    Raises:
        HLWQError: why.
    """
    family = result.family
    if family is None:
        return  # ComfyUI's own model will tell what it needs
    if _version(comfyui_version.__version__) < _version(family.comfyui):
        raise UnsupportedError(
            f"{family.name} needs ComfyUI {family.comfyui} or newer, this is {comfyui_version.__version__}",
            file=path,
            expected=f"ComfyUI {family.comfyui} or newer",
            found=comfyui_version.__version__,
            fix="update ComfyUI",
        )
    refuse_incomplete(path, result)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def state_dict(
    opened: Opened, prefixes: dict[str, str], backend: str | None, step: Callable[[], None]
) -> dict[str, Any]:
    """The tensors under some prefixes, renamed as `prefixes` says.

    Args:
        backend: keep quantized tensors packed for this backend; None decodes them.
        step: called once a tensor.
    """
    ckpt = opened.checkpoint
    quantized = set(ckpt.names())
    result: dict[str, Any] = {}
    for name in opened.names:
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None:
            continue
        key = prefixes[prefix] + name[len(prefix) :]
        if name not in quantized:
            result[key] = ckpt.plain(name)
            step()
            continue
        ckpt.check_data(name)
        if backend is None:
            result[key] = ckpt.decode(name)
        else:
            result[key] = packed_tensor.quantized_tensor(ckpt.packed(name), torch.bfloat16, backend)
        step()
    return result


def diffusion_model(
    opened: Opened,
    chosen: Choices = choices.DEFAULT,
    disable_dynamic: bool = False,
    step: Callable[[], None] = lambda: None,
) -> Any:
    """The diffusion model as a patcher of ComfyUI, its quantized weights packed.

    Args:
        chosen: how it is decoded and run; what the device cannot do is done the next best way, and a warning says why.
        disable_dynamic: for ComfyUI's other patcher.
        step: called once a tensor.

    Raises:
        HLWQError: ComfyUI does not know the architecture, or tensors are missing, unknown or of other shapes.
    """
    compat.require(compat.Feature.LOADING)
    patcher = _build(opened, chosen.backend, disable_dynamic, step)
    model = patcher.model
    model.hlwq_metadata = opened.metadata
    decode_where_no_linear(model)
    if chosen.pack_rest:
        pack_the_rest(model, opened.checkpoint, chosen.backend)
    return run_as_chosen(patcher, chosen)


def run_as_chosen(patcher: Any, chosen: Choices) -> Any:
    """Make a patcher of a model with packed weights ours, its model to be run as the user chose.

    Args:
        patcher: of core, or one of ours that is chosen for anew.
        chosen: of it mode, attention, and what is recorded, kept and loaded at once.

    Returns:
        The patcher.
    """
    as_chosen.give(patcher, chosen)
    return patchers.adopt(patcher)


@_garbage_kept()
def _build(opened: Opened, backend: str, disable_dynamic: bool, step: Callable[[], None]) -> Any:
    """Core's patcher of the diffusion model: every tensor that it needs, and none that it has no place for."""
    path = opened.checkpoint.path
    prefix = compat.unet_prefix(opened.names)
    weights = state_dict(opened, {prefix: ""}, backend, step)
    if not prefix:
        # A file without prefixes holds a diffusion model and nothing else.
        opened.names = list(weights)
    try:
        patcher = compat.load_diffusion_model_state_dict(
            dict(weights),
            model_options={"custom_operations": PackedOperations},
            metadata=opened.metadata,
            disable_dynamic=disable_dynamic,
        )
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ConfigError(
            "the tensors' shapes are not those of the model that ComfyUI makes of this checkpoint",
            file=path,
            expected=f"the shapes that the config asks for ({opened.config.source if opened.config else 'ComfyUI'})",
            found=str(error).split("\n", 1)[-1].strip(),
            fix="give the checkpoint its own config.json, or update ComfyUI",
        ) from error
    if patcher is None:
        raise UnsupportedError(
            "ComfyUI knows no model with these tensors",
            file=path,
            expected="the tensors of a diffusion model that this ComfyUI knows",
            found=some(list(weights)),
            fix="update ComfyUI; if the names look foreign, the checkpoint was quantized from another library's format",
        )
    model = patcher.model
    given = model.model_config.process_unet_state_dict(weights)
    refuse_differences(path, "the diffusion model", tensors_of(model.diffusion_model), given)
    return patcher


def tensors_of(model: torch.nn.Module) -> list[str]:
    """The names that a model has a place for; a packed Linear that got nothing has no parameter that would tell."""
    names = dict.fromkeys(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, PackedOperations.Linear):
            names.update(dict.fromkeys([f"{name}.weight", *([f"{name}.bias"] if module.has_bias else [])]))
    return list(names)


def decode_where_no_linear(model: torch.nn.Module) -> None:
    """Any 2-D tensor may come quantized; what is not the weight of one of our linear layers is decoded here."""
    for module in model.modules():
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in places:
            for name, value in tensors.items():
                if (
                    value is not None
                    and packed_tensor.is_packed(value)
                    and not (isinstance(module, PackedOperations.Linear) and name == "weight")
                ):
                    dense = value.dequantize()
                    tensors[name] = torch.nn.Parameter(dense, False) if tensors is module._parameters else dense


def pack_the_rest(model: torch.nn.Module, ckpt: Checkpoint, backend: str) -> None:
    """Quantize the large linear weights that the checkpoint leaves dense, with its own bits and codebook; where it brings a
    codebook of its own making, with the published one."""
    device = compat.model_management.get_torch_device()
    like = ckpt.info(ckpt.names()[0])
    version = like.codebook if like.codebook in VERSIONS else "infinite"
    bits = like.bits if like.bits in BITS else 5
    rest = [
        module
        for module in model.modules()
        if isinstance(module, PackedOperations.Linear)
        and isinstance(module.weight, torch.Tensor)
        and not packed_tensor.is_packed(module.weight)
        and module.weight.numel() >= PACK_REST_FROM
    ]
    bar = compat.ProgressBar(len(rest))
    for module in rest:
        weight = module.weight
        encoded = codec.encode(weight.to(device), bits, version, norms="search")
        packed = encoded.layer("byte" if bits == 8 else "msb").to("cpu")
        module.weight = packed_tensor.as_parameter(packed_tensor.quantized_tensor(packed, weight.dtype, backend))
        bar.update(1)
    _log.info("HLWQ: packed %d more layers at load", len(rest))


def reload_diffusion_model(
    path: str,
    chosen: Choices,
    disable_dynamic: bool = False,
) -> Any:
    """Load the diffusion model again, for ComfyUI's `cached_patcher_init` (torch.compile, several GPUs)."""
    opened = open_complete(Path(path), chosen.version, chosen.order)
    patcher = diffusion_model(opened, chosen, disable_dynamic)
    patcher.cached_patcher_init = (reload_diffusion_model, (path, chosen))
    return patcher


def vae(opened: Opened, prefixes: dict[str, str], part: str, step: Callable[[], None] = lambda: None) -> Any | None:
    """A VAE from the tensors under some prefixes; None where the checkpoint has none.

    Raises:
        IncompleteError, UnsupportedError: its tensors are not all there, or not of a VAE that ComfyUI knows.
    """
    weights = state_dict(opened, prefixes, None, step)
    if not weights:
        return None
    path = opened.checkpoint.path
    result = SavedWhole(sd=dict(weights), metadata=opened.metadata)
    result.metadata = opened.metadata
    if result.first_stage_model is None:
        raise UnsupportedError(
            f"ComfyUI knows no {part} with these tensors",
            file=path,
            expected=f"the tensors of a {part} that this ComfyUI knows",
            found=some(list(weights)),
            fix="update ComfyUI",
        )
    if opened.config is not None:
        # ComfyUI only warns, and fills what is missing with zeros or noise.
        refuse_differences(path, f"the {part}", result.first_stage_model.state_dict(), weights)
    return result


def reload_vae(
    path: str,
    codebook: str | None,
    bit_order: str | None,
    prefixes: tuple[tuple[str, str], ...],
    part: str,
    disable_dynamic: bool = False,
) -> Any:
    """Load a VAE again and give its patcher, for ComfyUI's `cached_patcher_init` (several GPUs)."""
    loaded = vae(open_complete(Path(path), codebook, bit_order), dict(prefixes), part)
    return None if loaded is None else loaded.patcher
