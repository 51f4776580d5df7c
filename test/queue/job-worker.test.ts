import { describe, expect, test } from "vitest";
import { connectRedis, type JobHandler, JobQueue, JobWorker, type JobWorkerOptions } from "../../queue/index.ts";
import { TestRedis, until } from "./redis.ts";

/** A handler whose attempts run until the test ends them, and what it has seen. */
class Desk {
  readonly started: string[] = [];
  readonly aborted = new Map<string, string>();
  readonly #ends = new Map<string, () => void>();
  most = 0;

  readonly handler: JobHandler = async (attemptId, { signal }) => {
    const end = Promise.withResolvers<void>();
    this.#ends.set(attemptId, end.resolve);
    this.started.push(attemptId);
    this.most = Math.max(this.most, this.#ends.size);
    signal.addEventListener("abort", () => {
      const reason: unknown = signal.reason;
      this.aborted.set(attemptId, reason instanceof Error ? reason.message : "no Error");
      end.reject(reason);
    });
    try {
      await end.promise;
    } finally {
      this.#ends.delete(attemptId);
    }
  };

  end(attemptId: string): void {
    this.#ends.get(attemptId)?.();
  }
}

interface Scene extends AsyncDisposable {
  readonly redis: TestRedis;
  readonly queue: JobQueue;
  readonly desk: Desk;
  readonly worker: JobWorker;
  readonly errors: string[];
}

async function scene(options: Partial<JobWorkerOptions> = {}): Promise<Scene> {
  await using stack = new AsyncDisposableStack();
  const redis = stack.use(await TestRedis.start());
  const connection = stack.use(connectRedis(redis.url));
  const queue = stack.use(new JobQueue(connection));
  const desk = new Desk();
  const errors: string[] = [];
  const onError = (error: Error) => void errors.push(error.message);
  const worker = stack.use(
    new JobWorker(redis.url, { pools: ["default"], slots: 1, handler: desk.handler, onError, ...options }),
  );
  const disposal = stack.move();
  return { redis, queue, desk, worker, errors, [Symbol.asyncDispose]: () => disposal.disposeAsync() };
}

describe("JobWorker", () => {
  test("hands an attempt to the handler and forgets it when that resolves", async () => {
    await using s = await scene();
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    expect(s.worker.running).toEqual(["a1"]);
    s.desk.end("a1");
    await until(() => s.worker.running.length === 0);
    expect(await s.queue.has("default", "a1")).toBe(false);
    expect(s.errors).toEqual([]);
  });

  test("is woken, not polling: it waits in one BZPOPMIN over all its pools", async () => {
    await using s = await scene({ pools: ["default", "large"], slots: 3 });
    using client = s.redis.client();
    const blocked = async () => {
      const list = String(await client.client("LIST"));
      return list.split("\n").filter((line) => line.includes("cmd=bzpopmin"));
    };
    await until(async () => (await blocked()).length === 1);
    expect((await blocked())[0]).toContain("name=slipway-worker:default,large ");
    await s.queue.enqueue("large", "a1");
    await until(() => s.desk.started.length === 1);
  });

  test("shares its slots between its pools and starves none", async () => {
    await using s = await scene({ pools: ["one", "two"], slots: 2 });
    for (const id of ["a1", "a2", "a3", "a4"]) await s.queue.enqueue("one", id);
    for (const id of ["b1", "b2"]) await s.queue.enqueue("two", id);
    for (let ended = 0; ended < 6; ended++) {
      await until(() => s.desk.started.length > ended);
      // With one slot taken and work left, the other one is taken, too.
      await until(() => s.desk.started.length === 6 || s.worker.running.length === 2);
      s.desk.end(s.desk.started[ended]!);
    }
    expect(s.desk.most).toBe(2);
    expect(s.desk.started.filter((id) => id.startsWith("a"))).toEqual(["a1", "a2", "a3", "a4"]);
    // Pool two's first came before pool one was empty.
    expect(s.desk.started.indexOf("b2")).toBeLessThan(5);
  });

  test("two workers share one pool, each attempt goes to one of them", async () => {
    await using s = await scene({ slots: 2 });
    const other = new Desk();
    await using _second = new JobWorker(s.redis.url, {
      pools: ["default"],
      slots: 2,
      handler: other.handler,
      onError: () => {},
    });
    const ids = ["a1", "a2", "a3", "a4"];
    for (const id of ids) await s.queue.enqueue("default", id);
    await until(() => s.desk.started.length + other.started.length === 4);
    expect([...s.desk.started, ...other.started].sort()).toEqual(ids);
    expect(s.desk.started).toHaveLength(2);
    for (const id of ids) other.end(id);
  });

  test("reports a handler that rejects, and goes on", async () => {
    const handled: string[] = [];
    await using s = await scene({
      handler: async (attemptId) => {
        handled.push(attemptId);
        throw new Error(`no server for ${attemptId}`);
      },
    });
    await s.queue.enqueue("default", "a1");
    await s.queue.enqueue("default", "a2");
    await until(() => handled.length === 2 && s.worker.running.length === 0);
    expect(s.errors).toEqual([
      'Cannot handle attempt "a1": no server for a1',
      'Cannot handle attempt "a2": no server for a2',
    ]);
  });

  test("a running attempt survives a killed and restarted Redis, and new ones come after it", async () => {
    await using s = await scene({ slots: 2 });
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    await s.redis.kill();
    await until(() => s.errors.length > 0);
    await s.redis.start();
    await until(() => s.queue.enqueue("default", "a2").then(yes, no));
    await until(() => s.desk.started.length === 2);
    s.desk.end("a1");
    s.desk.end("a2");
    await until(() => s.worker.running.length === 0);
    expect(await s.queue.list("default")).toEqual([]);
    expect(s.desk.started).toEqual(["a1", "a2"]);
    expect(s.desk.aborted.size).toBe(0);
    // One outage, one message.
    expect(s.errors).toEqual([expect.stringMatching(/^Cannot take jobs: Redis at ".*" went away: /)]);
  });

  test("an attempt that ends while Redis is away is finished once it is back", async () => {
    await using s = await scene();
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    await s.redis.kill();
    s.desk.end("a1");
    await s.redis.start();
    await until(() => s.worker.running.length === 0);
    await until(() => s.queue.list("default").then(yes, no));
    expect(await s.queue.has("default", "a1")).toBe(false);
  });

  test("what a Redis that lost its last second delivers again to the same worker runs on, once", async () => {
    await using s = await scene({ slots: 2 });
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    using client = s.redis.client();
    const key = (name: string) => `{slipway}:default:${name}`;
    const token = await client.get(key("a1:lock"));
    await client
      .multi()
      .del(key("a1:lock"))
      .lrem(key("active"), 0, "a1")
      .lpush(key("wait"), "a1")
      .zadd(key("marker"), 0, "0")
      .exec();
    await until(async () => ![null, token].includes(await client.get(key("a1:lock"))));
    s.desk.end("a1");
    await until(() => s.worker.running.length === 0);
    expect(await s.queue.list("default")).toEqual([]);
    expect(s.desk.started).toEqual(["a1"]);
    expect(s.errors).toEqual([]);
  });

  test("starts before Redis does", async () => {
    await using redis = await TestRedis.start();
    await redis.kill();
    const desk = new Desk();
    await using worker = new JobWorker(redis.url, {
      pools: ["default"],
      slots: 1,
      handler: desk.handler,
      onError: () => {},
    });
    await redis.start();
    await using connection = connectRedis(redis.url);
    await using queue = new JobQueue(connection);
    await queue.enqueue("default", "a1");
    await until(() => desk.started.length === 1);
    desk.end("a1");
    await worker.close();
    expect(worker.running).toEqual([]);
  });

  test("renews its lock for as long as the handler runs", async () => {
    await using s = await scene({ lockMs: 2_000 });
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    using client = s.redis.client();
    for (let renewals = -1, left = 0; renewals < 2; ) {
      const now = await client.pttl("{slipway}:default:a1:lock");
      if (now > left) renewals++;
      left = now;
    }
    expect(s.desk.aborted.size).toBe(0);
  });

  test("aborts the handler when Redis does not answer for as long as the lock lasts", async () => {
    await using s = await scene({ lockMs: 500 });
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    s.redis.freeze();
    try {
      await until(() => s.desk.aborted.has("a1"));
    } finally {
      s.redis.thaw();
    }
    expect(s.desk.aborted.get("a1")).toMatch(/^attempt "a1" lost its lock in Redis: .* has not answered for \d+ ms$/);
    // It works on, and the lost attempt lingers nowhere.
    await until(() => s.queue.enqueue("default", "a2").then(yes, no));
    await until(() => s.desk.started.includes("a2"));
    expect(await s.queue.list("default")).toEqual(["a2"]);
    expect(s.errors).toEqual([]);
  });

  test("aborts the handler when its lock was taken away", async () => {
    await using s = await scene({ lockMs: 2_000 });
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    expect(await s.queue.discard("default", "a1")).toBe(true);
    await until(() => s.desk.aborted.has("a1"));
    expect(s.desk.aborted.get("a1")).toContain("the server gave the attempt up");
    await until(() => s.worker.running.length === 0);
    expect(s.errors).toEqual([]);
  });

  test("cancel aborts one handler with the reason", async () => {
    await using s = await scene({ slots: 2 });
    await s.queue.enqueue("default", "a1");
    await s.queue.enqueue("default", "a2");
    await until(() => s.desk.started.length === 2);
    expect(s.worker.cancel("a1", "canceled by ann")).toBe(true);
    expect(s.worker.cancel("a9", "canceled by ann")).toBe(false);
    await until(() => s.worker.running.length === 1);
    expect([...s.desk.aborted]).toEqual([["a1", "canceled by ann"]]);
  });

  test("takes nothing before it is ready", async () => {
    const ready = Promise.withResolvers<void>();
    let isAsked = false;
    await using s = await scene({
      ready: () => {
        isAsked = true;
        return ready.promise;
      },
    });
    await s.queue.enqueue("default", "a1");
    await until(() => isAsked);
    expect(await s.queue.waiting("default")).toBe(1);
    ready.resolve();
    await until(() => s.desk.started.length === 1);
    s.desk.end("a1");
  });

  test("pauses while it is not ready", async () => {
    await using s = await scene({ ready: () => new Promise(() => {}) });
    await s.worker.pause();
    expect(s.worker.running).toEqual([]);
  });

  test("pause takes no more and resolves when the last handler has ended", async () => {
    await using s = await scene({ slots: 2 });
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    let idle = false;
    const paused = s.worker.pause().then(() => (idle = true));
    await s.queue.enqueue("default", "a2");
    // Another worker gets it, at once: the paused one holds no wake-up back.
    const other = new Desk();
    await using _second = new JobWorker(s.redis.url, {
      pools: ["default"],
      slots: 1,
      handler: other.handler,
      onError: () => {},
    });
    await until(() => other.started.includes("a2"));
    expect(idle).toBe(false);
    s.desk.end("a1");
    await paused;
    expect(s.desk.started).toEqual(["a1"]);
    expect(s.desk.aborted.size).toBe(0);
  });

  test("close waits for the handlers, and with force aborts them", async () => {
    await using s = await scene();
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    const closed = s.worker.close();
    expect(s.desk.aborted.size).toBe(0);
    await s.worker.close({ force: true });
    await closed;
    expect(s.desk.aborted.get("a1")).toBe("the agent is stopping");
    expect(await s.queue.list("default")).toEqual([]);
  });

  test("closes while Redis is away", async () => {
    await using s = await scene();
    await s.queue.enqueue("default", "a1");
    await until(() => s.desk.started.length === 1);
    await s.redis.kill();
    await s.worker.close({ force: true });
    expect(s.desk.aborted.get("a1")).toBe("the agent is stopping");
  });

  test.for([0, -1, 1.5, Number.NaN])("refuses %d slots", (slots) => {
    expect(
      () => new JobWorker("/x", { pools: ["default"], slots, handler: async () => {}, onError: () => {} }),
    ).toThrow(`Cannot take ${slots} jobs at once`);
  });

  test("refuses to serve no pool", () => {
    expect(() => new JobWorker("/x", { pools: [], slots: 1, handler: async () => {}, onError: () => {} })).toThrow(
      "no pool is named",
    );
  });
});

const yes = () => true;
const no = () => false;
