"""Full-size LTX-2.3 on several cards beside one card of the same machine: a step, a run, and how far the latents differ.

    python benchmarks/several_gpus.py --cards 0,1 --tokens 6144,24576

First two blocks, to see whether the cards exchange what they should, then all of them. Efficiency is one card's time of a step
over the cards' times their number. Runs of one and of all cards are in one process, in turn. Needs COMFYUI_PATH and NVIDIA cards of
80 GB; `--small --tokens 96 --blocks 2 --cards cpu,cpu` tries everything on a CPU. `--one-card` has two processes on one card, which
exchange by way of memory and record nothing: it tries all but NCCL, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import core
from common import parser, save

if __name__ == "__main__":
    core.boot()

import full_size
import torch

KINDS = {"exact": "hlwq_installed", "fast": "hlwq_fast_kept"}
RUN = "benchmarks.several_gpus"


def run_worker(given: dict[str, Any], output: int) -> None:
    """The process of one more card: it makes the same weights (nodes/compat/boot.py)."""
    from comfyui_hlwq.nodes.parallel import worker

    sys.path.insert(0, str(core.REPO))  # as core.boot does
    if given["one_card"]:
        exchange_in_memory()
    worker.run(given, output, lambda: full_size.load(given["kind"], given["blocks"], given["small"]))


class InMemory:
    """An exchange between processes of one card: NCCL refuses that."""

    def __init__(self, group: Any):
        self._group = group

    def alltoall_base(self, output: torch.Tensor, input: torch.Tensor, *counts: Any) -> None:
        received = torch.empty_like(output, device="cpu")
        self._group.alltoall_base(received, input.cpu(), *counts).wait()
        output.copy_(received)

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> None:
        for tensor in tensors:
            sent = tensor.cpu()
            self._group.broadcast([sent], options).wait()
            tensor.copy_(sent)


def exchange_in_memory() -> None:
    """In this process, from now on."""
    from comfyui_hlwq.hlwq_core.parallel.groups import Groups
    from comfyui_hlwq.nodes.parallel import session, worker

    def groups(meeting: Path, rank: int, ranks: int, device: torch.device) -> Groups:
        made = Groups(meeting, rank, ranks, torch.device("cpu"))
        made.data = InMemory(made.data)
        return made

    session.Groups = worker.Groups = groups  # type: ignore[misc,assignment]
    full_size.HLWQ |= {kind: {**full_size.HLWQ[kind], "record_blocks": False} for kind in KINDS.values()}


class Comparison:
    """One model, on one card and on several.

    Args:
        mode: `exact` or `fast`.
        cards: as HLWQ Several GPUs takes them.
        blocks, small: see full_size.py.
        one_card: two processes on ComfyUI's.
    """

    def __init__(self, mode: str, cards: str, blocks: int, small: bool, one_card: bool = False):
        begun = time.perf_counter()
        device = core_device()
        import runs
        from comfyui_hlwq.nodes.parallel import cards as chosen
        from comfyui_hlwq.nodes.parallel import wrapper

        self.cards = [chosen.card(device)] * 2 if one_card else chosen.choose(cards, device)
        if one_card:
            exchange_in_memory()
        kind = KINDS[mode]
        given = {"run": RUN, "kind": kind, "blocks": blocks, "small": small, "one_card": one_card}
        model = full_size.load(kind, blocks, small)
        several = model.clone()
        self._hung = wrapper.SamplesOnSeveral(self.cards, given)
        wrapper.hang_in(several, self._hung)
        self._hung.start(several.model)
        self.alone, self.together = runs.Runs("one", model), runs.Runs(f"{len(self.cards)} cards", several)
        say(f"{mode}, {blocks} blocks: {model.model_size() / 1e9:.1f} GB, {time.perf_counter() - begun:.0f} s")

    def compare(self, tokens: int, steps: int) -> dict[str, Any]:
        """Warm, then timed: one card, all cards."""
        found: dict[str, Any] = {"tokens": tokens, "steps": steps, "cards": [str(card) for card in self.cards]}
        latents = []
        for name, which in (("one", self.alone), ("several", self.together)):
            for warm in (2, steps):
                which.run(tokens, warm, seed=0)
            timed = which.run(tokens, steps, seed=0)
            latents.append(which.latent.double())
            found[name] = timed
        one, several = latents
        found["relative"] = float((several - one).norm() / one.norm())
        found["cosine"] = float(torch.nn.functional.cosine_similarity(several, one, dim=0))
        ratio = found["one"]["step_s"] / found["several"]["step_s"]
        found["speed_up"], found["efficiency"] = ratio, ratio / len(self.cards)
        found["run_speed_up"] = found["one"]["run_s"] / found["several"]["run_s"]
        recordings = getattr(self.alone.model.model.diffusion_model, "hlwq_recordings", None)
        found["recorded"] = 0 if recordings is None else len(recordings._ready)
        say(
            f"{tokens:6} tokens: step {found['one']['step_s']:.3f} s on one, {found['several']['step_s']:.3f} on "
            f"{len(self.cards)}: {ratio:.2f} times as fast, efficiency {found['efficiency']:.3f}; runs {found['run_speed_up']:.2f}; "
            f"cosine {found['cosine']:.7f}, relative {found['relative']:.2e}; {found['recorded']} recordings"
        )
        return found

    def close(self) -> None:
        """End the other processes, and let the model go."""
        from comfyui_hlwq.nodes.parallel import session

        session.close_all()
        del self.alone, self.together


def core_device() -> torch.device:
    """The device that ComfyUI samples on."""
    core.pack()
    from comfyui_hlwq.nodes import compat

    device: torch.device = compat.model_management.get_torch_device()
    return device


BEGUN = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - BEGUN:5.0f} s  {text}", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace) -> None:
    figures: dict[str, Any] = {"blocks": args.blocks}
    summary: dict[str, float | None] = {}
    sizes = list(map(int, args.tokens.split(",")))
    cosines: list[float] = []
    if args.blocks > 2:
        few = Comparison("exact", args.cards, 2, args.small, args.one_card)
        figures["two_blocks"] = few.compare(min(sizes), 4)
        few.close()
        del few
    for mode in args.modes.split(","):
        both = Comparison(mode, args.cards, args.blocks, args.small, args.one_card)
        for tokens in sizes:
            found = figures[f"{mode}_{tokens}"] = both.compare(tokens, args.steps)
            summary[f"gpus_efficiency_{mode}_{tokens}_{len(both.cards)}"] = found["efficiency"]
            cosines.append(found["cosine"])
            summary["gpus_latent_cosine"] = min(cosines)
            if not args.small and not args.one_card and args.blocks == 48:
                save(f"several_gpus_{len(both.cards)}", figures, summary)
        both.close()
        del both
    say(f"least cosine {min(cosines):.7f}, median efficiency {statistics.median(v for v in summary.values() if v):.3f}")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cards", default="all", help="as the node's input")
    arguments.add_argument("--tokens", default="6144,24576", help="numbers of video tokens")
    arguments.add_argument("--modes", default="exact,fast")
    arguments.add_argument("--steps", type=int, default=6, help="of a run")
    arguments.add_argument("--blocks", type=int, default=48)
    arguments.add_argument("--one-card", action="store_true", help="two processes on one card: without NCCL")
    arguments.add_argument("--small", action="store_true", help="narrow layers: to try this program on a CPU")
    args = arguments.parse_args()
    with torch.inference_mode():  # as ComfyUI runs its nodes
        measure(args)


if __name__ == "__main__":
    main()
