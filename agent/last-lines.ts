/** The last lines of a log, for whoever asks why its program has ended. */
import { stripVTControlCharacters } from "node:util";

const keptBytes = 2048;
const shownLines = 3;
const shownCharacters = 500;

/** Keeps the end of what it is given, and no more. */
export class LastLines {
  #bytes = Buffer.alloc(0);

  write(bytes: Uint8Array): void {
    const end = bytes.subarray(Math.max(0, bytes.length - keptBytes));
    this.#bytes = Buffer.concat([this.#bytes.subarray(Math.max(0, this.#bytes.length + end.length - keptBytes)), end]);
  }

  /** The last lines, in one: without colours and other control characters. Empty if there is no output. */
  toString(): string {
    const text = stripVTControlCharacters(this.#bytes.toString("utf8"));
    const lines = text
      .split(/[\r\n]+/)
      // eslint-disable-next-line no-control-regex -- what is not to be shown
      .map((line) => line.replaceAll(/[\0-\x1f\x7f-\x9f]+/g, " ").trim())
      .filter((line) => line !== "");
    const shown = lines.slice(-shownLines).join(" / ");
    return shown.length > shownCharacters ? `…${shown.slice(-shownCharacters)}` : shown;
  }
}
