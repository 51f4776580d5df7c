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
  /** Told of the sessions of shells that wait for this agent, again and again until it has dialed in. */
  readonly onShells?: (sessions: readonly string[]) => void;
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
  #isRenewing = false;
  /** Somebody asked while a renewal, whose answer may be older, was under way. */
  #isAskedAgain = false;
  #renewTimer: NodeJS.Timeout | undefined;
  #lossTimer: NodeJS.Timeout | undefined;

  constructor(options: LeaseOptions) {
    this.#options = options;
    this.#leaseMs = options.leaseMs;
    this.#renewedAtMs = options.sinceMs;
    this.#schedule(this.#leaseMs / 3);
    this.#watch();
  }

  /** Renews at once: the server has something to say. */
  renewNow(): void {
    if (this.#isRenewing) this.#isAskedAgain = true;
    else this.#schedule(0);
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
    clearTimeout(this.#renewTimer);
    clearTimeout(this.#lossTimer);
  }

  #schedule(delayMs: number): void {
    if (this.#stop.signal.aborted) return;
    clearTimeout(this.#renewTimer);
    this.#renewTimer = setTimeout(() => void this.#renew(), this.#isAskedAgain ? 0 : delayMs);
    this.#isAskedAgain = false;
  }

  async #renew(): Promise<void> {
    const { client, attempt } = this.#options;
    const sentAtMs = performance.now();
    this.#isRenewing = true;
    try {
      const timeoutMs = Math.max(1_000, this.#leaseMs / 3);
      const { canceled, leaseMs, shells = [] } = await client.renew(attempt, { timeoutMs, signal: this.#stop.signal });
      this.#isRenewing = false;
      this.#renewedAtMs = sentAtMs;
      this.#leaseMs = leaseMs;
      this.#watch();
      if (canceled) this.#end(new Error("the build was canceled"));
      if (shells.length > 0) this.#options.onShells?.(shells);
      this.#schedule(leaseMs / 3);
    } catch (error) {
      this.#isRenewing = false;
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
