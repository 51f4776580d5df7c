import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { attemptTokenHeader, builtImagePin } from "../../queue/index.ts";
import { Harness, logBody, type TestAttempt, type TestRepository, twoJobs } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;

beforeAll(async () => {
  harness = await Harness.start({ logLimitBytes: 1000 });
  repository = await harness.repository("owner/agents");
});
afterAll(() => harness[Symbol.asyncDispose]());

async function claimed() {
  const build = await repository.push(twoJobs);
  return { build, attempt: await harness.claim() };
}

describe("claim", () => {
  test("hands out the job, its build and a fencing token", async () => {
    const { build, attempt } = await claimed();
    expect(attempt.claimed).toMatchObject({
      leaseMs: 30_000,
      job: { name: "first", steps: [{ name: "greet", run: expect.stringContaining("echo hello") }] },
      build: { id: build.id, number: build.number, event: "push", ref: "refs/heads/main", commit: build.event.commit },
      repository: { id: repository.id, name: "owner/agents", cloneUrl: repository.bare },
      maskedValues: [],
    });
    expect(attempt.claimed.token.length).toBeGreaterThan(40);
    expect(await harness.build(build.id)).toMatchObject({
      status: "running",
      jobs: [{ status: "running" }, { status: "queued" }],
    });
    await attempt.finish({ status: "failure" });
  });

  test("is refused a second time", async () => {
    const { attempt } = await claimed();
    const again = await harness.agentCall("POST", "/api/agent/claim", {
      body: { attemptId: attempt.claimed.attemptId, agent: "other" },
    });
    expect(again.status).toBe(409);
    await attempt.finish({ status: "failure" });
  });

  test("is refused for an attempt that does not exist", async () => {
    const answer = await harness.agentCall("POST", "/api/agent/claim", { body: { attemptId: "a0", agent: "x" } });
    expect(answer).toMatchObject({ status: 409, json: { error: expect.stringContaining("no attempt") } });
  });

  test("is the only answer that shows the credentials of a clone URL", async () => {
    const { json } = await harness.call("POST", "/api/repositories", {
      body: { name: "owner/masked", cloneUrl: "https://robot:p%40ssw0rd@git.invalid/o/r.git" },
    });
    expect(json.cloneUrl).toBe("https://***@git.invalid/o/r.git");
    const added = await harness.call("GET", `/api/repositories/${json.id}`);
    expect(added.text).not.toContain("ssw0rd");
  });
});

describe("the agent token", () => {
  test.each([undefined, "Bearer wrong", "Basic eDp5"])("is needed: %s is answered 401", async (authorization) => {
    const answer = await harness.call("POST", "/api/agent/claim", { body: {}, headers: { authorization } });
    expect(answer.status).toBe(401);
  });

  test("is greeted when it is right", async () => {
    expect((await harness.agentCall("GET", "/api/agent/hello")).status).toBe(204);
    expect((await harness.call("GET", "/api/agent/hello")).status).toBe(401);
  });

  test("is not the admin token", async () => {
    expect((await harness.call("POST", "/api/agent/claim", { body: {} })).status).toBe(401);
  });
});

describe("the fencing token", () => {
  test("fences off everybody else, everywhere", async () => {
    const { attempt } = await claimed();
    const foreign = { [attemptTokenHeader]: "x".repeat(43) };
    const octets = { ...foreign, "content-type": "application/octet-stream" };
    const body = logBody([{ stream: 1, text: "x" }]);
    expect((await attempt.call("POST", "/renew", undefined, foreign)).status).toBe(409);
    expect((await attempt.call("POST", "/steps/0", { status: "running" }, foreign)).status).toBe(409);
    expect((await attempt.call("PUT", "/steps/0/log?offset=0", body, octets)).status).toBe(409);
    expect((await attempt.call("POST", "/finish", { status: "success" }, foreign)).status).toBe(409);
    await attempt.finish({ status: "failure" });
  });

  test("is worth nothing after the end", async () => {
    const { attempt } = await claimed();
    await attempt.finish({ status: "failure" });
    expect((await attempt.step(0, { status: "running" })).status).toBe(409);
    expect((await attempt.log(0, 0, { stream: 1, text: "late" })).status).toBe(409);
    expect((await attempt.call("POST", "/renew")).status).toBe(409);
    expect((await attempt.finish({ status: "success" })).status).toBe(409);
  });

  test("missing is answered 400", async () => {
    const { attempt } = await claimed();
    const answer = await harness.agentCall("POST", `/api/agent/attempts/${attempt.claimed.attemptId}/renew`);
    expect(answer.status).toBe(400);
    await attempt.finish({ status: "failure" });
  });
});

