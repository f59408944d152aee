"""Calibrations: what is gathered of the inputs, the file, and what quantize makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlwq_core import backends, open_checkpoint
from hlwq_core.codec import calibration as calibrations
from hlwq_core.codec.calibration import Calibration, CalibrationFile, identity_of, kinds, memory_bound, values_of
from hlwq_core.codec.layers import encode_layer
from hlwq_core.errors import HLWQError, InputError
from hlwq_core.format.packed import PackedLayer
from hlwq_core.models import ltx23
from hlwq_core.models.recipes import load_recipe
from hlwq_core.tools.quantize import quantize
from hlwq_core.tools.verify import verify

WIDTH = 256


def inputs(count: int, seed: int, width: int = WIDTH) -> torch.Tensor:
    """Correlated inputs with a loud channel and a mean, as transformers have them."""
    mixing = torch.randn(width // 8, width, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width // 8, generator=generator) @ mixing + torch.randn(count, width, generator=generator)
    x[:, 3] *= 10
    return x + torch.linspace(-2, 2, width)


class Model(torch.nn.Module):
    """Query and key share their input; the last layer has no bias; `norm` is what tells the model from others."""

    def __init__(self, seed: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = torch.nn.LayerNorm(WIDTH)
        torch.nn.init.normal_(self.norm.weight, 1.0, 0.1)
        self.query = torch.nn.Linear(WIDTH, 512)
        self.key = torch.nn.Linear(WIDTH, 512)
        self.out = torch.nn.Linear(512, WIDTH, bias=False)
        self.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.nn.functional.gelu(self.query(x)) * torch.sigmoid(self.key(x)) + 0.3)


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def identity(model: torch.nn.Module) -> dict[str, list[float]]:
    state = model.state_dict()
    return {n: values_of(state[n]) for n in identity_of((n, tuple(v.shape)) for n, v in state.items())}


def gather(model: torch.nn.Module, calls: int = 16, count: int = 512, **options: Any) -> Calibration:
    calibration = Calibration(layers(model), identity=identity(model), **options)
    with torch.no_grad(), calibration.watching():
        for seed in range(calls):
            model(inputs(count, seed))
            calibration.samples += 1
    return calibration


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def dense(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    save_file({name: value.detach() for name, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("moments", ["blocks", "full", "none"])
def test_what_is_gathered_is_what_went_in(model: Model, moments: str) -> None:
    found = gather(model, moments=moments).inputs("query.weight")
    assert found is not None
    seen = torch.cat([inputs(512, seed) for seed in range(16) if seed % 8 != 7]).double()
    assert found.count == len(seen) == 14 * 512
    assert torch.allclose(found.mean.double(), seen.mean(0), atol=1e-4)
    whole = (seen.T @ seen / len(seen)).float()
    if moments == "none":
        assert found.moments is None and found.held is None
        return
    expected = whole if moments == "full" else torch.stack([whole[:128, :128], whole[128:, 128:]])
    assert found.moments is not None and torch.allclose(found.moments, expected, rtol=1e-3, atol=1e-2)
    held = torch.cat([inputs(512, seed) for seed in (7, 15)]).bfloat16()
    assert found.held is not None and found.held.shape == (128, WIDTH)
    assert all(bool((row == held).all(1).any()) for row in found.held), "held-out inputs are of calls that do not count"


def test_layers_with_one_input_share_it_until_they_do_not(model: Model, tmp_path: Path) -> None:
    calibration = gather(model)
    assert calibration._source == {"key.weight": "query.weight"}
    assert not any(layer._forward_pre_hooks for layer in layers(model).values()), "the hooks are gone"
    calibration.save(tmp_path / "shared.safetensors")
    assert {key.rpartition(".")[0] for key in load_file(tmp_path / "shared.safetensors")} == {
        "query.weight",
        "out.weight",
    }
    file = CalibrationFile(tmp_path / "shared.safetensors")
    assert torch.equal(file.inputs("key.weight").mean, file.inputs("query.weight").mean)  # type: ignore[union-attr]
    with torch.no_grad(), calibration.watching():
        model.query(inputs(512, 100))
        model.key(inputs(256, 101))
    counts = calibration.counts
    assert not calibration._source and counts["query.weight"] != counts["key.weight"]


def test_a_call_with_nan_spoils_nothing(model: Model) -> None:
    calibration = gather(model)
    before = calibration.inputs("query.weight")
    with torch.no_grad(), calibration.watching():
        model(torch.full((512, WIDTH), float("nan")))
    after = calibration.inputs("query.weight")
    assert before is not None and after is not None and after.count == before.count
    assert torch.isfinite(after.mean).all() and torch.equal(after.mean, before.mean)


def test_it_goes_on_from_its_file(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    gather(model, calls=8).save(path)
    second = Calibration(layers(model), identity=identity(model))
    second.go_on(path)
    with torch.no_grad(), second.watching():
        for seed in range(8, 16):
            model(inputs(512, seed))
            second.samples += 1
    whole = gather(model)
    for name in layers(model):
        ours, theirs = second.inputs(name), whole.inputs(name)
        assert ours is not None and theirs is not None and ours.count == theirs.count
        assert torch.allclose(ours.mean, theirs.mean, atol=1e-4)
        assert torch.allclose(ours.moments, theirs.moments, rtol=1e-3, atol=1e-2)  # type: ignore[arg-type]
    assert second.samples == 16
    with pytest.raises(InputError, match="another way"):
        Calibration(layers(model), identity=identity(model), loras=True).go_on(path)
    other = Model(seed=6)
    with pytest.raises(InputError, match="another model"):
        Calibration(layers(other), identity=identity(other)).go_on(path)


def test_it_gathers_in_inference_mode_and_outside(model: Model, tmp_path: Path) -> None:
    """Nodes run in it, the threads of ComfyUI's MultiGPU CFG Split outside; a file is gone on with in it."""
    path = tmp_path / "half.safetensors"
    gather(model, calls=8).save(path)
    mixed = Calibration(layers(model), identity=identity(model))
    with torch.inference_mode():
        mixed.go_on(path)
    with mixed.watching():
        for seed in range(8, 100):  # more than are held out, so that held ones are replaced
            with torch.inference_mode(seed % 3 == 0), torch.no_grad():
                model(inputs(512, seed % 16))
                mixed.samples += 1
    found = mixed.inputs(next(iter(layers(model))))
    assert found is not None and mixed.samples == 100 and torch.isfinite(found.mean).all()


