"""HLWQLoadTextEncoder: a prompt becomes conditioning, whatever form Gemma comes in; pairs that do not fit are refused."""

from __future__ import annotations

import importlib
import inspect
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

CHECKPOINT = "LTX-2.3-tiny-HLWQ-Q5"
PLAIN = "gemma_3_tiny.safetensors"
PACKED = "gemma-3-tiny-HLWQ-Q5"
PROMPTS = ("a cat playing piano in a jazz club", "the sea at night, waves on dark rocks")


@pytest.fixture(scope="module")
def node(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.text_encoder")


@pytest.fixture(scope="module")
def layout(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.hlwq_core.running.packed_tensor")


@pytest.fixture(scope="module")
def errors(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.hlwq_core.errors")


@pytest.fixture(scope="module")
def files(tiny: Path) -> Path:
    return tiny / "models"


@pytest.fixture(scope="module")
def checkpoint(files: Path) -> Path:
    return files / "hlwq" / CHECKPOINT


@pytest.fixture(scope="module")
def plain(node, files, checkpoint):
    return node.load_text_encoder(files / "text_encoders" / PLAIN, checkpoint)


@pytest.fixture(scope="module")
def packed(node, files, checkpoint):
    return node.load_text_encoder(files / "text_encoders" / PACKED, checkpoint)


def encode(clip, text: str) -> tuple[torch.Tensor, dict]:
    """Core's CLIPTextEncode."""
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0][0]


def picture_embeddings(clip, inverted: bool = False) -> torch.Tensor:
    """A prompt with a picture as the language model gets it."""
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    image = 1 - picture if inverted else picture
    tokens = clip.tokenize("what is this", image=image, skip_template=False, min_length=1)
    with torch.inference_mode():
        return clip.cond_stage_model.gemma3_12b.process_tokens(
            [[token[0] for token in tokens["gemma3_12b"][0]]], torch.device("cpu")
        )[0]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.fixture(scope="module")
def packed_conditioning(packed) -> dict[str, torch.Tensor]:
    return {text: encode(packed, text)[0] for text in PROMPTS[:1]}


@pytest.fixture(scope="module")
def conditioning(plain) -> dict[str, torch.Tensor]:
    return {text: encode(plain, text)[0] for text in PROMPTS}


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ComfyUI's names of Gemma 3 as Hugging Face writes them."""
    prefixes = {"model.": "language_model.model.", "vision_model.": "vision_tower.vision_model."}
    return {
        next((new + name[len(old) :] for old, new in prefixes.items() if name.startswith(old)), name): value
        for name, value in weights.items()
    }


class TestEncoding:
    def test_prompts_become_different_conditioning(self, plain, conditioning):
        first, second = conditioning.values()
        tokens = [len(plain.tokenizer.gemma3_12b.tokenizer(text)["input_ids"]) for text in PROMPTS]
        assert [first.shape, second.shape] == [(1, count, 256 + 96) for count in tokens]
        assert torch.isfinite(first).all() and torch.isfinite(second).all()
        shared = min(tokens)
        for stream in (slice(0, 256), slice(256, None)):
            assert distance(first[:, :shared, stream], second[:, :shared, stream]) > 0.3

    def test_each_token_feels_those_before_it(self, plain):
        piano, extra = encode(plain, "a piano in a club")
        sea, _ = encode(plain, "the sea in a club")
        assert extra["unprocessed_ltxav_embeds"] is True  # so the model runs its connectors
        assert distance(piano[:, -1], sea[:, -1]) > 0.05

    def test_same_prompt_same_conditioning(self, plain, conditioning):
        assert torch.equal(encode(plain, PROMPTS[0])[0], conditioning[PROMPTS[0]])

    def test_as_core_computes_it_by_hand(self, plain, files, checkpoint, conditioning):
        """The projection of all 49 states, with the checkpoint's weights, written out."""
        from hlwq_core import open_checkpoint

        ckpt = open_checkpoint(checkpoint)
        tokens = plain.tokenize(PROMPTS[0])["gemma3_12b"]
        with torch.inference_mode():
            states, _, extra = plain.cond_stage_model.gemma3_12b.encode_token_weights(tokens)
        states = states[:, :, -int(extra["attention_mask"].sum()) :].float()  # [1, 49, tokens, 64]
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
        # Layer is the fastest of the flattened axes.
        flat = states.permute(0, 2, 3, 1).flatten(2)
        parts = []
        for stream in ("video", "audio"):
            name = f"text_embedding_projection.{stream}_aggregate_embed"
            weight, bias = (ckpt.plain(f"{name}.{part}").float() for part in ("weight", "bias"))
            parts.append(flat * (len(bias) / 64) ** 0.5 @ weight.T + bias)
        assert distance(conditioning[PROMPTS[0]], torch.cat(parts, -1)) < 1e-3

    def test_on_the_cpu_when_asked(self, node, files, checkpoint, conditioning):
        clip = node.load_text_encoder(files / "text_encoders" / PLAIN, checkpoint, "cpu")
        assert clip.patcher.load_device == clip.patcher.offload_device == torch.device("cpu")

    def test_picture_in_the_prompt_and_generation(self, plain):
        outputs = [picture_embeddings(plain, inverted) for inverted in (False, True)]
        assert outputs[0].shape == outputs[1].shape and outputs[0].shape[1] > 256
        assert distance(*outputs) > 0.01
        with torch.inference_mode():
            ids = plain.generate(
                plain.tokenize("go on", min_length=1), do_sample=False, max_length=3, temperature=1.0, seed=0
            )
        assert len(ids) >= 1


class TestPackedGemma:
    def test_stays_packed(self, packed, layout):
        weights = packed.cond_stage_model.state_dict()
        linears = [name for name in weights if ".model.layers." in name and ("_proj.weight" in name or "mlp" in name)]
        assert len(linears) == 7 * 48
        assert all(layout.is_packed(weights[name]) for name in linears)

    def test_stays_packed_after_use(self, packed, packed_conditioning, layout):
        weights = packed.cond_stage_model.state_dict()
        assert sum(map(layout.is_packed, weights.values())) == 7 * 48

    def test_encodes_as_the_decoded_weights_do(self, node, packed_conditioning, files, checkpoint, tmp_path):
        from hlwq_core import open_checkpoint

        ckpt = open_checkpoint(files / "text_encoders" / PACKED)
        dense = {name: ckpt.decode(name) for name in ckpt.names()}
        dense |= {name: ckpt.plain(name).clone() for name in ckpt.plain_names()}
        save_file(dense, tmp_path / "dense.safetensors")
        clip = node.load_text_encoder(tmp_path / "dense.safetensors", checkpoint)
        assert distance(encode(clip, PROMPTS[0])[0], packed_conditioning[PROMPTS[0]]) < 0.01

    def test_near_the_original(self, packed_conditioning, conditioning):
        assert 0 < distance(conditioning[PROMPTS[0]], packed_conditioning[PROMPTS[0]]) < 0.25

    def test_single_file(self, node, packed_conditioning, files, checkpoint, tmp_path):
        """Without its folder's polar_config.json, under another name."""
        file = tmp_path / "anything.safetensors"
        shutil.copy(files / "text_encoders" / PACKED / "model.safetensors", file)
        clip = node.load_text_encoder(file, checkpoint)
        assert torch.equal(encode(clip, PROMPTS[0])[0], packed_conditioning[PROMPTS[0]])

    def test_clone_without_dynamic_vram(self, packed, packed_conditioning):
        clone = packed.clone(disable_dynamic=True)
        assert torch.equal(encode(clone, PROMPTS[0])[0], packed_conditioning[PROMPTS[0]])

    def test_core_can_load_it_again_for_its_other_patcher(self, node, packed, monkeypatch):
        asked = []
        clip = node.compat.CLIP
        monkeypatch.setattr(node.compat, "CLIP", lambda *a, **k: asked.append(k["disable_dynamic"]) or clip(*a, **k))
        reload, arguments = packed.patcher.cached_patcher_init
        again = reload(*arguments, disable_dynamic=True)
        assert asked == [True] and not again.is_dynamic()
        assert again.model is not packed.patcher.model

    def test_saved_dense(self, packed, layout):
        """Core's CLIPSave goes through the patcher's state dict."""
        weights = packed.patcher.model_state_dict_for_saving()
        name = "gemma3_12b.transformer.model.layers.0.self_attn.q_proj.weight"
        dense = weights[name].to("cpu")
        assert not layout.is_packed(dense) and dense.shape == (32, 64)


@pytest.mark.parametrize("made", ["gemma-q", "gemma-q.safetensors"])
def test_made_by_the_gemma_recipe(node, layout, files, checkpoint, plain, conditioning, tmp_path, made):
    """What the recipe makes of a plain file, embeddings and vision tower included, loads and stays near the original."""
    from hlwq_core.tools.quantize import quantize

    report = quantize(
        files / "text_encoders" / PLAIN,
        tmp_path / made,
        rules="gemma",
        norms="search",
        layout="single" if made.endswith(".safetensors") else "published",
    )
    assert report.layers > 7 * 48 + 1
    clip = node.load_text_encoder(tmp_path / made, checkpoint)
    packed = [name for name, value in clip.cond_stage_model.state_dict().items() if layout.is_packed(value)]
    assert len(packed) == report.layers - 1 and any("vision" in name for name in packed), "all but the embeddings"
    assert 0 < distance(conditioning[PROMPTS[0]], encode(clip, PROMPTS[0])[0]) < 0.25
    assert 0 < distance(picture_embeddings(plain), picture_embeddings(clip)) < 0.15


def test_hugging_face_names_and_tokenizer_file(node, files, checkpoint, conditioning, tmp_path):
    weights = rename(load_file(files / "text_encoders" / PLAIN))
    (tmp_path / "tokenizer.model").write_bytes(weights.pop("spiece_model").numpy().tobytes())
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    clip = node.load_text_encoder(tmp_path / "model.safetensors", checkpoint)
    assert torch.equal(encode(clip, PROMPTS[1])[0], conditioning[PROMPTS[1]])


def test_text_only_gemma(node, files, checkpoint, conditioning, tmp_path):
    weights = load_file(files / "text_encoders" / PLAIN)
    weights = {k: v for k, v in weights.items() if not k.startswith(("vision_model.", "multi_modal_projector."))}
    save_file(weights, tmp_path / "text.safetensors")
    clip = node.load_text_encoder(tmp_path / "text.safetensors", checkpoint)
    assert torch.equal(encode(clip, PROMPTS[1])[0], conditioning[PROMPTS[1]])


def test_gemma_in_one_of_cores_own_formats(node, files, checkpoint, conditioning, tmp_path):
    """fp8 with scales, as Comfy-Org's gemma_3_12B_it_fp8_scaled: core's own operations take it from there."""
    weights = load_file(files / "text_encoders" / PLAIN)
    mark = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    for name in [name for name in weights if name.startswith("model.layers.") and weights[name].dim() == 2]:
        scale = weights[name].float().abs().max() / 448
        weights[name] = (weights[name].float() / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale"] = scale
        weights[name.removesuffix("weight") + "comfy_quant"] = mark.clone()
    save_file(weights, tmp_path / "gemma_fp8.safetensors")
    clip = node.load_text_encoder(tmp_path / "gemma_fp8.safetensors", checkpoint)
    stored = clip.cond_stage_model.gemma3_12b.transformer.model.layers[0].self_attn.q_proj.weight
    assert stored._qdata.dtype == torch.float8_e4m3fn
    assert 0 < distance(conditioning[PROMPTS[0]], encode(clip, PROMPTS[0])[0]) < 0.15


def test_v1_gemma_tells_no_widths(node, files, checkpoint, packed_conditioning, tmp_path):
    """Names without dots and a meta of four numbers: the padding is found from the other tensors."""
    weights = load_file(files / "text_encoders" / PACKED / "model.safetensors")
    renamed = {}
    for name, value in weights.items():
        base, _, part = name.rpartition("__")
        if part in ("packed", "norms", "meta"):
            renamed[base.replace(".", "__") + f"__{part}"] = value[:4].clone() if part == "meta" else value
        else:
            renamed[name] = value
    save_file(renamed, tmp_path / "v1.safetensors")
    clip = node.load_text_encoder(tmp_path / "v1.safetensors", checkpoint)
    assert torch.equal(encode(clip, PROMPTS[0])[0], packed_conditioning[PROMPTS[0]])


def test_quantized_projection(node, files, checkpoint, conditioning, layout, tmp_path):
    """Any matrix may come quantized; 3,136 columns are not whole blocks."""
    from hlwq_core.codec.codec import encode as quantize

    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    path = other / "polarquant" / "bf16" / "ltx23_bf16.safetensors"
    weights = load_file(path)
    name = "text_embedding_projection.video_aggregate_embed.weight"
    encoded = quantize(weights.pop(name), 8)
    save_file(weights, path)
    rows, blocks = encoded.norms.shape
    base = name.replace(".", "__")
    parts = {
        f"{base}__packed": encoded.packed("byte").flatten(),
        f"{base}__norms": encoded.norms,
        f"{base}__meta": torch.tensor([rows, blocks, 128, rows * blocks * 128]),
    }
    save_file(parts, other / "polarquant" / "codes" / "chunk_09_codes.safetensors")
    clip = node.load_text_encoder(files / "text_encoders" / PLAIN, other)
    assert layout.is_packed(clip.cond_stage_model.text_embedding_projection.video_aggregate_embed.weight)
    result, original = encode(clip, PROMPTS[0])[0], conditioning[PROMPTS[0]]
    assert 0 < distance(original[..., :256], result[..., :256]) < 0.03
    assert torch.equal(original[..., 256:], result[..., 256:])


@pytest.fixture(scope="module")
def gemma(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.gemma")


@pytest.fixture(scope="module")
def sizes(gemma: ModuleType):
    import comfy.text_encoders.llama as llama

    core = llama.Gemma3_12B_Config()
    vision = llama.GEMMA3_VISION_CONFIG
    return gemma.Sizes(
        core.vocab_size,
        core.hidden_size,
        core.intermediate_size,
        core.num_hidden_layers,
        core.num_attention_heads,
        core.num_key_value_heads,
        core.head_dim,
        gemma.Vision(
            vision["hidden_size"],
            vision["intermediate_size"],
            vision["num_hidden_layers"],
            vision["patch_size"],
            vision["image_size"],
        ),
    )


@pytest.fixture(scope="module")
def ours(gemma: ModuleType, sizes):
    import comfy.ops

    options = {"custom_operations": comfy.ops.manual_cast}
    return gemma.SizedTextEncoder(sizes, (4096, 2048), torch.bfloat16, None, "meta", options)


@pytest.fixture(scope="module")
def theirs():
    """Core's own, told LTX-2.3's widths where it asks for them."""
    import comfy.ops
    import comfy.text_encoders.lt as lt

    asked = inspect.signature(lt.LTXAVTEModel).parameters
    widths = {"video_projection_dim": 4096, "audio_projection_dim": 2048}
    return lt.LTXAVTEModel(
        dtype_llama=torch.bfloat16,
        device="meta",
        dtype=torch.bfloat16,
        text_projection_type="dual_linear",
        model_options={"custom_operations": comfy.ops.manual_cast},
        **{name: width for name, width in widths.items() if name in asked},
    )


class TestRealSizes:
    """With the real widths the sized classes are core's: same config, same attributes, same modules, same weights."""

    def test_config(self, sizes):
        import comfy.text_encoders.llama as llama

        core, config = llama.Gemma3_12B_Config(), sizes.config()
        assert type(config) is type(core)
        for name in dir(core):
            if not name.startswith("__"):
                assert getattr(config, name) == getattr(core, name), name

    @pytest.mark.parametrize(
        "path",
        ["", "text_embedding_projection", "gemma3_12b", "gemma3_12b.transformer", "gemma3_12b.transformer.model"],
    )
    def test_every_attribute_that_cores_constructor_sets(self, ours, theirs, path):
        mine, core = vars(ours.get_submodule(path)), vars(theirs.get_submodule(path))
        assert mine.keys() == core.keys()
        assert {name: value for name, value in mine.items() if plain_value(value)} == {
            name: value for name, value in core.items() if plain_value(value)
        }

    def test_same_modules_and_weights(self, ours, theirs):
        def classes(root: torch.nn.Module) -> dict[str, str]:
            return {name: f"{type(m).__module__}.{type(m).__qualname__}" for name, m in root.named_modules()}

        sized = ("", "gemma3_12b", "gemma3_12b.transformer")
        for name in sized:
            assert isinstance(ours.get_submodule(name), type(theirs.get_submodule(name)))
        core = classes(theirs)
        assert classes(ours) | {name: core[name] for name in sized} == core
        weights, core_weights = ours.state_dict(), theirs.state_dict()
        assert {n: (t.shape, t.dtype) for n, t in weights.items()} == {
            n: (t.shape, t.dtype) for n, t in core_weights.items()
        }

    def test_shapes_that_a_file_must_have(self, sizes):
        shapes = dict(sizes.weights())
        assert shapes["model.layers.47.self_attn.q_proj.weight"] == (4096, 3840)
        assert shapes["model.layers.0.mlp.down_proj.weight"] == (3840, 15360)


def plain_value(value: object) -> bool:
    """Whether an attribute can be compared: no modules, tensors or functions within."""
    if isinstance(value, (tuple, list, set)):
        return all(map(plain_value, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, type))


class TestRefusals:
    """Each names the file, what was expected and found, and what to do; nothing is loaded."""

    @pytest.fixture
    def weights(self, files: Path) -> dict[str, torch.Tensor]:
        return load_file(files / "text_encoders" / PLAIN)

    @staticmethod
    def refused(node, weights, checkpoint, tmp_path, error) -> str:
        path = tmp_path / "gemma.safetensors"
        save_file(weights, path)
        with pytest.raises(error) as caught:
            node.load_text_encoder(path, checkpoint)
        text = str(caught.value)
        for part in ("expected: ", "found: ", "what to do: "):
            assert part in text
        return text

    def test_gemma_of_fewer_layers(self, node, weights, checkpoint, tmp_path, errors):
        weights = {name: t for name, t in weights.items() if not any(f".layers.{n}." in name for n in range(34, 48))}
        text = self.refused(node, weights, checkpoint, tmp_path, errors.InputError)
        assert "another size" in text and "48 layers" in text and "34 layers" in text
        assert str(tmp_path / "gemma.safetensors") in text

    def test_gemma_of_another_width(self, node, weights, checkpoint, tmp_path, errors):
        narrow = {}
        for name, value in weights.items():
            cut = tuple(slice(0, 32 if size == 64 else size) for size in value.shape)
            narrow[name] = value[cut].clone() if name.startswith("model.") else value
        text = self.refused(node, narrow, checkpoint, tmp_path, errors.InputError)
        assert "do not fit together" in text
        assert "a Gemma 64 wide" in text and "32 wide" in text and str(checkpoint) in text

    def test_a_missing_tensor(self, node, weights, checkpoint, tmp_path, errors):
        del weights["model.layers.7.mlp.up_proj.weight"]
        text = self.refused(node, weights, checkpoint, tmp_path, errors.IncompleteError)
        assert "tensor: model.layers.7.mlp.up_proj.weight" in text

    def test_a_wrong_shape(self, node, weights, checkpoint, tmp_path, errors):
        weights["model.layers.9.self_attn.o_proj.weight"] = torch.zeros(64, 64)
        text = self.refused(node, weights, checkpoint, tmp_path, errors.InputError)
        assert "tensor: model.layers.9.self_attn.o_proj.weight" in text
        assert "expected: [64, 32]" in text and "found: [64, 64]" in text

    def test_no_gemma_at_all(self, node, checkpoint, tmp_path, errors):
        text = self.refused(node, {"encoder.block.0.weight": torch.zeros(2, 2)}, checkpoint, tmp_path, errors.HLWQError)
        assert "no Gemma 3" in text

    def test_no_tokenizer(self, node, weights, checkpoint, tmp_path, errors):
        del weights["spiece_model"]
        text = self.refused(node, weights, checkpoint, tmp_path, errors.IncompleteError)
        assert "spiece_model" in text and "tokenizer.model" in text

    def test_truncated_file(self, node, files, checkpoint, tmp_path, errors):
        whole = (files / "text_encoders" / PLAIN).read_bytes()
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(errors.FormatError, match="cut.safetensors"):
            node.load_text_encoder(path, checkpoint)

    def test_packed_gemma_with_norms_that_are_not_finite(self, node, files, checkpoint, tmp_path, errors):
        weights = load_file(files / "text_encoders" / PACKED / "model.safetensors")
        name = "model.layers.3.mlp.up_proj.weight__norms"
        weights[name][1, 0] = torch.inf
        save_file(weights, tmp_path / "gemma.safetensors")
        with pytest.raises(errors.FormatError, match="norms are not finite") as caught:
            node.load_text_encoder(tmp_path / "gemma.safetensors", checkpoint)
        assert caught.value.tensor == name and caught.value.file == str(tmp_path / "gemma.safetensors")

    def test_packed_projection_with_norms_that_are_not_finite(self, node, files, checkpoint, tmp_path, errors):
        from hlwq_core.codec.codec import encode as quantize

        other = tmp_path / "other"
        shutil.copytree(checkpoint, other)
        path = other / "polarquant" / "bf16" / "ltx23_bf16.safetensors"
        weights = load_file(path)
        name = "text_embedding_projection.audio_aggregate_embed.weight"
        encoded = quantize(weights.pop(name), 5)
        save_file(weights, path)
        encoded.norms[0, 0] = torch.nan
        rows, blocks = encoded.norms.shape
        parts = {f"{name}__packed": encoded.packed().flatten(), f"{name}__norms": encoded.norms}
        parts[f"{name}__meta"] = torch.tensor([rows, blocks, 128, rows * blocks * 128])
        save_file(parts, other / "polarquant" / "codes" / "chunk_09_codes.safetensors")
        with pytest.raises(errors.FormatError, match="norms are not finite") as caught:
            node.load_text_encoder(files / "text_encoders" / PLAIN, other)
        assert caught.value.tensor == f"{name}__norms"

    def test_gguf(self, node, checkpoint, tmp_path, errors):
        path = tmp_path / "gemma-Q5.gguf"
        path.write_bytes(b"GGUF" + bytes(60))
        with pytest.raises(errors.UnsupportedError, match="GGUF"):
            node.load_text_encoder(path, checkpoint)

    def test_checkpoint_without_a_projection(self, node, files, checkpoint, tmp_path, errors):
        other = tmp_path / "other"
        shutil.copytree(checkpoint, other)
        path = other / "polarquant" / "bf16" / "ltx23_bf16.safetensors"
        weights = load_file(path)
        del weights["text_embedding_projection.audio_aggregate_embed.bias"]
        save_file(weights, path)
        with pytest.raises(errors.IncompleteError) as caught:
            node.load_text_encoder(files / "text_encoders" / PLAIN, other)
        assert "text_embedding_projection.audio_aggregate_embed.bias" in str(caught.value)
        assert str(other) in str(caught.value)

    def test_projection_of_another_model(self, node, files, checkpoint, tmp_path, errors):
        other = tmp_path / "other"
        shutil.copytree(checkpoint, other)
        path = other / "polarquant" / "bf16" / "ltx23_bf16.safetensors"
        weights = load_file(path)
        for part in ("weight", "bias"):
            name = f"text_embedding_projection.video_aggregate_embed.{part}"
            weights[name] = torch.cat((weights[name], weights[name]))
        save_file(weights, path)
        with pytest.raises(errors.InputError) as caught:
            node.load_text_encoder(files / "text_encoders" / PLAIN, other)
        assert "256 rows" in str(caught.value) and "512 rows" in str(caught.value)


class TestNode:
    @pytest.fixture
    def in_folders(self, comfy_base: Path, node):
        return node

    def test_lists_files_and_folders(self, in_folders):
        known = in_folders.text_encoders()
        assert PLAIN in known and PACKED in known
        assert f"{PACKED}/model.safetensors" not in known
        assert CHECKPOINT not in known

    def test_lists_a_language_model_among_the_video_models(self, in_folders, files, comfy_base):
        link = comfy_base / "models" / "hlwq" / "some-gemma"
        link.symlink_to(files / "text_encoders" / PACKED, target_is_directory=True)
        try:
            assert in_folders.text_encoders()["some-gemma"].is_dir()
        finally:
            link.unlink()
        assert "some-gemma" not in in_folders.text_encoders()

    def test_schema(self, in_folders):
        schema = in_folders.HLWQLoadTextEncoder.define_schema()
        assert (schema.node_id, schema.display_name) == ("HLWQLoadTextEncoder", "HLWQ Load Text Encoder")
        inputs = {entry.id: entry for entry in schema.inputs}
        assert PLAIN in inputs["text_encoder"].options and CHECKPOINT in inputs["checkpoint"].options
        assert inputs["device"].optional

    def test_executes(self, in_folders, conditioning):
        clip = in_folders.HLWQLoadTextEncoder.execute(PLAIN, CHECKPOINT).args[0]
        assert torch.equal(encode(clip, PROMPTS[0])[0], conditioning[PROMPTS[0]])

    @pytest.mark.parametrize("label", ["", "nowhere.safetensors", "../../secret.safetensors", "/etc/passwd"])
    def test_refuses_other_labels(self, in_folders, errors, label):
        with pytest.raises(errors.InputError, match="asks for the text encoder|leaves the model folders"):
            in_folders.HLWQLoadTextEncoder.execute(label, CHECKPOINT)


def test_ltx2_is_encoded_as_core_does(pack, comfy_base, tiny: Path) -> None:
    """One projection for both streams, of the packed checkpoint; core's computation over the language model's states."""
    import nodes
    from comfyui_hlwq.hlwq_core import open_checkpoint
    from comfyui_hlwq.nodes.text_encoder import load_text_encoder

    checkpoint = tiny / "ltx2" / "models" / "checkpoints" / "LTX-2-tiny-HLWQ-Q5.safetensors"
    clip = load_text_encoder(comfy_base / "models" / "text_encoders" / "gemma_3_tiny.safetensors", checkpoint)
    with torch.inference_mode():
        ((found, extra),) = nodes.CLIPTextEncode().encode(clip, "a cat at a piano")[0]
        encoder = clip.cond_stage_model
        tokens = clip.tokenize("a cat at a piano")["gemma3_12b"]
        states, _, more = encoder.gemma3_12b.encode_token_weights(tokens)
        states = states[:, :, -int(more["attention_mask"].sum()) :].movedim(1, -1).float()
        spread = states.amax(dim=(1, 2), keepdim=True) - states.amin(dim=(1, 2), keepdim=True) + 1e-6
        scaled = 8.0 * (states - states.mean(dim=(1, 2), keepdim=True)) / spread
        name = "text_embedding_projection.aggregate_embed.weight"
        ckpt = open_checkpoint(checkpoint)
        weight = ckpt.decode(name) if name in ckpt.names() else ckpt.plain(name)
        expected = scaled.reshape(*scaled.shape[:2], -1) @ weight.float().T
    assert extra["unprocessed_ltxav_embeds"] and found.shape[-1] == 64
    assert float((found - expected).norm() / expected.norm()) < 0.02
