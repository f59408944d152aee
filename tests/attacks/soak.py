"""A soak: many prompts on one ComfyUI with the tiny model, and what it holds in between: memory, files, threads, temporary files.

    COMFYUI_PATH=… python tests/attacks/soak.py                          200 prompts
    COMFYUI_PATH=… python tests/attacks/soak.py --prompts 40 --every 5 --results tests/attacks/results/soak.json
    COMFYUI_PATH=… python tests/attacks/soak.py --card                   on a GPU, whose memory is looked at too

Each prompt takes one of two checkpoints, exact or fast, with a LoRA or without, another seed, size and text encoder, or what the one
before took; some are interrupted at a random moment, some are taken out of the queue, and `/free` comes between some. Every few
prompts one and the same prompt runs and its latents are compared; then everything is unloaded and the ComfyUI is looked at. It passes
where memory stays within 5 % of that at the first look after ten prompts, no open file, mapped model, thread or temporary file is more,
and the latents are those of the begin. Linux.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from hlwq_core.client.server import LocalServer  # noqa: E402
from hlwq_core.format.safefile import SafeFile  # noqa: E402
from hlwq_core.tools.quantize import quantize  # noqa: E402
from tests.attacks.batches import make_base  # noqa: E402
from tests.http.workflows import api, ask, set_inputs, small  # noqa: E402

FIRST, SECOND = "LTX-2.3-tiny-HLWQ-Q5", "LTX-2.3-tiny-4-bits"
TOLERANCE = 0.05
AFTER = 10  # prompts until memory is what it should stay
GARBAGE = 12  # seconds: ComfyUI collects every 10


def _asked(checkpoint: str, mode: str, lora: bool, size: tuple[int, int, int], packed_text: bool, seed: int) -> Any:
    """The workflow text to video, its latents saved as well."""
    prompt = copy.deepcopy(_workflow())
    small(prompt, *size, 24.0)
    set_inputs(prompt, Load_Checkpoint={"checkpoint": checkpoint, "mode": mode}, Seed={"noise_seed": seed})
    set_inputs(prompt, Prompt={"text": "a cat plays the piano"}, Negative_prompt={"text": "noise"})
    if packed_text:
        set_inputs(prompt, Load_Text_Encoder={"text_encoder": "gemma-3-tiny-HLWQ-Q5"})
    (loader,) = [number for number, node in prompt.items() if node["class_type"] == "HLWQLoadCheckpoint"]
    (added,) = [number for number, node in prompt.items() if node["class_type"] == "LoraLoaderModelOnly"]
    if not lora:
        del prompt[added]
        for node in prompt.values():
            node["inputs"].update({k: [loader, 0] for k, v in node["inputs"].items() if v == [added, 0]})
    (sampler,) = [number for number, node in prompt.items() if node["class_type"] == "SamplerCustomAdvanced"]
    prompt["parts"] = {"class_type": "LTXVSeparateAVLatent", "inputs": {"av_latent": [sampler, 0]}}
    for output, kind in enumerate(("video", "sound")):
        inputs = {"samples": ["parts", output], "filename_prefix": f"latents/{kind}"}
        prompt[f"save {kind}"] = {"class_type": "SaveLatent", "inputs": inputs}
    for node in prompt.values():
        node.setdefault("_meta", {"title": node["class_type"]})
    return prompt


def _workflow() -> dict[str, Any]:
    return api("hlwq_ltx23_text_to_video")


class Soak:
    """One ComfyUI, and what is asked of it."""

    def __init__(self, server: LocalServer, base: Path, temp: Path, numbers: random.Random):
        self.server, self.base, self.temp, self.numbers = server, base, temp, numbers
        assert server._process is not None
        self.pid = server._process.pid
        self.ended: Counter[str] = Counter()
        self.typical = 4.0  # seconds of a prompt, about
        self.videos: set[str] = set()
        self.choices: tuple[Any, ...] = ()

    def _note(self, entry: dict[str, Any]) -> None:
        files = [file for output in entry["outputs"].values() for file in output.get("images", [])]
        videos = {file["filename"] for file in files if file["filename"].endswith(".mp4")}
        assert len(videos) == 1, entry["outputs"]
        self.videos |= videos

    def queue(self, prompt: Any) -> str:
        """Queue a prompt."""
        return str(ask(self.server.url, "/prompt", {"prompt": prompt})["prompt_id"])

    def post(self, path: str, **body: Any) -> None:
        """A request whose answer is empty."""
        from urllib.request import Request, urlopen

        data = json.dumps(body).encode()
        urlopen(Request(self.server.url + path, data, {"Content-Type": "application/json"}), timeout=60).close()

    def wait(self, number: str, patience: float = 600) -> dict[str, Any] | None:
        """A prompt's history when it has ended; None where it is in no queue and has none."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            self.server.check()
            if entry := ask(self.server.url, f"/history/{number}").get(number):
                return dict(entry)
            queue = ask(self.server.url, "/queue")
            if all(item[1] != number for part in queue.values() for item in part):
                return dict(ask(self.server.url, f"/history/{number}").get(number) or {}) or None
            time.sleep(0.4)
        raise AssertionError(f"a prompt has not ended after {patience:.0f} s")

    def reference(self) -> str:
        """Run the prompt that is always the same; the hash of its latents."""
        entry = self.wait(self.queue(_asked(FIRST, "exact", False, (64, 64, 9), False, 7)))
        assert entry is not None and entry["status"]["status_str"] == "success", entry
        self._note(entry)
        digest = hashlib.sha256()
        for node in ("save video", "save sound"):
            (file,) = entry["outputs"][node]["latents"]
            saved = SafeFile(self.base / "output" / file["subfolder"] / file["filename"])
            for name in sorted(saved):
                digest.update(f"{name} {saved.entries[name].shape}".encode())
                digest.update(saved.tensor(name).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def one(self) -> None:
        """A random prompt and what befalls it."""
        chance = self.numbers
        if not self.choices or chance.random() < 0.6:
            self.choices = (
                chance.choice((FIRST, SECOND)),
                chance.choice(("exact", "fast")),
                chance.random() < 0.5,
                chance.choice(((64, 64, 9), (96, 64, 9), (64, 96, 9))),
                chance.random() < 0.3,
            )
        prompt = _asked(*self.choices, chance.randrange(1 << 30))
        begun = time.monotonic()
        number = self.queue(prompt)
        fate = chance.random()
        if fate < 0.3:
            time.sleep(chance.uniform(0, 1.1 * self.typical))
            self.post("/interrupt")
        elif fate < 0.35:
            self.post("/queue", delete=[number])
        entry = self.wait(number)
        if entry is None:
            self.ended["taken out of the queue"] += 1
        elif entry["status"]["status_str"] == "success":
            self.ended["made"] += 1
            self._note(entry)
            if fate >= 0.35:
                self.typical = (self.typical + time.monotonic() - begun) / 2
        else:
            kinds = {kind for kind, _ in entry["status"]["messages"]}
            assert "execution_interrupted" in kinds and "execution_error" not in kinds, entry["status"]
            self.ended["interrupted"] += 1
        if chance.random() < 0.15:
            unload = chance.random() < 0.5
            self.post("/free", unload_models=True, free_memory=unload)
            self.ended["/free"] += 1

    def mapped(self) -> set[str]:
        """Models whose files are mapped: some weights are views of them."""
        lines = [line.split(maxsplit=5) for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines()]
        found = {line[5].removesuffix(" (deleted)") for line in lines if len(line) > 5}
        return {name for name in found if name.endswith(".safetensors") and "/hlwq_core/" not in name}

    def look(self) -> dict[str, Any]:
        """What the process holds, and the files it left, when everything was unloaded and ComfyUI has collected its garbage."""
        for _ in range(10):
            self.post("/free", unload_models=True, free_memory=True)
            time.sleep(GARBAGE)
            if not self.mapped():
                break
        card = card_mb(self.pid)
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )
        files = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                files.append(os.readlink(entry))
            except OSError:
                continue  # closed in between
        # Of sockets whoever asks has one, until it is closed.
        kept = [name for name in files if not name.startswith("socket:")]
        log = self.server.log
        temporary = [p for p in self.temp.rglob("*") if p.is_file() and p != log and "base" not in p.parts]
        hidden = [p.name for p in (self.base / "output").rglob(".*") if p.is_file()]
        mapped = self.mapped()
        return {
            "rss_mb": round(int(status["VmRSS"].split()[0]) / 1024, 1),
            "own_mb": round(int(status["RssAnon"].split()[0]) / 1024, 1),
            **({} if card is None else {"card_mb": card}),
            "threads": int(status["Threads"].split()[0]),
            "files": len(kept),
            "sockets": len(files) - len(kept),
            "mapped": len(mapped),
            "temporary": len(temporary),
            "unfinished": len(hidden),
            "names": sorted([*Counter(kept).items(), *((name, 0) for name in mapped)]),
            "temporary_names": sorted(str(p.relative_to(self.temp)) for p in temporary),
        }


