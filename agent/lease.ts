/** Keeps the right to an attempt while it runs, and notices when it is gone. */
import { asError } from "./cause.ts";
import { type AttemptKey, FencedError, type ServerClient } from "./server-client.ts";

/** The agent could not renew for as long as the lease lasts: the server may have given the job to another agent. */
export class LeaseLostError extends Error {
  override readonly name = "LeaseLostError";
}

export interface LeaseOptions {
  readonly client: ServerClient;
  readonly attempt: AttemptKey;
  readonly leaseMs: number;
  /** When the claim was sent, by `performance.now()`: the server counts from some later moment. */
  readonly sinceMs: number;
  /** Called at most once: with a `FencedError`, a `LeaseLostError` or, if the build was canceled, another Error. */
  readonly onEnd: (reason: Error) => void;
}

/**
 * Renews at a third of the lease, more often while that fails, until it is disposed of or the right is gone.
 *
 * After a lost lease it goes on trying: the server may not have given the job away after all, and will then want to know how it
 * ended.
 */
export class Lease implements Disposable {
  readonly #options: LeaseOptions;
  readonly #stop = new AbortController();
  #leaseMs: number;
  #renewedAtMs: number;
  #ended = false;
  #renewTimer: NodeJS.Timeout | undefined;
  #lossTimer: NodeJS.Timeout | undefined;

  constructor(options: LeaseOptions) {
    this.#options = options;
    this.#leaseMs = options.leaseMs;
    this.#renewedAtMs = options.sinceMs;
    this.#schedule(this.#leaseMs / 3);
    this.#watch();
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
    clearTimeout(this.#renewTimer);
    clearTimeout(this.#lossTimer);
  }

  #schedule(delayMs: number): void {
    if (this.#stop.signal.aborted) return;
    this.#renewTimer = setTimeout(() => void this.#renew(), delayMs);
  }

  async #renew(): Promise<void> {
    const { client, attempt } = this.#options;
    const sentAtMs = performance.now();
    try {
      const timeoutMs = Math.max(1_000, this.#leaseMs / 3);
      const { canceled, leaseMs } = await client.renew(attempt, { timeoutMs, signal: this.#stop.signal });
      this.#renewedAtMs = sentAtMs;
      this.#leaseMs = leaseMs;
      this.#watch();
      if (canceled) this.#end(new Error("the build was canceled"));
      this.#schedule(leaseMs / 3);
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      if (error instanceof FencedError) return this.#end(error);
      this.#schedule(Math.min(1_000, this.#leaseMs / 10));
    }
  }

  #watch(): void {
    clearTimeout(this.#lossTimer);
    this.#lossTimer = setTimeout(
      () => {
        const seconds = Math.round(this.#leaseMs / 1000);
        this.#end(new LeaseLostError(`the agent could not reach the server for ${seconds} s, so long its lease lasts`));
      },
      Math.max(0, this.#renewedAtMs + this.#leaseMs - performance.now()),
    );
  }

  #end(reason: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#lossTimer);
    this.#options.onEnd(asError(reason));
  }
}
