// A checkpoint that a workflow asks for and that is not there, beside ComfyUI's own missing models: counted, framed, and part
// of "Download all". ComfyUI lists files alone, and a checkpoint is a folder.
//
// There is no public way into that list: its store is asked for by name, and where one is not found nothing happens; the report
// under the loader offers the same.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { button } from "./dialog.js";
import { bytes } from "./format.js";
import { eachNode, missingChoices } from "./graph.js";
import { whenPageChanges } from "./page.js";
import { say } from "./words.js";

const HUB = "https://huggingface.co/";
const A_FILE = /\.(safetensors|ckpt|pt|pth|bin|sft|onnx|gguf)$/i; // ComfyUI lists these itself
const INACTIVE = [2, 4]; // muted, bypassed
const ROWS = "[data-testid=missing-model-importable-rows]";
const DOWNLOAD_ALL = "[data-testid=missing-model-download-all]";
const DOWNLOAD_ONE = "[data-testid=missing-model-download]";

let published = {};
let loaded = false;
let followed = null;

/** What is published, repository -> bytes; to be awaited once. */
export async function loadPublished() {
  try {
    const answer = await api.fetchApi("/hlwq/published");
    if (answer.ok) published = await answer.json();
  } catch (error) {
    console.warn("HLWQ: what is published is not known:", error);
  }
}

/** The repository that a checkpoint of this name comes from; null for one that is not published. */
export const repositoryOf = (name) => Object.keys(published).find((known) => known.split("/")[1] === name) ?? null;
/** Whether what is published could stand for it: it is LTX-2.3, and no name says another version. */
export const mayBePublished = (name) => !/ltx[-_. ]?2[-_.](?!3)\d/i.test(name);
export const defaultRepository = () => Object.keys(published)[0];
export const publishedBytes = (repository) => bytes(published[repository] ?? 0);

const store = (name) => document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$pinia?._s.get(name);

/** The checkpoints that active nodes ask for in vain, in the form of ComfyUI's list. */
export function missingCheckpoints() {
  const found = [];
  eachNode((node, id) => {
    const ours = node.comfyClass?.startsWith("HLWQ") || node.isSubgraphNode?.();
    if (!ours || INACTIVE.includes(node.mode)) return;
    for (const widget of missingChoices(node)) {
      const repository = repositoryOf(widget.value);
      if (A_FILE.test(widget.value) || (!repository && !node.comfyClass?.startsWith("HLWQ"))) continue;
      if (widget.name !== "checkpoint") continue;
      found.push({
        nodeId: id,
        nodeType: node.comfyClass ?? node.type,
        widgetName: widget.name,
        isAssetSupported: false,
        name: widget.value,
        directory: "hlwq",
        url: repository ? HUB + repository : undefined,
        isMissing: true,
      });
    }
  });
  return found;
}

const keyOf = (entry) => `${entry.nodeId}/${entry.widgetName}/${entry.name}`;

/** Brings ComfyUI's list to what is missing now. */
export function syncMissing() {
  if (app.isGraphReady === false) return;
  const models = store("missingModel");
  if (!models?.addMissingModels || !models.removeMissingModelByWidget) return;
  if (followed !== models) models.$subscribe(() => queueMicrotask(syncMissing)); // what ComfyUI finds, it puts in the list's place
  followed = models;
  const wanted = missingCheckpoints();
  const keys = new Set(wanted.map(keyOf));
  const listed = (models.missingModelCandidates ?? []).filter((entry) => entry.directory === "hlwq" && !A_FILE.test(entry.name));
  for (const entry of listed) if (!keys.has(keyOf(entry))) models.removeMissingModelByWidget(String(entry.nodeId), entry.widgetName);
  const there = new Set(listed.map(keyOf));
  const added = wanted.filter((entry) => !there.has(keyOf(entry)));
  models.addMissingModels(added);
  if (added.length && loaded && app.extensionManager.setting.get("Comfy.RightSidePanel.ShowErrorsTab")) {
    store("executionError")?.showErrorOverlay?.();
  }
  loaded = loaded && !added.length;
}

/** A workflow was opened: what it lacks is worth a word. */
export function workflowOpened() {
  loaded = true;
  setTimeout(syncMissing);
}

/** Adds to ComfyUI's list what cannot be had by a link. `download` starts the download of a checkpoint. */
export function watchMissing(download) {
  syncMissing();
  whenPageChanges(() => decorate(download));
}

function decorate(download) {
  const rows = document.querySelector(ROWS);
  if (!rows) return;
  const missing = new Map(missingCheckpoints().filter(({ url }) => url).map(({ name }) => [name, repositoryOf(name)]));
  for (const row of rows.children) {
    const name = row.querySelector("[title]")?.title;
    if (!missing.has(name) || row.querySelector(".hlwq-row-button")) continue;
    const like = document.querySelector(DOWNLOAD_ONE)?.className ?? "";
    row.firstElementChild?.append(
      button(say("download"), () => download(missing.get(name), name), { className: `${like} hlwq-row-button` }),
    );
  }
  const all = document.querySelector(DOWNLOAD_ALL);
  if (!all) return;
  if (!all.dataset.hlwq) {
    all.dataset.hlwq = "true";
    all.addEventListener("click", () => {
      const names = new Map(missingCheckpoints().filter(({ url }) => url).map(({ name }) => [name, repositoryOf(name)]));
      for (const [wanted, repository] of names) download(repository, wanted);
    });
  }
  let note = all.querySelector(".hlwq-and");
  if (!note) all.append((note = Object.assign(document.createElement("span"), { className: "hlwq-and" })));
  const text = [...missing].map(([, repository]) => `+ ${publishedBytes(repository)}`).join(" ");
  note.title = [...missing.keys()].join(", ");
  if (note.textContent !== text) note.textContent = text;
}