def card_mb(pid: int) -> float | None:
    """What a process holds on the first card; None where there is none, or its driver tells nothing of processes."""
    try:
        import pynvml

        pynvml.nvmlInit()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception:  # no package, no driver
        return None
    held = [process.usedGpuMemory for process in processes if process.pid == pid]
    return round(held[0] / 2**20, 1) if held and held[0] else None


def judge(looks: list[dict[str, Any]], hashes: list[str]) -> list[str]:
    """What is wrong: `looks[0]` is after the first prompts, the others later."""
    faults = []
    first, last = looks[0], looks[-1]
    for name in ("rss_mb", "own_mb", "card_mb"):
        if name in first and name in last and last[name] > first[name] * (1 + TOLERANCE):
            faults.append(f"{name} {first[name]} has become {last[name]}")
    for name in ("threads", "files", "sockets", "mapped", "temporary", "unfinished"):
        if last[name] > first[name]:
            faults.append(f"{name}: {first[name]} have become {last[name]}")
    for name in ("names", "temporary_names"):
        if last[name] != first[name] and any(fault.startswith(("files", "mapped", "temporary")) for fault in faults):
            faults.append(f"{name}: {[item for item in last[name] if item not in first[name]]}")
    if ("card_mb" in first) != ("card_mb" in last):
        faults.append("card_mb was told at one look and not at the other")
    if len(set(hashes)) != 1:
        faults.append(f"the same prompt made {len(set(hashes))} kinds of latents")
    return faults


