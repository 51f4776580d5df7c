import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Job } from "bullmq";
import type { Redis } from "ioredis";
import { checkPool, workerClientPrefix } from "./names.ts";
import { isGone, openPoolWorker, type PoolWorker } from "./pool-worker.ts";
import type { JobData } from "./protocol.ts";
import { closeClient, connectRedis, openClient, plainError, type RedisConnection } from "./redis-connection.ts";

/**
 * Works on one attempt. It must settle soon after the signal aborts; the signal's reason is an Error that says why.
 * Rejecting is for failures of our own: a step that fails is a result, and the handler resolves.
 */
export type JobHandler = (attemptId: string, options: { readonly signal: AbortSignal }) => Promise<void>;

export interface JobWorkerOptions {
  /** Taken from in turn, so that a full pool does not starve the others. */
  readonly pools: readonly string[];
  /** How many handlers run at once, over all pools. */
  readonly slots: number;
  readonly handler: JobHandler;
  /**
   * Asked before each attempt is looked for; none is taken before the promise resolves. Undefined: now. It must not wait for
   * ever once the worker is paused.
   */
  readonly ready?: () => Promise<void> | undefined;
  /** Redis went away (once per outage), or a handler rejected. Must not throw. */
  readonly onError: (error: Error) => void;
  /** Shown by `CLIENT LIST`. @default "slipway-agent" */
  readonly name?: string;
  /**
   * How long Redis keeps an attempt for a worker that does not renew; renewed at a third of it, the handler is aborted at
   * nine tenths of it.
   * @default 60_000
   */
  readonly lockMs?: number;
}

interface Running {
  readonly lock: Lock;
  readonly abort: AbortController;
  /** Settles with the handler, never rejects: whether the handler resolved. */
  readonly handled: Promise<boolean>;
  /** Settles once Redis knows, too; never rejects. */
  readonly finished: Promise<void>;
}

interface Lock {
  readonly worker: PoolWorker;
  job: Job<JobData>;
  token: string;
  /** When the command that last set or renewed it was sent, in milliseconds of `performance.now()`. */
  renewedAtMs: number;
  renewing: boolean;
}

/** A wake-up that got lost (its receiver died) is made up for after this long. */
const pollSeconds = 5;
/** How long closing waits for Redis to take note of what has ended. */
const noteMs = 5_000;
const retryMs = 1_000;

/**
 * The agent's side of the queues: takes attempts out of its pools and runs the handler on each, `slots` at a time.
 *
 * While a slot is free, one blocking BZPOPMIN waits on the markers of all pools (BullMQ adds one whenever a queue has
 * something to take), so an attempt reaches an idle worker in about a millisecond; while none is free it takes no
 * marker, and the wake-up goes to another agent. Renewing, and stopping when that fails, is done here: BullMQ's own
 * worker lets a handler go on whose lock is long somebody else's.
 *
 * Starts at once, and survives Redis going away and coming back.
 */
export class JobWorker implements AsyncDisposable {
  readonly #connection: RedisConnection;
  readonly #ownsConnection: boolean;
  readonly #commands: Redis;
  readonly #waiter: Redis;
  readonly #pools: readonly { readonly worker: PoolWorker; readonly marker: string }[];
  readonly #options: JobWorkerOptions;
  readonly #lockMs: number;
  readonly #id = randomUUID();
  readonly #running = new Map<string, Running>();
  readonly #stopped = Promise.withResolvers<void>();
  readonly #loop: Promise<void>;
  #stopping = false;
  #closing: Promise<void> | undefined;
  #tokens = 0;
  #nextPool = 0;
  #fetching: Promise<unknown> = Promise.resolve();
  #slotFreed = Promise.withResolvers<void>();
  #away = false;
  /** What was reported last, while it goes on. */
  #trouble: string | undefined;

