"""What ComfyUI complains of, in the user's terms: a workflow that it refuses, a node that failed, nodes that it lacks."""

from __future__ import annotations

from typing import Any

from ..errors import WorkError
from . import graph
from .graph import Nodes

# What comes of an answer in another form than ComfyUI's.
_OTHER_FORM = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def _where(workflow: Nodes, node_id: str, class_type: str | None) -> str:
    name = graph.name_of(workflow, node_id)
    kind = class_type or workflow.get(node_id, {}).get("class_type", "")
    return f"{name} (node {node_id})" if name == kind else f"{name} ({kind}, node {node_id})"


def _reason(error: dict[str, Any]) -> str:
    """One validation error of one input in a line."""
    kind, details = error.get("type"), str(error.get("details", ""))
    extra = error.get("extra_info") or {}
    name = extra.get("input_name")
    if kind == "required_input_missing":
        return f"the input {name!r} is missing"
    if kind == "value_not_in_list":
        config = extra.get("input_config")
        choices = config and (config[1].get("options") if isinstance(config[0], str) else config[0])
        if choices is None:
            return details
        listed = ", ".join(map(repr, choices)) if choices else "nothing: the folder is empty"
        return f"{name}: {extra.get('received_value')!r} is not there; there is {listed}"
    if kind in ("value_smaller_than_min", "value_bigger_than_max"):
        return f"{name}: {error.get('message')}"
    if kind == "custom_validation_failed":
        return details.replace(" - ", ": ", 1)
    message = error.get("message", kind)
    return f"{message}: {details}" if details else str(message)


def refusal(workflow: Nodes, answer: dict[str, Any], url: str) -> WorkError:
    """ComfyUI's answer 400 to /prompt, as an error that names each node by its title."""
    try:
        refused = _refusal(workflow, answer, url)
    except _OTHER_FORM:
        refused = _unknown("ComfyUI refused the workflow", answer)
    refused.final = True
    return refused


def _unknown(what: str, answer: object) -> WorkError:
    return WorkError(
        f"{what}, and says why in a form that is not known", found=str(answer)[:500], fix="look into the log of ComfyUI"
    )


def _refusal(workflow: Nodes, answer: dict[str, Any], url: str) -> WorkError:
    error = answer.get("error") or {}
    if isinstance(error, str):
        error = {"message": error}
    extra = error.get("extra_info") or {}
    if error.get("type") == "missing_node_type":
        return unknown_nodes([str(extra.get("class_type"))], url)
    lines = ["ComfyUI refused the workflow:"]
    for node_id, found in (answer.get("node_errors") or {}).items():
        where = _where(workflow, node_id, found.get("class_type"))
        lines += [f"  {where}: {_reason(e)}" for e in found.get("errors", [])]
    if len(lines) == 1:
        lines.append(f"  {error.get('message', 'no reason given')} {error.get('details', '')}".rstrip())
    return WorkError("\n".join(lines), fix='set the inputs named above (`--set "Title.input=value"`), then again')


def unknown_nodes(classes: list[str], url: str) -> WorkError:
    """The ComfyUI at `url` lacks nodes that the workflow uses."""
    ours = any(c.startswith("HLWQ") for c in classes)
    fix = (
        "put this pack into its custom_nodes folder (a link will do), restart it, and look for "
        "'IMPORT FAILED' in its log"
        if ours
        else "update ComfyUI, or install the custom nodes that the workflow was made with"
    )
    error = WorkError(
        f"the ComfyUI at {url} does not know the node{'s' * (len(classes) > 1)} {', '.join(classes)}", fix=fix
    )
    error.final = True
    return error


def failure(workflow: Nodes, data: dict[str, Any]) -> WorkError:
    """An `execution_error` message as an error: where, what, and what to do if that is known.

    A message of several lines is the pack's own (it says itself what to do) and is kept whole.
    """
    try:
        return _failure(workflow, data)
    except _OTHER_FORM:
        return _unknown("a node failed", data)


def _failure(workflow: Nodes, data: dict[str, Any]) -> WorkError:
    node_id = str(data.get("node_id"))
    message = str(data.get("exception_message", "")).strip()
    kind = str(data.get("exception_type", "")).rsplit(".", 1)[-1]
    lines = message.splitlines() or [kind]
    own = any(line.strip().startswith("what to do:") for line in lines)
    fix = None
    if not own:
        lines[0] = f"{kind}: {lines[0]}" if kind and kind != lines[0] else lines[0]
        frames = data.get("traceback") or []
        if frames:
            lines.append(f"raised in {frames[-1].strip().splitlines()[0]}")
        fix = "ComfyUI's log has the whole traceback"
        if "OutOfMemory" in kind or "out of memory" in message.lower():
            fix = "ask for a smaller or shorter video, or start ComfyUI with --lowvram"
    text = "\n".join("  " + line for line in lines)
    return WorkError(f"{_where(workflow, node_id, data.get('node_type'))} failed:\n{text}", fix=fix)
