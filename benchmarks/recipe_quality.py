"""Size and overall cosine of the LTX-2.3 recipes with searched and author's norms, on random weights of the real shapes.

python benchmarks/recipe_quality.py

Sizes are those of all 5,947 tensors. Each distinct pair of shape and bits is sampled with some rows of full width, Gaussian
or Student-t with 4 degrees of freedom, of one variance; the sums of a sample count as often as the model has such rows.
Real weights are not at hand: `quantize` tells their own figures at the end of a run.
"""

from __future__ import annotations

import collections
import sys
from typing import Any

from common import REPO, parser, save

sys.path.insert(0, str(REPO))

import torch

from hlwq_core.codec.fidelity import Fidelity
from hlwq_core.codec.layers import encode_layer
from hlwq_core.models import ltx23
from hlwq_core.models.recipes import Recipe, load_recipe, planned_size
from hlwq_core.tools.quantize import NORMS

RECIPES = ("ltx23", "ltx23-compact", "ltx23-mixed")
KINDS = ("gauss", "student4")


def sample(kind: str, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Weights of variance 4e-4, float32 `[rows, columns]`."""
    weight = torch.randn(rows, columns, generator=generator)
    if kind == "student4":
        chi_square = sum(torch.randn(rows, columns, generator=generator) ** 2 for _ in range(4))
        weight = weight / (chi_square / 4).sqrt() / 2**0.5
    return weight * 0.02


def overall(recipe: Recipe, kind: str, norms: str, rows: int) -> Fidelity:
    """The comparison over all weights that the recipe packs."""
    tensors = [(name, dtype, shape) for name, (dtype, shape) in ltx23.tensors().items()]
    plan = recipe.plan(tensors)
    shapes = dict(ltx23.tensors())
    groups: collections.Counter[tuple[int, int]] = collections.Counter()
    for name, bits in plan.items():
        groups[shapes[name][1][1], bits] += shapes[name][1][0]
    generator = torch.Generator().manual_seed(0)
    total = Fidelity()
    for (columns, bits), count in sorted(groups.items()):
        weight = sample(kind, rows, columns, generator)
        found = encode_layer(weight, bits, norms, "infinite", torch.device("cpu"), name="sample").fidelity
        times = count / rows
        total.add(
            Fidelity(
                found.power * times,
                found.error * times,
                found.dot * times,
                found.decoded * times,
                round(found.weights * times),
            )
        )
    return total


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64, help="rows of each sample (default 64)")
    rows = arguments.parse_args().rows
    tensors = [(name, dtype, shape) for name, (dtype, shape) in ltx23.tensors().items()]
    figures: dict[str, Any] = {"rows": rows}
    for name in RECIPES:
        recipe = load_recipe(name)
        size = planned_size(recipe, tensors)
        found: dict[str, Any] = {
            "layers": size.layers,
            "weights": size.weights,
            "gigabytes": size.total / 1e9,
            "bits_a_weight": (size.codes + size.norms) * 8 / size.weights,
        }
        for kind in KINDS:
            for norms in NORMS:
                fidelity = overall(recipe, kind, norms, rows)
                assert fidelity.weights == size.weights
                found[f"{kind}_{norms}"] = {"cosine": fidelity.cosine, "relative_error": fidelity.relative_error}
        figures[name] = found
    save("recipe_quality", figures, {})


if __name__ == "__main__":
    main()
