"""A LoRA on packed weights: added after decoding, the same at every step, under both of ComfyUI's patchers."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from .conftest import each_version

KEY = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
STEPS = 10


def linear(model, key: str = KEY):
    import comfy.utils

    return comfy.utils.get_attr(model.model, key.rpartition(".")[0])


def lora_on(model, key: str = KEY, size: float = 0.02, seed: int = 0, rank: int = 4):
    """A LoRA file's tensors for one weight, its delta `size` of the weight's norm; and that delta, float32."""
    weight = linear(model, key).weight.dequantize().float()
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(weight.shape[0], rank, generator=generator)
    down = torch.randn(rank, weight.shape[1], generator=generator)
    up *= size * weight.norm() / (up @ down).norm()
    name = key.removesuffix(".weight")
    return {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}, up @ down


def with_lora(model, tensors, strength: float = 1.0):
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]


def exact(model, key: str = KEY) -> torch.Tensor:
    """The layer's own weight, decoded, not rounded."""
    from comfyui_hlwq.hlwq_core.running import packed_tensor

    weight = linear(model, key).weight
    return packed_tensor.decode(weight._qdata, weight._params, torch.float32)


def effective(model, key: str = KEY) -> torch.Tensor:
    """The bfloat16 weight that the layer multiplies with, found by what it does to the unit vectors."""
    module = linear(model, key)
    bias, module.bias = module.bias, None
    try:
        with torch.inference_mode():
            return module(torch.eye(module.in_features, dtype=torch.bfloat16)).float().t()
    finally:
        module.bias = bias


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@contextlib.contextmanager
def on_device(model):
    """The model loaded as sampling loads it."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    try:
        yield model
    finally:
        comfy.model_management.unload_all_models()


@pytest.fixture
def no_vbar(monkeypatch):
    """ComfyUI's dynamic patcher needs a GPU only for memory; with stand-ins for that it loads on the CPU."""
    import comfy.model_patcher

    monkeypatch.setattr(comfy.model_patcher.comfy_aimdo.host_buffer, "HostBuffer", lambda *_: SimpleNamespace(size=0))
    monkeypatch.setattr(comfy.model_patcher.comfy.model_management, "pinned_hostbuf_size", lambda size: 0)


def dynamic(model, pack):
    """The same model under ComfyUI's dynamic patcher (which would make a plain one on a CPU)."""
    from comfyui_hlwq.nodes.running import patchers

    class OnCPU(patchers.PackedPatcherDynamic):
        def __new__(cls, *args, **kwargs):
            return object.__new__(cls)

        def __del__(self):
            pass

    patcher = OnCPU(model.model, torch.device("cpu"), torch.device("cpu"))
    assert patcher.is_dynamic()
    return patchers.adopt(patcher)


def assert_same_effect_at_every_step(model, base, delta):
    cosines = []
    for _ in range(STEPS):
        effective_delta = effective(model) - base
        cosines.append(cosine(effective_delta, delta))
        assert float(effective_delta.norm() / delta.norm()) == pytest.approx(1, abs=0.02)
    assert min(cosines) >= 0.99, cosines
    assert max(cosines) == min(cosines), "the effect drifts from step to step"


@each_version
def test_small_lora_keeps_its_effect_under_the_plain_patcher(load):
    model = load()[0]
    base = exact(model)
    tensors, delta = lora_on(model)
    with on_device(with_lora(model, tensors)) as patched:
        assert_same_effect_at_every_step(patched, base, delta)


@each_version
def test_small_lora_keeps_its_effect_under_the_dynamic_patcher(load, pack, no_vbar):
    model = load()[0]
    base = exact(model)
    tensors, delta = lora_on(model)
    patched = with_lora(dynamic(model, pack), tensors)
    patched.load(torch.device("cpu"))
    module = linear(patched)
    assert module.weight_lowvram_function is None and module.low_rank.up.shape == (module.out_features, 16)
    assert_same_effect_at_every_step(patched, base, delta)


