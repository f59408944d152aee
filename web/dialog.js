// A dialog of the pack: the browser's own, so that Escape, focus and screen readers work without further code.

/** An element with a class, a text, and whatever else is assigned. */
export function element(tag, className = "", text = "", more = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return Object.assign(made, more);
}

export function button(text, pressed, more = {}) {
  const made = element("button", "", text, { type: "button", ...more });
  made.addEventListener("click", pressed);
  return made;
}

/**
 * Opens a dialog and returns it; it is gone from the page when it is closed.
 * @param {string} title
 * @param {(Node|string)[]} content
 * @param {HTMLButtonElement[]} buttons
 */
export function openDialog(title, content, buttons) {
  const dialog = element("dialog", "hlwq-dialog");
  const heading = element("h2", "", title, { id: `hlwq-dialog-${Date.now()}` });
  dialog.setAttribute("aria-labelledby", heading.id);
  const row = element("div", "hlwq-buttons");
  row.append(...buttons);
  dialog.append(heading, ...content, row);
  // ComfyUI's shortcuts are not meant while a dialog is open, and it would keep Escape for itself. Where the focus was on a
  // button that is gone, keys come to the page, not to the dialog.
  const keys = (event) => {
    event.stopImmediatePropagation();
    if (event.key === "Escape") dialog.close();
  };
  window.addEventListener("keydown", keys, true);
  dialog.addEventListener("close", () => {
    window.removeEventListener("keydown", keys, true);
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
