"""A small ComfyUI that is started as one: the same routes, and words in a prompt that make it fail or die.

It appends every prompt that it runs to the file FAKE_RUNS, and its process number to FAKE_PIDS. FAKE_SECONDS: how long a prompt
takes. In a prompt, REFUSE is refused, FAIL fails, ONCE fails the first time, DIE ends the process, NOTHING makes no file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
import uuid
from pathlib import Path

from aiohttp import web

NODES = {
    "Text": {"input": {"required": {"text": ["STRING", {}]}}},
    "Size": {"input": {"required": {"value": ["INT", {}]}}},
    "LoadImage": {"input": {"required": {"image": [["example.png"], {"image_upload": True}]}}},
    "Noise": {"input": {"required": {"noise_seed": ["INT", {}]}}},
    "Save": {"input": {"required": {"text": ["STRING", {}], "seed": ["NOISE", {}]}}},
}
WORKFLOW = {
    "1": {"class_type": "Text", "inputs": {"text": "nothing"}, "_meta": {"title": "Prompt"}},
    "2": {"class_type": "Noise", "inputs": {"noise_seed": 1}, "_meta": {"title": "Seed"}},
    "3": {"class_type": "Size", "inputs": {"value": 64}, "_meta": {"title": "Width"}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "Start image"}},
    "5": {"class_type": "Save", "inputs": {"text": ["1", 0], "seed": ["2", 0]}, "_meta": {"title": "Save"}},
}


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Fake:
    def __init__(self, output: Path, base: Path) -> None:
        self.output, self.base = output, base
        self.pending: list[tuple[str, dict]] = []
        self.running: list[str] = []
        self.history: dict[str, dict] = {}
        self.runs = Path(os.environ["FAKE_RUNS"])
        self.turn = asyncio.Lock()
        self.tasks: set[asyncio.Task] = set()

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": "fake"}, "devices": []})

    async def info(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response({name: NODES[name]} if name in NODES else {})

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompt_id = body.get("prompt_id") or str(uuid.uuid4())
        if "REFUSE" in body["prompt"]["1"]["inputs"]["text"]:
            error = {"type": "custom_validation_failed", "details": "text - not this"}
            node = {"1": {"class_type": "Text", "errors": [error]}}
            return web.json_response({"error": {"message": "no"}, "node_errors": node}, status=400)
        self.pending.append((prompt_id, body["prompt"]))
        task = asyncio.ensure_future(self.run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return web.json_response({"prompt_id": prompt_id, "node_errors": {}})

    async def run(self) -> None:
        async with self.turn:
            if not self.pending:
                return
            prompt_id, nodes = self.pending.pop(0)
            self.running.append(prompt_id)
            text, seed = nodes["1"]["inputs"]["text"], nodes["2"]["inputs"]["noise_seed"]
            first = not self.runs.exists() or text not in self.runs.read_text()
            with self.runs.open("a") as out:
                out.write(f"{os.getpid()} {text} {seed}\n")
            start = time.time()
            await asyncio.sleep(float(os.environ.get("FAKE_SECONDS", "0.05")))
            if "DIE" in text:
                os._exit(1)
            messages = [["execution_start", {"timestamp": int(1000 * start)}]]
            outputs: dict = {}
            if "FAIL" in text or ("ONCE" in text and first):
                data = {"node_id": "5", "node_type": "Save", "exception_type": "E", "exception_message": f"no {text}"}
                messages.append(["execution_error", data])
            elif "NOTHING" not in text:
                picture = self.base / "input" / nodes["4"]["inputs"]["image"]
                seen = hashlib.sha256(picture.read_bytes()).hexdigest() if picture.is_file() else "none"
                content = f"film of {text}, seed {seed}, picture {seen}, width {nodes['3']['inputs']['value']}\n" * 50
                name = f"film_{hashlib.sha256(content.encode()).hexdigest()[:12]}.mp4"
                (self.output / name).write_text(content)
                outputs = {"5": {"images": [{"filename": name, "subfolder": "", "type": "output"}]}}
                messages.append(["execution_success", {"timestamp": int(1000 * time.time())}])
            state = "success" if outputs or "NOTHING" in text else "error"
            self.history[prompt_id] = {"outputs": outputs, "status": {"status_str": state, "messages": messages}}
            self.running.remove(prompt_id)

    async def queue(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"queue_running": [[0, p] for p in self.running], "queue_pending": [[0, p] for p, _ in self.pending]}
        )

    async def change(self, request: web.Request) -> web.Response:
        gone = (await request.json()).get("delete", [])
        self.pending = [item for item in self.pending if item[0] not in gone]
        return web.Response()

    async def told(self, request: web.Request) -> web.Response:
        found = self.history.get(request.match_info["id"])
        return web.json_response({request.match_info["id"]: found} if found else {})

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        folder = self.base / "input" / form["subfolder"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / form["image"].filename).write_bytes(form["image"].file.read())
        return web.json_response({"name": form["image"].filename, "subfolder": form["subfolder"]})

    async def view(self, request: web.Request) -> web.StreamResponse:
        path = self.output / request.query["filename"]
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/system_stats", self.stats),
                web.get("/object_info/{name}", self.info),
                web.post("/prompt", self.prompt),
                web.get("/queue", self.queue),
                web.post("/queue", self.change),
                web.post("/interrupt", self.change),
                web.post("/free", self.change),
                web.get("/history/{id}", self.told),
                web.post("/upload/image", self.upload),
                web.get("/view", self.view),
            ]
        )
        return app


def main() -> None:
    with open(os.environ["FAKE_PIDS"], "a") as out:
        out.write(f"{os.getpid()}\n")
    print("fake ComfyUI", json.dumps(sys.argv[1:]), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    base = Path(option("--base-directory")) if "--base-directory" in sys.argv else Path(__file__).parent
    fake = Fake(Path(option("--output-directory")), base)
    web.run_app(fake.app(), host="127.0.0.1", port=int(option("--port")), print=None, handle_signals=True)


if __name__ == "__main__":
    main()
