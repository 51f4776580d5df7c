/** Looks at what runs four times a second: limits that the kernel does not keep by itself. */

/** How late a limit may be noticed, and what one look may cost of a core, decide: a look takes some microseconds. */
const intervalMs = 250;

/** One timer for all containers of a host; none while nothing runs. */
export class Watch {
  readonly #looks = new Set<() => void>();
  #timer: NodeJS.Timeout | undefined;

  /** Has `look` called from now on; it must not throw. Disposing ends it. */
  add(look: () => void): Disposable {
    this.#looks.add(look);
    this.#timer ??= setInterval(() => this.#lookAtAll(), intervalMs);
    return { [Symbol.dispose]: () => this.#remove(look) };
  }

  #remove(look: () => void): void {
    this.#looks.delete(look);
    if (this.#looks.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #lookAtAll(): void {
    for (const look of this.#looks) look();
  }
}