def soak(
    prompts: int,
    every: int,
    seed: int,
    report: Callable[[dict[str, Any]], None],
    arguments: Sequence[str] = ("--cpu",),
) -> dict[str, Any]:
    """Run it.

    Args:
        arguments: of ComfyUI.
        report: is given after each look what is returned at the end.

    Returns:
        `looks` (after how many prompts, and what was held), `ended` (what became of the prompts), `latents`, `faults`.
    """
    with tempfile.TemporaryDirectory(prefix="hlwq-soak-") as home:
        base, temp = Path(home) / "base", Path(home) / "temp"
        temp.mkdir()
        comfyui = make_base(base)
        models = base / "models"
        quantize(models / "reference" / "ltx23_tiny_bf16.safetensors", models / "hlwq" / SECOND, bits=4)
        before, tempfile.tempdir = tempfile.tempdir, str(temp)  # the ComfyUI's folder too
        try:
            return _soak(comfyui, base, temp, (prompts, every, seed), report, arguments)
        finally:
            tempfile.tempdir = before


def _soak(
    comfyui: Path,
    base: Path,
    temp: Path,
    asked: tuple[int, int, int],
    report: Callable[[dict[str, Any]], None],
    arguments: Sequence[str],
) -> dict[str, Any]:
    prompts, every, seed = asked
    begun = time.monotonic()
    extra = [*arguments, "--disable-api-nodes", "--output-directory", str(base / "output")]
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1", "TMPDIR": str(temp)}
    log = base.with_name("log")
    with LocalServer(comfyui, base=base, extra=extra, timeout=600, log=log, env=env, cpu=False) as server:
        run = Soak(server, base, temp, random.Random(seed))
        looks: list[dict[str, Any]] = []
        hashes = [run.reference()]
        result: dict[str, Any] = {}
        for done in range(1, prompts + 1):
            run.one()
            if done != AFTER and done % every and done != prompts:
                continue
            hashes.append(run.reference())
            look = {"prompts": done, **run.look()}
            if done >= AFTER:
                looks.append(look)
            there = {path.name for path in (base / "output").rglob("*.mp4")}
            faults = judge(looks or [look], hashes)
            if "--cpu" not in arguments and "card_mb" not in look:
                faults.append("the card's memory is not told: is pynvml there?")
            if lost := run.videos - there:
                faults.append(f"{len(lost)} videos are not there")
            if len(there - run.videos) > run.ended["interrupted"]:
                faults.append(f"{len(there - run.videos)} videos that nobody was told of")
            result = {
                "prompts": done,
                "seed": seed,
                "seconds": round(time.monotonic() - begun),
                "ended": dict(sorted(run.ended.items())),
                "latents": {"compared": len(hashes), "kinds": len(set(hashes))},
                "looks": [_figures(look) for look in looks],
                "faults": faults,
            }
            report(result)
    return result


def _figures(look: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if not name.endswith("names")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--card", action="store_true", help="on a GPU")
    parser.add_argument("--server", action="append", default=[], help="one more argument for ComfyUI")
    args = parser.parse_args()
    if args.prompts < AFTER:
        parser.error(f"at least {AFTER} prompts")

    def report(result: dict[str, Any]) -> None:
        print(json.dumps({**result, "looks": result["looks"][-1:]}), flush=True)
        if args.results:
            args.results.write_text(json.dumps(result, indent=1) + "\n")

    result = soak(args.prompts, args.every, args.seed, report, [*([] if args.card else ["--cpu"]), *args.server])
    return int(bool(result["faults"]))


if __name__ == "__main__":
    raise SystemExit(main())
