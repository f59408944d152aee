"""The packed path against an independent one: the decoded weights in ComfyUI's own BF16 loader, same seed."""

from __future__ import annotations

import torch


def test_latents_agree_with_core_within_one_percent(load, reference_model, sample, distance):
    packed = sample(load()[0], seed=3, steps=8)
    dense = sample(reference_model, seed=3, steps=8)
    assert all(bool(torch.isfinite(part).all()) for part in packed)
    assert distance(packed, dense) < 0.01


def test_another_seed_is_further_away(load, reference_model, sample, distance):
    """The 1 % means something: what should differ does, by much more."""
    assert distance(sample(load()[0], seed=4), sample(reference_model, seed=3)) > 0.1


def test_the_loaded_config_is_what_core_reads_from_metadata(load, reference_model):
    ours, theirs = load()[0].model.model_config.unet_config, reference_model.model.model_config.unet_config
    assert ours == theirs
    assert ours["rope_type"] == "split" and ours["frequencies_precision"] == "float64"