  /**
   * @param redis An address (the worker then closes the connection it opens) or a connection, which stays the caller's.
   * @throws {Error} If a pool's name, the number of slots or the address is invalid.
   */
  constructor(redis: string | RedisConnection, options: JobWorkerOptions) {
    const pools = [...new Set(options.pools.map(checkPool))];
    if (pools.length === 0) throw new Error("Cannot take jobs: no pool is named; name at least one");
    if (!Number.isInteger(options.slots) || options.slots < 1) {
      throw new Error(`Cannot take ${options.slots} jobs at once: the number of slots is a whole number from 1`);
    }
    this.#options = options;
    this.#lockMs = options.lockMs ?? 60_000;
    this.#ownsConnection = typeof redis === "string";
    const name = options.name ?? "slipway-agent";
    this.#connection = typeof redis === "string" ? connectRedis(redis, { name }) : redis;
    this.#commands = openClient(this.#connection, { name, patient: true });
    this.#waiter = openClient(this.#connection, { name: `${workerClientPrefix}${pools.join(",")}`, patient: true });
    this.#commands.on("error", (error: Error) => this.#reportAway(error));
    this.#commands.on("ready", () => {
      this.#away = false;
    });
    this.#pools = pools.map((pool) => {
      const worker = openPoolWorker(pool, { client: this.#commands, name, lockMs: this.#lockMs });
      return { worker, marker: worker.toKey("marker") };
    });
    this.#loop = this.#takeJobs();
  }

  /** The attempts that take a slot now: their handler runs, or Redis does not know yet that it has ended. */
  get running(): readonly string[] {
    return [...this.#running.keys()];
  }

  /** Aborts the handler of an attempt; `false` if it does not run here. */
  cancel(attemptId: string, reason: string): boolean {
    const running = this.#running.get(attemptId);
    running?.abort.abort(new Error(reason));
    return running !== undefined;
  }

  /** Takes no more attempts, for good (drain); resolves once no handler runs any more. */
  async pause(): Promise<void> {
    this.#stopTaking();
    await this.#loop;
    await Promise.all([...this.#running.values()].map(({ handled }) => handled));
  }

  /**
   * Waits for the handlers and disconnects. Safe to call again: with `force` also while an earlier call waits.
   *
   * @param options.force Aborts the handlers' signals first.
   */
  async close(options: { readonly force?: boolean } = {}): Promise<void> {
    if (options.force === true) {
      for (const { abort } of this.#running.values()) abort.abort(new Error("the agent is stopping"));
    }
    this.#closing ??= this.#close();
    await this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close({ force: true });
  }

  async #close(): Promise<void> {
    const finished = [...this.#running.values()].map((running) => running.finished);
    await this.pause();
    // An agent must be able to end while Redis is away: what Redis then misses, JobQueue.clearStalled tidies up.
    if (this.#commands.status === "ready") await atMost(noteMs, Promise.all([...finished, this.#fetching]));
    await Promise.all(this.#pools.map(({ worker }) => worker.close(true)));
    closeClient(this.#connection, this.#waiter);
    closeClient(this.#connection, this.#commands);
    if (this.#ownsConnection) await this.#connection[Symbol.asyncDispose]();
  }

  async #takeJobs(): Promise<void> {
    while (!this.#stopping) {
      try {
        if (this.#running.size >= this.#options.slots) {
          await Promise.race([this.#slotFreed.promise, this.#stopped.promise]);
          continue;
        }
        const ready = this.#options.ready?.();
        if (ready !== undefined) await Promise.race([ready, this.#stopped.promise]);
        if (!(await this.#takeOne())) {
          await this.#waitForWork();
        }
        this.#trouble = undefined;
      } catch (error) {
        if (this.#stopping) return;
        const trouble = plainError("take jobs", error, this.#connection);
        if (trouble.message !== this.#trouble) this.#options.onError(trouble);
        this.#trouble = trouble.message;
        await Promise.race([delay(retryMs, undefined, { ref: false }), this.#stopped.promise]);
      }
    }
  }

  /** Asks the pools in turn, beginning after the one that gave the last job (or with the one that has just called). */
  async #takeOne(): Promise<boolean> {
    for (let turn = 0; turn < this.#pools.length && !this.#stopping; turn++) {
      const index = (this.#nextPool + turn) % this.#pools.length;
      const fetch = this.#fetch(this.#pools[index]!.worker);
      this.#fetching = fetch.catch(() => {});
      // While Redis is away the fetch waits for it; stopping does not.
      const taken = await Promise.race([fetch, this.#stopped.promise]);
      if (taken !== true) continue;
      this.#nextPool = (index + 1) % this.#pools.length;
      return true;
    }
    return false;
  }

  async #fetch(worker: PoolWorker): Promise<boolean> {
    const token = `${this.#id}:${this.#tokens++}`;
    const sentAtMs = performance.now();
    const job: Job<JobData> | undefined = await worker.getNextJob(token, { block: false });
    if (job === undefined) return false;
    if (this.#stopping) {
      await job.moveToWait(token);
      return false;
    }
    this.#start({ worker, job, token, renewedAtMs: sentAtMs, renewing: false });
    return true;
  }

  async #waitForWork(): Promise<void> {
    const markers = this.#pools.map(({ marker }) => marker);
    const woken = await Promise.race([this.#waiter.bzpopmin(...markers, pollSeconds), this.#stopped.promise]);
    const caller = woken ? markers.indexOf(woken[0]) : -1;
    if (caller >= 0) this.#nextPool = caller;
  }

  #start(lock: Lock): void {
    // The job id, not the data: the two are the same, and Redis could have lost the data alone.
    const attemptId = lock.job.id!;
    const known = this.#running.get(attemptId);
    if (known !== undefined) {
      // Redis lost its last second and delivers again what runs here: the handler goes on, under the new lock.
      Object.assign(known.lock, { job: lock.job, token: lock.token, renewedAtMs: lock.renewedAtMs });
      return;
    }
    const abort = new AbortController();
    const handled = this.#handle(attemptId, lock, abort);
    const finished = this.#finish(attemptId, lock, { handled, signal: abort.signal });
    this.#running.set(attemptId, { lock, abort, handled, finished });
  }

  async #handle(attemptId: string, lock: Lock, abort: AbortController): Promise<boolean> {
    const keeper = setInterval(() => void this.#keepLock(attemptId, lock, abort), this.#lockMs / 10);
    try {
      await this.#options.handler(attemptId, { signal: abort.signal });
      return true;
    } catch (error) {
      if (!(abort.signal.aborted && error === abort.signal.reason)) {
        const reason = error instanceof Error ? error.message : String(error);
        this.#options.onError(new Error(`Cannot handle attempt "${attemptId}": ${reason}`, { cause: error }));
      }
      return false;
    } finally {
      clearInterval(keeper);
    }
  }

  /**
   * Renews, or aborts the handler before the lock ends. Time is counted from when a renewal was sent: the lock lives from
   * some later moment, so this is the safe side.
   */
  async #keepLock(attemptId: string, lock: Lock, abort: AbortController): Promise<void> {
    const { token } = lock;
    const sentAtMs = performance.now();
    const silentMs = sentAtMs - lock.renewedAtMs;
    const lost = (why: string) => abort.abort(new Error(`attempt "${attemptId}" lost its lock in Redis: ${why}`));
    if (silentMs >= this.#lockMs * 0.9) {
      lost(`Redis at "${this.#connection.address}" has not answered for ${Math.round(silentMs)} ms`);
    } else if (silentMs >= this.#lockMs * 0.3 && !lock.renewing) {
      lock.renewing = true;
      try {
        const gone = await lock.worker.extendJobLocks([attemptId], [token], this.#lockMs);
        if (token !== lock.token) return; // The new lock is younger than this answer.
        if (gone.length > 0) lost("the server gave the attempt up, or Redis lost its data");
        else lock.renewedAtMs = sentAtMs;
      } catch {
        // Not renewed: tried again at the next tick, until time is up.
      } finally {
        lock.renewing = false;
      }
    }
  }

  async #finish(
    attemptId: string,
    lock: Lock,
    { handled, signal }: { readonly handled: Promise<boolean>; readonly signal: AbortSignal },
  ): Promise<void> {
    const succeeded = await handled;
    let token: string;
    do {
      token = lock.token;
      try {
        // No word of the error itself goes to Redis, nor any result.
        if (succeeded) await lock.job.moveToCompleted(undefined, token, false);
        else await lock.job.moveToFailed(new Error("the handler failed"), token, false);
      } catch (error) {
        // The lock may be ours already under a new token, its delivery being on the way.
        await this.#fetching;
        if (this.#stopping || signal.aborted || isGone(error) || token !== lock.token) continue;
        this.#options.onError(plainError(`finish attempt "${attemptId}"`, error, this.#connection));
      }
      // Delivered again meanwhile: finished again.
    } while (token !== lock.token);
    this.#running.delete(attemptId);
    this.#slotFreed.resolve();
    this.#slotFreed = Promise.withResolvers();
  }

  #stopTaking(): void {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#stopped.resolve();
    this.#waiter.disconnect();
    // The wait may have taken a marker in its last moment: put back, it wakes another agent, or nobody.
    if (this.#commands.status !== "ready") return;
    for (const { marker } of this.#pools) this.#commands.zadd(marker, 0, "0").catch(() => {});
  }

  #reportAway(error: Error): void {
    if (this.#away || this.#closing !== undefined) return;
    this.#away = true;
    this.#options.onError(plainError("take jobs", error, this.#connection));
  }
}

async function atMost(ms: number, task: Promise<unknown>): Promise<void> {
  const timer = new AbortController();
  await Promise.race([task, delay(ms, undefined, { signal: timer.signal }).catch(() => {})]);
  timer.abort();
}
