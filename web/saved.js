// What a node has saved: a line under its preview, and both again after the page is loaded anew. They are kept by the
// browser, not in the workflow: whoever gets the workflow has not the file.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Findings } from "./findings.js";

export const SAVERS = new Set(["HLWQSaveAudioVideo", "HLWQDecodeSave"]);
const KEPT = 50; // results, the oldest go first
const STORE = "hlwq.saved";

/** A workflow's own id changes when it is opened again: the node's number and where it saves stay. */
const keyOf = (node) =>
  `${node.comfyClass}/${node.id}/${node.widgets?.find((widget) => widget.name === "filename_prefix")?.value}`;

function stored() {
  try {
    return new Map(JSON.parse(localStorage.getItem(STORE) ?? "[]"));
  } catch {
    return new Map();
  }
}

function keep(node, output) {
  const results = stored();
  results.delete(keyOf(node));
  results.set(keyOf(node), { images: output.images, animated: output.animated, text: output.text });
  try {
    localStorage.setItem(STORE, JSON.stringify([...results].slice(-KEPT)));
  } catch {
    // No room, or forbidden: the preview lasts as long as the page.
  }
}

/** Puts the line into a node when it has saved something. `place` puts an element into a node. */
export function attachSaved(node, place) {
  let view = null;
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...args) {
    const result = executed?.call(this, output, ...args);
    if (!output?.text?.length) return result;
    if (!view) {
      view = new Findings();
      place(node, "hlwq_saved", view);
    }
    view.show(output.text);
    keep(node, output);
    return result;
  };
}

/** Shows again what the node saved last, if the file is still there. */
export async function restoreSaved(node) {
  const output = stored().get(keyOf(node));
  if (!output?.images?.length || node.graph !== (app.rootGraph ?? app.graph)) return;
  const query = new URLSearchParams(output.images[0]);
  const answer = await api.fetchApi(`/view?${query}`, { method: "HEAD" });
  if (!answer.ok) return;
  const id = String(node.id);
  api.dispatchEvent(new CustomEvent("executed", { detail: { node: id, display_node: id, output, prompt_id: "" } }));
}
