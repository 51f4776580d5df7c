/** Lets a few do something at once and the others wait their turn. */
export class Semaphore {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /** Does it when it may. @throws The signal's reason if it is aborted while waiting. */
  async use<T>(action: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    while (this.#free === 0) {
      signal?.throwIfAborted();
      await this.#turn(signal);
    }
    signal?.throwIfAborted();
    this.#free--;
    try {
      return await action();
    } finally {
      this.#free++;
      this.#waiting.shift()?.();
    }
  }

  async #turn(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push(resolve);
    signal?.addEventListener("abort", () => resolve(), { once: true });
    await promise;
    const at = this.#waiting.indexOf(resolve);
    if (at !== -1) this.#waiting.splice(at, 1);
  }
}
