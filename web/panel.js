// The report under the loaders: plain DOM, coloured by the theme (see hlwq.css).
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { button, element } from "./dialog.js";
import { bytes, count, ranges } from "./format.js";
import { missingChoices, nearest, choices, choose } from "./graph.js";
import { defaultRepository, mayBePublished, publishedBytes, repositoryOf, syncMissing } from "./missing.js";
import { View } from "./view.js";
import { say } from "./words.js";

function line(text, kind = "") {
  return element("div", kind ? `hlwq-line hlwq-${kind}` : "hlwq-line", text);
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

/** The model in the screen's language, but for its name. */
function modelOf({ model, family, other_size: other, variant }) {
  if (other) return say("report.other.size", { family });
  return model === "unknown" ? say("report.unknown") : (model ?? variant);
}

/** What stands at once in a report of GET /hlwq/checkpoint: [text, kind] each. */
export function summary(report) {
  const lines = [];
  const title = { model: modelOf(report), bits: report.bits || "?", size: bytes(report.size_bytes) };
  lines.push([say("report.title", title), "title"]);
  const blocks = report.missing_blocks ?? [];
  if (report.complete) {
    lines.push([say("report.complete"), "good"]);
  } else if (report.missing) {
    const some = { missing: count(report.missing), expected: count(report.expected), blocks: ranges(blocks) };
    lines.push([say(blocks.length ? "report.missing.blocks" : "report.missing", some), "bad"]);
  } else {
    lines.push([report.problem ?? say("report.unloadable"), "bad"]);
  }
  for (const part of report.absent ?? []) lines.push([say("report.absent", { part: part.name, instead: part.instead }), ""]);
  const { vram, fast } = report;
  if (vram) {
    const card = { needed: bytes(vram.needed_bytes), total: bytes(vram.total_bytes), device: vram.device };
    lines.push([say(!vram.total_bytes ? "report.memory.cpu" : vram.fits ? "report.memory" : "report.memory.small", card), ""]);
  }
  if (report.backend?.name === "eager" && vram?.total_bytes) lines.push([say("report.eager"), ""]);
  if (fast?.available) lines.push([say("report.fast", { kind: (fast.kind ?? "").toUpperCase() }), ""]);
  return lines;
}

/** What is told on demand. */
export function details(report) {
  const lines = [];
  const files = { quantized: count(report.quantized), plain: count(report.plain), files: count(report.files) };
  lines.push(say("report.files", files), say("report.variant", { variant: report.variant }));
  if (report.missing_names?.length) lines.push(say("report.first", { name: report.missing_names[0] }));
  for (const hypothesis of report.hypotheses ?? []) lines.push(say("report.maybe", { hypothesis }));
  if (report.version) lines.push(`ComfyUI-HLWQ ${report.version}`);
  if (report.backend) lines.push(say("report.backend", { name: report.backend.name }));
  for (const [name, reason] of Object.entries(report.backend?.unavailable ?? {})) lines.push(`${name}: ${reason}`);
  if (report.fast && !report.fast.available) lines.push(say("report.fast.not", { reason: report.fast.reason }));
  for (const skipped of report.not_listed ?? []) lines.push(say("report.skipped", { skipped }));
  return lines;
}

export class CheckpointPanel extends View {
  constructor(node) {
    super({ least: 40, most: 640 });
    this.node = node;
    this.name = null;
    this.turn = 0;
    this.failed = false;
    this.job = null;
    this.latest = null;
    this.text = element("div");
    this.extra = element("div");
    this.last = element("div");
    this.buttons = element("div", "hlwq-buttons");
    this.content.append(this.text, this.last, this.extra, this.buttons);
  }

  async show(name) {
    this.name = name;
    this.failed = false;
    const turn = ++this.turn;
    this.element.dataset.state = "loading";
    this.text.replaceChildren(line(say("report.reading")));
    let report;
    try {
      report = await ask(`/hlwq/checkpoint?name=${encodeURIComponent(name)}`);
    } catch (error) {
      report = { error: say("report.none", { reason: error.message }) };
    }
    if (this.turn !== turn) return; // another checkpoint was chosen meanwhile
    syncMissing();
    if (this.failed) {
      this.offer(report.fixes ?? [], report); // a run has failed meanwhile: its error stays, with the ways out
      return;
    }
    if (report.error) {
      this.fail(this.notThere() ?? report.error, report.fixes ?? []);
      return;
    }
    this.element.dataset.state = report.complete ? "complete" : "incomplete";
    this.text.replaceChildren(...summary(report).map(([text, kind]) => line(text, kind)), this.onDemand(report));
    if (!this.job) this.extra.replaceChildren();
    this.offer(report.fixes ?? [], report);
  }

  /** What the chosen checkpoint is called and what there is, where it is not there. */
  notThere() {
    const widget = missingChoices(this.node).find((one) => one.name === "checkpoint");
    if (!widget) return null;
    return say("asks", { wanted: widget.value, there: choices(widget).slice(0, 6).join(", ") || say("nothing") });
  }

  onDemand(report) {
    const block = element("details", "hlwq-details");
    block.append(element("summary", "", say("details")), ...details(report).map((text) => line(text)));
    if (!report.complete && report.coverage) {
      const picture = element("img", "hlwq-coverage", "", { alt: say("report.picture"), title: say("report.open") });
      picture.addEventListener("click", () => window.open(picture.src));
      block.addEventListener("toggle", () => {
        if (block.open && !picture.src) picture.src = api.apiURL(`/hlwq/coverage?name=${encodeURIComponent(this.name)}`);
      });
      block.append(picture);
    }
    return block;
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
    const offered = fixes.filter((fix) => fix !== "download" || mayBePublished(this.name ?? ""));
    const made = offered.map((fix) => {
      const one = button(say(`fix.${fix}`), () => this[fix](report));
      one.dataset.fix = fix;
      return one;
    });
    const widget = missingChoices(this.node).find((one) => one.name === "checkpoint");
    for (const other of widget ? nearest(widget.value, choices(widget)) : []) {
      const one = button(say("use", { name: other }), () => choose(this.node, widget, other));
      one.dataset.fix = "use";
      made.push(one);
    }
    this.buttons.replaceChildren(...made);
  }

  async start(path, body) {
    try {
      const { job } = await post(path, body);
      this.job = job;
      const starting = { job, state: "running", text: say("starting"), done: 0, total: 0 };
      this.progress(this.latest?.job === job ? this.latest : starting); // its events may overtake the answer
    } catch (error) {
      this.extra.replaceChildren(line(error.message, "bad"));
    }
  }

  verify() {
    return this.start("/hlwq/verify", { name: this.name });
  }

  async download(report) {
    const repository = repositoryOf(this.name) ?? report.repository ?? defaultRepository();
    if (await mayDownload(repository)) await this.start("/hlwq/download", { repository });
  }

  repair() {
    this.extra.replaceChildren(line(say("repair.how")), line("python -m hlwq_core repair <folder> --from <original.safetensors>"));
  }

  /** What the last run took: see times.js. */
  ran({ seconds, bytes: most, device, stages }) {
    const time = (value) => say("run.seconds", { seconds: value.toFixed(1) });
    const block = element("details", "hlwq-details hlwq-run");
    const held = most ? say("run.memory", { memory: bytes(most), device }) : "";
    block.append(element("summary", "", [say("run.last", { time: time(seconds) }), held].filter(Boolean).join("; ")));
    for (const stage of stages) {
      const parts = [time(stage.seconds), stage.bytes ? bytes(stage.bytes) : ""].filter(Boolean).join(", ");
      block.append(line(`${stage.title}: ${parts}`));
    }
    this.last.replaceChildren(block);
  }

  /** One "hlwq.job" event: {job, kind, state: running|done|failed|cancelled, text, done, total}. */
  progress(event) {
    this.latest = event;
    if (event.job !== this.job) return;
    const parts = [line(event.text ?? "", event.state === "failed" ? "bad" : "")];
    if (event.state === "running") {
      const bar = element("progress");
      if (event.total > 0) {
        bar.max = event.total;
        bar.value = event.done;
      }
      parts.push(bar, button(say("cancel"), () => post("/hlwq/cancel", { job: event.job })));
    } else {
      this.job = null;
    }
    this.extra.replaceChildren(...parts);
    this.extra.dataset.job = event.state;
  }
}

/** Asks whether something may be fetched: nothing is, before the user has said yes. */
export function mayDownload(repository) {
  return app.extensionManager.dialog.confirm({
    title: say("download.title"),
    message: say("download.question", { repository, size: publishedBytes(repository) }),
  });
}

/** Starts a download where no panel has asked for it; its progress is shown by a message. */
export async function downloadApart(repository) {
  const told = (severity, detail) =>
    app.extensionManager.toast.add({ severity, summary: say("download.title"), detail, life: severity === "error" ? undefined : 8000 });
  if (!(await mayDownload(repository))) return;
  try {
    await post("/hlwq/download", { repository });
    told("info", say("download.started", { repository }));
  } catch (error) {
    told("error", error.message);
  }
}
