"""The loaders against the tiny LTX-2.3: complete, and as core's own loaders give it; found wherever it may lie."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"


@pytest.fixture(scope="module")
def loaded(load):
    return load()


def test_gives_model_and_both_vaes_and_a_report(loaded):
    model, vae, audio_vae, report = loaded
    assert type(model.model).__name__ == "LTXAV"
    assert type(vae.first_stage_model).__name__ == "VideoVAE"
    assert type(audio_vae.first_stage_model).__name__ == "AudioVAE"
    assert "59 packed tensors (59 of 5 bits; V1; msb, codebook infinite)" in report
    assert "config.json" in report and "by the backend eager" in report and "cuda not used" in report


def test_the_vaes_are_those_of_core(loaded, comfy_base):
    import comfy.sd
    import comfy.utils

    path = comfy_base / "models" / "reference" / "ltx23_tiny_bf16.safetensors"
    weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    for vae, prefixes in (
        (loaded[1], {"vae.": ""}),
        (loaded[2], {"audio_vae.": "autoencoder.", "vocoder.": "vocoder."}),
    ):
        part = comfy.utils.state_dict_prefix_replace(dict(weights), prefixes, filter_keys=True)
        ours = vae.first_stage_model.state_dict()
        theirs = comfy.sd.VAE(sd=part, metadata=metadata).first_stage_model.state_dict()
        assert ours.keys() == theirs.keys()
        for name in theirs:
            # The quantized mel_basis is the one whose decoding is rounded anew.
            assert torch.allclose(ours[name].float(), theirs[name].float(), rtol=1e-2, atol=1e-5), name


def test_the_report_is_logged_once(load, caplog):
    with caplog.at_level(logging.INFO, logger="hlwq"):
        report = load()[3]
    assert [record.message for record in caplog.records].count(report) == 1


def test_a_changed_file_is_loaded_again(pack, comfy_base, tmp_path):
    """ComfyUI keeps a node's result while its fingerprint stays."""
    import folder_paths
    from comfyui_hlwq.nodes.load_checkpoint import HLWQLoadCheckpoint

    shutil.copytree(comfy_base / "models" / "hlwq" / CHECKPOINT / "polarquant" / "codes", tmp_path / "changing")
    folder_paths.add_model_folder_path("hlwq", str(tmp_path))
    try:
        before = HLWQLoadCheckpoint.fingerprint_inputs("changing", backend="auto")
        assert before == HLWQLoadCheckpoint.fingerprint_inputs("changing", backend="auto")
        file = next((tmp_path / "changing").glob("*.safetensors"))
        file.write_bytes(file.read_bytes() + b" ")
        assert before != HLWQLoadCheckpoint.fingerprint_inputs("changing", backend="auto")
    finally:
        folder_paths.folder_names_and_paths["hlwq"][0].remove(str(tmp_path))


def test_vaes_in_use_are_taken_again(pack, comfy_base, tmp_path):
    """With another option the diffusion model is another, the VAEs the same; a file that changed gives new ones."""
    from comfyui_hlwq.nodes.load_checkpoint import load_checkpoint
    from comfyui_hlwq.nodes.running.choices import Choices

    folder = tmp_path / "copy"
    shutil.copytree(Path(comfy_base) / "models" / "hlwq" / "LTX-2.3-tiny-HLWQ-Q5", folder)
    model, vae, audio_vae, _ = load_checkpoint(folder)
    other, again, audio_again, _ = load_checkpoint(folder, Choices(attention="comfyui", record_blocks=False))
    assert again is vae and audio_again is audio_vae
    assert other.model is not model.model
    plain = next(folder.rglob("*bf16*.safetensors"))
    os.utime(plain, ns=(plain.stat().st_atime_ns, plain.stat().st_mtime_ns + 10**9))
    _, new, audio_new, _ = load_checkpoint(folder)
    assert new is not vae and audio_new is not audio_vae


def test_vaes_can_be_loaded_again(loaded):
    """For ComfyUI's device selectors, which ask the loader for a fresh copy."""
    for vae in loaded[1:3]:
        function, arguments = vae.patcher.cached_patcher_init
        with torch.inference_mode():
            again = function(*arguments)
        assert type(again.model) is type(vae.first_stage_model) and again.model is not vae.first_stage_model


def test_every_choice_loads(load):
    for options in ({"codebook": "infinite"}, {"bit_order": "msb"}, {"backend": "eager"}):
        assert load(**options)[0] is not None


