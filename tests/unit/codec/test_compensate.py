"""Error compensation: outputs closer to the original's on inputs not seen in the calibration, in an ordinary file."""

from __future__ import annotations

import pytest
import torch

from hlwq_core.codec import codec, compensate
from hlwq_core.codec.compensate import output_error, rotated_factor
from hlwq_core.errors import InputError


def inputs(count: int, width: int, seed: int) -> torch.Tensor:
    """Correlated inputs with a loud channel, as transformers have them."""
    mixing = torch.randn(width // 8, width, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width // 8, generator=generator) @ mixing + torch.randn(count, width, generator=generator)
    x[:, 3] *= 10
    return x


def moments(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / x.shape[0]


@pytest.mark.parametrize("bits", [3, 5])
@pytest.mark.parametrize("width", [384, 300])
def test_outputs_on_unseen_inputs(bits: int, width: int) -> None:
    weight = torch.randn(128, width, generator=torch.Generator().manual_seed(2)) * 0.02
    seen, unseen = moments(inputs(4096, width, 3)), moments(inputs(4096, width, 4))
    ours = compensate.encode(weight, bits, "infinite", rotated_factor(seen)).decode()
    searched = codec.encode(weight, bits, norms="search").decode()
    assert output_error(weight, ours, unseen) < 0.5 * output_error(weight, searched, unseen)


def test_white_inputs_change_nothing_for_the_worse() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    ours = compensate.encode(weight, 5, "infinite", rotated_factor(torch.eye(256))).decode()
    searched = codec.encode(weight, 5, norms="search").decode()
    assert float((ours - weight).norm()) == pytest.approx(float((searched - weight).norm()), rel=1e-3)


@pytest.mark.parametrize("width", [384, 300])
def test_blocks_alone_reach_part_of_it(width: int) -> None:
    weight = torch.randn(128, width, generator=torch.Generator().manual_seed(2)) * 0.02
    seen, unseen = moments(inputs(4096, width, 3)), moments(inputs(4096, width, 4))
    padded = torch.nn.functional.pad(seen, (0, -width % 128, 0, -width % 128))
    blocks = torch.stack([padded[i : i + 128, i : i + 128] for i in range(0, padded.shape[0], 128)])
    ours = compensate.encode(weight, 5, "infinite", compensate.block_factors(blocks)).decode()
    searched = codec.encode(weight, 5, norms="search").decode()
    assert output_error(weight, ours, unseen) < 0.8 * output_error(weight, searched, unseen)


def test_blocks_and_all_agree_where_blocks_do_not_depend_on_each_other() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    parts = [moments(inputs(2048, 128, seed)) for seed in (3, 4)]
    one = compensate.encode(weight, 5, "infinite", compensate.block_factors(torch.stack(parts)))
    # The damping of all is measured by all; by these parts it is the same as each has for itself.
    parts = [part / part.diagonal().mean() for part in parts]
    one = compensate.encode(weight, 5, "infinite", compensate.block_factors(torch.stack(parts)))
    other = compensate.encode(weight, 5, "infinite", rotated_factor(torch.block_diag(*parts)))
    assert (one.codes != other.codes).float().mean() < 0.01
    assert torch.allclose(one.norms.float(), other.norms.float(), rtol=2e-3)


@pytest.mark.parametrize(("shape", "between", "least"), [((3, 128, 128), 2048, 0.1), ((384, 384), 768, 0.3)])
def test_damping_follows_the_number_of_samples(shape: tuple[int, ...], between: int, least: float) -> None:
    few, some, many = (compensate.damping_of(count, torch.empty(shape)) for count in (256, between, 1 << 20))
    assert few == 1.0 > some > many == least


@pytest.mark.parametrize("spoiled", ["nan", "infinite", "negative", "random"])
@pytest.mark.parametrize("form", ["all", "blocks"])
def test_what_is_no_moments_is_refused(spoiled: str, form: str) -> None:
    bad = {
        "nan": torch.full((128, 128), float("nan")),
        "infinite": torch.eye(128) * float("inf"),
        "negative": -torch.eye(128),
        "random": torch.randn(128, 128, generator=torch.Generator().manual_seed(0)),
    }[spoiled]
    with pytest.raises(InputError, match="NaN" if spoiled in ("nan", "infinite") else "no second moments"):
        compensate.factor_of(bad if form == "all" else bad[None], 0.01)
