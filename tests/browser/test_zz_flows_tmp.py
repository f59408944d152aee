import json
from pathlib import Path
import pytest
pytestmark = pytest.mark.browser
def test_prompt(open_canvas):
  for vue in (False, True):
    canvas = open_canvas(Comfy__VueNodes__Enabled=vue)
    canvas.search_and_add("HLWQ LTX-2.3 text to video")
    canvas.wait("() => app.graph.nodes.some((n) => n.isSubgraphNode?.())")
    canvas.page.evaluate("""() => { const n = app.graph.nodes.find((n) => n.isSubgraphNode?.());
      const set = {width: 64, height: 64, length: 9, checkpoint: 'LTX-2.3-tiny-HLWQ-Q5', text_encoder: 'gemma_3_tiny.safetensors', distilled_LoRA: 'ltx-2.3-tiny-distilled-lora.safetensors'};
      for (const w of n.widgets) if (w.name in set) w.value = set[w.name]; }""")
    print("RUN", canvas.run())
    canvas.page.wait_for_timeout(3000)
    print("VIDEO", vue, canvas.page.evaluate("() => [document.querySelectorAll('video').length, app.graph.nodes[0].widgets.map(w=>w.name+':'+w.type)]"))
    canvas.fit_view()
    canvas.page.screenshot(path=f"/tmp/flows/bpv_{vue}.png")
