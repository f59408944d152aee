"""Weights of the transformer, its connectors and the text projection.

Random, but so that sampling behaves: the output projection undoes the input projection (noise is taken away
step by step), gates are moderate, and text tokens stand out from the connectors' registers, so that the prompt
is heard.
"""

from __future__ import annotations

import torch

from .noise import normal

PREFIX = "model.diffusion_model."


def _orthonormal(name: str, rows: int, columns: int) -> torch.Tensor:
    values = normal(name, max(rows, columns), min(rows, columns))
    basis = torch.linalg.qr(values.double()).Q.float()
    return basis if rows >= columns else basis.T.contiguous()


def _text_direction(stream: str, width: int) -> torch.Tensor:
    """What all text tokens of a stream share and registers lack: the projection's bias."""
    return normal(f"{stream} text", width)


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor of the transformer or of `text_embedding_projection`, by its checkpoint name."""
    stream = "audio" if "audio" in name.removeprefix(PREFIX).replace("audio_to_video", "video") else "video"
    if name.startswith("text_embedding_projection."):
        if name.endswith("bias"):
            return _text_direction(stream, shape[0])
        return normal(name, *shape, std=0.5 * shape[1] ** -0.5)
    if name.endswith("scale_shift_table"):
        return normal(name, *shape, std=0.3 if "transformer_blocks" in name else 0.05)
    if "scale_shift_table_a2v" in name:
        return normal(name, *shape, std=0.3)
    if "norm.weight" in name:
        return 1 + normal(name, *shape, std=0.1)
    if name.endswith("learnable_registers"):
        return normal(name, *shape)
    if "patchify_proj.weight" in name:
        return _orthonormal(name, *shape)
    if "proj_out.weight" in name:
        undo = _orthonormal(name.replace("proj_out", "patchify_proj"), shape[1], shape[0]).T
        return 1.0 * undo + normal(name, *shape, std=0.3 * shape[1] ** -0.5)
    if "attn2.to_q.bias" in name:
        return _towards_text(name, stream, shape[0])
    if name.endswith("bias"):
        return normal(name, *shape, std=0.05)
    gain = 1.0
    if "embeddings_connector" in name and ("to_out" in name or "ff.net.2" in name):
        gain = 0.3
    elif "to_gate_logits" in name or "adaln_single.linear" in name:
        gain = 0.3
    return normal(name, *shape, std=gain * shape[1] ** -0.5)


def _towards_text(name: str, stream: str, width: int) -> torch.Tensor:
    """A query bias towards the keys of text tokens; without it 1,000 registers drown twenty tokens."""
    key = weight(name.replace("to_q.bias", "to_k.weight"), (width, width)) @ _text_direction(stream, width)
    return 1.5 * key / key.square().mean().sqrt()
