"""Load Text Encoder: CLIP from a Gemma 3 file (or HLWQ folder) and the text projection of an HLWQ checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from comfy_api.latest import io

from ..hlwq_core import Checkpoint, open_checkpoint
from ..hlwq_core.errors import IncompleteError, InputError, UnsupportedError
from ..hlwq_core.format.bounded import read_bytes
from ..hlwq_core.format.safefile import read_header
from ..hlwq_core.format.variants import holds_codes
from ..hlwq_core.models import families, ltx2
from ..hlwq_core.running.packed_tensor import is_packed, quantized_tensor
from . import compat, gemma, gemma4, locations
from .locations import GEMMA_FILES, text_encoders
from .running.packed_ops import PackedOperations
from .running.patchers import adopt

PROJECTION = "text_embedding_projection."
STREAMS = ("video", "audio")
CONNECTOR = "model.diffusion_model.{}_embeddings_connector.learnable_registers"

State = dict[str, torch.Tensor]


def load_text_encoder(
    text_encoder: Path, checkpoint: Path, device: str = "default", disable_dynamic: bool = False
) -> Any:
    """A CLIP that encodes prompts for LTX-2.3, LTX-2.5 or LTX-2.

    Args:
        text_encoder: a Gemma 3 file in ComfyUI's or Hugging Face's naming (plain, or in one of core's quantized
            formats), or an HLWQ file or folder of one; for LTX-2.5 Gemma 4 with its projection. HLWQ weights stay packed.
        checkpoint: the model's HLWQ checkpoint; that of LTX-2.3 and LTX-2 holds `text_embedding_projection.*`.
        device: `default` or `cpu`.
        disable_dynamic: load for core's other patcher, whose weights do not live in dynamic VRAM.

    Raises:
        IncompleteError: a tensor is in no file.
        InputError: Gemma and projection do not fit together.
        FormatError, UnsupportedError: a file is not what it should be.
    """
    compat.require(compat.Feature.TEXT_ENCODER)
    language = _read_gemma(text_encoder)
    opened = open_checkpoint(checkpoint, source=compat.file_source())
    kind = "gemma4" if gemma4.is_gemma4(language) else "gemma3"
    _refuse_other_version(opened, kind, text_encoder)
    if kind == "gemma4":
        clip = gemma4.clip(language, gemma4.check(language, text_encoder, opened), device, disable_dynamic)
        clip.patcher.cached_patcher_init = (_patcher_again, (text_encoder, checkpoint, device))
        return clip
    sizes = _gemma_sizes(language, text_encoder)
    if "spiece_model" not in language:
        _add_tokenizer(language, text_encoder if text_encoder.is_dir() else text_encoder.parent)
    projection = _read_projection(opened, checkpoint, sizes)
    _check_pair(sizes, projection, text_encoder, checkpoint)
    return _clip(language, projection, sizes, (text_encoder, checkpoint, device), disable_dynamic)


def _refuse_other_version(checkpoint: Checkpoint, kind: str, path: Path) -> None:
    """Name a text encoder that the checkpoint's family was not trained with."""
    found = families.recognise([*checkpoint.names(), *checkpoint.plain_names()])
    wanted = found.family.text_encoder if found else None
    if found is None or wanted is None or wanted.kind == kind:
        return
    name = {"gemma3": "Gemma 3", "gemma4": "Gemma 4"}[kind]
    raise InputError(
        f"this text encoder is a {name}, and {found.family.name} is prompted by {wanted.name}",
        file=path,
        expected=f"{wanted.name}, for {checkpoint.path}",
        found=name,
        fix=f"choose {wanted.files}, or a checkpoint that goes with {name}",
    )


def _read_gemma(path: Path) -> State:
    if path.is_dir() or _is_hlwq(path):
        return _read_packed(open_checkpoint(path, source=compat.file_source()))
    state, metadata = compat.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    state, _ = compat.utils.convert_old_quants(state, model_prefix="", metadata=metadata)
    state = {gemma.core_name(name): value for name, value in state.items()}
    state.pop(None, None)
    return state


def _is_hlwq(path: Path) -> bool:
    """Whether a file holds HLWQ tensors. Also refuses files that are no intact safetensors, before core reads them."""
    if path.suffix == ".gguf":
        raise UnsupportedError(
            "a GGUF file is no HLWQ and no safetensors text encoder",
            file=path,
            expected="a safetensors file",
            found="GGUF",
            fix=f"use {GEMMA_FILES}, or load the GGUF file with ComfyUI-GGUF's own node",
        )
    names, _ = read_header(path)
    return holds_codes(names)


