// What a run took: the seconds of each stage, and the most memory that the card (without one: the program) held in it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./graph.js";

const MOST_LINES = 12; // of the stages, the longest ones

/** The most memory since it was asked for last, and what holds it: {bytes, device}; null where the server cannot tell. */
async function mostMemory() {
  try {
    const answer = await api.fetchApi("/hlwq/memory", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** The longest of the stages, in the order in which they ran. */
function longest(stages) {
  const kept = new Set([...stages].sort((one, other) => other.seconds - one.seconds).slice(0, MOST_LINES));
  return stages.filter((stage) => kept.has(stage));
}

/** Calls back after each run of a workflow with a node of ours: `{seconds, bytes, device, stages: [{title, seconds, bytes}]}`. */
export function watchRuns(told) {
  let run = null;

  const end = (stage) => {
    if (!stage) return;
    stage.seconds = (performance.now() - stage.from) / 1000;
    stage.memory = mostMemory();
  };
  api.addEventListener("execution_start", () => {
    run = { from: performance.now(), stages: [], now: null };
    run.before = mostMemory(); // what was held before this run is not its own
  });
  api.addEventListener("executing", ({ detail }) => {
    if (!run) return;
    const id = detail == null ? null : String(detail?.node ?? detail);
    if (run.now?.id === id) return;
    end(run.now);
    run.now = id == null ? null : { id, title: nodeOf(id)?.title ?? id, from: performance.now() };
    if (run.now) run.stages.push(run.now);
  });
  api.addEventListener("execution_success", async () => {
    const done = run;
    run = null;
    if (!done?.stages.length) return;
    if (done.now && done.now.seconds === undefined) end(done.now);
    const seconds = (performance.now() - done.from) / 1000;
    const stages = [];
    for (const { title, seconds: took, memory } of done.stages) {
      const most = await memory;
      stages.push({ title, seconds: took, bytes: most?.bytes ?? 0, device: most?.device });
    }
    const bytes = Math.max(...stages.map((stage) => stage.bytes));
    const device = stages.find((stage) => stage.device)?.device;
    told({ seconds, bytes, device, stages: longest(stages) });
  });
  for (const event of ["execution_error", "execution_interrupted"]) api.addEventListener(event, () => (run = null));
}
