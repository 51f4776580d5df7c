/** A thread that measures what containers have written, so that the agent's own does not wait for it. */
import type { Worker } from "node:worker_threads";
import type { Measured, MeasureRequest } from "./tree-size.ts";
import { startThread } from "./thread.ts";

/** A thread costs some megabytes. */
const idleMs = 10_000;

/** One thread, started when there is work for it and ended when there has been none for a while; requests in their order. */
export class MeasuringThread implements AsyncDisposable {
  readonly #waiting: PromiseWithResolvers<Measured>[] = [];
  #worker: Worker | undefined;
  #idle: NodeJS.Timeout | undefined;
  #closed = false;

  /** @throws {Error} If the thread has died, or was ended. */
  async measure(request: MeasureRequest): Promise<Measured> {
    if (this.#closed) throw new Error("Cannot measure a disk: the agent is ending");
    clearTimeout(this.#idle);
    const waiting = Promise.withResolvers<Measured>();
    this.#waiting.push(waiting);
    this.#worker ??= this.#start();
    this.#worker.postMessage(request);
    return waiting.promise;
  }

  #start(): Worker {
    const worker = startThread(new URL("./measuring-worker.ts", import.meta.url), { name: "slipway-measuring" });
    worker.on("message", (measured: Measured) => {
      this.#waiting.shift()?.resolve(measured);
      if (this.#waiting.length === 0) this.#idle = setTimeout(() => void this.#end(), idleMs).unref();
    });
    worker.on("error", (error: unknown) => {
      if (this.#worker === worker) this.#worker = undefined;
      for (const waiting of this.#waiting.splice(0)) waiting.reject(error);
    });
    // Whoever waits for a container waits for what it is measured for.
    worker.unref();
    return worker;
  }

  async #end(): Promise<void> {
    const worker = this.#worker;
    this.#worker = undefined;
    await worker?.terminate();
  }

  /** Ends the thread; nobody may wait for it any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idle);
    for (const waiting of this.#waiting.splice(0))
      waiting.reject(new Error("Cannot measure a disk: the agent is ending"));
    await this.#end();
  }
}
