// What ComfyUI's page shows where no hook of its own tells: callbacks after the page has changed, once a frame at most.
const callbacks = [];
let waiting = false;

function tell() {
  waiting = false;
  for (const callback of callbacks) callback();
}

/** Calls back after elements came or went. Whoever is called must find its places cheaply, and be content with none. */
export function whenPageChanges(callback) {
  if (!callbacks.length) {
    new MutationObserver(() => {
      if (!waiting) requestAnimationFrame(tell);
      waiting = true;
    }).observe(document.body, { childList: true, subtree: true });
  }
  callbacks.push(callback);
}
