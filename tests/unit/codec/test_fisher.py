"""Sensitivities by gradients: of a model whose loss is known, and the command that makes a file of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hlwq_core.cli import main
from hlwq_core.codec.codec import encode
from hlwq_core.codec.fisher import losses_by_gradients
from hlwq_core.errors import InputError
from hlwq_core.tools.bits import CHOICES, read_losses


def test_they_foretell_the_loss() -> None:
    """Of a linear model with Gaussian noise the mean loss rises by half of E[g²] (w - ŵ)², to the first order."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 64, bias=False)
    x = torch.randn(4096, 256) * torch.linspace(0.1, 2, 256)
    truth = (x @ layer.weight.T).detach()
    noise = torch.randn(truth.shape)

    def samples():
        for i in range(512):
            rows = slice(8 * i, 8 * i + 1)
            yield 0.5 * (layer(x[rows]) - truth[rows] - noise[rows]).square().sum()

    found = losses_by_gradients({"w": layer}, samples(), CHOICES)["w"]
    for bits in CHOICES:
        coded = encode(layer.weight.detach(), bits, norms="search").decode()
        risen = 0.5 * float((x @ (coded - layer.weight.detach()).T).square().sum(1).mean())
        assert found[bits] == pytest.approx(risen, rel=0.15), bits
    assert sorted(found.values(), reverse=True) == [found[bits] for bits in CHOICES]


def test_what_cannot_be_used_is_named() -> None:
    used, unused = torch.nn.Linear(128, 128), torch.nn.Linear(128, 128)
    loss = lambda: used(torch.ones(1, 128)).square().sum()  # noqa: E731
    for layers, samples, match in (
        ({"u": used}, [], "no samples"),
        ({"u": used, "n": unused}, [loss()], "no gradient"),
        ({"u": used}, [loss() * float("nan")], "not finite"),
        ({"c": torch.nn.Conv1d(128, 128, 1)}, [loss()], "no weight"),
    ):
        with pytest.raises(InputError, match=match) as error:
            losses_by_gradients(layers, samples, CHOICES)
        assert error.value.fix


FUNCTION = """
import torch

def calibration():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 128))
    return model, (model(torch.randn(4, 256)).square().mean() for _ in range(1000))
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(FUNCTION)
    given = f"{tmp_path / 'mine.py'}:calibration"
    target = tmp_path / "s.json"
    assert main(["fisher", given, str(target), "--samples", "4", "--prefix", "model.diffusion_model.", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 2
    assert read_losses(target).keys() == {"0.weight", "1.weight"}
    assert "model.diffusion_model.0.weight" in json.loads(target.read_text())["layers"]
    for wrong, said in (("nowhere.py:f", "no such function"), (f"{tmp_path / 'mine.py'}:other", "no such function")):
        assert main(["fisher", wrong, str(target)]) == 2
        assert said in capsys.readouterr().err
