"""What core's save nodes write of the pack's models: state dicts that bring their metadata, for core's one writer.

`ModelSave`, `CheckpointSave`, `CLIPSave` and `VAESave` all end in `comfy.utils.save_torch_file(sd, path, metadata)`, and give it
no metadata of the model. Source: ComfyUI 0.30.0, `comfy/utils.py`, `comfy/sd.py`, `comfy_extras/nodes_model_merging.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ...hlwq_core.errors import UnsupportedError
from . import contract
from .contract import Feature

_utils = contract.module("comfy.utils")

_PROJECTION = "text_embedding_projection."
# Under this prefix core looks in a checkpoint for a T5, and for LTX-2.3's encoder nowhere.
_NO_PLACE = f"text_encoders.{_PROJECTION}"
# CLIPSave takes other encoders' prefixes off, but not this one; no loader looks for a Gemma under it.
_GEMMA = "gemma3_12b.transformer."
# About the run that wrote a file, not about the model in it.
_OF_A_RUN = ("prompt", "workflow", "hlwq.", "format")


class StateDict(dict[str, Any]):
    """A state dict that is about to be written, with the metadata that whoever loads the file needs."""

    def __init__(self, tensors: Mapping[str, Any], metadata: Mapping[str, str]):
        super().__init__(tensors)
        self.metadata = {key: text for key, text in metadata.items() if not key.startswith(_OF_A_RUN)}


def _with_metadata(write: Any) -> Any:
    """`save_torch_file` that writes a `StateDict`'s metadata as well (what the caller gives comes first), and LTX-2.3's text
    encoder under the names that loaders look for."""

    @functools.wraps(write)
    def save_torch_file(sd: Any, ckpt: Any, metadata: Any = None) -> Any:
        if any(name.startswith(_NO_PLACE) for name in sd):
            raise UnsupportedError(
                "ComfyUI has no place for LTX-2.3's text encoder in a checkpoint, and could not load it again: nothing was written",
                file=ckpt,
                expected="the parts in files of their own",
                found="MODEL and CLIP for one file",
                fix="save the MODEL with ModelSave, the CLIP with CLIPSave and each VAE with VAESave",
            )
        if isinstance(sd, StateDict):
            metadata = {**sd.metadata, **(metadata or {})}
        elif any(name.startswith(_PROJECTION) for name in sd):
            sd = {name.removeprefix(_GEMMA): value for name, value in sd.items()}
        return write(sd, ckpt, metadata)

    return save_torch_file


if contract.works(Feature.SAVING):
    _utils.save_torch_file = _with_metadata(_utils.save_torch_file)
