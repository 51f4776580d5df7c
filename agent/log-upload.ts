/** Sends one step's log to the server while it grows. */
import { setTimeout as delay } from "node:timers/promises";
import { type AttemptKey, type ServerClient } from "./server-client.ts";
import { SpoolReader } from "./spool-reader.ts";
import type { StepLog } from "./step-log.ts";

const chunkBytes = 1024 * 1024;
/** Output that dribbles is sent this often; output after a pause, much of it, and a log's last bytes at once. */
const intervalMs = 50;
const atOnceBytes = 64 * 1024;

export interface LogUploadOptions {
  readonly client: ServerClient;
  readonly attempt: AttemptKey;
  /** The step's index. */
  readonly index: number;
  /** Giving up: the attempt is another's, or the agent ends. */
  readonly signal: AbortSignal;
}

/**
 * Sends a log, in order and without gaps, until it is closed and the server has all of it.
 *
 * The server's length of the log is what counts: a restarted server says where to go on. A log that the server does not take
 * (the limit is its own) ends there.
 */
export class LogUpload {
  /** Resolves when the server has all it takes. Rejects if the upload was given up. */
  readonly done: Promise<void>;
  readonly #log: StepLog;
  readonly #options: LogUploadOptions;
  #grown = Promise.withResolvers<void>();

  /** Takes over `log.onSpooled`. */
  constructor(log: StepLog, options: LogUploadOptions) {
    this.#log = log;
    this.#options = options;
    log.onSpooled = () => this.#grown.resolve();
    this.done = this.#send();
    this.done.catch(() => {});
  }

  async #send(): Promise<void> {
    const { client, attempt, index, signal } = this.#options;
    const log = this.#log;
    if (log.path === undefined) return;
    await using reader = new SpoolReader(log.path);
    let offset = 0;
    for (;;) {
      signal.throwIfAborted();
      this.#grown = Promise.withResolvers();
      if (offset >= log.spooledBytes) {
        if (log.closed) return;
        await orAborted(this.#grown.promise, signal);
        continue;
      }
      const sentAtMs = performance.now();
      const { body, lengthBytes } = await reader.read(offset, log, chunkBytes);
      const answer = await client.sendLog(attempt, index, { offset, body }, signal);
      if (answer.full) return;
      if (answer.offset === offset) throw new Error(`The server took none of ${lengthBytes} bytes of log at ${offset}`);
      offset = answer.offset;
      if (lengthBytes < atOnceBytes && !log.closed) await this.#pause(sentAtMs + intervalMs - performance.now());
    }
  }

  async #pause(ms: number): Promise<void> {
    if (ms <= 0) return;
    await delay(ms, undefined, { signal: this.#options.signal });
  }
}

async function orAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const stop = () => reject(signal.reason);
  signal.addEventListener("abort", stop, { once: true });
  try {
    await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
