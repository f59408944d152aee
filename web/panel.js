// The report under HLWQ Load Checkpoint: plain DOM, coloured by the theme (see hlwq.css).
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { bytes, count, ranges } from "./format.js";
import { View } from "./view.js";

const BUTTONS = {
  download: "Download…",
  verify: "Verify",
  repair: "How to repair",
};

const REPAIR_HINT =
  "Missing layers can be quantized again from the original BF16 file, without touching what is there:\n" +
  "add the node HLWQ Repair, choose this checkpoint and the original, and run it. In a terminal:\n" +
  "python -m hlwq_core repair <folder> --from <original.safetensors>";

function line(text, kind = "") {
  const element = document.createElement("div");
  element.className = kind ? `hlwq-line hlwq-${kind}` : "hlwq-line";
  element.textContent = text;
  return element;
}

/** The JSON answer of one of the pack's routes; a refusal (422) is JSON too, with `error`. */
async function ask(path, options) {
  const response = await api.fetchApi(path, options);
  if (response.ok || response.status === 422) return response.json();
  throw new Error(`HTTP ${response.status} ${response.statusText} for ${path}; see ComfyUI's log`);
}

async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  const answer = await ask(path, { method: "POST", headers, body: JSON.stringify(body) });
  if (answer.error) throw new Error(answer.error);
  return answer;
}

/** The lines that describe a report of GET /hlwq/checkpoint. */
export function describe(report) {
  const lines = [];
  const bits = report.bits ? `HLWQ-${report.bits}` : "HLWQ";
  const files = report.files === 1 ? "1 file" : `${count(report.files)} files`;
  lines.push([`${bits} · ${report.variant} · ${bytes(report.size_bytes)} in ${files}`, "title"]);
  if (report.complete) {
    lines.push([`Complete: ${count(report.quantized)} packed and ${count(report.plain)} plain tensors`, "good"]);
  } else {
    const among = report.missing_blocks ?? [];
    const blocks = among.length ? `, in block${among.length > 1 ? "s" : ""} ${ranges(among)}` : "";
    if (report.missing) {
      lines.push([`${count(report.missing)} of ${count(report.expected)} tensors are missing${blocks}`, "bad"]);
    } else {
      lines.push([report.problem ?? "It cannot be loaded", "bad"]);
    }
    if (report.missing_names?.length) lines.push([`First missing: ${report.missing_names[0]}`, "bad"]);
  }
  for (const part of report.absent ?? []) lines.push([`No ${part.name} in it: use ${part.instead}`, ""]);
  for (const hypothesis of report.hypotheses ?? []) lines.push([`It may be: ${hypothesis}`, ""]);
  const { vram, backend, fast } = report;
  if (vram) {
    const card = vram.total_bytes ? ` of ${bytes(vram.total_bytes)} (${vram.device})` : ` (${vram.device})`;
    const small = vram.total_bytes && !vram.fits ? "; ComfyUI will move parts in and out" : "";
    lines.push([`Weights in memory: ${bytes(vram.needed_bytes)}${card}${small}`, ""]);
  }
  if (backend) {
    const why = Object.entries(backend.unavailable ?? {}).map(([name, reason]) => `${name}: ${reason}`);
    lines.push([`Backend: ${backend.name}${why.length ? ` (${why.join("; ")})` : ""}`, ""]);
  }
  for (const skipped of report.not_listed ?? []) lines.push([`Not listed: ${skipped}`, ""]);
  if (fast) lines.push([`Fast mode: ${fast.available ? "available" : `not available, ${fast.reason}`}`, ""]);
  return lines;
}

export class CheckpointPanel extends View {
  constructor() {
    super({ least: 150, most: 460 });
    this.name = null;
    this.turn = 0;
    this.failed = false;
    this.job = null;
    this.latest = null;
    this.text = document.createElement("div");
    this.extra = document.createElement("div");
    this.buttons = document.createElement("div");
    this.buttons.className = "hlwq-buttons";
    this.content.append(this.text, this.extra, this.buttons);
  }

