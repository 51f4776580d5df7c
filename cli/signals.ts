/** The two-stage stop of long-running verbs: the first signal drains, the second stops at once. */

import { exitCodes } from "./verb.ts";

const orphanGraceMs = 3000;
const parentCheckMs = 500;

/**
 * Listens for SIGINT, SIGTERM and SIGHUP until disposed.
 *
 * `drain` aborts on the first of them, `stop` on the second; the reason names the signal. A process started by
 * `slipway up` stops when its parent is gone, which it learns from the closed IPC channel; one started by `npx` or `npm run`
 * drains then, for npm passes signals to the shell in between, which dies of them and tells nobody.
 */
export class StopSignals implements Disposable {
  readonly #drain = new AbortController();
  readonly #stop = new AbortController();
  #parentCheck: NodeJS.Timeout | undefined;
  readonly #onSignal = (name: string) => this.#next(new Error(`received ${name}`));
  readonly #onDisconnect = () => {
    for (let i = 0; i < 2; i++) this.#next(new Error("slipway up is gone"));
    // Its Redis is gone too, and whoever waits for that waits in vain. Containers end with this process.
    setTimeout(() => process.exit(exitCodes.ourError), orphanGraceMs).unref();
  };

  constructor() {
    for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, this.#onSignal);
    process.on("disconnect", this.#onDisconnect);
    if (process.env["npm_command"] !== undefined && process.channel === undefined) this.#watchParent();
  }

  get drain(): AbortSignal {
    return this.#drain.signal;
  }

  get stop(): AbortSignal {
    return this.#stop.signal;
  }

  #watchParent(): void {
    const { ppid } = process;
    this.#parentCheck = setInterval(() => {
      if (process.ppid === ppid) return;
      clearInterval(this.#parentCheck);
      this.#next(new Error("npm, which started this, is gone"));
    }, parentCheckMs).unref();
  }

  #next(reason: Error): void {
    if (this.#drain.signal.aborted) this.#stop.abort(reason);
    else this.#drain.abort(reason);
  }

  [Symbol.dispose](): void {
    for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.off(name, this.#onSignal);
    process.off("disconnect", this.#onDisconnect);
    clearInterval(this.#parentCheck);
  }
}

/** Resolves once the signal is aborted. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