describe("steps", () => {
  test("are shown as reported, and what was not reached as skipped", async () => {
    const { build, attempt } = await claimed();
    await attempt.step(0, { status: "running", startedAtMs: 1000 });
    await attempt.step(0, {
      status: "failure",
      exitCode: 3,
      reason: "exit code 3",
      finishedAtMs: 2500,
      usage: { cpuTimeMs: 12, memoryPeakBytes: 4096 },
      imageDigest: `sha256:${"a".repeat(64)}`,
    });
    await attempt.finish({ status: "failure", reason: 'step "greet" failed' });
    const { jobs, status } = await harness.finished(build.id);
    expect(status).toBe("failure");
    expect(jobs[0]).toMatchObject({ status: "failure", reason: 'step "greet" failed' });
    expect(jobs[0]?.attempts[0]).toMatchObject({ n: 1, agent: "test-agent", status: "failure" });
    expect(jobs[0]?.attempts[0]?.steps).toEqual([
      {
        position: 0,
        name: "greet",
        status: "failure",
        reason: "exit code 3",
        exitCode: 3,
        usage: { cpuTimeMs: 12, memoryPeakBytes: 4096 },
        imageDigest: `sha256:${"a".repeat(64)}`,
        startedAtMs: 1000,
        finishedAtMs: 2500,
      },
    ]);
    expect(jobs[1]).toMatchObject({ status: "skipped", reason: expect.stringContaining("first"), attempts: [] });
  });

  test("that have ended do not start again by a late report", async () => {
    const { build, attempt } = await claimed();
    await attempt.step(0, { status: "success", exitCode: 0 });
    expect((await attempt.step(0, { status: "running" })).status).toBe(204);
    expect((await harness.build(build.id)).jobs[0]?.attempts[0]?.steps[0]?.status).toBe("success");
    await attempt.finish({ status: "failure" });
  });

  test("that do not exist are answered 404", async () => {
    const { attempt } = await claimed();
    for (const index of [1, 7, -1]) expect((await attempt.step(index, { status: "running" })).status).toBe(404);
    await attempt.finish({ status: "failure" });
  });

  test("with a malformed report are answered 400 naming the field", async () => {
    const { attempt } = await claimed();
    const answer = await attempt.call("POST", "/steps/0", { status: "fine" });
    expect(answer).toMatchObject({ status: 400, json: { error: expect.stringContaining('"status"') } });
    await attempt.finish({ status: "failure" });
  });
});

describe("finish", () => {
  test("of all jobs ends the build with success", async () => {
    const { build, attempt } = await claimed();
    await attempt.succeed();
    await (await harness.claim()).succeed();
    expect(await harness.finished(build.id)).toMatchObject({
      status: "success",
      jobs: [{ status: "success" }, { status: "success" }],
    });
  });

  test("repeated with the same report is accepted once more", async () => {
    const { attempt } = await claimed();
    expect((await attempt.finish({ status: "failure" })).status).toBe(204);
    expect((await attempt.finish({ status: "failure" })).status).toBe(204);
  });

  test("with error ends the build with error", async () => {
    const { build, attempt } = await claimed();
    await attempt.finish({ status: "error", reason: "cannot check out" });
    expect(await harness.finished(build.id)).toMatchObject({
      status: "error",
      jobs: [{ reason: "cannot check out" }, {}],
    });
  });
});

describe("the build's end", () => {
  test("is told to who has worked on it, when all of its jobs have ended", async () => {
    const { attempt } = await claimed();
    const ask = async (one: TestAttempt) => (await one.call("GET", "/build")).json;
    expect(await ask(attempt)).toEqual({ ended: false });
    await attempt.finish({ status: "success" });
    expect(await ask(attempt)).toEqual({ ended: false });
    const second = await harness.claim();
    await second.finish({ status: "success" });
    expect(await ask(attempt)).toEqual({ ended: true, succeeded: true });
    const { attempt: other } = await claimed();
    await other.finish({ status: "failure" });
    expect(await ask(other)).toEqual({ ended: true, succeeded: false });
    const stolen = await other.call("GET", "/build", undefined, { [attemptTokenHeader]: attempt.claimed.token });
    expect(stolen.status).toBe(409);
  });
});

