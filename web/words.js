// What the pack says on the screen, in the language that ComfyUI is set to: locales/LANGUAGE/main.json, under "hlwq".
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

let languages = {};

/** To be awaited once, before anything is said. */
export async function loadWords() {
  try {
    languages = await api.getCustomNodesI18n();
  } catch (error) {
    console.warn("HLWQ: no translations, so its texts are only keys:", error);
  }
}

function find(key) {
  const language = app.extensionManager.setting.get("Comfy.Locale");
  return languages[language]?.hlwq?.[key] ?? languages.en?.hlwq?.[key];
}

/** Whether there is a sentence of this key. */
export const known = (key) => find(key) !== undefined;

/** A sentence by its key; `{name}` in it stands for a value. English where a language has no such sentence. */
export function say(key, values = {}) {
  const text = find(key) ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
