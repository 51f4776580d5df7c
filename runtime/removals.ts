/** Deletes the directory trees that containers leave, in a thread of its own. */
import { rm } from "node:fs/promises";
import type { Worker } from "node:worker_threads";
import type { Removal, RemovalReply } from "./removal-worker.ts";
import { isPlainTree } from "./tree-size.ts";
import { startThread } from "./thread.ts";

/**
 * A thread that deletes, so that the agent does not wait for a disk, and spends a third of the
 * time that file system promises would take for it.
 *
 * Starting the thread takes as long as a few dozen trees, so it is started when an agent goes on and on.
 */
export class Removals {
  readonly #waiting = new Map<number, PromiseWithResolvers<void>>();
  #worker: Worker | undefined;
  #sequence = 0;

  /** Whether enough has been deleted for the thread to be worth it. */
  get isThread(): boolean {
    return this.#worker !== undefined || this.#sequence >= threadAfter;
  }

  /**
   * Deletes a tree that nobody can name any more.
   *
   * @throws {Error} If something stays; the rest has been deleted.
   */
  async remove(tree: string): Promise<void> {
    const id = ++this.#sequence;
    if (!this.isThread && isPlainTree(tree, plainEntries)) {
      await rm(tree, { recursive: true, force: true, maxRetries: 3 });
      return;
    }
    const worker = this.#start();
    const waiting = Promise.withResolvers<void>();
    this.#waiting.set(id, waiting);
    worker.ref(); // the agent does not end before its removals
    worker.postMessage({ id, tree } satisfies Removal);
    return waiting.promise;
  }

  #start(): Worker {
    if (this.#worker !== undefined) return this.#worker;
    const worker = startThread(new URL("./removal-worker.ts", import.meta.url), {
      name: "slipway-removal",
      resourceLimits: { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 64, stackSizeMb: 2 },
    });
    worker.on("message", ({ id, error }: RemovalReply) => {
      const waiting = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (this.#waiting.size === 0) worker.unref();
      if (error === undefined) waiting?.resolve();
      else waiting?.reject(new Error(error));
    });
    worker.on("error", (error) => this.#fail(error as Error));
    worker.unref();
    this.#worker = worker;
    return worker;
  }

  /** A thread that has died is replaced by the next removal; what it had to do is swept at the next start. */
  #fail(error: Error): void {
    this.#worker = undefined;
    for (const waiting of this.#waiting.values()) waiting.reject(error);
    this.#waiting.clear();
  }

  /** Ends the thread; removals must have ended. */
  async close(): Promise<void> {
    await this.#worker?.terminate();
    this.#worker = undefined;
  }
}

const threadAfter = 16;
/** What is larger is worth a thread at once. */
const plainEntries = 64;