def _read_packed(checkpoint: Checkpoint) -> State:
    """A text encoder's HLWQ tensors as quantized tensors (Linear weights) and plain ones; embeddings are decoded."""
    every = (*checkpoint.names(), *checkpoint.plain_names())
    names = {name: target for name in every if (target := gemma.core_name(name)) is not None}
    packed = set(checkpoint.names())
    shapes = {t: checkpoint.info(n).shape if n in packed else checkpoint.plain_info(n)[0] for n, t in names.items()}
    with contextlib.suppress(KeyError):  # not a Gemma: refused further on
        # Files of V1 do not tell how much of a row is padding; the other tensors do.
        right = dict(gemma.Sizes.read(shapes).weights())
        checkpoint.set_shapes({name: right[target] for name, target in names.items() if target in right})
    state: State = {}
    for name, target in names.items():
        if name not in packed:
            state[target] = checkpoint.plain(name)
            continue
        checkpoint.check_data(name)
        if "_proj" in target or ".mlp." in target:
            state[target] = quantized_tensor(checkpoint.packed(name))
        else:
            state[target] = checkpoint.decode(name)
    return state


def _add_tokenizer(state: State, folder: Path) -> None:
    file = folder / "tokenizer.model"
    if not os.path.lexists(file):
        raise IncompleteError(
            "the text encoder has no tokenizer",
            file=folder,
            tensor="spiece_model",
            expected="the tensor spiece_model, or tokenizer.model beside the file",
            found="neither",
            fix=f"use {GEMMA_FILES}, or put Gemma 3's tokenizer.model into the folder",
        )
    state["spiece_model"] = torch.frombuffer(bytearray(read_bytes(file, "a tokenizer")), dtype=torch.uint8)


def _gemma_sizes(state: State, path: Path) -> gemma.Sizes:
    """The widths, after a look at every tensor of the language model: all there, all of the shape they need."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    try:
        sizes = gemma.Sizes.read(shapes)
    except KeyError as missing:
        raise IncompleteError(
            "this is no Gemma 3 text encoder, or a part of one",
            file=path,
            tensor=missing.args[0],
            expected="a Gemma 3 language model in ComfyUI's or Hugging Face's naming",
            found=f"{len(shapes)} other tensors" if shapes else "no tensors",
            fix=f"choose the text encoder of LTX-2.3: {GEMMA_FILES}",
        ) from None
    if sizes.layers != gemma.LAYERS:
        raise InputError(
            "a Gemma of another size",
            file=path,
            tensor=f"model.layers.{min(sizes.layers, gemma.LAYERS)}",
            expected=f"{gemma.LAYERS} layers (Gemma 3 12B)",
            found=f"{sizes.layers} layers, {sizes.hidden} wide",
            fix=f"choose Gemma 3 12B: {GEMMA_FILES}",
        )
    gemma.check_weights(state, sizes.weights(), path)
    return sizes


def _projections(checkpoint: Checkpoint) -> list[str]:
    """The weights of the projection: one for either stream; of LTX-2 one for both."""
    both = [f"{PROJECTION}{stream}_aggregate_embed.weight" for stream in STREAMS]
    if any(name.startswith(ltx2.SHARED) for name in (*checkpoint.names(), *checkpoint.plain_names())):
        return [f"{ltx2.SHARED}weight"]
    found = families.recognise([*checkpoint.names(), *checkpoint.plain_names()])
    return [f"{ltx2.SHARED}weight"] if found and found.family is ltx2.FAMILY else both


def _read_projection(checkpoint: Checkpoint, path: Path, sizes: gemma.Sizes) -> State:
    """`text_embedding_projection.*` of a checkpoint, packed or plain, after a check against the connectors."""
    weights = _projections(checkpoint)
    shared = len(weights) == 1
    expected = (
        weights if shared else [name.removesuffix("weight") + end for name in weights for end in ("weight", "bias")]
    )
    connectors = [CONNECTOR.format(stream) for stream in STREAMS]
    checkpoint.resolve_names([*expected, *connectors])
    packed, plain = set(checkpoint.names()), set(checkpoint.plain_names())
    widths = {c: checkpoint.plain_info(c)[0][1] for c in connectors if c in plain}
    columns = sizes.hidden * (sizes.layers + 1)
    pairs = [(weights[0], c) for c in connectors] if shared else list(zip(weights, connectors, strict=True))
    checkpoint.set_shapes({name: (widths[c], columns) for name, c in pairs if c in widths})
    state: State = {}
    for name in expected:
        if name in packed:
            checkpoint.check_data(name)
            state[name] = quantized_tensor(checkpoint.packed(name))
        elif name in plain:
            state[name] = checkpoint.plain(name)
        else:
            model = "LTX-2" if shared else "LTX-2.3"
            raise IncompleteError(
                f"the checkpoint has no text projection for {model}",
                file=path,
                tensor=name,
                expected="in the codes or in the bf16 file",
                found="in neither",
                fix=f"choose the {model} checkpoint, or complete its bf16 file (HLWQ Verify lists what is missing)",
            )
    for name, connector in pairs:
        # Without connectors there is no model either: the checkpoint's own loader reports that.
        width = widths.get(connector)
        if width is not None and state[name].shape[0] != width:
            raise InputError(
                "text projection and connectors of the checkpoint do not fit together",
                file=path,
                tensor=name,
                expected=f"{width} rows, as {connector} is wide",
                found=f"{state[name].shape[0]} rows",
                fix="the files are of two models: use one checkpoint's folder",
            )
    return state


def _check_pair(sizes: gemma.Sizes, projection: State, text_encoder: Path, checkpoint: Path) -> None:
    for name in (name for name in projection if name.endswith("weight")):
        columns = projection[name].shape[1]
        if columns != sizes.hidden * (sizes.layers + 1):
            raise InputError(
                "text encoder and checkpoint do not fit together",
                file=text_encoder,
                tensor="model.norm.weight",
                expected=f"a Gemma {columns / (sizes.layers + 1):g} wide: {name} of {checkpoint} has {columns} columns",
                found=f"{sizes.hidden} wide, {sizes.layers} layers: {sizes.hidden * (sizes.layers + 1)} columns",
                fix="choose the Gemma that this checkpoint was trained with (LTX-2.3: Gemma 3 12B)",
            )


def _clip(
    language: State, projection: State, sizes: gemma.Sizes, source: tuple[Path, Path, str], disable_dynamic: bool
) -> Any:
    """ComfyUI's CLIP over the sized classes, loaded as core loads its own."""
    packed = any(map(is_packed, language.values()))
    options: dict[str, Any] = {"custom_operations": PackedOperations} if packed else {}
    detected = compat.llama_detect(language)
    if not packed and "llama_quantization_metadata" in detected:
        options["quantization_metadata"] = detected["llama_quantization_metadata"]
    load_options = dict(options)
    if source[2] == "cpu":
        load_options["load_device"] = load_options["offload_device"] = torch.device("cpu")
    rows = [value.shape[0] for name, value in projection.items() if name.endswith("weight")]

    def build(device: Any, dtype: Any, model_options: Mapping[str, Any]) -> gemma.SizedTextEncoder:
        # A file's own dtype wins over ComfyUI's preference, as in core.
        return gemma.SizedTextEncoder(
            sizes,
            rows,
            gemma_dtype=detected.get("dtype_llama", dtype),
            projection_operations=PackedOperations if any(map(is_packed, projection.values())) else None,
            device=device,
            model_options={**model_options, **options},
        )

    parts = [language, projection]
    clip = compat.CLIP(
        SimpleNamespace(params={}, clip=build, tokenizer=compat.LTXAVGemmaTokenizer),
        embedding_directory=compat.folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"spiece_model": language.pop("spiece_model")},
        parameters=sum(value.nelement() for part in parts for value in part.values()),
        state_dict=parts,
        model_options=load_options,
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_patcher_again, source)
    if packed or any(map(is_packed, projection.values())):
        adopt(clip.patcher)
    return clip