def test_forced_reading_is_taken(load):
    import comfy.utils

    key = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    right, wrong = (comfy.utils.get_attr(load(codebook=c)[0].model, key) for c in ("infinite", "finite"))
    assert wrong._params.codebook == "finite"
    assert not torch.equal(right.dequantize(), wrong.dequantize())


def test_the_report_says_how_codes_are_read(load, pack, monkeypatch):
    """What the user insists on, and what is assumed because the data does not tell."""
    from comfyui_hlwq.hlwq_core.checkpoints import detect, reading

    assert "msb, codebook infinite)" in load()[3]
    assert "msb, codebook finite)" in load(codebook="finite")[3]
    assert "lsb, codebook finite)" in load(codebook="finite", bit_order="lsb")[3]
    unsure = detect.Detection("msb", "infinite", 0.9, False)
    monkeypatch.setattr(reading, "detect", lambda *_: unsure)
    assert "msb, codebook infinite; bit order and codebook are assumed)" in load()[3]
    assert "msb, codebook finite; bit order is assumed)" in load(codebook="finite")[3]
    assert "assumed" not in load(codebook="finite", bit_order="msb")[3]


class TestLocations:
    """Where checkpoints and upscalers are found."""

    def test_lists_hlwq_checkpoints_only(self, pack, comfy_base):
        from comfyui_hlwq.nodes import locations

        assert CHECKPOINT in locations.checkpoints()
        assert not any("reference" in label or "lora" in label for label in locations.checkpoints())

    @pytest.mark.parametrize("kind", ["checkpoints", "diffusion_models"])
    def test_other_model_folders_and_other_names(self, pack, comfy_base, kind):
        from comfyui_hlwq.nodes import locations

        source = next((comfy_base / "models" / "hlwq" / CHECKPOINT / "polarquant" / "codes").glob("*"))
        folder = comfy_base / "models" / kind / "renamed" / "deep"
        folder.mkdir(parents=True)
        try:
            shutil.copy(source, folder / "anything.safetensors")
            assert locations.checkpoint("renamed/deep") == folder
        finally:
            shutil.rmtree(folder.parent)

    def test_extra_model_paths(self, pack, comfy_base, tmp_path):
        """`hlwq:` in extra_model_paths.yaml adds a folder; what lies there is found and may be loaded."""
        import folder_paths
        from comfyui_hlwq.nodes import locations
        from utils.extra_config import load_extra_path_config

        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "mine").symlink_to(comfy_base / "models" / "hlwq" / CHECKPOINT)
        yaml = tmp_path / "extra.yaml"
        yaml.write_text(f"other:\n    base_path: {tmp_path}\n    hlwq: elsewhere\n")
        load_extra_path_config(str(yaml))
        try:
            assert locations.checkpoint("mine") == tmp_path / "elsewhere" / "mine"
        finally:
            folder_paths.folder_names_and_paths["hlwq"][0].remove(str(tmp_path / "elsewhere"))

    def test_upscalers_of_checkpoint_and_model_folder(self, pack, comfy_base):
        from comfyui_hlwq.nodes import locations

        found = locations.upscalers()
        assert "ltx-2.3-spatial-upscaler-x2-1.1.safetensors" in found
        assert any(path.parent.name == "latent_upscale_models" for path in found.values())
        assert locations.upscaler(f"{CHECKPOINT}/upscalers/ltx-2.3-temporal-upscaler-x2-1.0.safetensors").is_file()


class TestUpscaler:
    """Load Upscaler: as core's loader gives them, with the config that the checkpoint's files lack."""

    @pytest.mark.parametrize(
        ("kind", "name"),
        [("spatial", "ltx-2.3-spatial-upscaler-x2-1.1"), ("temporal", "ltx-2.3-temporal-upscaler-x2-1.0")],
    )
    def test_same_as_core(self, pack, comfy_base, kind, name):
        from comfy_extras.nodes_hunyuan import LatentUpscaleModelLoader
        from comfyui_hlwq.nodes.load_upscaler import HLWQLoadUpscaler

        with torch.inference_mode():
            ours = HLWQLoadUpscaler.execute(f"{name}.safetensors").args[0]
            theirs = LatentUpscaleModelLoader.execute(f"{name}-tiny.safetensors").args[0]
            assert ours.model.config() == theirs.model.config()
            assert getattr(ours.model, f"{kind}_upsample")
            latent = torch.randn(1, 128, 2, 2, 2).to(ours.model_dtype())
            assert torch.equal(ours.model(latent), theirs.model(latent))

    @pytest.mark.parametrize(
        "options",
        [
            {"spatial_upsample": True, "temporal_upsample": False, "dims": 2},
            {"spatial_upsample": True, "temporal_upsample": True},
            {"spatial_upsample": True, "rational_resampler": True, "spatial_scale": 1.5},
            {"spatial_upsample": False, "temporal_upsample": True, "num_blocks_per_stage": 2},
        ],
    )
    def test_config_is_read_off_the_shapes(self, pack, options):
        from comfyui_hlwq.nodes import compat
        from comfyui_hlwq.nodes.load_upscaler import config_from_shapes

        config = {
            "in_channels": 8,
            "mid_channels": 32,
            "num_blocks_per_stage": 1,
            "dims": 3,
            "spatial_scale": 2.0,
            "rational_resampler": False,
            "temporal_upsample": False,
            **options,
        }
        model = compat.LatentUpsampler.from_config(config, operations=compat.disable_weight_init)
        assert config_from_shapes({name: tuple(v.shape) for name, v in model.state_dict().items()}) == config


