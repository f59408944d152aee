// Looking around in the open graph, subgraphs included.
import { app } from "../../scripts/app.js";

export const rootGraph = () => app.rootGraph ?? app.graph;

/** Calls back for each node, with the id that the server knows it by: "3", or "5:3" inside a subgraph. */
export function eachNode(visit, graph = rootGraph(), prefix = "") {
  for (const node of [...graph.nodes]) {
    visit(node, `${prefix}${node.id}`);
    if (node.isSubgraphNode?.()) eachNode(visit, node.subgraph, `${prefix}${node.id}:`);
  }
}

export function nodeOf(id) {
  let found = null;
  eachNode((node, itsId) => (itsId === String(id) ? (found = node) : null));
  return found;
}

/** What a list offers. */
export function choices(widget) {
  const { values } = widget?.options ?? {};
  const list = typeof values === "function" ? values(widget) : values;
  return Array.isArray(list) ? list : [];
}

/** Lists of a node whose value is not among what they offer, and that nothing is linked to. */
export function missingChoices(node) {
  return (node.widgets ?? []).filter((widget) => {
    const linked = node.inputs?.find((slot) => slot.widget?.name === widget.name)?.link != null;
    return !linked && widget.type === "combo" && widget.value && !choices(widget).includes(widget.value);
  });
}

export function choose(node, widget, value) {
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.graph?.setDirtyCanvas?.(true, true);
}

/** Those of a list that are most like a name: the most words in common, in its order. */
export function nearest(name, list, count = 2) {
  const words = (text) => new Set(text.toLowerCase().split(/[^a-z0-9]+/).filter(Boolean));
  const wanted = words(name);
  const score = (text) => [...words(text)].filter((word) => wanted.has(word)).length;
  return list
    .map((text, place) => [score(text), place, text])
    .sort((a, b) => b[0] - a[0] || a[1] - b[1])
    .slice(0, count)
    .map(([, , text]) => text);
}