def test_a_save_that_is_stopped_leaves_the_one_before(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.safetensors"
    gather(model, calls=8).save(path)
    before = path.read_bytes()
    entries = calibrations._entries

    def stop() -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            calibrations, "_entries", lambda *given: [*entries(*given)[:-1], (*entries(*given)[-1][:3], stop)]
        )
        with pytest.raises(KeyboardInterrupt):
            gather(model).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    again = Calibration(layers(model), identity=identity(model))
    again.go_on(path)
    assert again.samples == 8 and set(again.counts.values()) == {7 * 512}


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(model: Model, dense: Path, tmp_path: Path, part: float) -> None:
    """As a copy that was broken off leaves it."""
    path = tmp_path / "cut.safetensors"
    gather(model).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    for use in (
        lambda: quantize(dense, tmp_path / "out", rules="plain", calibration=path),
        lambda: Calibration(layers(model), identity=identity(model)).go_on(path),
    ):
        with pytest.raises(HLWQError) as error:
            use()
        assert error.value.file == str(path) and error.value.fix
    assert not (tmp_path / "out").exists()


def test_nothing_gathered_is_nothing_saved(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layer was run"):
        Calibration(layers(model)).save(tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_bound_for_ltx23() -> None:
    shapes = {name: shape for name, (_, shape) in ltx23.tensors().items()}
    plan = load_recipe("ltx23").plan((name, dtype, shape) for name, (dtype, shape) in ltx23.tensors().items())
    widths = {name: shapes[name][1] for name in plan}
    assert max(widths.values()) == 16384
    assert memory_bound(widths) < 6e9, "as the help page says"
    assert memory_bound(widths, "none") < 1e8
    found = kinds(widths, "full", 4 << 30)
    full = [widths[name] for name, kind in found.items() if kind == "full"]
    assert full and sum(4 * width * width for width in full) <= 4 << 30
    assert max(full) <= min(widths[name] for name, kind in found.items() if kind != "full")


def outputs(folder: Path, model: Model) -> float:
    """The error of the model's outputs with a checkpoint's weights and biases, on unseen inputs."""
    checkpoint = open_checkpoint(folder)
    again = Model()
    state = {name: checkpoint.decode(name, torch.float32) for name in checkpoint.names()}
    again.load_state_dict(state | {name: checkpoint.plain(name).float() for name in checkpoint.plain_names()})
    x = inputs(1024, 99)
    with torch.no_grad():
        truth = model(x)
        return float((again(x) - truth).square().sum() / truth.square().sum())


def test_from_a_run_to_a_file_that_any_reader_takes(model: Model, dense: Path, tmp_path: Path) -> None:
    errors = {}
    for moments in ("without", "none", "blocks", "full"):
        options = {}
        if moments != "without":
            gather(model, moments=moments).save(tmp_path / f"{moments}.safetensors")
            options["calibration"] = tmp_path / f"{moments}.safetensors"
        report = quantize(dense, tmp_path / moments, rules="plain", norms="search", bits=4, **options)
        checked = verify(tmp_path / moments, dense)
        assert checked.ok, checked.problems
        errors[moments] = outputs(tmp_path / moments, model)
        if moments != "without":
            assert report.calibration is not None
            assert report.calibration.biases == 2 and report.calibration.no_bias == ["out.weight"]
            assert "out.weight" in report.text() and "16 runs, LoRAs off" in report.text()
    assert errors["none"] < errors["without"], errors
    assert errors["blocks"] < 0.9 * errors["none"], errors
    assert errors["full"] < 0.5 * errors["without"], errors


def test_biases_take_up_the_mean(model: Model, dense: Path, tmp_path: Path) -> None:
    gather(model, moments="none").save(tmp_path / "means.safetensors")
    assert (tmp_path / "means.safetensors").stat().st_size < 20_000
    quantize(dense, tmp_path / "plain", rules="plain", bits=3)
    quantize(dense, tmp_path / "corrected", rules="plain", bits=3, calibration=tmp_path / "means.safetensors")
    x = inputs(8192, 50)
    apart = {}
    for folder in ("plain", "corrected"):
        checkpoint = open_checkpoint(tmp_path / folder)
        assert checkpoint.plain("query.bias").shape == (512,) and not list(tmp_path.glob(".*"))
        decoded = checkpoint.decode("query.weight", torch.float32)
        output = x @ decoded.T + checkpoint.plain("query.bias")
        apart[folder] = float((output - model.query(x).detach()).mean(0).norm())
    assert apart["corrected"] < 0.2 * apart["plain"], apart
    assert torch.equal(
        open_checkpoint(tmp_path / "plain").packed("out.weight").codes,
        open_checkpoint(tmp_path / "corrected").packed("out.weight").codes,
    )


def test_block_means_cost_half_as_much() -> None:
    """Layers whose blocks have means, their inputs as well: searched norms as they were before had twice the error."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 4, 128, generator=generator)
    weight = (weight + torch.randn(64, 4, 1, generator=generator)).reshape(64, 512) * 0.02
    x = torch.randn(4096, 512, generator=generator) + 0.5
    known = calibrations.LayerInputs(4096, x.mean(0))
    with_bias, without = (
        encode_layer(weight, 5, "search", "infinite", torch.device("cpu"), name="w", inputs=known, has_bias=has)
        for has in (True, False)
    )
    assert with_bias.bias is not None and without.bias is None and torch.equal(with_bias.codes, without.codes)
    packed = PackedLayer(with_bias.codes, with_bias.norms, 5, "msb", "infinite", (64, 512))
    decoded = backends.decode(packed, torch.float32)
    unseen = torch.randn(4096, 512, generator=generator) + 0.5
    truth = unseen @ weight.T
    error, uncorrected = (
        float((unseen @ decoded.T + bias - truth).square().sum() / truth.square().sum())
        for bias in (with_bias.bias, torch.zeros(64))
    )
    assert error <= 0.5 * SEARCHED_BEFORE and error < 0.7 * uncorrected


# What searched norms left of these outputs when their ladder ended at 1.14 of the block's RMS (commit 63d119e).
SEARCHED_BEFORE = 4.07e-2


def test_searched_codes_are_kept_where_held_out_inputs_say_so() -> None:
    """Moments of other inputs than the held-out ones: the codes for them are worse."""
    weight = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2)) * 0.02
    x = inputs(4096, 3)
    moments, mean = x.T @ x / len(x), x.mean(0)
    values, vectors = torch.linalg.eigh(moments)
    opposite = (vectors * values.flip(0)) @ vectors.T
    for second, way in ((moments, "compensated"), (opposite, "searched")):
        known = calibrations.LayerInputs(4096, mean, second, inputs(256, 4))
        made = encode_layer(weight, 5, "search", "infinite", torch.device("cpu"), name="w", inputs=known)
        assert made.way == way and made.kept_searched == (way == "searched")
        assert made.held["searched"] > 0 and (made.held["compensated"] < made.held["searched"]) == (
            way == "compensated"
        )


def test_a_killed_run_goes_on_with_its_biases(model: Model, dense: Path, tmp_path: Path) -> None:
    gather(model).save(tmp_path / "moments.safetensors")
    options: dict[str, Any] = dict(rules="plain", bits=4, calibration=tmp_path / "moments.safetensors", chunk_bytes=1)
    quantize(dense, tmp_path / "whole", **options)

    def stop(done: int, total: int, text: str) -> None:
        if text.startswith("out.weight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(dense, tmp_path / "again", progress=stop, **options)
    assert list(tmp_path.glob(".again.quantizing*"))
    report = quantize(dense, tmp_path / "again", **options)
    assert report.resumed_chunks and report.calibration is not None and report.calibration.biases == 2
    for name in ("query.bias", "key.bias"):
        assert torch.equal(
            open_checkpoint(tmp_path / "again").plain(name), open_checkpoint(tmp_path / "whole").plain(name)
        )
    assert not list(tmp_path.glob(".*"))


def spoil(path: Path, change: Any) -> Path:
    """The file with its tensors and notes changed."""
    file = calibrations.SafeFile(path)
    tensors = {name: file.tensor(name).clone() for name in file}
    notes = dict(file.metadata)
    change(tensors, notes)
    target = path.with_name("spoiled.safetensors")
    save_file(tensors, target, notes)
    return target


def edit_layers(notes: dict[str, str], **changes: Any) -> None:
    found = json.loads(notes["hlwq.layers"])
    for seen in found.values():
        seen.update(changes)
    notes["hlwq.layers"] = json.dumps(found)


SPOILED = {
    "NaN": ("NaN", lambda t, n: t["query.weight.moments"].fill_(float("nan"))),
    "NaN mean": ("NaN", lambda t, n: t["query.weight.mean"].fill_(float("inf"))),
    "negative": ("no second moments", lambda t, n: t["query.weight.moments"].neg_()),
    "few": ("too few samples", lambda t, n: edit_layers(n, count=3)),
    "version": ("another version", lambda t, n: n.update({"hlwq.calibration": "2"})),
    "none": ("no calibration", lambda t, n: n.clear()),
    "notes": ("cannot be understood", lambda t, n: n.update({"hlwq.layers": "[1, 2"})),
    "counts": ("cannot be understood", lambda t, n: edit_layers(n, count="many")),
    "elsewhere": ("does not fit", lambda t, n: edit_layers(n, of="nowhere")),
    "narrow": ("does not fit", lambda t, n: t.update({"query.weight.mean": torch.zeros(3)})),
    "flat": ("does not fit", lambda t, n: t.update({"query.weight.moments": torch.zeros(9)})),
    "held": ("does not fit", lambda t, n: t.update({"query.weight.held": torch.zeros(4, 4, dtype=torch.bfloat16)})),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_is_wrong_is_named(what: str, model: Model, dense: Path, tmp_path: Path) -> None:
    match, change = SPOILED[what]
    gather(model).save(tmp_path / "good.safetensors")
    bad = spoil(tmp_path / "good.safetensors", change)
    with pytest.raises(HLWQError, match=match) as error:
        quantize(dense, tmp_path / "out", rules="plain", calibration=bad)
    assert error.value.fix
    assert not (tmp_path / "out").exists()


def test_another_models_calibration_is_refused(model: Model, dense: Path, tmp_path: Path) -> None:
    other = Model(seed=6)
    gather(other).save(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="of another model") as error:
        quantize(dense, tmp_path / "out", rules="plain", calibration=tmp_path / "other.safetensors")
    assert error.value.tensor == "norm.weight"
    stranger = torch.nn.Sequential(torch.nn.Linear(WIDTH, 512))
    calibration = Calibration(layers(stranger))
    with torch.no_grad(), calibration.watching():
        stranger(inputs(512, 0))
    calibration.save(tmp_path / "stranger.safetensors")
    with pytest.raises(InputError, match="no layer of this model"):
        quantize(dense, tmp_path / "out", rules="plain", calibration=tmp_path / "stranger.safetensors")


def test_names_with_and_without_the_prefix(model: Model, dense: Path, tmp_path: Path) -> None:
    """ComfyUI's names of a diffusion model, and those in its file."""
    prefixed = {f"model.diffusion_model.{n}": v for n, v in load_file(dense).items()}
    save_file(prefixed, tmp_path / "prefixed.safetensors")
    gather(model).save(tmp_path / "bare.safetensors")
    report = quantize(
        tmp_path / "prefixed.safetensors", tmp_path / "out", rules="plain", calibration=tmp_path / "bare.safetensors"
    )
    assert report.calibration is not None and report.calibration.compensated == 3
