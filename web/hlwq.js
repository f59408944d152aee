// HLWQ: the front-end part. It puts a small report under HLWQ Load Checkpoint, so that one sees what a
// checkpoint holds before anything runs, and offers the way out when something is missing.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { CheckpointPanel } from "./panel.js";

const LOADER = "HLWQLoadCheckpoint";
const OWN_ERROR = /hlwq_core\.errors\.\w+$/;
const panels = new Set();

function attach(node) {
  const combo = node.widgets?.find((widget) => widget.name === "checkpoint");
  if (!combo) return;

  const panel = new CheckpointPanel();
  const widget = node.addDOMWidget("hlwq_report", "hlwq_report", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => CheckpointPanel.MIN_HEIGHT,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // it is derived from the checkpoint's files, not a part of the workflow

  const show = () => panel.show(combo.value ?? "");
  const changed = combo.callback;
  combo.callback = function (...args) {
    const result = changed?.apply(this, args);
    show();
    return result;
  };
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    panels.delete(entry);
    return removed?.apply(this, args);
  };
  const entry = { node, panel, show };
  panels.add(entry);
  node.setSize([Math.max(node.size[0], 330), Math.max(node.size[1], node.computeSize()[1])]);
  queueMicrotask(show); // after a workflow's values have been put into the widgets
}

app.registerExtension({
  name: "HLWQ.CheckpointReport",

  setup() {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./hlwq.css", import.meta.url).href;
    document.head.append(sheet);

    api.addEventListener("hlwq.job", ({ detail }) => {
      for (const { panel } of panels) panel.progress(detail);
      if (detail.state === "done" && detail.kind === "download") app.refreshComboInNodes();
    });
    api.addEventListener("execution_error", ({ detail }) => {
      // ComfyUI's errors tab shows the traceback without the message, which says what to do next: show it whole.
      const { dialog, setting } = app.extensionManager;
      if (OWN_ERROR.test(detail.exception_type) && setting.get("Comfy.RightSidePanel.ShowErrorsTab")) {
        dialog.showExecutionErrorDialog(detail);
      }
      for (const { node, panel } of panels) {
        if (String(node.id) === String(detail.node_id).split(":").pop() && detail.node_type === LOADER) {
          panel.fail(detail.exception_message);
        }
      }
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === LOADER) attach(node);
  },

  loadedGraphNode(node) {
    for (const entry of panels) if (entry.node === node) entry.show();
  },

  refreshComboInNodes() {
    for (const { show } of panels) show();
  },
});
