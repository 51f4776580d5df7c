/** Threads that copy, digest and pack files. */
import { availableParallelism } from "node:os";
import type { Worker } from "node:worker_threads";
import { AccountError, ImageError, startThread } from "../runtime/files.ts";
import { CopyError } from "./copy.ts";
import type { FileTaskKind, FileTaskResult, FileTaskSpec } from "./file-tasks.ts";
import type { FileReply, FileRequest } from "./file-worker.ts";
import { SelectError } from "./select.ts";

interface Queued {
  readonly request: FileRequest;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: unknown) => void;
}

interface Thread {
  readonly worker: Worker;
  current: Queued | undefined;
}

/** The errors that say what is wrong with what the user wrote. */
const userErrors: Readonly<Record<string, new (message: string) => Error>> = {
  AccountError,
  CopyError,
  ImageError,
  SelectError,
};

/** A few threads, started when there is work for them and kept until they are disposed. */
export class FileWorkers implements AsyncDisposable {
  readonly #max: number;
  readonly #threads: Thread[] = [];
  readonly #queue: Queued[] = [];

  /** @param options.max Threads at most. @default the machine's processors, at most 4 */
  constructor(options: { readonly max?: number } = {}) {
    this.#max = options.max ?? Math.min(4, availableParallelism());
  }

  /**
   * Does a task on a free thread.
   *
   * @throws {AccountError} @throws {CopyError} @throws {ImageError} @throws {SelectError} As the task does; the signal's reason if it is aborted.
   */
  async run<Kind extends FileTaskKind>(
    kind: Kind,
    spec: FileTaskSpec<Kind>,
    signal?: AbortSignal,
  ): Promise<FileTaskResult<Kind>> {
    signal?.throwIfAborted();
    const canceled = new Int32Array(new SharedArrayBuffer(4));
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const queued: Queued = { request: { kind, spec, canceled }, resolve, reject };
    const abort = () => {
      Atomics.store(canceled, 0, 1);
      // One that has begun cleans up after itself first.
      const at = this.#queue.indexOf(queued);
      if (at === -1) return;
      this.#queue.splice(at, 1);
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", abort, { once: true });
    this.#queue.push(queued);
    this.#next();
    try {
      return (await promise) as FileTaskResult<Kind>;
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  #next(): void {
    while (this.#queue.length > 0) {
      const thread = this.#threads.find(({ current }) => current === undefined) ?? this.#start();
      if (thread === undefined) return;
      thread.current = this.#queue.shift() as Queued;
      thread.worker.ref();
      thread.worker.postMessage(thread.current.request);
    }
  }

  #start(): Thread | undefined {
    if (this.#threads.length >= this.#max) return undefined;
    const worker = startThread(new URL("./file-worker.ts", import.meta.url));
    const thread: Thread = { worker, current: undefined };
    this.#threads.push(thread);
    worker.on("message", (reply: FileReply) => {
      const queued = thread.current;
      thread.current = undefined;
      // An idle thread keeps no process.
      worker.unref();
      if (queued !== undefined) settle(queued, reply);
      this.#next();
    });
    worker.on("error", (error) => {
      this.#threads.splice(this.#threads.indexOf(thread), 1);
      thread.current?.reject(error);
      this.#next();
    });
    return thread;
  }

  /** Ends the threads; nothing may be under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }
}

function settle({ resolve, reject }: Queued, reply: FileReply): void {
  if ("result" in reply) {
    resolve(reply.result);
    return;
  }
  const { name, message, code } = reply.error;
  const UserError = Object.hasOwn(userErrors, name) ? userErrors[name] : undefined;
  const error = UserError === undefined ? new Error(message) : new UserError(message);
  reject(code === undefined ? error : Object.assign(error, { code }));
}
