/** Output that waits while the terminal is somebody else's. */

/** Of each end of what waits; what is between is left out. */
const keptCharacters = 2 << 20;

/** Passes text on, or keeps its beginning and its end until it may be passed on. */
export class HeldOutput {
  readonly #print: (text: string) => void;
  #isHeld = false;
  #first = "";
  #last: string[] = [];
  #lastLength = 0;
  #omitted = 0;

  constructor(print: (text: string) => void) {
    this.#print = print;
  }

  readonly print = (text: string): void => {
    if (!this.#isHeld) this.#print(text);
    else if (this.#last.length === 0 && this.#first.length + text.length <= keptCharacters) this.#first += text;
    else this.#append(text);
  };

  /** From now on text waits. */
  hold(): void {
    this.#isHeld = true;
  }

  /** Passes on what waits, and from now on all. */
  release(): void {
    this.#isHeld = false;
    const omitted = this.#omitted === 0 ? "" : `… ${this.#omitted} characters are left out …\n`;
    const text = this.#first + omitted + this.#last.join("");
    this.#first = "";
    this.#last = [];
    this.#lastLength = 0;
    this.#omitted = 0;
    if (text !== "") this.#print(text);
  }

  #append(text: string): void {
    this.#last.push(text);
    this.#lastLength += text.length;
    let at = 0;
    for (; this.#lastLength - (this.#last[at]?.length ?? 0) > keptCharacters; at++) {
      const { length } = this.#last[at] ?? "";
      this.#lastLength -= length;
      this.#omitted += length;
    }
    if (at > 0) this.#last.splice(0, at);
  }
}