@contextlib.contextmanager
def imported_again(pack, name):
    """The pack once more, as ComfyUI imports it, under another name that is forgotten afterwards."""
    root = Path(pack.__file__).parent
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py", submodule_search_locations=[str(root)])
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for imported in [imported for imported in sys.modules if imported.startswith(name)]:
            del sys.modules[imported]


class TestExtension:
    """How ComfyUI meets the pack."""

    def test_nodes_are_literal_and_complete(self, pack):
        extension = asyncio.run(pack.comfy_entrypoint())
        schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in asyncio.run(extension.get_node_list())}
        assert {"HLWQLoadCheckpoint", "HLWQLoadTextEncoder", "HLWQLoadUpscaler", "HLWQUpscaleLatent"} <= set(schemas)
        for node_id, schema in schemas.items():
            assert node_id.startswith("HLWQ") and schema.category.startswith("HLWQ") and schema.description
            assert all(field.tooltip for field in schema.inputs), node_id
        assert Path(pack.__file__).parent.joinpath(pack.WEB_DIRECTORY).is_dir()

    @pytest.mark.parametrize("version", ["0.29.9", "0.3.76", "v0.29.0", "one without a version"])
    def test_an_old_comfyui_gets_one_readable_line(self, pack, version):
        from comfyui_hlwq import nodes

        reason = nodes.why_too_old(version)
        assert "needs ComfyUI 0.30.0 or newer" in reason and version in reason and "\n" not in reason
        assert nodes.why_too_old("0.30.0") is None and nodes.why_too_old("v1.2.3-rc1") is None

    def test_an_old_comfyui_gets_no_nodes_and_no_traceback(self, pack, monkeypatch, caplog):
        import comfyui_version

        monkeypatch.setattr(comfyui_version, "__version__", "0.29.0")
        with imported_again(pack, "comfyui_hlwq_old") as old:
            assert not hasattr(old, "comfy_entrypoint") and old.NODE_CLASS_MAPPINGS == {}
            assert "comfyui_hlwq_old.nodes.extension" not in sys.modules
            assert sum("needs ComfyUI" in record.message for record in caplog.records) == 1

    def test_a_changed_comfyui_is_named_with_what_it_lacks(self, pack, monkeypatch):
        """An update that takes away one of core's private names: the nodes are there, and say which one and what to do."""
        import comfy.ops

        monkeypatch.delattr(comfy.ops, "run_every_op")
        with imported_again(pack, "comfyui_hlwq_changed") as changed:
            extension = asyncio.run(changed.comfy_entrypoint())
            nodes = {node.__name__: node for node in asyncio.run(extension.get_node_list())}
            said = nodes["HLWQLoadCheckpoint"].validate_inputs(CHECKPOINT)
            assert "comfy.ops.run_every_op is gone" in said and "what to do: update" in said
            assert "HLWQVerify" in nodes

    def test_what_packed_weights_are_made_of(self, pack, monkeypatch):
        """Without comfy_kitchen's quantized tensors there is no node; the reason names them."""
        import comfy_kitchen.tensor

        monkeypatch.delattr(comfy_kitchen.tensor, "QuantizedLayout")
        monkeypatch.delattr(comfy_kitchen.tensor.base, "QuantizedLayout")
        wanted = r"does not fit this ComfyUI \(.*tensor.base.QuantizedLayout is gone.*No HLWQ node was loaded"
        with imported_again(pack, "comfyui_hlwq_without") as changed, pytest.raises(ImportError, match=wanted):
            asyncio.run(changed.comfy_entrypoint())
