/** Several things at a time. */

/**
 * Waits for all of them even if one fails, so that nobody cleans up any more when this settles.
 *
 * @param giveUp Called at the first failure, which is what this rejects with.
 */
export async function allOrNone<T>(promises: readonly Promise<T>[], giveUp: (error: unknown) => void): Promise<T[]> {
  let first: { readonly error: unknown } | undefined;
  const results = await Promise.allSettled(
    promises.map((promise) =>
      promise.catch((error: unknown) => {
        if (first === undefined) {
          first = { error };
          giveUp(error);
        }
        throw error;
      }),
    ),
  );
  if (first !== undefined) throw first.error;
  return results.map((result) => (result as PromiseFulfilledResult<T>).value);
}

/** Lets at most so many at a time, in the order they came. */
export class Semaphore {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /** Waits for a place; disposing it gives it back. @throws What the signal was aborted with. */
  async take(signal?: AbortSignal): Promise<Disposable> {
    signal?.throwIfAborted();
    if (this.#free > 0) {
      this.#free--;
    } else {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const abort = () => {
        const index = this.#waiting.indexOf(resolve);
        if (index === -1) return; // it has just got a place
        this.#waiting.splice(index, 1);
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#waiting.push(resolve);
      await promise.finally(() => signal?.removeEventListener("abort", abort));
    }
    let taken = true;
    return {
      [Symbol.dispose]: () => {
        if (!taken) return;
        taken = false;
        const next = this.#waiting.shift();
        if (next === undefined) this.#free++;
        else next();
      },
    };
  }
}
