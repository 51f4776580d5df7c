/** Wakes whoever follows a build when something about it changed. Carries no data: followers read the store and the logs. */
export class BuildWatch {
  readonly #waiting = new Map<string, Set<() => void>>();

  /** Tells every follower of a build to look again. */
  wake(buildId: string): void {
    const waiting = this.#waiting.get(buildId);
    if (!waiting) return;
    this.#waiting.delete(buildId);
    for (const resolve of waiting) resolve();
  }

  /**
   * Resolves at the next `wake`, or after `timeoutMs`. Ask for it before looking, so that no change falls in between.
   */
  next(buildId: string, timeoutMs: number): { readonly changed: Promise<void>; stop(): void } {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(done, timeoutMs);
    let waiting = this.#waiting.get(buildId);
    if (!waiting) this.#waiting.set(buildId, (waiting = new Set()));
    waiting.add(done);
    const set = waiting;
    function done(): void {
      clearTimeout(timer);
      set.delete(done);
      resolve();
    }
    return {
      changed: promise,
      stop: () => {
        done();
        if (set.size === 0 && this.#waiting.get(buildId) === set) this.#waiting.delete(buildId);
      },
    };
  }
}
