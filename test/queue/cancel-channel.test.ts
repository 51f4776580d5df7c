import { describe, expect, test } from "vitest";
import { CancelChannel, connectRedis } from "../../queue/index.ts";
import { TestRedis, until } from "./redis.ts";

describe("CancelChannel", () => {
  test("reaches every listener, until it is disposed of", async () => {
    await using redis = await TestRedis.start();
    await using connection = connectRedis(redis.url);
    const channel = new CancelChannel(connection);
    const heard: string[] = [];
    await using first = channel.subscribe((attemptId, reason) => heard.push(`first ${attemptId} ${reason}`));
    const second = channel.subscribe((attemptId, reason) => heard.push(`second ${attemptId} ${reason}`));
    await Promise.all([first.ready, second.ready]);
    await channel.publish("a1", "canceled by ann");
    await until(() => heard.length === 2);
    expect(heard.sort()).toEqual(["first a1 canceled by ann", "second a1 canceled by ann"]);

    await second[Symbol.asyncDispose]();
    await channel.publish("a2", "superseded");
    await until(() => heard.length === 3);
    expect(heard[2]).toBe("first a2 superseded");
  });

  test("listens again after Redis was killed and came back", async () => {
    await using redis = await TestRedis.start();
    await using connection = connectRedis(redis.url);
    const channel = new CancelChannel(connection);
    const heard: string[] = [];
    await using subscription = channel.subscribe((attemptId) => heard.push(attemptId));
    await subscription.ready;
    await redis.kill();
    await expect(channel.publish("a1", "too early")).rejects.toThrow("Redis at");
    await redis.start();
    using client = redis.client();
    await until(async () => Number((await client.pubsub("NUMSUB", "slipway:cancel"))[1]) === 1);
    await until(() => channel.publish("a2", "now").then(yes, no));
    await until(() => heard.length > 0);
    expect(heard).toEqual(["a2"]);
  });

  test("can subscribe before Redis is there", async () => {
    await using redis = await TestRedis.start();
    await redis.kill();
    await using connection = connectRedis(redis.url);
    const channel = new CancelChannel(connection);
    const heard: string[] = [];
    await using subscription = channel.subscribe((attemptId) => heard.push(attemptId));
    await redis.start();
    await subscription.ready;
    await until(() => channel.publish("a1", "now").then(yes, no));
    await until(() => heard.length > 0);
    expect(heard).toEqual(["a1"]);
  });

  test("ignores what is not its own message", async () => {
    await using redis = await TestRedis.start();
    await using connection = connectRedis(redis.url);
    const channel = new CancelChannel(connection);
    const heard: string[] = [];
    await using subscription = channel.subscribe((attemptId) => heard.push(attemptId));
    await subscription.ready;
    using client = redis.client();
    for (const text of ["", "{", "null", '{"attemptId":1,"reason":""}']) await client.publish("slipway:cancel", text);
    await channel.publish("a1", "canceled");
    await until(() => heard.length > 0);
    expect(heard).toEqual(["a1"]);
  });
});

const yes = () => true;
const no = () => false;
