import type { Worker } from "bullmq";
import type { Redis } from "ioredis";
import { loadBullmq } from "./libraries.ts";
import { keyPrefix } from "./names.ts";
import type { JobData } from "./protocol.ts";

export type PoolWorker = Worker<JobData>;

/** A BullMQ worker that only does as it is told: no loop, no stall check, no connection of its own. */
export function openPoolWorker(pool: string, options: { client: Redis; name: string; lockMs: number }): PoolWorker {
  const { Worker, createRedisBackend } = loadBullmq();
  const worker: PoolWorker = new Worker<JobData>(
    pool,
    null,
    {
      connection: options.client,
      prefix: keyPrefix,
      name: options.name,
      autorun: false,
      lockDuration: options.lockMs,
      maxStalledCount: 0,
      skipStalledCheck: true,
      skipVersionCheck: true,
    },
    (name, workerOptions) => createRedisBackend(name, workerOptions),
  );
  worker.on("error", () => {}); // The call in progress throws it; the connection's own errors are reported above.
  return worker;
}

/**
 * BullMQ's "missing key" (-1) and "missing lock" (-2): a command cut off by a reconnect had arrived after all, or Redis
 * came back without the job.
 */
export function isGone(error: unknown): boolean {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return code === -1 || code === -2;
}
