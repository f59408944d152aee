// The pack's errors, shown whole: what is wrong, where, and what to do next.
//
// With ComfyUI's errors tab switched on (as it is by default) that tab gives the traceback of a failed node, and of a
// refused value only that it was refused. Without it ComfyUI opens a dialog itself.
import { app } from "../../scripts/app.js";
import { button, element, openDialog } from "./dialog.js";
import { choices, choose, missingChoices, nearest, nodeOf } from "./graph.js";
import { repositoryOf } from "./missing.js";
import { say } from "./words.js";

const OWN_ERROR = /hlwq_core\.errors\.\w+$/;
const OWN_NODE = /^HLWQ/;
const NAMED = 6; // of what the folders hold

const dialogIsOurs = () => app.extensionManager.setting.get("Comfy.RightSidePanel.ShowErrorsTab");

/** A node of any pack failed with an error of ours: the detail of "execution_error". */
export function showExecutionError(detail) {
  if (!OWN_ERROR.test(detail.exception_type) || !dialogIsOurs()) return;
  const title = nodeOf(detail.node_id)?.title ?? detail.node_type;
  app.extensionManager.dialog.showExecutionErrorDialog({ ...detail, exception_type: title, node_type: title });
}

/** Why our nodes refused their values, a text and the nodes' titles: ComfyUI repeats it for every input that was looked at. */
function reasons(entries) {
  const found = new Map();
  for (const { title, errors } of entries) {
    for (const { type, details, extra_info } of errors) {
      if (type !== "custom_validation_failed") continue;
      const prefix = `${extra_info?.input_name} - `;
      const text = details.startsWith(prefix) ? details.slice(prefix.length) : details;
      found.set(text, (found.get(text) ?? new Set()).add(title));
    }
  }
  return found;
}

/** Names that are asked for and not there: name -> what offers what instead, on which nodes. */
function absent(entries) {
  const found = new Map();
  for (const { node } of entries) {
    for (const widget of node ? missingChoices(node) : []) {
      const entry = found.get(widget.value) ?? { there: choices(widget), places: [] };
      entry.places.push({ node, widget });
      found.set(widget.value, entry);
    }
  }
  return found;
}

/** The address of a file that a node's properties know. */
const addressOf = (places, name) =>
  places.flatMap(({ node }) => node.properties?.models ?? []).find((model) => model.name === name)?.url ?? null;

function paragraph(name, { there, places }, download) {
  const block = element("section");
  const titles = [...new Set(places.map(({ node }) => node.title))].join(", ");
  const held = there.length ? there.slice(0, NAMED).join(", ") + (there.length > NAMED ? " …" : "") : say("nothing");
  block.append(element("h3", "", titles), element("p", "", say("asks", { wanted: name, there: held })));
  const buttons = element("div", "hlwq-buttons");
  const repository = repositoryOf(name);
  const address = addressOf(places, name);
  if (repository) {
    buttons.append(button(say("download"), () => download(repository, name), { className: "hlwq-first" }));
  } else if (address?.startsWith("https://huggingface.co/")) {
    buttons.append(button(say("download"), () => window.open(address, "_blank", "noopener"), { className: "hlwq-first" }));
  }
  for (const other of nearest(name, there)) {
    buttons.append(
      button(say("use", { name: other }), () => {
        for (const { node, widget } of places) choose(node, widget, other);
        block.replaceChildren(element("h3", "", titles), element("p", "hlwq-good", say("used", { name: other })));
      }),
    );
  }
  block.append(buttons);
  return block;
}

/** Workflow refused before anything ran: the `node_errors` of POST /prompt. `download` starts the download of a checkpoint. */
export function showRefusals(nodeErrors, download) {
  const every = Object.entries(nodeErrors ?? {}).map(([id, { class_type, errors }]) => {
    const node = nodeOf(id);
    return { node, title: node?.title ?? class_type, errors, ours: OWN_NODE.test(class_type) };
  });
  const ours = every.filter((entry) => entry.ours);
  const texts = reasons(ours);
  if (!dialogIsOurs() || (!texts.size && !absent(ours).size)) return;
  // What other nodes ask for in vain belongs to the same trouble, and has the same ways out.
  const content = [...absent(every)].map(([name, entry]) => paragraph(name, entry, download));
  const choosable = new Set(ours.filter(({ node }) => node && missingChoices(node).length).map(({ title }) => title));
  const more = element("details");
  more.append(element("summary", "", say("details")));
  for (const [text, titles] of texts) {
    const words = element("pre", "", text);
    if ([...titles].every((title) => choosable.has(title))) {
      more.append(words);
    } else {
      const block = element("section");
      block.append(element("h3", "", [...titles].join(", ")), words);
      content.push(block);
    }
  }
  if (more.childElementCount > 1) content.push(more);
  const again = button(say("run"), () => {
    dialog.close();
    app.queuePrompt(0);
  });
  const dialog = openDialog(say("refused"), content, [again, button(say("close"), () => dialog.close())]);
}
