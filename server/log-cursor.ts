/**
 * How much of a build a client has, written into every event's id: the build's version, the attempts whose logs it has
 * whole, and byte offsets for the others.
 *
 * The form is `<version>~<done>~<offsets>`: `done` lists ordinals and ranges (`0-5.8`), `offsets` has
 * `<ordinal>:<step>:<bytes>` in base 36, joined by dots. It stays short however many jobs a build has, for only attempts
 * that are running have offsets.
 */
export class LogCursor {
  version: number;
  readonly #done: Set<number>;
  readonly #offsets: Map<number, Map<number, number>>;

  private constructor(version: number, done: Set<number>, offsets: Map<number, Map<number, number>>) {
    this.version = version;
    this.#done = done;
    this.#offsets = offsets;
  }

  /** Reads an id; one that we did not write means that the client has nothing. */
  static parse(id: string | undefined): LogCursor {
    const parts = /^([0-9a-z]{1,10})~((?:[0-9a-z]{1,6}(?:-[0-9a-z]{1,6})?(?:\.|(?=~)))*)~([0-9a-z:.]*)$/.exec(id ?? "");
    const cursor = new LogCursor(0, new Set(), new Map());
    if (!parts) return cursor;
    cursor.version = number(parts[1]);
    for (const range of (parts[2] ?? "").split(".")) {
      if (range === "") continue;
      const [first, last = first] = range.split("-");
      // A range is never longer than a build has attempts; a forged one must not cost memory.
      for (let ordinal = number(first); ordinal <= Math.min(number(last), 10_000); ordinal++) cursor.#done.add(ordinal);
    }
    for (const entry of (parts[3] ?? "").split(".")) {
      const [ordinal, step, offset] = entry.split(":");
      if (offset) cursor.set(number(ordinal), number(step), number(offset));
    }
    return cursor;
  }

  /** The client has the first `offset` bytes of a step's log. */
  set(ordinal: number, step: number, offset: number): void {
    let steps = this.#offsets.get(ordinal);
    if (!steps) this.#offsets.set(ordinal, (steps = new Map()));
    steps.set(step, offset);
  }

  /** The client has all logs of an attempt, and they will not grow. */
  done(ordinal: number): void {
    this.#done.add(ordinal);
    this.#offsets.delete(ordinal);
  }

  isDone(ordinal: number): boolean {
    return this.#done.has(ordinal);
  }

  offset(ordinal: number, step: number): number {
    return this.#offsets.get(ordinal)?.get(step) ?? 0;
  }

  /** Writes the id. */
  id(): string {
    const offsets: string[] = [];
    for (const [ordinal, steps] of this.#offsets) {
      for (const [step, offset] of steps)
        offsets.push([ordinal, step, offset].map((value) => value.toString(36)).join(":"));
    }
    return `${this.version.toString(36)}~${this.#ranges()}~${offsets.join(".")}`;
  }

  #ranges(): string {
    const ranges: string[] = [];
    const sorted = [...this.#done].sort((a, b) => a - b);
    for (let i = 0; i < sorted.length; ) {
      const first = sorted[i] as number;
      let last = first;
      while (sorted[++i] === last + 1) last++;
      ranges.push(first === last ? first.toString(36) : `${first.toString(36)}-${last.toString(36)}`);
    }
    return ranges.join(".");
  }
}

function number(text: string | undefined): number {
  return Number.parseInt(text ?? "0", 36);
}
