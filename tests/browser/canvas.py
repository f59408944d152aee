"""What a person does on ComfyUI's canvas, as methods."""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

PATIENCE = 30.0  # seconds, for every single wait

_DROP = """
async ([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, { type: "application/json" }));
  const at = { bubbles: true, cancelable: true, clientX: 800, clientY: 500, dataTransfer: data };
  const target = document.querySelector("#graph-canvas");
  target.dispatchEvent(new DragEvent("dragover", at));
  target.dispatchEvent(new DragEvent("drop", at));
}
"""

# The boxes of nodes and groups as drawn: litegraph's own in the classic rendering, the elements' in the other.
_BOXES = """
() => app.graph.nodes.map((node) => {
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  const title = `${node.id} ${node.title}`;
  if (element) {
    const box = element.getBoundingClientRect();
    return { title, box: [box.x, box.y, box.width, box.height] };
  }
  return { title, box: Array.from(node.getBounding()) };
})
"""


# The text of a note, in the one rendering and the other.
NOTE = ".comfy-markdown-content, .comfy-markdown"
# A node's width and height as drawn, in pixels at 100 %: `node.size`, but where an element stands for the node, the element's.
SIZE = """const size = (node) => {
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  return element ? [element.offsetWidth, element.offsetHeight] : node.size;
};"""
# The loader's panel, with its picture and buttons, is shown whole: nothing must be scrolled, nothing leaves the node.
UNSCROLLED = f"""
() => {{
  {SIZE}
  const panel = document.querySelector(".hlwq-panel");
  const [width, height] = size(app.graph.nodes.find((n) => n.type === "HLWQLoadCheckpoint"));
  const outer = panel.getBoundingClientRect();
  const inside = (element) => {{
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.bottom <= outer.bottom + 1 && box.right <= outer.right + 1;
  }};
  return panel.scrollHeight <= panel.clientHeight && panel.offsetHeight < height && panel.offsetWidth < width
    && [...panel.querySelectorAll("img, button")].filter((element) => element.checkVisibility()).every(inside);
}}
"""
# Text, colour and rectangle of every text node in an element. A canvas reads any notation of a colour.
_TEXTS = """
(element) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const outer = element.getBoundingClientRect();
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!node.data.trim() || !box.width) continue;
    const hidden = box.left < outer.left - 1 || box.top < outer.top - 1 || box.right > outer.right + 1
      || box.bottom > outer.bottom + 1;
    const link = !!node.parentElement.closest("a");
    texts.push({ text: node.data.trim(), link, color: rgb(getComputedStyle(node.parentElement).color), hidden });
  }
  return texts;
}
"""


def _contrast(text: list[int], ground: tuple[int, ...]) -> float:
    """The contrast ratio of WCAG 2 between two sRGB colours of 0 to 255."""

    def luminance(color: Any) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(text), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


