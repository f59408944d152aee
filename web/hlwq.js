// HLWQ: the front-end part. It puts a small report under the HLWQ loaders, so that one sees what a
// checkpoint holds before anything runs, and offers the way out when something is missing; the tools show their
// findings in the node; errors are shown whole.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { showExecutionError, showRefusals } from "./errors.js";
import { exchangeLoaders } from "./exchange.js";
import { Findings } from "./findings.js";
import { loadPublished, syncMissing, watchMissing, workflowOpened } from "./missing.js";
import { CheckpointPanel, downloadApart } from "./panel.js";
import { SAVERS, attachSaved, restoreSaved } from "./saved.js";
import { rank } from "./search.js";
import { showTemplates } from "./templates.js";
import { watchRuns } from "./times.js";
import { loadWords } from "./words.js";

const LOADERS = new Set(["HLWQLoadCheckpoint", "HLWQLoadDiffusionModel"]);
const TOOLS = new Set(["HLWQInspect", "HLWQVerify", "HLWQQuantize", "HLWQRepair", "HLWQDownload"]);
const OFF = new Set([2, 4]); // muted, bypassed
const panels = new Set();

/** Puts an element into a node: it is derived from files or results, and no part of the workflow. */
function place(node, name, view) {
  const widget = node.addDOMWidget(name, name, view.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // an element lives in one place: the side panel would take it out of the node's width
    getMinHeight: () => view.height,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  view.resized = () => {
    // The new rendering lets an element have its height; the classic one has to be given room.
    if (!LiteGraph.vueNodesMode) node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    node.setDirtyCanvas(true, true);
  };
  // Litegraph makes room while it draws, when the node's ground is painted already.
  const sized = node.onResize;
  node.onResize = function (...args) {
    requestAnimationFrame(() => node.setDirtyCanvas(true, true));
    return sized?.apply(this, args);
  };
  // The new rendering dims a whole node; the classic one what it draws itself.
  const drawn = node.onDrawBackground;
  node.onDrawBackground = function (...args) {
    view.element.classList.toggle("hlwq-off", !LiteGraph.vueNodesMode && OFF.has(node.mode));
    return drawn?.apply(this, args);
  };
}

function attach(node) {
  const combo = node.widgets?.find((widget) => widget.name === "checkpoint");
  if (!combo) return;

  const panel = new CheckpointPanel(node);
  place(node, "hlwq_report", panel);

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
    setTimeout(syncMissing);
    return removed?.apply(this, args);
  };
  const entry = { node, panel, show };
  panels.add(entry);
  node.setSize([Math.max(node.size[0], 330), Math.max(node.size[1], node.computeSize()[1])]);
  queueMicrotask(show); // after a workflow's values have been put into the widgets
}

function attachFindings(node) {
  let findings = null;
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...args) {
    const result = executed?.call(this, output, ...args);
    if (!findings) {
      findings = new Findings();
      place(node, "hlwq_findings", findings);
      node.setSize([Math.max(node.size[0], Findings.MIN_WIDTH), Math.max(node.size[1], node.computeSize()[1])]);
    }
    findings.show(output?.text ?? []);
    return result;
  };
}

/** Fetches a checkpoint, once the user has agreed; its progress stands under the loader that asks for it, if there is one. */
function download(repository, name) {
  const panel = [...panels].map((entry) => entry.panel).find((one) => one.name === name);
  return panel ? panel.download({ repository }) : downloadApart(repository);
}

app.registerExtension({
  name: "HLWQ.CheckpointReport",
  commands: [
    { id: "HLWQ.ExchangeLoaders", label: "Exchange LTX loaders for HLWQ", icon: "pi pi-sync", function: exchangeLoaders },
  ],
  menuCommands: [{ path: ["Edit"], commands: ["HLWQ.ExchangeLoaders"] }],

  beforeRegisterVueAppNodeDefs: rank,

  async setup() {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./hlwq.css", import.meta.url).href;
    document.head.append(sheet);
    showTemplates();
    await Promise.all([loadWords(), loadPublished()]);
    watchMissing(download);
    watchRuns((run) => {
      for (const { panel } of panels) panel.ran(run);
    });

    api.addEventListener("hlwq.job", ({ detail }) => {
      for (const { panel } of panels) panel.progress(detail);
      if (detail.state === "done" && detail.kind === "download") app.refreshComboInNodes();
    });
    api.addEventListener("execution_error", ({ detail }) => {
      showExecutionError(detail);
      for (const { node, panel } of panels) {
        if (String(node.id) === String(detail.node_id).split(":").pop() && LOADERS.has(detail.node_type)) {
          panel.fail(detail.exception_message);
        }
      }
    });
    // No event tells of a refused workflow. What was asked and what comes back stay as they are.
    const { queuePrompt } = api;
    api.queuePrompt = async function (...args) {
      try {
        const answer = await queuePrompt.apply(this, args);
        showRefusals(answer?.node_errors, download);
        return answer;
      } catch (error) {
        showRefusals(error?.response?.node_errors, download);
        throw error;
      }
    };
  },

  nodeCreated(node) {
    if (LOADERS.has(node.comfyClass)) attach(node);
    else if (TOOLS.has(node.comfyClass)) attachFindings(node);
    else if (SAVERS.has(node.comfyClass)) attachSaved(node, place);
  },

  loadedGraphNode(node) {
    for (const entry of panels) if (entry.node === node) entry.show();
    if (SAVERS.has(node.comfyClass)) restoreSaved(node);
  },

  afterConfigureGraph() {
    workflowOpened();
  },

  refreshComboInNodes() {
    for (const { show } of panels) show();
    setTimeout(syncMissing);
  },
});
