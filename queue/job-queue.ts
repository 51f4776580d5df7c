import type { JobType, Queue } from "bullmq";
import type { ChainableCommander } from "ioredis";
import { z } from "zod";
import { loadBullmq } from "./libraries.ts";
import { checkAttemptId, checkPool, keyPrefix, workerClientPrefix } from "./names.ts";
import type { JobData } from "./protocol.ts";
import { plainError, type RedisConnection, readyClient } from "./redis-connection.ts";

/** Job data is one id; whatever is larger was a mistake. */
const maxDataBytes = 1_024;
/** BullMQ's own event stream, which nobody of ours reads. */
const maxEvents = 100;

/**
 * The server's side of the queues: puts attempts in, takes them out, tells what is there.
 *
 * Every method fails within seconds with {@link RedisUnavailableError} while Redis is away and works again once it is
 * back. All are safe to repeat.
 */
export class JobQueue implements AsyncDisposable {
  readonly #connection: RedisConnection;
  readonly #queues = new Map<string, Queue<JobData>>();

  /** The connection stays the caller's. */
  constructor(redis: RedisConnection) {
    this.#connection = redis;
  }

  /**
   * Puts an attempt into a pool's queue; does nothing if it is there already, waiting or with an agent.
   *
   * Redis forgets an attempt the moment its handler ends, however it ends, so what the store still holds as queued may be
   * put in again under the same id. An attempt that an agent has claimed and lost needs a new id.
   */
  async enqueue(pool: string, attemptId: string): Promise<void> {
    checkAttemptId(attemptId);
    await this.#use(`queue attempt "${attemptId}"`, pool, async (queue) => {
      await queue.add(
        "attempt",
        { attemptId },
        {
          jobId: attemptId,
          attempts: 1,
          // History lives in the store. A finished job kept here would also swallow a second enqueue of its id.
          removeOnComplete: true,
          removeOnFail: true,
          stackTraceLimit: 0,
          sizeLimit: maxDataBytes,
        },
      );
    });
  }

  /** Takes an attempt out that no agent has yet; `false` if it is not there or an agent has it. */
  async remove(pool: string, attemptId: string): Promise<boolean> {
    checkAttemptId(attemptId);
    return await this.#use(`remove attempt "${attemptId}"`, pool, async (queue) => {
      if ((await queue.getJob(attemptId)) === undefined) return false;
      return (await queue.remove(attemptId)) === 1;
    });
  }

  /**
   * Takes an attempt out even if an agent has it: for an agent whose lease ran out. Should that agent be alive after all,
   * it finds its lock gone at the next renewal and aborts the handler.
   *
   * @returns Whether it was there.
   */
  async discard(pool: string, attemptId: string): Promise<boolean> {
    checkAttemptId(attemptId);
    return await this.#use(`discard attempt "${attemptId}"`, pool, async (queue) => {
      if ((await queue.getJob(attemptId)) === undefined) return false;
      const client = await readyClient(this.#connection);
      await client.del(lockKey(queue, attemptId));
      return (await queue.remove(attemptId)) === 1;
    });
  }

  /** Tells whether an attempt is in the pool's queue, waiting or with an agent. */
  async has(pool: string, attemptId: string): Promise<boolean> {
    checkAttemptId(attemptId);
    return await this.#use(`look for attempt "${attemptId}"`, pool, async (queue) => {
      return (await queue.getJob(attemptId)) !== undefined;
    });
  }

  /** Counts the attempts that no agent has taken yet. */
  async waiting(pool: string): Promise<number> {
    return await this.#use("count what is waiting", pool, async (queue) => {
      return await queue.getJobCountByTypes("waiting", "delayed", "prioritized");
    });
  }

  /**
   * Lists, in no order, the ids of all attempts that are waiting or with a live agent.
   *
   * Attempts whose agent is gone are cleared first ({@link clearStalled}), so to reconcile is to enqueue what the store
   * holds as queued and this list lacks.
   */
  async list(pool: string): Promise<string[]> {
    await this.clearStalled(pool);
    return await this.#use("list attempts", pool, async (queue) => {
      return await attemptIds(queue, ["waiting", "delayed", "prioritized", "active"]);
    });
  }

  /**
   * Removes the attempts whose agent has not renewed its lock for as long as the lock lasts.
   *
   * BullMQ itself would run such a job again; whether that is right only the store knows, so nothing of ours lets it.
   *
   * @returns Their ids: each was either never claimed (and may be queued again) or has lost its agent.
   */
  async clearStalled(pool: string): Promise<string[]> {
    return await this.#use("clear stalled attempts", pool, async (queue) => {
      const client = await readyClient(this.#connection);
      const cleared: string[] = [];
      for (const attemptId of await attemptIds(queue, ["active"])) {
        // Asked in one transaction, for an attempt that ended in between has no lock either. What is stalled stays so:
        // without the lock its worker can neither renew nor finish it.
        const [position, job, lock] = await transaction(
          client
            .multi()
            .lpos(queue.toKey("active"), attemptId)
            .exists(queue.toKey(attemptId))
            .exists(lockKey(queue, attemptId)),
        );
        const stalled = position !== null && job === 1 && lock === 0;
        if (stalled && (await queue.remove(attemptId)) === 1) cleared.push(attemptId);
      }
      return cleared;
    });
  }

  /** Counts the workers, in all processes, that take jobs of this pool now; a draining one does not count. */
  async workers(pool: string): Promise<number> {
    return await this.#use("count workers", pool, async () => {
      const client = await readyClient(this.#connection);
      const names = String(await client.client("LIST")).matchAll(/\bname=(\S*)/g);
      return [...names].filter(([, name = ""]) => {
        return name.startsWith(workerClientPrefix) && name.slice(workerClientPrefix.length).split(",").includes(pool);
      }).length;
    });
  }

  /** Lets go of the connection, which stays open. */
  async close(): Promise<void> {
    await this.#forgetQueues();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #use<T>(action: string, pool: string, task: (queue: Queue<JobData>) => Promise<T>): Promise<T> {
    checkPool(pool);
    try {
      return await task(await this.#queue(pool));
    } catch (error) {
      throw plainError(`${action} in pool "${pool}"`, error, this.#connection);
    }
  }

  /** BullMQ's Queue is opened on a client that is ready only, for one that fails at opening fails for ever. */
  async #queue(pool: string): Promise<Queue<JobData>> {
    const client = await readyClient(this.#connection);
    const known = this.#queues.get(pool);
    if (known !== undefined) return known;
    const { Queue } = loadBullmq();
    const queue = new Queue<JobData>(pool, {
      connection: client,
      prefix: keyPrefix,
      streams: { events: { maxLen: maxEvents } },
      // checkRedis does it, without BullMQ's printing to the console.
      skipVersionCheck: true,
    });
    queue.on("error", () => {}); // The call in progress throws it.
    this.#queues.set(pool, queue);
    // A Redis that comes back may have lost the queue's settings: they are written when a Queue is opened.
    if (this.#queues.size === 1) client.once("close", () => void this.#forgetQueues());
    return queue;
  }

  async #forgetQueues(): Promise<void> {
    const queues = [...this.#queues.values()];
    this.#queues.clear();
    await Promise.allSettled(queues.map((queue) => queue.close()));
  }
}

async function attemptIds(queue: Queue<JobData>, states: JobType[]): Promise<string[]> {
  const lists: unknown = await queue.getBackend().getRanges(states, 0, -1, true);
  return z.array(z.array(z.string())).parse(lists).flat();
}

/** The replies of a transaction; what failed in it throws. */
async function transaction(commands: ChainableCommander): Promise<readonly unknown[]> {
  const replies = await commands.exec();
  if (replies === null) throw new Error("the transaction was not executed");
  return replies.map(([error, reply]) => {
    if (error !== null) throw error;
    return reply;
  });
}

function lockKey(queue: Queue<JobData>, attemptId: string): string {
  return `${queue.toKey(attemptId)}:lock`;
}
