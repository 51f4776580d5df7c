/**
 * The log of a job. Lines are kept as text and only those in sight are elements, so a log of a hundred thousand lines
 * scrolls like one of ten.
 */
import { pieces, plain, span, styleAfter } from "./ansi.js";
import { count, clock } from "./format.js";
import { h } from "./dom.js";

export const lineHeight = 20;
/** Lines kept of one step; earlier ones are in the raw log. */
const maxLines = 200_000;
const droppedAtOnce = 20_000;
/** Characters shown of one line. */
const maxShown = 5_000;
/** Characters kept of one line: a line without end must not cost more with every piece of it. */
const maxKept = 200_000;
const overscan = 30;

/** The lines of one step as they come in. */
export class StepLog {
  lines = [];
  /** Lines (or, before the first, bytes) that came before those kept. */
  dropped = 0;
  skippedBytes = 0;
  bytes = 0;
  #open = [undefined, undefined, undefined];
  #styles = [plain, plain, plain];

  /** Takes one `log` event. */
  append({ offset, bytes, records, text }) {
    if (this.bytes === 0 && offset > 0) this.skippedBytes = offset;
    this.bytes = offset + bytes;
    let at = 0;
    for (const [length, stream, timeMs] of records) {
      this.#take(text.slice(at, at + length), stream, timeMs);
      at += length;
    }
    if (this.lines.length > maxLines) {
      this.lines.splice(0, droppedAtOnce);
      this.dropped += droppedAtOnce;
    }
  }

  /** What to call the line at this index; nothing if nobody has counted the lines before it. */
  numberOf(index) {
    return this.skippedBytes > 0 ? undefined : index + 1 + this.dropped;
  }

  #take(text, stream, timeMs) {
    let from = 0;
    while (from < text.length) {
      const end = text.indexOf("\n", from);
      const part = end < 0 ? text.slice(from) : text.slice(from, end);
      // Each stream has its own unfinished line: a warning does not tear an output line in two.
      let line = this.#open[stream];
      if (line === undefined) {
        line = { text: "", stream, timeMs, style: this.#styles[stream] };
        this.#open[stream] = line;
        this.lines.push(line);
      }
      if (line.text.length < maxKept) line.text = returned(line.text + part.slice(0, maxKept), end >= 0);
      if (end < 0) return;
      this.#styles[stream] = styleAfter(line.text, line.style);
      this.#open[stream] = undefined;
      from = end + 1;
    }
  }
}

/** What a terminal shows after carriage returns: a progress bar's last state. */
function returned(text, isComplete) {
  if (!text.includes("\r")) return text;
  const body = isComplete && text.endsWith("\r") ? text.slice(0, -1) : text;
  const last = body.lastIndexOf("\r", body.endsWith("\r") ? body.length - 2 : body.length);
  return last < 0 ? body : body.slice(last + 1);
}

/** Shows the lines of one step under its header, inside a scrolling parent. */
export class LogView {
  element = h("div", { class: "lines" });
  #slice = h("div", { class: "slice" });
  #log;
  #first = 0;
  #last = -1;
  #widest = 0;
  #rendered = 0;

  constructor(log) {
    this.#log = log;
    this.element.append(this.#slice);
  }

  /** Draws what is between two positions of the parent, given in pixels from this element's top. */
  draw(top, bottom) {
    const { lines } = this.#log;
    const height = lines.length * lineHeight;
    if (this.#rendered !== lines.length) {
      this.element.style.height = `${height}px`;
    }
    const first = Math.max(0, Math.floor(top / lineHeight) - overscan);
    const last = Math.min(lines.length - 1, Math.ceil(bottom / lineHeight) + overscan);
    if (last < first || bottom < 0 || top > height) {
      if (this.#last >= this.#first) this.#slice.replaceChildren();
      this.#first = 0;
      this.#last = -1;
      this.#rendered = lines.length;
      return;
    }
    // Unchanged only if no line was added, for the last one may have grown.
    if (first === this.#first && last === this.#last && this.#rendered === lines.length && !this.grew) return;
    this.grew = false;
    this.#first = first;
    this.#last = last;
    this.#rendered = lines.length;
    this.#slice.style.transform = `translateY(${first * lineHeight}px)`;
    const rows = [];
    for (let i = first; i <= last; i++) rows.push(this.#row(lines[i], i));
    this.#slice.replaceChildren(...rows);
    // The widest line seen so far sets the width, so that scrolling sideways does not jump.
    const width = this.#slice.scrollWidth;
    if (width > this.#widest) {
      this.#widest = width;
      this.element.style.minWidth = `${width}px`;
    }
  }

  #row(line, index) {
    const row = h("div", { class: `line s${line.stream}` });
    const number = h("span", { class: "n" });
    const n = this.#log.numberOf(index);
    number.dataset.n = n === undefined ? "" : count(n);
    number.dataset.t = clock(line.timeMs);
    const text = h("span", { class: "c" });
    const shown = line.text.length > maxShown ? line.text.slice(0, maxShown) : line.text;
    text.append(...pieces(shown, line.style).map(span));
    if (shown !== line.text)
      text.append(h("span", { class: "more" }, ` … ${count(line.text.length - maxShown)} more characters`));
    row.append(number, text);
    return row;
  }
}