def _patcher_again(text_encoder: Path, checkpoint: Path, device: str, disable_dynamic: bool = False) -> Any:
    return load_text_encoder(text_encoder, checkpoint, device, disable_dynamic).patcher


class HLWQLoadTextEncoder(io.ComfyNode):
    """CLIP from a Gemma file and the projection of an HLWQ checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HLWQLoadTextEncoder",
            display_name="HLWQ Load Text Encoder",
            category="HLWQ/loaders",
            description="The text encoder of an HLWQ checkpoint: Gemma 3 with the projection of LTX-2.3's or LTX-2's checkpoint, or "
            "Gemma 4 with its projection for LTX-2.5.",
            search_aliases=["hlwq", "ltx", "polarquant", "load clip", "gemma", "text encoder loader", "quantized"],
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=list(text_encoders(now=False)),
                    tooltip="LTX-2.3, LTX-2: Gemma 3 12B; LTX-2.5: Gemma 4 12B with projection. A file in models/text_encoders, plain, "
                    "fp8, fp4 or HLWQ.",
                ),
                io.Combo.Input(
                    "checkpoint",
                    options=list(locations.checkpoints(now=False)),
                    tooltip="The same HLWQ checkpoint as in the model's loader: LTX-2.3's holds the text projection.",
                ),
                io.Combo.Input(
                    "device",
                    options=["default", "cpu"],
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="cpu: encode on the processor and leave the GPU's memory to the model.",
                ),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def validate_inputs(cls, text_encoder: str, checkpoint: str) -> bool | str:
        """Say before anything runs that a file is not there, and which are; lists may be older than the folders."""
        return compat.why_not(compat.Feature.TEXT_ENCODER) or locations.refusal(
            (locations.text_encoder, text_encoder), (locations.checkpoint, checkpoint)
        )

    @classmethod
    def execute(cls, text_encoder: str, checkpoint: str, device: str = "default") -> io.NodeOutput:
        """Find the files of the chosen labels and load them."""
        files = locations.text_encoder(text_encoder), locations.checkpoint(checkpoint)
        return io.NodeOutput(load_text_encoder(*files, device))
