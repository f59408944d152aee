// What a tool has found or done, as text in its node.
import { View } from "./view.js";

export class Findings extends View {
  static MIN_WIDTH = 660;

  constructor() {
    super({ least: 60, most: 360 });
    this.element.classList.add("hlwq-findings");
  }

  /** @param {string[]} texts the node's `ui.text` */
  show(texts) {
    this.content.textContent = texts.join("\n");
  }
}
