"""A canvas workflow in API form, written apart from scripts/make_workflows.py: what the frontend's Queue button sends.

Knows subgraphs, reroutes, bypassed nodes, autogrown inputs and dynamic combos: enough for the shipped workflows
and for the official LTX-2.3 templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NOTES = ("MarkdownNote", "Note")
MUTED, BYPASSED = 2, 4
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
FROM_OUTSIDE, TO_OUTSIDE = -10, -20


@dataclass(frozen=True)
class Constant:
    """A value that stands in a subgraph's own box."""

    value: Any


Value = tuple[str, int] | Constant | None  # what a socket gets: node id in API form and output, or a value


def convert(workflow: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The workflow as /prompt takes it; `info` is /object_info or an excerpt of it."""
    return _Canvas(workflow, info).prompt()


class _Canvas:
    def __init__(self, workflow: dict[str, Any], info: dict[str, Any]):
        self.workflow, self.info = workflow, info
        self.subgraphs = {s["id"]: s for s in workflow.get("definitions", {}).get("subgraphs", [])}

    def prompt(self) -> dict[str, Any]:
        prompt = {}
        for graph, prefix, outer in self.graphs(self.workflow, "", {}):
            for node in graph["nodes"]:
                if node["type"] in (*NOTES, *self.subgraphs, "Reroute") or node["mode"] in (MUTED, BYPASSED):
                    continue
                prompt[f"{prefix}{node['id']}"] = {
                    "inputs": self.inputs(graph, node, prefix, outer),
                    "class_type": node["type"],
                    "_meta": {"title": node.get("title") or node["type"]},
                }
        return prompt

    def graphs(self, graph: dict[str, Any], prefix: str, outer: dict[int, Value]) -> Iterator[tuple[Any, str, Any]]:
        """The graph and every subgraph placed in it, each with what its own inputs are connected to."""
        yield graph, prefix, outer
        for node in graph["nodes"]:
            if inner := self.subgraphs.get(node["type"]):
                yield from self.graphs(inner, f"{prefix}{node['id']}:", self.slots(graph, node, prefix, outer))

    def slots(self, graph: dict[str, Any], node: dict[str, Any], prefix: str, outer: dict[int, Value]) -> Any:
        """What each input of a placed subgraph gets: from outside, or the value in its box."""
        inner = self.subgraphs[node["type"]]
        given = {i["name"]: self.origin(graph, i["link"], prefix, outer) for i in node["inputs"]}
        slots = {k: given.get(entry["name"]) for k, entry in enumerate(inner["inputs"])}
        boxes = [k for k, entry in enumerate(inner["inputs"]) if entry["type"] in WIDGETS]
        values = node.get("widgets_values") or []
        if len(values) == len(boxes):
            own = dict(zip(boxes, values))
        else:  # older files: the box shows the value of the first node behind it
            own = {k: value for k in boxes if (value := self.first_value(inner, k)) is not None}
        return {k: Constant(own[k]) if source is None and k in own else source for k, source in slots.items()}

    def first_value(self, inner: dict[str, Any], slot: int) -> Any:
        """The value of the first widget that an input of a subgraph is connected to; None if there is none."""
        nodes = {node["id"]: node for node in inner["nodes"]}
        for start, at, target, socket in _ends(inner).values():
            node = nodes.get(target)
            if (start, at) != (FROM_OUTSIDE, slot) or node is None or node["type"] not in self.info:
                continue
            name = node["inputs"][socket]["name"]
            entries = self.entries(self.info[node["type"]]["input"], "", iter(node.get("widgets_values") or []))
            value = dict(entries).get(name, _SOCKET)
            if value is not _SOCKET:
                return value
        return None

    def origin(self, graph: dict[str, Any], link: int | None, prefix: str, outer: dict[int, Value]) -> Value:
        """The node and output at the beginning of a link, through reroutes and subgraph borders."""
        if link is None:
            return None
        start, slot = _links(graph)[link]
        if start == FROM_OUTSIDE:
            return outer.get(slot)
        node = next(n for n in graph["nodes"] if n["id"] == start)
        if node["mode"] == MUTED:
            return None
        if node["mode"] == BYPASSED:
            through = _passes(node, slot)
            return None if through is None else self.origin(graph, through["link"], prefix, outer)
        if node["type"] == "Reroute":
            return self.origin(graph, node["inputs"][0]["link"], prefix, outer)
        if inner := self.subgraphs.get(node["type"]):
            (end,) = (k for k, (_, _, target, at) in _ends(inner).items() if (target, at) == (TO_OUTSIDE, slot))
            return self.origin(inner, end, f"{prefix}{node['id']}:", self.slots(graph, node, prefix, outer))
        return f"{prefix}{start}", slot

    def inputs(
        self, graph: dict[str, Any], node: dict[str, Any], prefix: str, outer: dict[int, Value]
    ) -> dict[str, Any]:
        sockets = {i["name"]: self.origin(graph, i["link"], prefix, outer) for i in node.get("inputs", [])}
        values = iter(node.get("widgets_values") or [])
        inputs: dict[str, Any] = {}
        for name, value in self.entries(self.info[node["type"]]["input"], "", values):
            if (source := sockets.get(name)) is not None:
                inputs[name] = _sent(source)
            elif value is not _SOCKET and value is not None:
                inputs[name] = value
        # Sockets that the signature does not list one by one: those that autogrow.
        for name, source in sockets.items():
            if source is not None and name not in inputs:
                inputs[name] = _sent(source)
        return inputs

    def entries(self, signature: dict[str, Any], prefix: str, values: Iterator[Any]) -> Iterator[tuple[str, Any]]:
        for part in ("required", "optional"):
            for name, spec in signature.get(part, {}).items():
                kind, options = spec[0], spec[1] if len(spec) > 1 else {}
                if kind == "COMFY_DYNAMICCOMBO_V3":
                    choice = next(values, None)
                    yield prefix + name, choice
                    for option in options["options"]:
                        if option["key"] == choice:
                            yield from self.entries(option["inputs"], f"{prefix}{name}.", values)
                elif isinstance(kind, list) or kind in WIDGETS or "widgetType" in options:
                    yield prefix + name, next(values, None)
                    if (
                        options.get("control_after_generate")
                        or options.get("image_upload")
                        or options.get("video_upload")
                    ):
                        next(values, None)
                    if options.get("audio_upload"):
                        next(values, None), next(values, None)
                else:
                    yield prefix + name, _SOCKET


_SOCKET = object()


def _sent(source: tuple[str, int] | Constant) -> Any:
    return source.value if isinstance(source, Constant) else list(source)


def _passes(node: dict[str, Any], slot: int) -> dict[str, Any] | None:
    """The input that a bypassed node hands on at an output: that of the same place if its type fits, else the first."""
    kind, inputs = node["outputs"][slot]["type"], node.get("inputs", [])
    same = [inputs[slot]] if slot < len(inputs) and inputs[slot]["type"] in (kind, "*") else []
    return next(iter([*same, *(i for i in inputs if i["type"] == kind)]), None)


def _ends(graph: dict[str, Any]) -> dict[int, tuple[int, int, int, int]]:
    ends = {}
    for link in graph["links"]:
        if isinstance(link, dict):
            ends[link["id"]] = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
        else:
            ends[link[0]] = tuple(link[1:5])
    return ends


def _links(graph: dict[str, Any]) -> dict[int, tuple[int, int]]:
    return {number: (start, slot) for number, (start, slot, _, _) in _ends(graph).items()}