class Canvas:
    """One page of ComfyUI with an empty graph."""

    def __init__(self, page: Any, url: str):
        self.page = page
        self.url = url
        self.failures: list[str] = []
        page.on("pageerror", lambda error: self.failures.append(str(error)))
        page.goto(url)
        self.wait("window.app?.vueAppReady && window.app.extensionManager?.spinner === false")
        # The waiting screen's mask fades out after that; until it is gone it swallows clicks.
        page.locator(".p-blockui-mask, .p-overlay-mask").first.wait_for(state="detached")
        self.clear()

    def clear(self) -> None:
        """An empty graph, still the open workflow's: by the id ComfyUI knows whose error it is told."""
        self.page.evaluate("() => { const { id } = app.graph; app.graph.clear(); app.graph.id = id; }")

    def wait(self, expression: str, argument: Any = None) -> Any:
        """Wait until the expression (or function of one argument) is truthy in the page; its value."""
        return self.page.wait_for_function(expression, arg=argument, timeout=PATIENCE * 1000).json_value()

    def drop(self, workflow: dict[str, Any], name: str = "workflow.json") -> None:
        """Drag a workflow file onto the canvas; returns when all its nodes are there."""
        self.clear()  # or the nodes of the last one, which may have the same ids, would be taken for it
        self.page.evaluate(_DROP, [name, json.dumps(workflow)])
        ids = sorted(str(node["id"]) for node in workflow["nodes"])
        self.wait(
            "(ids) => { const there = new Set(app.graph.nodes.map((n) => String(n.id)));"
            " return there.size === ids.length && ids.every((id) => there.has(id)); }",
            ids,
        )
        # Undo knows of nothing that happens before ComfyUI is through with the opening.
        self.wait("() => !app.extensionManager.workflow.activeWorkflow?.changeTracker?.constructor.isLoadingGraph")

    def drop_file(self, path: Path) -> None:
        self.drop(json.loads(path.read_text("utf-8")), path.name)

    def add(self, node_type: str, **widgets: Any) -> None:
        """Put a node on the canvas and choose its widgets' values as the widget itself would."""
        self.page.evaluate(
            """([type, values]) => {
              const node = LiteGraph.createNode(type);
              node.pos = [420, 200];
              app.graph.add(node);
              for (const [name, value] of Object.entries(values)) {
                const widget = node.widgets.find((w) => w.name === name);
                widget.value = value;
                widget.callback?.(value);
              }
              app.canvas.ds.offset = [0, 0];
              app.canvas.ds.scale = 1;
              app.canvas.setDirty(true, true);
            }""",
            [node_type, widgets],
        )

    def missing_nodes(self) -> list[str]:
        """Types of nodes on the canvas that no installed pack defines."""
        return self.page.evaluate(
            "() => { const missing = [];"
            " const walk = (graph) => graph.nodes.forEach((n) => n.isSubgraphNode?.() ? walk(n.subgraph)"
            " : LiteGraph.registered_node_types[n.type] || missing.push(n.type));"
            " walk(app.graph); return missing; }"
        )

    def red_inputs(self) -> list[str]:
        """Choices that no longer exist, as ComfyUI marks them: 'node: widget = value'."""
        return self.page.evaluate(
            "() => app.graph.nodes.flatMap((n) => (n.widgets ?? []).filter((w) => w.type === 'combo'"
            " && Array.isArray(w.options?.values) && !w.options.values.includes(w.value))"
            ".map((w) => `${n.title}: ${w.name} = ${w.value}`))"
        )

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of nodes of which one covers the other."""
        entries = self.page.evaluate(_BOXES)
        pairs = []
        for i, a in enumerate(entries):
            for b in entries[i + 1 :]:
                (ax, ay, aw, ah), (bx, by, bw, bh) = a["box"], b["box"]
                if ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah:
                    pairs.append((a["title"], b["title"]))
        return pairs

    def fit_view(self) -> None:
        """Zoom so that everything is in view (also lets every widget be drawn)."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        # It moves there step by step: what looks elsewhere meanwhile would be taken back.
        self.page.evaluate("() => { window.lookedAt = null; }")
        self.wait(
            "() => { const { scale, offset } = app.canvas.ds, now = JSON.stringify([scale, ...offset]);"
            " if (window.lookedAt?.what !== now) window.lookedAt = { what: now, since: performance.now() };"
            " return performance.now() - window.lookedAt.since > 500; }"
        )

    def look_at(self, *node_types: str) -> None:
        """Zoom to the first nodes of these types."""
        self.page.evaluate(
            """(types) => {
              const nodes = types.map((type) => app.graph.nodes.find((n) => n.type === type));
              const boxes = nodes.map((n) => Array.from(n.getBounding()));
              const [x, y] = [0, 1].map((i) => Math.min(...boxes.map((b) => b[i])));
              const [r, b] = [0, 1].map((i) => Math.max(...boxes.map((c) => c[i] + c[i + 2])));
              const { width, height } = app.canvas.canvas.getBoundingClientRect();
              const scale = Math.min((width - 160) / (r - x), (height - 200) / (b - y), 1);
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset = [(width + 60) / scale / 2 - (x + r) / 2, (height + 40) / scale / 2 - (y + b) / 2];
              app.canvas.setDirty(true, true);
            }""",
            list(node_types),
        )

    def choose(self, node_type: str, widget: str, value: str) -> None:
        """Choose a value of a widget, as its list does."""
        self.page.evaluate(
            """([type, name, value]) => {
              const node = app.graph.nodes.find((n) => n.type === type);
              const widget = node.widgets.find((w) => w.name === name);
              widget.value = value;
              widget.callback?.(value, app.canvas, node);
            }""",
            [node_type, widget, value],
        )

    def select(self, node_type: str) -> None:
        self.page.evaluate(
            "(type) => app.canvas.selectItems([app.graph.nodes.find((n) => n.type === type)])", node_type
        )

    def texts(self, selector: str) -> list[dict[str, Any]]:
        """Every piece of text inside the first such element: `text`; `hidden`, whether some of it lies outside the element; `link`;
        `contrast` to the element's ground as it is drawn (WCAG 2, 1 to 21)."""
        element = self.page.locator(selector).first
        found = element.evaluate(_TEXTS)
        pixels = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
        ground = Counter(
            pixels.get_flattened_data() if hasattr(pixels, "get_flattened_data") else pixels.getdata()
        ).most_common(1)[0][0]
        return [piece | {"contrast": _contrast(piece["color"], ground)} for piece in found]

    def search_and_add(self, name: str) -> None:
        """Open the node search (as a double-click on the canvas does), type a name, take the first answer."""
        self.page.evaluate("() => { app.extensionManager.command.execute('Workspace.SearchBox.Toggle'); }")
        search = self.page.get_by_role("combobox", name="Add a node...")
        search.fill(name)
        self.page.get_by_role("option", name=name).first.wait_for()
        search.press("Enter")
        self.page.mouse.click(700, 300)  # the new node hangs on the pointer until it is put down

    def connect(self, source: str, output: str, target: str, slot: int = 0) -> None:
        """Link an output, by its name, to an input of another node."""
        self.page.evaluate(
            """([source, output, target, slot]) => {
              const [a, b] = [source, target].map((type) => app.graph.nodes.find((n) => n.type === type));
              b.pos = [a.pos[0] + a.size[0] + 60, a.pos[1]];
              a.connect(a.outputs.findIndex((o) => o.name === output), b, slot);
            }""",
            [source, output, target, slot],
        )

    def press_run(self) -> None:
        self.page.get_by_test_id("queue-button").click()

    def run(self) -> str | None:
        """Press the Run button, and wait for the end of what it started; the error if it failed, else None."""
        self.page.evaluate(
            """() => {
              const seen = (window.hlwqRun = { signs: 0, end: null, outputs: [] });
              app.api.addEventListener("executed", ({ detail }) => seen.outputs.push(detail.output));
              for (const type of ["execution_start", "executing", "progress_state", "executed"])
                app.api.addEventListener(type, () => seen.signs++);
              app.api.addEventListener("execution_success", () => (seen.end ??= "success"));
              app.api.addEventListener("execution_error", ({ detail }) => (seen.end ??= detail.exception_message));
            }"""
        )
        self.press_run()
        signs = 0
        while True:  # every sign of life may take PATIENCE; the test's own timeout bounds the whole
            state = self.wait("(signs) => (hlwqRun.end || hlwqRun.signs > signs) && hlwqRun", signs)
            if state["end"] is not None:
                return None if state["end"] == "success" else state["end"]
            signs = state["signs"]

    def saved(self) -> bytes:
        """The one file that the last run saved."""
        (file,) = self.page.evaluate("() => hlwqRun.outputs.flatMap((output) => output?.images ?? [])")
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(file)}", timeout=PATIENCE) as answer:
            return answer.read()

    def video(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait for a video element with data, play it a little; what it played."""
        self.page.locator("video").first.wait_for(state="attached", timeout=timeout * 1000)
        return self.wait(
            """() => {
              const video = [...document.querySelectorAll("video")].find((v) => v.readyState >= 2);
              if (!video) return false;
              if (video.paused) { video.play(); return false; }
              if (!(video.currentTime > 0) || !(video.webkitAudioDecodedByteCount > 0)) return false;
              return { width: video.videoWidth, height: video.videoHeight, duration: video.duration,
                       controls: video.controls, muted: video.muted };
            }"""
        )
