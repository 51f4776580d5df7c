import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { connectRedis, JobQueue, JobWorker, type RedisConnection } from "../../queue/index.ts";
import { TestRedis, until } from "./redis.ts";

let redis: TestRedis;
let connection: RedisConnection;
let queue: JobQueue;

beforeAll(async () => {
  redis = await TestRedis.start();
  connection = connectRedis(redis.url);
  queue = new JobQueue(connection);
});

beforeEach(async () => {
  using client = redis.client();
  await client.flushall();
});

afterAll(async () => {
  await queue.close();
  await connection.close();
  await redis[Symbol.asyncDispose]();
});

/** Takes one attempt and keeps it, as an agent that was killed does: its lock is never renewed, nor given back. */
async function takeAndDie(pool: string, lockMs: number): Promise<void> {
  const taken = Promise.withResolvers<void>();
  const client = connectRedis(redis.url);
  const worker = new JobWorker(client, {
    pools: [pool],
    slots: 1,
    lockMs,
    handler: async (_id, { signal }) => {
      taken.resolve();
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
    },
    onError: () => {},
  });
  await taken.promise;
  // Cuts the worker off from Redis: from there it looks like a kill -9.
  await client.close();
  await worker.close({ force: true });
}

describe("JobQueue", () => {
  test("enqueues an attempt once, however often it is told", async () => {
    await Promise.all([1, 2, 3].map(() => queue.enqueue("default", "a1")));
    await queue.enqueue("default", "a2");
    expect((await queue.list("default")).sort()).toEqual(["a1", "a2"]);
    expect(await queue.waiting("default")).toBe(2);
  });

  test("puts nothing into Redis but the id", async () => {
    await queue.enqueue("default", "a1");
    using client = redis.client();
    const job = await client.hgetall("{slipway}:default:a1");
    expect(JSON.parse(job["data"] ?? "")).toEqual({ attemptId: "a1" });
    expect(job["name"]).toBe("attempt");
  });

  test("keeps pools apart", async () => {
    await queue.enqueue("small", "a1");
    expect(await queue.list("large")).toEqual([]);
    expect(await queue.has("large", "a1")).toBe(false);
    expect(await queue.has("small", "a1")).toBe(true);
  });

  test("removes what waits, and says whether it was there", async () => {
    await queue.enqueue("default", "a1");
    expect(await queue.remove("default", "a1")).toBe(true);
    expect(await queue.remove("default", "a1")).toBe(false);
    expect(await queue.list("default")).toEqual([]);
  });

  test("does not remove what an agent has, but discards it", async () => {
    const done = Promise.withResolvers<void>();
    await using worker = new JobWorker(redis.url, {
      pools: ["default"],
      slots: 1,
      handler: () => done.promise,
      onError: () => {},
    });
    await queue.enqueue("default", "a1");
    await until(() => worker.running.length === 1);
    expect(await queue.remove("default", "a1")).toBe(false);
    expect(await queue.clearStalled("default")).toEqual([]);
    expect(await queue.list("default")).toEqual(["a1"]);
    expect(await queue.discard("default", "a1")).toBe(true);
    expect(await queue.discard("default", "a1")).toBe(false);
    expect(await queue.list("default")).toEqual([]);
    done.resolve();
  });

  test("leaves no trace of an attempt that ended, so that its id can be queued again", async () => {
    const handled: string[] = [];
    await using worker = new JobWorker(redis.url, {
      pools: ["default"],
      slots: 1,
      handler: async (attemptId) => {
        handled.push(attemptId);
        if (handled.length === 1) throw new Error("the secret is hunter2");
      },
      onError: () => {},
    });
    for (const times of [1, 2]) {
      await queue.enqueue("default", "a1");
      await until(() => handled.length === times && worker.running.length === 0);
    }
    expect(await queue.has("default", "a1")).toBe(false);
    using client = redis.client();
    expect((await client.keys("*")).filter((key) => key.includes("a1"))).toEqual([]);
    const events = JSON.stringify(await client.xrange("{slipway}:default:events", "-", "+"));
    expect(events).toContain("a1");
    expect(events).not.toContain("hunter2");
  });

  test("clears an attempt whose agent was killed, once its lock has run out", async () => {
    await queue.enqueue("default", "a1");
    await takeAndDie("default", 100);
    const cleared: string[] = [];
    await until(async () => cleared.push(...(await queue.clearStalled("default"))) > 0);
    expect(cleared).toEqual(["a1"]);
    expect(await queue.has("default", "a1")).toBe(false);
    // Its next attempt runs.
    const handled = Promise.withResolvers<string>();
    await using _worker = new JobWorker(redis.url, {
      pools: ["default"],
      slots: 1,
      handler: async (attemptId) => handled.resolve(attemptId),
      onError: () => {},
    });
    await queue.enqueue("default", "a2");
    expect(await handled.promise).toBe("a2");
  });

  test("nobody runs an attempt again whose agent was killed", async () => {
    await queue.enqueue("default", "a1");
    await takeAndDie("default", 50);
    const handled: string[] = [];
    await using worker = new JobWorker(redis.url, {
      pools: ["default"],
      slots: 1,
      handler: async (attemptId) => void handled.push(attemptId),
      onError: () => {},
    });
    using client = redis.client();
    await until(async () => (await client.exists("{slipway}:default:a1:lock")) === 0);
    await queue.enqueue("default", "a2");
    await until(() => handled.length > 0 && worker.running.length === 0);
    expect(handled).toEqual(["a2"]);
  });

  test("counts the workers of a pool", async () => {
    expect(await queue.workers("default")).toBe(0);
    const options = { slots: 1, handler: async () => {}, onError: () => {} };
    await using first = new JobWorker(redis.url, { ...options, pools: ["default", "large"] });
    await using _second = new JobWorker(redis.url, { ...options, pools: ["default"] });
    await until(async () => (await queue.workers("default")) === 2);
    expect(await queue.workers("large")).toBe(1);
    expect(await queue.workers("lar")).toBe(0);
    await first.pause();
    await until(async () => (await queue.workers("default")) === 1);
  });

  test.for(["", "A", "a b", "a:b", "a/b", "é", "a".repeat(61)])("refuses the pool %j", async (pool) => {
    await expect(queue.enqueue(pool, "a1")).rejects.toThrow("Cannot use the pool name");
    expect(
      () => new JobWorker(redis.url, { pools: [pool], slots: 1, handler: async () => {}, onError: () => {} }),
    ).toThrow("Cannot use the pool name");
  });

  test.for(["", "12", "-1", "a:b", "a b", "a".repeat(101)])("refuses the attempt id %j", async (attemptId) => {
    await expect(queue.enqueue("default", attemptId)).rejects.toThrow("Cannot queue the attempt id");
  });

  test("works again with a Redis that came back empty, its event stream bounded", async () => {
    await queue.enqueue("default", "a1");
    await redis.kill();
    await redis.forget();
    await redis.start();
    await until(async () => await queue.enqueue("default", "a2").then(yes, no));
    expect(await queue.list("default")).toEqual(["a2"]);
    using client = redis.client();
    await until(async () => (await client.hget("{slipway}:default:meta", "opts.maxLenEvents")) === "100");
  });
});

const yes = () => true;
const no = () => false;
