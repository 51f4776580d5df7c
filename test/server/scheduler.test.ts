import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CancelChannel, connectRedis, JobQueue } from "../../queue/index.ts";
import { Harness, type TestRepository, twoJobs, until } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;
/** Whose leases end soon: for what is about that alone, as an attempt that is slow for another reason would be lost, too. */
let hasty: Harness;
let ofHasty: TestRepository;

const diamond = `
on: { push: {} }
jobs:
  a: { steps: [ { run: "true" } ] }
  b: { needs: [a], pool: big, steps: [ { run: "true" } ] }
  c: { needs: [a], steps: [ { run: "true" } ] }
  d: { needs: [b, c], steps: [ { run: "true" } ] }
`;

beforeAll(async () => {
  harness = await Harness.start();
  repository = await harness.repository();
  hasty = await Harness.start({ leaseMs: 2_000 });
  ofHasty = await hasty.repository();
});
afterAll(async () => {
  await hasty[Symbol.asyncDispose]();
  await harness[Symbol.asyncDispose]();
});

const statuses = async (id: string) => (await harness.build(id)).jobs.map((job) => job.status);

async function waiting(pool: string): Promise<string[]> {
  await using redis = connectRedis(harness.redis.url);
  await using queue = new JobQueue(redis);
  return await queue.list(pool);
}

describe("jobs", () => {
  test("start when what they need has succeeded, in the pool they name", async () => {
    const build = await repository.push(diamond);
    expect(await statuses(build.id)).toEqual(["queued", "queued", "queued", "queued"]);
    await (await harness.claim()).succeed();
    const b = await harness.claim("big");
    const c = await harness.claim();
    expect([b.claimed.job.name, c.claimed.job.name]).toEqual(["b", "c"]);
    await b.succeed();
    expect(await statuses(build.id)).toEqual(["success", "success", "running", "queued"]);
    expect(await waiting("default")).toEqual([]);
    await c.succeed();
    await (await harness.claim()).succeed();
    expect((await harness.finished(build.id)).status).toBe("success");
  });

  test("are skipped with the reason when what they need failed, and others go on", async () => {
    const build = await repository.push(diamond);
    await (await harness.claim()).succeed();
    const [b, c] = [await harness.claim("big"), await harness.claim()];
    await b.finish({ status: "failure", reason: "tests failed" });
    expect(await statuses(build.id)).toEqual(["success", "failure", "running", "skipped"]);
    await c.succeed();
    expect((await harness.finished(build.id)).status).toBe("failure");
  });
});

describe("a lost agent", () => {
  test("makes a new attempt, fences off the old one and keeps its log; the third ends the job", async () => {
    const build = await ofHasty.push(twoJobs);
    const first = await hasty.claim("default", "agent-1");
    await first.step(0, { status: "running" });
    await first.log(0, 0, { stream: 1, text: "first try" });
    const second = await hasty.claim("default", "agent-2");
    expect(second.claimed.attemptId).not.toBe(first.claimed.attemptId);
    expect((await first.log(0, 9, { stream: 1, text: "late" })).status).toBe(409);
    expect((await first.finish({ status: "success" })).status).toBe(409);
    await second.log(0, 0, { stream: 1, text: "second try" });
    const log = async (n: number) =>
      (await hasty.call("GET", `/api/builds/${build.id}/log?job=first&step=0&attempt=${n}`)).text;
    expect([await log(1), await log(2)]).toEqual(["first try", "second try"]);
    await hasty.claim("default", "agent-3");
    const finished = await hasty.finished(build.id);
    expect(finished).toMatchObject({ status: "error", jobs: [{ status: "error" }, { status: "skipped" }] });
    expect(finished.jobs[0]?.reason).toMatch(/agent lost: agent-3 did not answer for 2 s/);
    expect(finished.jobs[0]?.attempts.map(({ status, agent }) => [status, agent])).toEqual([
      ["error", "agent-1"],
      ["error", "agent-2"],
      ["error", "agent-3"],
    ]);
    expect(finished.jobs[0]?.attempts[0]?.steps[0]).toMatchObject({
      status: "error",
      reason: expect.stringMatching(/agent lost/),
    });
  });

  test("is not one that renews", async () => {
    const build = await ofHasty.push(twoJobs);
    const attempt = await hasty.claim();
    const started = Date.now();
    await until(async () => {
      expect((await attempt.call("POST", "/renew")).json).toEqual({ canceled: false, leaseMs: 2_000 });
      return Date.now() - started > 4_500;
    });
    expect((await hasty.build(build.id)).jobs[0]?.attempts).toHaveLength(1);
    await attempt.finish({ status: "failure" });
  });

  test("that says it was stopped gives the job back", async () => {
    const build = await repository.push(twoJobs);
    await (await harness.claim()).finish({ status: "canceled", reason: "the agent was stopped" });
    const again = await harness.claim();
    await again.succeed();
    await (await harness.claim()).succeed();
    const finished = await harness.finished(build.id);
    expect(finished.status).toBe("success");
    expect(finished.jobs[0]?.attempts.map((attempt) => attempt.status)).toEqual(["canceled", "success"]);
  });
});

describe("cancel", () => {
  const cancel = (id: string, body?: unknown) =>
    harness.call("POST", `/api/builds/${id}/cancel`, { ...(body !== undefined && { body }) });

  test("of a waiting build ends it at once and takes it out of the queue", async () => {
    const build = await repository.push(twoJobs);
    await until(async () => (await waiting("default")).length === 1);
    const answer = await cancel(build.id, { reason: "not needed" });
    expect(answer.json).toMatchObject({ status: "canceled", reason: "not needed" });
    expect(answer.json.jobs.map((job: { status: string }) => job.status)).toEqual(["canceled", "canceled"]);
    await until(async () => (await waiting("default")).length === 0);
  });

  test("of a running build tells the agent by Redis and at its renewal, and ends with its answer", async () => {
    const build = await repository.push(twoJobs);
    const attempt = await harness.claim();
    await using redis = connectRedis(harness.redis.url);
    const told: string[][] = [];
    await using subscription = new CancelChannel(redis).subscribe((...message) => void told.push(message));
    await subscription.ready;
    expect((await cancel(build.id)).json).toMatchObject({ status: "running", cancelReason: "canceled by hand" });
    await until(() => told.length > 0);
    expect(told).toEqual([[attempt.claimed.attemptId, "canceled by hand"]]);
    expect((await attempt.call("POST", "/renew")).json.canceled).toBe(true);
    await attempt.finish({ status: "canceled", reason: "canceled by hand" });
    expect(await harness.finished(build.id)).toMatchObject({
      status: "canceled",
      jobs: [{ status: "canceled" }, { status: "canceled" }],
    });
  });

  test("of a running build whose agent is gone ends with the lease, without another attempt", async () => {
    const build = await ofHasty.push(twoJobs);
    await hasty.claim();
    await hasty.call("POST", `/api/builds/${build.id}/cancel`);
    const finished = await hasty.finished(build.id);
    expect(finished).toMatchObject({ status: "canceled", jobs: [{ status: "canceled" }, { status: "canceled" }] });
    expect(finished.jobs[0]?.attempts).toHaveLength(1);
  });

  test("of a build that is over is answered 409", async () => {
    const build = await repository.push(twoJobs);
    await (await harness.claim()).finish({ status: "failure" });
    expect(await cancel(build.id)).toMatchObject({
      status: 409,
      json: { error: expect.stringMatching(/is over \(failure\)/) },
    });
  });
});
