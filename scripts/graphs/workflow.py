"""One description of a workflow, and its two forms: for the canvas and for the API."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from .signatures import Slot, slots

# What ComfyUI's app mode asks for, in this order: titles, and the widget that is set there under the title's name.
ASKED = (
    ("Start image", "image"), ("Video", "file"), ("Audio", "audio"), ("Prompt", "text"), ("Width", "value"),
    ("Height", "value"), ("Length", "value"), ("Last frames", "value"), ("Frame rate", "value"), ("Seed", "noise_seed"),
)  # fmt: skip
SHOWN = "Save"  # what it shows

# Dark enough in the dark theme and, lightened by the frontend, light enough in the light one for text and links.
NOTE_COLOR = ("#432", "#39390e")


@dataclass(frozen=True)
class Out:
    node: Node
    slot: int


@dataclass(eq=False)
class Node:
    id: int
    type: str
    title: str | None
    inputs: dict[str, Any]
    signature: dict[str, Any]
    size: tuple[int, int]
    after: list[Any] = field(default_factory=list)  # values behind a seed or an upload widget
    models: list[dict[str, str]] = field(default_factory=list)
    color: tuple[str, str] | None = None
    pos: tuple[int, int] = (0, 0)

    def __getitem__(self, output: str) -> Out:
        return Out(self, self.signature["output_name"].index(output))

    def slots(self) -> list[Slot]:
        """Sockets first, then widgets: the order in which the frontend numbers inputs."""
        every = slots(self.signature)
        return [s for s in every if not s.widget] + [s for s in every if s.widget]


@dataclass
class Note:
    title: str
    text: str
    size: tuple[int, int]


class Workflow:
    """A graph described node by node; groups stand side by side, nodes stand one below the other in a group."""

    GAP, MARGIN, TITLE = 60, 30, 40

    def __init__(self, stem: str, name: str, signatures: dict[str, Any]):
        self.stem, self.name, self.signatures = stem, name, signatures
        self.nodes: list[Node] = []
        self.columns: list[list[tuple[str, str, list[Node | Note]]]] = []
        self._group: list[Node | Note] = []

    def column(self) -> None:
        self.columns.append([])

    def group(self, title: str, color: str = "#3f789e") -> None:
        self._group = []
        self.columns[-1].append((title, color, self._group))

    def add(
        self, type: str, title: str | None = None, *, wide: int = 320, lines: int = 0, after: list[Any] | None = None,
        models: list[dict[str, str]] | None = None, color: tuple[str, str] | None = None, **inputs: Any,
    ) -> Node:  # fmt: skip
        """A node; an input is a value or another node's output. `__` in an input's name stands for a dot."""
        signature = self.signatures[type]
        entries = slots(signature)
        given = {name.replace("__", "."): value for name, value in inputs.items()}
        if unknown := given.keys() - {s.name for s in entries}:
            raise KeyError(f"{type} has no input {sorted(unknown)}")
        values = {s.name: s.default for s in entries if s.widget} | given
        rows = max(sum(not s.widget for s in entries), len(signature["output"]))
        height = 50 + 24 * rows + sum(30 + 30 * (s.extra == 1) for s in entries if s.widget) + 20 * lines
        node = Node(
            len(self.nodes) + 1, type, title, values, signature, (wide, height), after or [], models or [], color
        )
        self.nodes.append(node)
        self._group.append(node)
        return node

    def note(self, title: str, text: str, size: tuple[int, int]) -> None:
        self._group.append(Note(title, text, size))

    # -- API form

    def api(self) -> dict[str, Any]:
        prompt = {}
        for node in self.nodes:
            inputs = {
                slot.name: [str(value.node.id), value.slot] if isinstance(value, Out) else value
                for slot in slots(node.signature)
                if (value := node.inputs.get(slot.name)) is not None
            }
            title = node.title or node.type
            prompt[str(node.id)] = {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}
        return prompt

    # -- canvas form

    def _place(self) -> tuple[list[dict[str, Any]], list[tuple[Note, tuple[int, int]]]]:
        groups, notes = [], []
        x = 0
        for column in self.columns:
            y, widest = 0, 0
            for title, color, members in column:
                width = max(m.size[0] for m in members)
                top, y = y, y + self.TITLE + 40
                for member in members:
                    at = (x + self.MARGIN, y)
                    if isinstance(member, Note):
                        notes.append((member, at))
                    else:
                        member.pos = at
                        member.size = (width, member.size[1])
                    y += member.size[1] + self.GAP
                bounds = [x, top, width + 2 * self.MARGIN, y - self.GAP + self.MARGIN - top]
                groups.append({"id": len(groups) + 1, "title": title, "bounding": bounds, "color": color, "flags": {}})
                y += self.MARGIN + 20
                widest = max(widest, width)
            x += widest + 2 * self.MARGIN + 40
        return groups, notes

    def _links(self) -> list[tuple[int, Node, int, Node, int, str]]:
        links = []
        for node in self.nodes:
            for index, slot in enumerate(node.slots()):
                value = node.inputs.get(slot.name)
                if isinstance(value, Out):
                    kind = value.node.signature["output"][value.slot]
                    links.append((len(links) + 1, value.node, value.slot, node, index, kind))
        return links

    def ui(self) -> dict[str, Any]:
        groups, notes = self._place()
        links = self._links()
        nodes = [self._ui_node(node, order, links) for order, node in enumerate(self.nodes)]
        for note, at in notes:
            nodes.append(
                {
                    "id": len(nodes) + 1,
                    "type": "MarkdownNote",
                    "title": note.title,
                    "pos": list(at),
                    "size": list(note.size),
                    "flags": {},
                    "order": len(nodes),
                    "mode": 0,
                    "inputs": [],
                    "outputs": [],
                    "properties": {},
                    "widgets_values": [note.text],
                    "color": NOTE_COLOR[0],
                    "bgcolor": NOTE_COLOR[1],
                }
            )
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"hlwq:{self.stem}")),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": [[i, a.id, sa, b.id, sb, kind] for i, a, sa, b, sb, kind in links],
            "groups": groups,
            "config": {},
            "extra": {
                "ds": {"scale": 0.5, "offset": [120, 120]},
                "frontendVersion": "1.47.12",
                "linearMode": False,
                "linearData": self._app(),
            },
            "version": 0.4,
        }

    def _app(self) -> dict[str, Any]:
        """What app mode asks for and shows, as ComfyUI's own templates have it."""
        by_title = {node.title: str(node.id) for node in self.nodes}
        return {
            "inputs": [[by_title[title], widget] for title, widget in ASKED if title in by_title],
            "outputs": [by_title[SHOWN]],
        }

    def _ui_node(self, node: Node, order: int, links: list[tuple[int, Node, int, Node, int, str]]) -> dict[str, Any]:
        inputs = []
        for index, slot in enumerate(node.slots()):
            entry: dict[str, Any] = {"localized_name": slot.name, "name": slot.name, "type": slot.type}
            if slot.widget:
                entry["widget"] = {"name": slot.name}
            if (node.title, slot.name) in ASKED:
                entry["label"] = node.title
            entry["link"] = next((i for i, _, _, b, sb, _ in links if b is node and sb == index), None)
            inputs.append(entry)
        outputs = [
            {
                "localized_name": name,
                "name": name,
                "type": kind,
                "links": [i for i, a, sa, *_ in links if a is node and sa == slot],
            }
            for slot, (name, kind) in enumerate(
                zip(node.signature["output_name"], node.signature["output"], strict=True)
            )
        ]
        ours = node.type.startswith("HLWQ")
        properties: dict[str, Any] = {
            "cnr_id": "comfyui-hlwq" if ours else "comfy-core",
            "Node name for S&R": node.type,
        }
        if node.models:
            properties["models"] = node.models
        entry = {
            "id": node.id,
            "type": node.type,
            "pos": list(node.pos),
            "size": list(node.size),
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": properties,
            "widgets_values": self._widget_values(node),
        }
        if node.title:
            entry["title"] = node.title
        if node.color:
            entry["color"], entry["bgcolor"] = node.color
        return entry

    def _widget_values(self, node: Node) -> list[Any]:
        after = list(node.after)
        values: list[Any] = []
        for slot in slots(node.signature):
            if not slot.widget:
                continue
            value = node.inputs.get(slot.name)
            # A linked widget shows nothing of its own, but its place in the list has to be filled with its type.
            values.append(self._resting_value(slot, value.node) if isinstance(value, Out) else value)
            for _ in range(slot.extra):
                values.append(after.pop(0) if after else None)
        return values

    @staticmethod
    def _resting_value(slot: Slot, source: Node) -> Any:
        own = source.inputs.get("value")
        if own is not None and not isinstance(own, Out):
            return own
        return {"STRING": "", "BOOLEAN": False}.get(slot.type, 1)
