/** Threads that read archives and write layers. */
import { availableParallelism } from "node:os";
import type { Worker } from "node:worker_threads";
import type { Accounts } from "./accounts.ts";
import { ImageError } from "./image-error.ts";
import type { LayerLimits, LayerSummary } from "./layer.ts";
import type { RangePlan } from "./own-ids.ts";
import type { ArchiveKind, ByteRange, TreeRequest, UnpackRequest } from "./unpack.ts";
import { startThread } from "./thread.ts";

/** What a thread can be asked for; plain data and file descriptors, which threads of a process share. */
export type LayerTask =
  | { readonly kind: "unpack"; readonly request: UnpackRequest }
  | { readonly kind: "hash"; readonly source: ByteRange }
  | { readonly kind: "detect"; readonly source: ByteRange; readonly limits: LayerLimits }
  | { readonly kind: "decompress"; readonly source: ByteRange; readonly target: number; readonly limits: LayerLimits }
  | { readonly kind: "tree"; readonly request: TreeRequest }
  | { readonly kind: "accounts"; readonly layers: readonly string[]; readonly emptyDir: string }
  | { readonly kind: "copy"; readonly layer: string; readonly target: string; readonly range: RangePlan }
  | { readonly kind: "remove"; readonly path: string };

interface LayerTaskResults {
  unpack: LayerSummary;
  hash: string;
  detect: ArchiveKind;
  decompress: number;
  tree: { readonly hash: string; readonly summary?: LayerSummary };
  accounts: Accounts;
  copy: undefined;
  remove: undefined;
}

export type LayerTaskReply = { readonly id: number } & (
  | { readonly result: unknown }
  | { readonly error: { readonly name: string; readonly message: string; readonly code?: string } }
);

/** What a thread is sent. */
export interface LayerTaskRequest {
  /** Comes back with the reply. */
  readonly id: number;
  readonly task: LayerTask;
}

interface Queued {
  readonly task: LayerTask;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: unknown) => void;
}

interface Thread {
  readonly worker: Worker;
  /** What it is at, by id. */
  readonly tasks: Map<number, Queued>;
}

/**
 * A few threads for the duration of resolving one image, started when there is work for them.
 *
 * An unpacked layer depends on no other one (a whiteout is a file in its own layer), so the layers of an image are
 * unpacked side by side.
 */
export class LayerWorkers implements AsyncDisposable {
  readonly #max: number;
  readonly #tasksPerThread: number;
  #lastId = 0;
  readonly #threads: Thread[] = [];
  readonly #queue: Queued[] = [];
  /** One flag for all: set once, and every thread leaves its task at the next chunk. */
  readonly #canceled = new Int32Array(new SharedArrayBuffer(4));
  #reason: unknown;

  /**
   * @param options.max Threads at most. @default the machine's processors, at most 4
   * @param options.tasksPerThread More than one where tasks wait for what comes over the network. @default 1
   */
  constructor(options: { readonly max?: number; readonly tasksPerThread?: number } = {}) {
    this.#max = options.max ?? Math.min(4, availableParallelism());
    this.#tasksPerThread = options.tasksPerThread ?? 1;
  }

  /**
   * Runs a task on a free thread.
   *
   * @throws {ImageError} If the image is at fault. After `cancel`, its reason.
   */
  run<Task extends LayerTask>(task: Task): Promise<LayerTaskResults[Task["kind"]]> {
    return new Promise((resolve, reject) => {
      if (this.#isCanceled) {
        reject(this.#reason);
        return;
      }
      this.#queue.push({ task, resolve: resolve as (result: unknown) => void, reject });
      this.#next();
    });
  }

  /**
   * Lets every task fail with `reason`, those under way at their next chunk. A thread is not stopped from outside: it
   * closes its descriptors itself.
   */
  cancel(reason: unknown): void {
    if (this.#isCanceled) return;
    this.#reason = reason;
    Atomics.store(this.#canceled, 0, 1);
    for (const queued of this.#queue.splice(0)) queued.reject(reason);
  }

  get #isCanceled(): boolean {
    return Atomics.load(this.#canceled, 0) !== 0;
  }

  #next(): void {
    while (this.#queue.length > 0) {
      const thread = this.#idlest();
      if (thread === undefined) return;
      const queued = this.#queue.shift() as Queued;
      const id = ++this.#lastId;
      thread.tasks.set(id, queued);
      thread.worker.postMessage({ id, task: queued.task } satisfies LayerTaskRequest);
    }
  }

  /** One that can take a task more; a new one rather than one that has something to do. */
  #idlest(): Thread | undefined {
    const [least] = this.#threads.toSorted((a, b) => a.tasks.size - b.tasks.size);
    if (least === undefined || (least.tasks.size > 0 && this.#threads.length < this.#max)) return this.#start();
    return least.tasks.size < this.#tasksPerThread ? least : undefined;
  }

  #start(): Thread {
    const worker = startThread(new URL("./layer-worker.ts", import.meta.url), {
      workerData: { canceled: this.#canceled.buffer },
      // What it makes it drops soon; more of that would only lie around.
      resourceLimits: { maxYoungGenerationSizeMb: 4 },
    });
    const thread: Thread = { worker, tasks: new Map() };
    this.#threads.push(thread);
    worker.on("message", (reply: LayerTaskReply) => {
      const queued = thread.tasks.get(reply.id);
      thread.tasks.delete(reply.id);
      if (queued !== undefined) this.#settle(queued, reply);
      this.#next();
    });
    worker.on("error", (error) => {
      this.#threads.splice(this.#threads.indexOf(thread), 1);
      for (const { reject } of thread.tasks.values()) reject(error);
      this.#next();
    });
    return thread;
  }

  #settle(queued: Queued, reply: LayerTaskReply): void {
    if ("result" in reply) {
      queued.resolve(reply.result);
    } else if (this.#isCanceled) {
      queued.reject(this.#reason);
    } else if (reply.error.name === "ImageError") {
      queued.reject(new ImageError(reply.error.message));
    } else {
      const error = new Error(reply.error.message);
      queued.reject(reply.error.code === undefined ? error : Object.assign(error, { code: reply.error.code }));
    }
  }

  /** Cancels what is under way, waits until it has cleaned up after itself, and ends the threads. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.cancel(new Error("Work on the image was given up because another part of it failed"));
    await Promise.all(this.#threads.map((thread) => this.#end(thread)));
  }

  async #end({ worker, tasks }: Thread): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const look = () => {
      if (tasks.size === 0) resolve();
    };
    worker.on("message", look);
    worker.once("exit", () => resolve());
    look();
    await promise;
    await worker.terminate();
  }
}

/** Deletes directory trees of strangers, in a thread, for that is synchronous. A missing one is fine. */
export async function removeTrees(paths: readonly string[]): Promise<void> {
  if (paths.length === 0) return;
  await using workers = new LayerWorkers({ max: 1 });
  for (const path of paths) await workers.run({ kind: "remove", path });
}
