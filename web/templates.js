// The pack's cards in ComfyUI's template browser, which knows nothing of a pack's workflows but their files' names: a title and
// a sentence each, in the order in which one tries them.
import { api } from "../../scripts/api.js";
import { whenPageChanges } from "./page.js";
import { known, say } from "./words.js";

const CARD = "template-workflow-";
const OURS = decodeURIComponent(new URL(import.meta.url).pathname.match(/\/extensions\/([^/]+)\//)?.[1] ?? "");
const FIRST = ["text_to_video", "image_to_video", "two_stage", "image_to_video_two_stage", "audio_to_video"];

const place = (stem) => {
  const found = FIRST.findIndex((name) => stem.endsWith(`ltx23_${name}`));
  return found < 0 ? FIRST.length : found;
};

export function showTemplates() {
  const { getWorkflowTemplates } = api;
  api.getWorkflowTemplates = async function (...args) {
    const found = await getWorkflowTemplates.apply(this, args);
    found?.[OURS]?.sort((a, b) => place(a) - place(b) || a.localeCompare(b));
    return found;
  };
  whenPageChanges(() => {
    for (const card of document.querySelectorAll(`[data-testid^="${CARD}hlwq_"]`)) {
      const stem = card.dataset.testid.slice(CARD.length);
      if (!known(`template.${stem}`)) continue;
      write(card.querySelector("h3"), say(`template.${stem}`));
      write(card.querySelector("h3 ~ div p"), say(`template.${stem}.about`));
    }
    // What a click on a card opens in newer frontends; its label is the file's name.
    const detail = document.querySelector(`[data-testid="${CARD}detail"]`);
    const stem = detail?.getAttribute("aria-label");
    if (!stem?.startsWith("hlwq_") || !known(`template.${stem}`)) return;
    write(detail.querySelector("h2"), say(`template.${stem}`));
    write(detail.querySelector("h2 ~ p"), say(`template.${stem}.about`));
  });
}

function write(element, text) {
  if (!element || element.textContent === text) return;
  element.textContent = text;
  element.title = text;
}
