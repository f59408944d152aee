"""The tools, queued alone: what they found stands in the node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .canvas import SIZE, Canvas
from .tiny_workflow import TINY

pytestmark = pytest.mark.browser
FINDINGS = ".hlwq-findings"
INSIDE = f"""() => {{
  {SIZE}
  const findings = document.querySelector(".hlwq-findings");
  const [width, height] = size(app.graph.nodes[0]);
  return findings.offsetHeight > 30 && findings.offsetHeight < height && findings.offsetWidth < width;
}}"""


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
@pytest.mark.parametrize("node_type", ["HLWQVerify", "HLWQInspect"])
def test_findings_are_shown(open_canvas: Callable[..., Canvas], vue: bool, node_type: str, truncated: str) -> None:
    """Of the whole checkpoint, then of a truncated one; none of it is saved with the workflow."""
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.add(node_type, checkpoint=TINY)
    assert canvas.run() is None
    findings = canvas.page.locator(FINDINGS)
    findings.get_by_text({"HLWQVerify": "sound", "HLWQInspect": "complete"}[node_type]).wait_for()
    canvas.wait(INSIDE)
    canvas.choose(node_type, "checkpoint", truncated)
    assert canvas.run() is None
    findings.get_by_text("the file is cut off").wait_for()
    assert findings.count() == 1
    if node_type == "HLWQInspect":
        canvas.wait(
            "() => app.graph.nodes[0].imgs?.[0]?.naturalWidth > 0 || document.querySelector('[data-node-id] img')"
        )
    assert "hlwq_findings" not in canvas.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    assert canvas.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)").count("findings") == 0
    assert canvas.failures == []
