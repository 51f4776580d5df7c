import { CancelChannel, JobQueue, type RedisConnection } from "../queue/index.ts";

/**
 * Carries attempt ids from the scheduler to the agents, and cancels. The store is the truth: every call may be repeated,
 * may fail while Redis is away, and is made good by the scheduler's reconciliation.
 */
export interface Dispatcher {
  /** Adds an attempt to its pool's queue; does nothing if it is there already. */
  enqueue(pool: string, attemptId: string): Promise<void>;
  /** Takes an attempt out of its pool's queue, even if an agent has it. */
  remove(pool: string, attemptId: string): Promise<void>;
  /** Tells the agent that runs the attempt to stop; nobody may be listening. */
  cancel(attemptId: string, reason: string): Promise<void>;
  /** Has the agent that runs the attempt, or keeps something of it, ask the server about it; nobody may be listening. */
  wake(attemptId: string): Promise<void>;
  /** Lists the attempts that wait or are with a live agent. */
  list(pool: string): Promise<readonly string[]>;
}

/** Dispatches through Redis; the connection stays the caller's. */
export class RedisDispatcher implements Dispatcher, AsyncDisposable {
  readonly #queue: JobQueue;
  readonly #cancel: CancelChannel;

  constructor(redis: RedisConnection) {
    this.#queue = new JobQueue(redis);
    this.#cancel = new CancelChannel(redis);
  }

  async enqueue(pool: string, attemptId: string): Promise<void> {
    await this.#queue.enqueue(pool, attemptId);
  }

  async remove(pool: string, attemptId: string): Promise<void> {
    await this.#queue.discard(pool, attemptId);
  }

  async cancel(attemptId: string, reason: string): Promise<void> {
    await this.#cancel.publish(attemptId, reason);
  }

  async wake(attemptId: string): Promise<void> {
    await this.#cancel.wake(attemptId);
  }

  async list(pool: string): Promise<readonly string[]> {
    return await this.#queue.list(pool);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#queue.close();
  }
}