describe("log", () => {
  const read = async (id: string, query = "") =>
    harness.call("GET", `/api/builds/${id}/log?job=first&step=greet${query}`);

  test("keeps bytes in order, takes repeats once and asks for what is missing", async () => {
    const { build, attempt } = await claimed();
    expect((await attempt.log(0, 0, { stream: 1, text: "one " }, { stream: 2, text: "two " })).json).toEqual({
      offset: 8,
    });
    expect((await attempt.log(0, 0, { stream: 1, text: "one " }, { stream: 2, text: "two " })).json).toEqual({
      offset: 8,
    });
    expect((await attempt.log(0, 4, { stream: 2, text: "two " })).json).toEqual({ offset: 8 });
    expect(await attempt.log(0, 9, { stream: 1, text: "x" })).toMatchObject({ status: 416, json: { offset: 8 } });
    expect(await attempt.log(0, 4, { stream: 1, text: "two three" })).toMatchObject({
      status: 416,
      json: { offset: 8 },
    });
    expect((await attempt.log(0, 8, { stream: 1, text: "three" })).json).toEqual({ offset: 13 });
    expect((await read(build.id)).text).toBe("one two three");
    expect((await read(build.id, "&offset=4&limit=3")).text).toBe("two");
    expect((await read(build.id, "&offset=100")).text).toBe("");
    await attempt.finish({ status: "failure" });
    expect((await read(build.id)).headers.get("slipway-log-bytes")).toBe("13");
  });

  test("takes chunks that race each other once", async () => {
    const { build, attempt } = await claimed();
    const answers = await Promise.all(Array.from({ length: 8 }, () => attempt.log(0, 0, { stream: 1, text: "once" })));
    expect(answers.map((answer) => answer.status)).toEqual(Array(8).fill(200));
    expect((await read(build.id)).text).toBe("once");
    await attempt.finish({ status: "failure" });
  });

  test("ends at its limit with 413", async () => {
    const { build, attempt } = await claimed();
    await attempt.log(0, 0, { stream: 1, text: "x".repeat(990) });
    expect(await attempt.log(0, 990, { stream: 1, text: "y".repeat(11) })).toMatchObject({
      status: 413,
      json: { offset: 990 },
    });
    expect((await attempt.log(0, 990, { stream: 1, text: "y".repeat(10) })).status).toBe(200);
    expect((await read(build.id)).headers.get("slipway-log-bytes")).toBe("1000");
    await attempt.finish({ status: "failure" });
  });

  test.each([
    ["empty", Buffer.alloc(0)],
    ["without records", Buffer.alloc(4)],
    ["shorter than its records", Buffer.from([1, 0, 0, 0, 5])],
    ["longer than its records say", Buffer.concat([logBody([{ stream: 1, text: "x" }]), Buffer.from("y")])],
    ["with an empty record", logBody([{ stream: 1, text: "" }])],
    ["of an unknown stream", logBody([{ stream: 7 as 1, text: "x" }])],
    ["at no time", logBody([{ stream: 1, text: "x", timeMs: Number.NaN }])],
    ["announcing four billion records", Buffer.from([255, 255, 255, 255])],
  ])("refuses a chunk that is %s", async (_what, body) => {
    const { attempt } = await claimed();
    const answer = await attempt.call("PUT", "/steps/0/log?offset=0", body, {
      "content-type": "application/octet-stream",
    });
    expect(answer).toMatchObject({ status: 400, json: { error: expect.stringMatching(/log chunk/) } });
    await attempt.finish({ status: "failure" });
  });

  test("refuses a body of more than a chunk and its records", async () => {
    const { attempt } = await claimed();
    const body = Buffer.alloc((5 << 20) + 100);
    const answer = await attempt.call("PUT", "/steps/0/log?offset=0", body, {
      "content-type": "application/octet-stream",
    });
    expect(answer.status).toBe(413);
    await attempt.finish({ status: "failure" });
  });

  test.each(["", "?offset=", "?offset=-1", "?offset=1e3"])("needs an offset: %j is answered 400", async (query) => {
    const { attempt } = await claimed();
    const body = logBody([{ stream: 1, text: "x" }]);
    const answer = await attempt.call("PUT", `/steps/0/log${query}`, body, {
      "content-type": "application/octet-stream",
    });
    expect(answer.status).toBe(400);
    await attempt.finish({ status: "failure" });
  });

  test("is sent as text that no browser runs", async () => {
    const { build, attempt } = await claimed();
    await attempt.log(0, 0, { stream: 1, text: "<script>alert(1)</script>" });
    const { headers } = await read(build.id);
    expect(headers.get("content-type")).toBe("text/plain; charset=utf-8");
    expect(headers.get("x-content-type-options")).toBe("nosniff");
    expect(headers.get("content-security-policy")).toContain("sandbox");
    await attempt.finish({ status: "failure" });
  });
});

describe("images", () => {
  test("that a job has built are those of its last attempt", async () => {
    const { attempt } = await claimed();
    const digest = (letter: string) => `sha256:${letter.repeat(64)}`;
    const name = builtImagePin("docker.io/library/app:1");
    for (const letter of ["a", "b"]) {
      expect((await attempt.call("POST", "/images", { name, digest: digest(letter) })).json).toEqual({
        name,
        digest: digest(letter),
      });
    }
    await attempt.succeed();
    const second = await harness.claim();
    expect(second.claimed.images).toEqual({ [name]: digest("b") });
    await second.succeed();
  });

  test("stand for what the first job of the build has found, in later claims too, until the next build", async () => {
    const { attempt } = await claimed();
    const digest = (letter: string) => `sha256:${letter.repeat(64)}`;
    const name = "docker.io/library/node:24";
    expect(attempt.claimed.images).toEqual({});
    expect((await attempt.call("POST", "/images", { name, digest: digest("a") })).json).toEqual({
      name,
      digest: digest("a"),
    });
    expect((await attempt.call("POST", "/images", { name, digest: digest("b") })).json).toEqual({
      name,
      digest: digest("a"),
    });
    expect((await attempt.call("POST", "/images", { name, digest: "latest" })).status).toBe(400);
    await attempt.succeed();
    const second = await harness.claim();
    expect(second.claimed.images).toEqual({ [name]: digest("a") });
    await second.succeed();
    expect((await second.call("POST", "/images", { name, digest: digest("c") })).status).toBe(409);
    const { attempt: next } = await claimed();
    expect(next.claimed.images).toEqual({});
    await next.finish({ status: "failure" });
  });
});