def test_small_layers_unloaded_outside_of_inference_mode_load_again_in_it(load, pack, no_vbar):
    """/free unloads from the server's own loop, nodes load in inference mode: layers of up to 16 KiB are moved and moved back."""
    model = load()[0]
    patcher = dynamic(model, pack)
    before = exact(model)
    for _ in range(2):
        with torch.inference_mode():
            patcher.load(torch.device("cpu"))
            assert [key for key in patcher.backup if patcher.is_packed_key(key)]
            patcher.load(torch.device("cpu"), dirty=True)  # another LoRA came
        patcher.restore_loaded_backups()
        assert not patcher.backup
    assert torch.equal(exact(model), before)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7])
def test_small_lora_keeps_its_effect_where_a_part_is_offloaded(load, part):
    """What --novram and --lowvram do with the plain patcher: on layers that stay behind, patches work otherwise in core."""
    import comfy.model_management

    model = load()[0]
    keys = [KEY, KEY.replace("blocks.0", "blocks.1"), KEY.replace("attn1.to_q", "ff.net.2")]
    bases = {key: exact(model, key) for key in keys}
    deltas = {}
    patched = model
    for seed, key in enumerate(keys):
        tensors, deltas[key] = lora_on(model, key, seed=seed)
        patched = with_lora(patched, tensors)
    comfy.model_management.unload_all_models()
    with torch.inference_mode():
        patched.partially_load(torch.device("cpu"), max(1, int(part * patched.model_size())))
    assert model.model.model_lowvram
    try:
        for _ in range(2):
            for key in keys:
                assert cosine(effective(patched, key) - bases[key], deltas[key]) >= 0.99, key
            patched.partially_unload(torch.device("cpu"), patched.model_size() // 5)
    finally:
        patched.detach()
    for key in keys:
        assert not linear(model, key).weight_function


@pytest.fixture
def vram(monkeypatch, no_vbar):
    """Dynamic VRAM in plain memory: core's own code faults weights in, keeps them resident, and patches what it faults.

    Stands in for comfy_aimdo and for the device that the CPU is not; what core does with them is core's.
    `vram.faults` counts what was brought in, `vram.evict()` makes everything leave.
    """
    import comfy.ops
    from comfyui_hlwq.nodes import compat

    state = SimpleNamespace(faults=0, generation=0)
    state.evict = lambda: setattr(state, "generation", state.generation + 1)
    aimdo = comfy.ops.comfy_aimdo
    monkeypatch.setattr(aimdo, "torch", SimpleNamespace(aimdo_to_tensor=lambda v, device: v), raising=False)
    model_vbar = SimpleNamespace(
        vbar_fault=lambda v: state.generation, vbar_signature_compare=lambda a, b: a == b, vbar_unpin=lambda v: None
    )
    monkeypatch.setattr(aimdo, "model_vbar", model_vbar, raising=False)
    pins = SimpleNamespace(get_pin=lambda *_, **__: None, pin_memory=lambda *_, **__: None)
    monkeypatch.setattr(comfy.ops.comfy, "pinned_memory", pins, raising=False)
    own = compat.cast_bias_weight

    def cast(s, input=None, dtype=None, device=None, bias_dtype=None, offloadable=False):
        if not hasattr(s, "_v"):
            return own(s, input, dtype, device, bias_dtype, offloadable)
        stream = comfy.ops.cast_modules_with_vbar([s], dtype, device, bias_dtype, False)
        state.faults += not s._prefetch["resident"]
        weight, bias = comfy.ops.resolve_cast_module_with_vbar(s, dtype, device, bias_dtype, None, False)
        if s.weight_lowvram_function is not None:
            s.weight_lowvram_function.clear_prepared()
        del s._prefetch
        return weight, bias, (stream, None, None)

    monkeypatch.setattr(compat, "cast_bias_weight", cast)
    return state


def in_vram(model, pack):
    """`dynamic(model)` with an arena, as on a GPU."""
    patcher = dynamic(model, pack)
    arena = SimpleNamespace(prioritize=lambda: None, alloc=lambda size: torch.zeros(size, dtype=torch.uint8))
    type(patcher)._vbar_get = lambda self, create=False: arena
    return patcher


@each_version
def test_small_lora_keeps_its_effect_while_resident_in_dynamic_vram(load, pack, vram):
    """What is resident is not patched again, so whatever a first step writes there, the others see."""
    model = load()[0]
    base = exact(model)
    tensors, delta = lora_on(model)
    patched = with_lora(in_vram(model, pack), tensors)
    patched.load(torch.device("cpu"))
    assert linear(patched)._v.numel() >= linear(patched).weight.nbytes
    assert_same_effect_at_every_step(patched, base, delta)
    assert vram.faults == 1
    vram.evict()
    assert cosine(effective(patched) - base, delta) >= 0.99
    assert vram.faults == 2


def test_another_lora_brings_no_packed_weight_to_the_card_again(load, pack, vram):
    """Nothing is written into packed weights, so what is resident is right whatever the patches are."""
    model = load()[0]
    base = exact(model)
    tensors, delta = lora_on(model)
    patcher = in_vram(model, pack)
    patcher.load(torch.device("cpu"))
    assert cosine(effective(patcher), base) > 0.9999 and vram.faults == 1
    patched = with_lora(patcher, tensors)
    patched.load(torch.device("cpu"), dirty=True)  # core: the patches differ from those at the last load
    assert cosine(effective(patched) - base, delta) >= 0.99 and vram.faults == 1
    patcher.load(torch.device("cpu"), dirty=True)
    assert cosine(effective(patcher), base) > 0.9999 and vram.faults == 1
    vram.evict()
    effective(patcher)
    assert vram.faults == 2
    plain = [m for m in model.model.modules() if hasattr(m, "_v") and not type(m.weight).__name__.startswith("HLWQ")]
    for module in plain:
        module._v_signature = 1
    patcher.load(torch.device("cpu"), dirty=True)
    assert plain and not any(module._v_signature for module in plain)


def test_cores_own_patches_would_lose_the_lora_there(load, pack, vram, monkeypatch):
    """Why patches are routed: left to core, the patched weight is quantized again and kept. Ours refuses to do that."""
    from comfy.patcher_extension import CallbacksMP
    from comfyui_hlwq.hlwq_core.codec import codec
    from comfyui_hlwq.hlwq_core.errors import InputError
    from comfyui_hlwq.hlwq_core.running import packed_tensor

    model = load()[0]
    base = exact(model)
    tensors, delta = lora_on(model)
    patched = with_lora(in_vram(model, pack), tensors)
    patched.remove_callbacks_with_key(CallbacksMP.ON_LOAD, "hlwq")
    patched.load(torch.device("cpu"))
    with pytest.raises(InputError, match="never quantized again"):
        effective(patched)
    assert linear(patched).weight_lowvram_function is not None

    def quantize(cls, tensor, **kwargs):
        made = codec.encode(tensor, 5)
        params = packed_tensor.HLWQLayout.Params(
            scale=made.norms, orig_dtype=torch.bfloat16, orig_shape=tuple(tensor.shape)
        )
        return made.packed(), params

    monkeypatch.setattr(packed_tensor.HLWQLayout, "quantize", classmethod(quantize))
    linear(patched)._v_signature = None
    effective(patched)
    assert cosine(effective(patched) - base, delta) < 0.9


def test_packed_bytes_are_never_written(load):
    model = load()[0]
    module = linear(model)
    codes, norms = module.weight._qdata, module.weight._params.scale
    before = codes.clone(), norms.clone()
    tensors, _ = lora_on(model, size=0.5)
    with on_device(with_lora(model, tensors)) as patched:
        effective(patched)
    assert torch.equal(codes, before[0]) and torch.equal(norms, before[1])
    assert linear(model).weight._qdata.data_ptr() == codes.data_ptr()


def test_strengths_add_up(load):
    model = load()[0]
    base = exact(model)
    first, delta_1 = lora_on(model, size=0.1, seed=1)
    second, delta_2 = lora_on(model, size=0.1, seed=2)
    both = with_lora(with_lora(model, first, 0.5), second, -1.5)
    with on_device(both):
        assert cosine(effective(both) - base, 0.5 * delta_1 - 1.5 * delta_2) > 0.99


@each_version
def test_unpatching_and_clones(load):
    """Clones with and without a LoRA share the weights and do not disturb each other."""
    model = load()[0]
    tensors, delta = lora_on(model, size=0.1)
    patched = with_lora(model, tensors)
    again = patched.clone()
    with on_device(model):
        plain = effective(model)
        assert cosine(plain, exact(model)) > 0.9999
    for one in (patched, again, patched):
        with on_device(one):
            assert cosine(effective(one) - plain, delta) > 0.99
        with on_device(model):
            assert torch.equal(effective(model), plain)


def test_switching_without_unloading(load):
    import comfy.model_management

    model = load()[0]
    tensors, _ = lora_on(model, size=0.1)
    patched = with_lora(model, tensors)
    results = []
    for one in (model, patched, model, patched):
        comfy.model_management.load_models_gpu([one], force_full_load=True)
        results.append(effective(one))
    comfy.model_management.unload_all_models()
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert not torch.equal(results[0], results[1])


def test_dora_and_plain_diffs(load):
    """What is no plain LoRA goes through ComfyUI's own arithmetic as well."""
    import comfy.lora

    model = load()[0]
    base = exact(model)
    diff = torch.randn(base.shape, generator=torch.Generator().manual_seed(5)) * base.std() * 0.1
    patched = with_lora(model, {KEY.removesuffix(".weight") + ".diff": diff})
    with on_device(patched):
        assert cosine(effective(patched) - base, diff) > 0.99
    tensors, _ = lora_on(model, size=0.1)
    dora = {**tensors, KEY.removesuffix(".weight") + ".dora_scale": base.norm(dim=1, keepdim=True)}
    with on_device(with_lora(model, dora)) as patched:
        by_core = comfy.lora.calculate_weight(patched.patches[KEY], base.clone(), KEY)
        assert cosine(effective(patched) - base, by_core - base) > 0.99


def test_lora_file_changes_the_latents_as_in_core(load, reference_model, sample, distance, comfy_base):
    """The shipped LoRA file at 0.5, on every linear: same latents as core's own path with the same LoRA."""
    import comfy.utils

    path = next((comfy_base / "models" / "loras").glob("*.safetensors"))
    tensors = comfy.utils.load_torch_file(str(path))
    model = load()[0]
    packed = sample(with_lora(model, tensors, 0.5))
    dense = sample(with_lora(reference_model, tensors, 0.5))
    assert distance(packed, dense) < 0.01
    assert distance(packed, sample(model)) > 0.02


def test_factors_stay_on_the_device(load, pack):
    """Moved once, counted, and used from there at every call."""
    from comfyui_hlwq.nodes.running import patchers

    model = load()[0]
    tensors, _ = lora_on(model)
    patched = with_lora(model, tensors)
    patch = patchers.PatchAfterDecoding(KEY, patched.patches)
    assert patch.move_to(torch.device("cpu")) == sum(value.nbytes for value in tensors.values())
    assert patch.move_to(torch.device("cpu")) == 0


def test_hooks_patch_packed_weights(load):
    """A LoRA scheduled by ComfyUI's hooks comes on and goes off again."""
    import comfy.hooks
    import comfy.lora

    model = load()[0]
    tensors, delta = lora_on(model, size=0.1)
    base = effective(model)
    hook = comfy.hooks.WeightHook(1.0, 0.0)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    hook.weights = comfy.lora.load_lora(tensors, keys)
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    hooked = model.clone()
    hooked.add_hook_patches(hook, hook.weights, 1.0)
    with on_device(hooked):
        for _ in range(2):
            hooked.patch_hooks(group)
            assert cosine(effective(hooked) - base, delta) > 0.99
            hooked.patch_hooks(None)
            assert torch.equal(effective(hooked), base)


def misfits(rows: int, columns: int) -> dict[str, dict[str, torch.Tensor]]:
    """Files' tensors, less the layer's name, of patches that are for a weight of another shape than `[rows, columns]`."""

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    return {
        "lora of more rows": {"lora_B.weight": made(2 * rows, 4), "lora_A.weight": made(4, columns)},
        "lora of fewer columns": {"lora_up.weight": made(rows, 4), "lora_down.weight": made(4, columns - 128)},
        "lora of two ranks": {"lora_B.weight": made(rows, 4), "lora_A.weight": made(8, columns)},
        "lora that would broadcast": {"lora_B.weight": made(1, 4), "lora_A.weight": made(4, columns)},
        "lora with a middle": {
            "lora_up.weight": made(rows, 4, 1, 1),
            "lora_down.weight": made(4, columns + 1, 1, 1),
            "lora_mid.weight": made(4, 4, 3, 3),
        },
        "dora": {
            "lora_B.weight": made(rows + 1, 4),
            "lora_A.weight": made(4, columns),
            "dora_scale": made(rows + 1, 1),
        },
        "dora whose scale is another's": {
            "lora_B.weight": made(rows, 4),
            "lora_A.weight": made(4, columns),
            "dora_scale": made(rows + 1, 1),
        },
        "loha": {
            "hada_w1_a": made(2 * rows, 4),
            "hada_w1_b": made(4, columns),
            "hada_w2_a": made(2 * rows, 4),
            "hada_w2_b": made(4, columns),
        },
        "lokr": {"lokr_w1": made(4, 4), "lokr_w2": made(rows, columns)},
        "glora": {
            "a1.weight": made(4, columns + 128),
            "a2.weight": made(rows, 4),
            "b1.weight": made(4, columns),
            "b2.weight": made(rows, 4),
        },
        "oft": {"oft_blocks": made(3, rows, rows)},
        "diff": {"diff": made(rows, columns + 128)},
        "set": {"set_weight": made(rows + 128, columns)},
    }


@pytest.fixture(scope="module")
def model(load):
    """For tests that only make clones of it."""
    return load()[0]


@pytest.mark.parametrize("kind", misfits(256, 256))
def test_patches_of_another_shape_are_named_once_and_left_out(model, caplog, kind):
    """As core does: the rest of the file is applied, and the model samples."""
    other = KEY.replace("blocks.0", "blocks.1")
    base, others = exact(model), exact(model, other)
    tensors, delta = lora_on(model, other)
    wrong = {f"{KEY.removesuffix('.weight')}.{name}": value for name, value in misfits(*base.shape)[kind].items()}
    patched = with_lora(model, {**wrong, **tensors})
    named = [record for record in caplog.records if KEY in record.getMessage()]
    assert len(named) == 1 and str(list(base.shape)) in named[0].getMessage(), named
    with on_device(patched):
        assert cosine(effective(patched), base) > 0.9999
        assert cosine(effective(patched, other) - others, delta) >= 0.99
        assert cosine(patched.patched_weight(KEY), base) > 0.9999, "what would be saved"
    assert [record for record in caplog.records if KEY in record.getMessage()] == named, "named once, and before"


@pytest.mark.parametrize("kind", ["lora of more rows", "lokr", "diff"])
def test_patches_of_another_shape_are_left_out_under_the_dynamic_patcher(load, pack, vram, caplog, kind):
    model = load()[0]
    other = KEY.replace("blocks.0", "blocks.1")
    base, others = exact(model), exact(model, other)
    tensors, delta = lora_on(model, other)
    wrong = {f"{KEY.removesuffix('.weight')}.{name}": value for name, value in misfits(*base.shape)[kind].items()}
    patched = with_lora(in_vram(model, pack), {**wrong, **tensors})
    patched.load(torch.device("cpu"))
    assert cosine(effective(patched), base) > 0.9999
    assert cosine(effective(patched, other) - others, delta) >= 0.99
    assert len([record for record in caplog.records if KEY in record.getMessage()]) == 1


def test_a_lora_of_the_same_number_of_weights_is_reshaped_as_in_core(model):
    """Core compares numbers of elements, not shapes; so must who replaces its arithmetic."""
    import comfy.lora

    key = KEY.replace("attn1.to_q", "ff.net.2")
    base = exact(model, key)
    rows, columns = base.shape
    assert rows != columns
    name = key.removesuffix(".weight")
    tensors = {f"{name}.lora_B.weight": torch.randn(columns, 4), f"{name}.lora_A.weight": torch.randn(4, rows) * 0.01}
    with on_device(with_lora(model, tensors)) as patched:
        by_core = comfy.lora.calculate_weight(patched.patches[key], base.clone(), key)
        assert cosine(effective(patched, key) - base, by_core - base) > 0.99


def test_hooks_leave_out_what_does_not_fit(model, caplog):
    import comfy.hooks
    import comfy.lora

    base = effective(model)
    hook = comfy.hooks.WeightHook(1.0, 0.0)
    name = KEY.removesuffix(".weight")
    wrong = {f"{name}.lora_B.weight": torch.randn(64, 4), f"{name}.lora_A.weight": torch.randn(4, 64)}
    hook.weights = comfy.lora.load_lora(wrong, comfy.lora.model_lora_keys_unet(model.model, {}))
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    hooked = model.clone()
    hooked.add_hook_patches(hook, hook.weights, 1.0)
    with on_device(hooked):
        hooked.patch_hooks(group)
        assert torch.equal(effective(hooked), base)
        hooked.patch_hooks(None)
    assert len([record for record in caplog.records if KEY in record.getMessage()]) == 1


@pytest.mark.parametrize(
    "kind", ["lora of more rows", "lora of fewer columns", "lora of two ranks", "loha", "lokr", "glora"]
)
def test_bypass_loras_leave_out_what_does_not_fit(model, caplog, kind):
    """Core's bypass nodes put the adapter before the layer's forward, where nothing catches what it raises."""
    import comfy.sd

    name, other = KEY.removesuffix(".weight"), KEY.replace("blocks.0", "blocks.1")
    base, others = effective(model), effective(model, other)
    wrong = {f"{name}.{part}": value for part, value in misfits(*base.shape)[kind].items()}
    tensors, delta = lora_on(model, other, size=0.1)
    patched, _ = comfy.sd.load_bypass_lora_for_models(model, None, {**wrong, **tensors}, 1.0, 0.0)
    for _ in range(2):
        patched.inject_model()
        try:
            assert torch.equal(effective(patched), base)
            assert cosine(effective(patched, other) - others, delta) >= 0.99
        finally:
            patched.eject_model()
    assert len([record for record in caplog.records if name in record.getMessage()]) == 1


def test_a_bypass_that_does_not_fit_samples(model, sample, caplog):
    import comfy.sd

    name = KEY.removesuffix(".weight")
    wrong = {f"{name}.{part}": value for part, value in misfits(256, 256)["lora of more rows"].items()}
    patched, _ = comfy.sd.load_bypass_lora_for_models(model, None, wrong, 1.0, 0.0)
    assert torch.isfinite(sample(patched, steps=1)[0]).all()
    assert len([record for record in caplog.records if name in record.getMessage()]) == 1


@pytest.mark.parametrize("fits", [True, False])
def test_a_hook_that_makes_a_lora_of_a_model(model, caplog, fits):
    """Its patch is another model's whole weight, of which the own one is subtracted."""
    import comfy.hooks

    base = effective(model)
    target = base + torch.randn(base.shape, generator=torch.Generator().manual_seed(3)) * base.std() * 0.1
    hook = comfy.hooks.WeightHook(1.0, 0.0)
    hook.weights = {KEY: ("model_as_lora", (target if fits else torch.randn(64, 64),))}
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    hooked = model.clone()
    hooked.add_hook_patches(hook, hook.weights, 1.0)
    with on_device(hooked):
        hooked.patch_hooks(group)
        if fits:
            assert cosine(effective(hooked), target) > 0.9999
        else:
            assert torch.equal(effective(hooked), base)
        hooked.patch_hooks(None)
        assert torch.equal(effective(hooked), base)
    assert len([record for record in caplog.records if KEY in record.getMessage()]) == (0 if fits else 1)
