// Edit > Exchange loaders: ComfyUI's own loaders of LTX in the open graph give way to ours, as one step that can be undone.
import { app } from "../../scripts/app.js";
import { choices, nearest, rootGraph } from "./graph.js";
import { defaultRepository } from "./missing.js";
import { say } from "./words.js";

const IS_LTX = /ltx/i;
const SUBGRAPH_OUTPUT = -20;
const CHECKPOINT = "HLWQLoadCheckpoint";

// A loader -> ours; which of our outputs takes over for each of its own (one that is linked and not named keeps the loader as it
// is); the widgets whose values go over; and whether it loads other models too, so that its file has to be LTX's by name.
const checkpoint = (outputs, more = {}) => ({ ours: CHECKPOINT, outputs, ...more });
const encoder = (file) => ({ ours: "HLWQLoadTextEncoder", outputs: { 0: 0 }, values: { [file]: "text_encoder" } });
const upscaler = { ours: "HLWQLoadUpscaler", outputs: { 0: 0 }, values: { model_name: "upscaler" }, byName: true };
const EXCHANGED = {
  CheckpointLoaderSimple: checkpoint({ 0: 0, 2: 1 }, { byName: true }),
  LTXVAudioVAELoader: checkpoint({ 0: 2 }),
  UNETLoader: { ours: "HLWQLoadDiffusionModel", outputs: { 0: 0 }, byName: true },
  LTXAVTextEncoderLoader: encoder("text_encoder"),
  LatentUpscaleModelLoader: upscaler,
  // Lightricks' own nodes (ComfyUI-LTXVideo).
  LowVRAMCheckpointLoader: checkpoint({ 0: 0, 2: 1 }, { byName: true }),
  LowVRAMAudioVAELoader: checkpoint({ 0: 2 }),
  LowVRAMLatentUpscaleModelLoader: upscaler,
  LTXVGemmaCLIPModelLoader: encoder("gemma_path"),
};

/** The values of a node, that of a pack which is not installed included: it has no widgets, only what was saved of it. */
const valuesOf = (node) => (node.widgets?.length ? node.widgets.map((widget) => widget.value) : node.last_serialization?.widgets_values ?? []);
const fileOf = (node) => String(valuesOf(node).find((value) => typeof value === "string") ?? "");

function isOne(node) {
  const entry = EXCHANGED[node.type];
  if (!entry || (entry.byName && !IS_LTX.test(fileOf(node)))) return false;
  return (node.outputs ?? []).every((output, slot) => !output.links?.length || slot in entry.outputs);
}

/** The HLWQ checkpoint for a model's file: the most similar one that is there, else the published one. */
function checkpointFor(widget, file) {
  return nearest(file, choices(widget), 1)[0] ?? defaultRepository()?.split("/")[1];
}

function set(node, name, value) {
  const widget = node.widgets.find((one) => one.name === name);
  if (!widget || value == null) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
}

function make(graph, node, entry) {
  const ours = LiteGraph.createNode(entry.ours);
  graph.add(ours);
  ours.pos = [...node.pos];
  for (const [from, to] of Object.entries(entry.values ?? {})) {
    const value = String(node.widgets?.find((widget) => widget.name === from)?.value ?? fileOf(node));
    const widget = ours.widgets.find((one) => one.name === to);
    const base = value.split(/[\\/]/).pop();
    set(ours, to, [value, base].find((name) => choices(widget).includes(name)) ?? value);
  }
  const list = ours.widgets.find((widget) => widget.name === "checkpoint");
  if (list) set(ours, "checkpoint", checkpointFor(list, fileOf(node)));
  return ours;
}

/** Hands the links of an output over to one of ours. */
function relink(graph, node, from, ours, to) {
  for (const id of [...(node.outputs[from].links ?? [])]) {
    const link = graph.getLink?.(id) ?? graph.links.get?.(id) ?? graph.links[id];
    if (!link) continue;
    if (link.target_id === SUBGRAPH_OUTPUT) graph.outputNode.slots[link.target_slot].connect(ours.outputs[to], ours);
    else ours.connect(to, graph.getNodeById(link.target_id), link.target_slot);
  }
}

function exchangeIn(graph, done) {
  const shared = new Map(); // one node of ours loads a checkpoint for all that loaded a part of it
  for (const node of [...graph.nodes]) {
    if (node.isSubgraphNode?.()) exchangeIn(node.subgraph, done);
    if (!isOne(node)) continue;
    const entry = EXCHANGED[node.type];
    const key = entry.ours === CHECKPOINT ? entry.ours : node;
    const ours = shared.get(key) ?? make(graph, node, entry);
    shared.set(key, ours);
    for (const [from, to] of Object.entries(entry.outputs)) if (node.outputs[from]) relink(graph, node, from, ours, to);
    const asked = (graph.inputs ?? []).filter((input) => input.linkIds?.some((id) => node.inputs?.some((slot) => slot.link === id)));
    graph.remove(node);
    // What the subgraph asked for from outside, and nothing wants any more.
    for (const input of asked) if (!input.linkIds.length) graph.removeInput?.(input);
    done.push(ours);
  }
}

/** Exchanges the loaders of the open graph; how many there were. */
export function exchangeLoaders() {
  const done = [];
  app.canvas.emitBeforeChange();
  try {
    exchangeIn(rootGraph(), done);
  } finally {
    app.canvas.emitAfterChange();
    app.extensionManager.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();
  }
  app.canvas.setDirty(true, true);
  app.extensionManager.toast.add({
    severity: done.length ? "success" : "info",
    summary: say("exchange"),
    detail: done.length ? say("exchanged", { count: done.length }) : say("exchanged.none"),
    life: 6000,
  });
  return done.length;
}
