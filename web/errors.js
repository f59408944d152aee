// The pack's errors, shown whole: what is wrong, where, and what to do next.
//
// With ComfyUI's errors tab switched on (as it is by default) that tab gives the traceback of a failed node, and of a
// refused value only that it was refused. Without it ComfyUI opens the dialog itself.
import { app } from "../../scripts/app.js";

const OWN_ERROR = /hlwq_core\.errors\.\w+$/;
const OWN_NODE = /^HLWQ/;

const dialogIsOurs = () => app.extensionManager.setting.get("Comfy.RightSidePanel.ShowErrorsTab");

/** A node of any pack failed with an error of ours: the detail of "execution_error". */
export function showExecutionError(detail) {
  if (OWN_ERROR.test(detail.exception_type) && dialogIsOurs()) {
    app.extensionManager.dialog.showExecutionErrorDialog(detail);
  }
}

/** The reasons for which our nodes refused their values; ComfyUI repeats a reason for every input that was looked at. */
export function reasons(nodeErrors) {
  const found = new Set();
  for (const { class_type, errors } of Object.values(nodeErrors ?? {})) {
    if (!OWN_NODE.test(class_type)) continue;
    for (const { type, details, extra_info } of errors) {
      if (type !== "custom_validation_failed") continue;
      const prefix = `${extra_info?.input_name} - `;
      found.add(`${class_type}: ${details.startsWith(prefix) ? details.slice(prefix.length) : details}`);
    }
  }
  return [...found];
}

/** Workflow refused before anything ran: the `node_errors` of POST /prompt. */
export function showRefusals(nodeErrors) {
  const texts = reasons(nodeErrors);
  if (texts.length && dialogIsOurs()) {
    app.extensionManager.dialog.showErrorDialog(texts.join("\n\n"), { title: "HLWQ", reportType: "promptExecutionError" });
  }
}
