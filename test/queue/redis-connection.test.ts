import { inspect } from "node:util";
import { describe, expect, test } from "vitest";
import { checkRedis, connectRedis, JobQueue, RedisUnavailableError } from "../../queue/index.ts";
import { TestRedis, temporaryDirectory, until } from "./redis.ts";

describe("connectRedis", () => {
  test("sends the password and shows it nowhere", async () => {
    await using redis = await TestRedis.start("--requirepass", "hunter2");
    await using right = connectRedis(redis.url.replace("unix://", "unix://:hunter2@"));
    await using queue = new JobQueue(right);
    await queue.enqueue("default", "a1");
    expect(await queue.list("default")).toEqual(["a1"]);
    expect(inspect(right, { depth: 9, showHidden: true })).not.toContain("hunter2");
  });

  test("a wrong password is named as reason and shown nowhere", async () => {
    await using redis = await TestRedis.start("--requirepass", "hunter2");
    await using wrong = connectRedis(redis.url.replace("unix://", "unix://:hunter3@"));
    await using queue = new JobQueue(wrong);
    const error = await queue.enqueue("default", "a1").catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(RedisUnavailableError);
    expect(String(error)).toContain("WRONGPASS");
    expect(inspect(error, { depth: 9, showHidden: true })).not.toContain("hunter");
  });

  test("what uses it fails at once while Redis is away and works once it is back", async () => {
    await using redis = await TestRedis.start();
    await using connection = connectRedis(redis.url);
    await using queue = new JobQueue(connection);
    await queue.enqueue("default", "a1");
    await redis.kill();
    await expect(queue.enqueue("default", "a2")).rejects.toThrow(RedisUnavailableError);
    await expect(queue.list("default")).rejects.toThrow(`Redis at "${redis.url}"`);
    await redis.start();
    await until(() => checkRedis(connection).then((problems) => problems.length === 0));
    await queue.enqueue("default", "a2");
    expect((await queue.list("default")).sort()).toEqual(["a1", "a2"]);
  });

  test("fails at once, naming address and reason, when Redis never was there", async () => {
    await using dir = await temporaryDirectory();
    await using connection = connectRedis(`${dir.path}/none.sock`);
    await using queue = new JobQueue(connection);
    await expect(queue.enqueue("default", "a1")).rejects.toThrow(
      `Cannot reach Redis at "unix://${dir.path}/none.sock": connect ENOENT ${dir.path}/none.sock; is it running?`,
    );
  });

  test("can be disposed of in every state, twice", async () => {
    await using redis = await TestRedis.start();
    const connecting = connectRedis(redis.url);
    await connecting[Symbol.asyncDispose]();
    await connecting.close();
    const ready = connectRedis(redis.url);
    await checkRedis(ready);
    await redis.kill();
    await until(() => ready.lastError !== undefined);
    await ready.close();
    await expect(new JobQueue(ready).enqueue("default", "a1")).rejects.toThrow("the connection is closed");
  });
});

describe("checkRedis", () => {
  test("finds nothing wrong with a persistent Redis that does not evict", async () => {
    await using redis = await TestRedis.start();
    await using connection = connectRedis(redis.url);
    expect(await checkRedis(connection)).toEqual([]);
  });

  test("reports eviction with the command that mends it, and a missing append-only file as a warning", async () => {
    await using redis = await TestRedis.start("--maxmemory-policy", "allkeys-lru", "--appendonly", "no");
    await using connection = connectRedis(redis.url);
    expect(await checkRedis(connection)).toEqual([
      {
        severity: "error",
        code: "evicts",
        message: expect.stringContaining("CONFIG SET maxmemory-policy noeviction"),
      },
      { severity: "warning", code: "not-persistent", message: expect.stringContaining("appendonly yes") },
    ]);
  });

  test("reports a replica", async () => {
    await using redis = await TestRedis.start("--replicaof", "127.0.0.1", "1");
    await using connection = connectRedis(redis.url);
    expect((await checkRedis(connection)).map(({ code }) => code)).toEqual(["replica"]);
  });

  test("reports a Redis that is not there", async () => {
    await using connection = connectRedis("redis://127.0.0.1:1");
    expect(await checkRedis(connection)).toEqual([
      {
        severity: "error",
        code: "unreachable",
        message: expect.stringContaining('Cannot reach Redis at "redis://127.0.0.1:1": connect ECONNREFUSED'),
      },
    ]);
  });
});
