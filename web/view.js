// An element inside a node that tells the node how high it wants to be.

const AROUND = 20; // the margin that the frontend leaves around an element in a node

export class View {
  /** @param {{least: number, most: number}} bounds of the height, in pixels at 100 %; beyond them it scrolls */
  constructor({ least, most }) {
    this.height = least;
    this.resized = () => {};
    this.element = document.createElement("div");
    this.element.className = "hlwq-panel";
    this.element.setAttribute("role", "status");
    this.content = document.createElement("div");
    this.element.append(this.content);
    new ResizeObserver(() => {
      const wanted = this.content.offsetHeight;
      if (!wanted) return; // not drawn at present
      this.height = Math.min(Math.max(wanted + AROUND, least), most);
      this.resized();
    }).observe(this.content);
  }
}