  async show(name) {
    this.name = name;
    this.failed = false;
    const turn = ++this.turn;
    this.element.dataset.state = "loading";
    this.text.replaceChildren(line("Reading the headers…"));
    let report;
    try {
      report = await ask(`/hlwq/checkpoint?name=${encodeURIComponent(name)}`);
    } catch (error) {
      report = { error: `No report: ${error.message}` };
    }
    if (this.turn !== turn) return; // another checkpoint was chosen meanwhile
    if (this.failed) {
      this.offer(report.fixes ?? [], report); // a run has failed meanwhile: its error stays, with the ways out
      return;
    }
    if (report.error) {
      this.fail(report.error, report.fixes ?? []);
      return;
    }
    this.element.dataset.state = report.complete ? "complete" : "incomplete";
    this.text.replaceChildren(...describe(report).map(([text, kind]) => line(text, kind)));
    if (!this.job) this.extra.replaceChildren();
    if (!report.complete && report.coverage) {
      const picture = document.createElement("img");
      picture.className = "hlwq-coverage";
      picture.alt = "Which layers of which block are there (filled) and which are missing (empty)";
      picture.title = "Open in a tab of its own";
      picture.src = api.apiURL(`/hlwq/coverage?name=${encodeURIComponent(name)}`);
      picture.addEventListener("click", () => window.open(picture.src));
      this.extra.prepend(picture);
    }
    this.offer(report.fixes ?? [], report);
  }

  /** Shows an error whole, with the ways out that there are; without `fixes` those of the report remain. */
  fail(message, fixes = null) {
    this.failed = true;
    this.element.dataset.state = "error";
    this.text.replaceChildren(line(message, "bad"));
    if (!this.job) this.extra.replaceChildren();
    if (fixes) this.offer(fixes);
  }

  offer(fixes, report = {}) {
    this.buttons.replaceChildren(
      ...fixes.map((fix) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = BUTTONS[fix];
        button.dataset.fix = fix;
        button.addEventListener("click", () => this[fix](report));
        return button;
      }),
    );
  }

  async start(path, body) {
    try {
      const { job } = await post(path, body);
      this.job = job;
      const starting = { job, state: "running", text: "Starting…", done: 0, total: 0 };
      this.progress(this.latest?.job === job ? this.latest : starting); // its events may overtake the answer
    } catch (error) {
      this.extra.replaceChildren(line(error.message, "bad"));
    }
  }

  verify() {
    return this.start("/hlwq/verify", { name: this.name });
  }

  async download(report) {
    const repository = report.repository ?? "caiovicentino1/LTX-2.3-22B-HLWQ-Q5";
    const yes = await app.extensionManager.dialog.confirm({
      title: "Download an HLWQ checkpoint",
      message: `Download ${repository} from Hugging Face into models/hlwq? It needs 15 to 23 GB of disk.`,
    });
    if (yes) await this.start("/hlwq/download", { repository });
  }

  repair() {
    this.extra.replaceChildren(line(REPAIR_HINT));
  }

  /** One "hlwq.job" event: {job, kind, state: running|done|failed|cancelled, text, done, total}. */
  progress(event) {
    this.latest = event;
    if (event.job !== this.job) return;
    const parts = [line(event.text ?? "", event.state === "failed" ? "bad" : "")];
    if (event.state === "running") {
      const bar = document.createElement("progress");
      if (event.total > 0) {
        bar.max = event.total;
        bar.value = event.done;
      }
      const cancel = document.createElement("button");
      cancel.type = "button";
      cancel.textContent = "Cancel";
      cancel.addEventListener("click", () => post("/hlwq/cancel", { job: event.job }));
      parts.push(bar, cancel);
    } else {
      this.job = null;
    }
    this.extra.replaceChildren(...parts);
    this.extra.dataset.job = event.state;
  }
}
