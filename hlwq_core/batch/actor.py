"""What an actor of a Ray cluster does: it hosts a ComfyUI, and makes jobs on it whose inputs come and whose outputs go as bytes."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from .. import comfyui
from ..client.server import LocalServer
from ..errors import HLWQError, WorkError
from ..format.portable import portable
from .job import Job, request_of
from .making import Unwritable, WorkerLost
from .results import Arrived, discard
from .workers import OwnServer


class Host:
    """A ComfyUI and the files that are on their way.

    Args:
        settings: JSON of `comfyui`, `base`, `python`, `extra`, `timeout`, `cpu`, see `LocalServer`.
    """

    def __init__(self, settings: str):
        self.settings: dict[str, Any] = json.loads(settings)
        self.worker = OwnServer("comfyui", self._server)

    def _server(self) -> LocalServer:
        given = self.settings
        return LocalServer(
            comfyui.program(given["comfyui"]),
            base=given["base"],
            python=given["python"],
            extra=given["extra"],
            timeout=given["timeout"],
            cpu=given["cpu"],
            alone=True,
        )

    @property
    def folder(self) -> Path:
        """Where files lie that are on their way: it goes with ComfyUI, whatever ends this process."""
        if self.worker.server is None:
            raise FileNotFoundError("ComfyUI has been ended")
        folder = self.worker.server.folder / "on_their_way"
        folder.mkdir(exist_ok=True)
        return folder

    async def ready(self) -> str:
        """Start ComfyUI and wait until it answers; JSON of the machine's name and the seconds, or of an error."""
        begun = time.monotonic()
        try:
            await self.worker.start()
        except HLWQError as error:
            return json.dumps({"error": str(error)})
        return json.dumps({"host": socket.gethostname(), "seconds": time.monotonic() - begun})

    async def make(self, slot: int, request: str, files: dict[str, bytes]) -> str:
        """Make a job: JSON of the run and of the files that wait to be fetched, of the job's error, or of a lost ComfyUI."""
        values = json.loads(request)
        inputs: Path | None = None
        parts: list[Path] = []

        def part() -> Path:
            parts.append(self.folder / uuid.uuid4().hex)
            return parts[-1]

        arrived: Arrived | None = None
        try:
            inputs = self.folder / uuid.uuid4().hex
            inputs.mkdir()
            for key, content in files.items():
                path = inputs / portable(str(values[key]))
                path.write_bytes(content)
                values[key] = path
            job = Job(request_of(values), "job")
            arrived = await self.worker.make(slot, job, part, None, lambda _: None)
        except (WorkerLost, Unwritable) as lost:
            return json.dumps({"lost": str(lost)})
        except OSError as error:
            return json.dumps({"lost": str(error)})
        except HLWQError as error:
            final = error.final if isinstance(error, WorkError) else True
            return json.dumps({"error": str(error), "final": final})
        finally:
            if inputs is not None:
                shutil.rmtree(inputs, ignore_errors=True)
            if arrived is None:
                discard(parts)
        run = {key: getattr(arrived, key) for key in ("seconds", "prompt_id", "workflow", "report", "node_seconds")}
        outputs = [
            {"part": path.name, "name": name, "sha256": digest, "size": path.stat().st_size}
            for path, name, digest in arrived.parts
        ]
        return json.dumps({"run": run, "files": outputs})

    def piece(self, name: str, offset: int, size: int) -> bytes:
        """Bytes of a file that waits."""
        with (self.folder / portable(name)).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def forget(self, names: list[str]) -> None:
        """These have been fetched."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.folder / portable(name)).unlink()

    async def stop(self) -> None:
        """End ComfyUI."""
        await self.worker.stop()
