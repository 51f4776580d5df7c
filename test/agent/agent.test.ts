import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Agent, AgentOptions } from "../../agent/index.ts";
import { DEFAULTS, type StepSpec } from "../../pipelines/index.ts";
import {
  CancelChannel,
  type ClaimedJob,
  connectRedis,
  type EmbeddedRedis,
  JobQueue,
  type RedisConnection,
  startEmbeddedRedis,
} from "../../queue/index.ts";
import type { Host } from "../../runtime/index.ts";
import { createRepository, temporaryDir } from "./git-fixture.ts";
import { ProtocolServer } from "./protocol-server.ts";
import { TestAgents } from "./test-agents.ts";

let dir: ReturnType<typeof temporaryDir>;
let redis: EmbeddedRedis;
let connection: RedisConnection;
let queue: JobQueue;
let host: Host;
let commit: string;
let server: ProtocolServer;
let agents: TestAgents;
let count = 0;
/** Added to what is slept for, by which processes of this test are known from those of others on this machine. */
const own = process.pid * 10_000;

beforeAll(async () => {
  dir = temporaryDir();
  commit = createRepository(join(dir.path, "origin"), { "README.md": "hello\n" });
  redis = await startEmbeddedRedis({ dir: join(dir.path, "redis") });
  connection = connectRedis(redis.url);
  queue = new JobQueue(connection);
  agents = await TestAgents.open(join(dir.path, "agent"));
  ({ host } = agents);
});
afterAll(async () => {
  await agents[Symbol.asyncDispose]();
  await queue[Symbol.asyncDispose]();
  await connection[Symbol.asyncDispose]();
  await redis[Symbol.asyncDispose]();
  dir[Symbol.dispose]();
});
beforeEach(async () => {
  server = new ProtocolServer();
  await server.start();
});
afterEach(async () => {
  await agents.stop();
  await server[Symbol.asyncDispose]();
});

function startAgent(pool: string, options: Partial<AgentOptions> = {}): Promise<Agent> {
  const access = { serverUrl: server.url, token: server.agentToken, redisUrl: redis.url };
  return agents.start(access, { pools: [pool], ...options });
}

function step(run: string, options: Partial<StepSpec> = {}): StepSpec {
  const resources = { ...DEFAULTS.resources, cpu: 1, memoryBytes: 256 * 1024 * 1024, pids: 64 };
  return {
    name: "step",
    run,
    image: "host",
    env: {},
    timeoutMs: 60_000,
    resources,
    network: "none",
    allowFailure: false,
    ...options,
  };
}

/** Offers a job to the agents of a pool of its own. */
async function offer(
  steps: readonly StepSpec[],
  options: Partial<ClaimedJob> = {},
): Promise<{ attemptId: string; pool: string }> {
  const attemptId = `attempt-${process.pid}-${count++}`;
  const pool = `pool-${count}`;
  server.jobs.set(attemptId, {
    attemptId,
    token: `token-${count}`,
    leaseMs: server.leaseMs,
    job: { name: "job", needs: [], timeoutMs: 60_000, pool, steps },
    build: { id: "1", number: 17, event: "push", ref: "refs/heads/main", commit, branch: "main" },
    repository: { id: "1", name: "ada/project", cloneUrl: `file://${dir.path}/origin` },
    maskedValues: [],
    images: {},
    ...options,
  });
  await queue.enqueue(pool, attemptId);
  return { attemptId, pool };
}

function stepStatuses(): string[] {
  return server.reports.map(({ index, report }) => `${index} ${report.status}`);
}

describe("Agent", () => {
  test("claims, checks out, runs, reports and leaves nothing behind", async () => {
    const variables = '"$SLIPWAY_REPOSITORY" $SLIPWAY_BUILD_NUMBER $SLIPWAY_BRANCH $SLIPWAY_EVENT $SLIPWAY_JOB';
    const { attemptId, pool } = await offer([
      step(`cat README.md; echo ${variables}; git log --format=%s; git status --porcelain`),
      step("echo oops >&2; exit 2", { allowFailure: true }),
      step("exit 3"),
      step("true"),
    ]);
    const agent = await startAgent(pool);
    await server.until(() => server.finished.has(attemptId));
    expect(server.owners.get(attemptId)).toBe("tester");
    expect(server.log(0)).toBe("hello\nada/project 17 main push job\na change\n");
    expect(server.records).toContainEqual({ stream: 2, text: "oops\n", timeMs: expect.any(Number) });
    expect(stepStatuses().sort((a, b) => Number(a[0]) - Number(b[0]))).toEqual([
      "0 running",
      "0 success",
      "1 running",
      "1 failure",
      "2 running",
      "2 failure",
      "3 skipped",
    ]);
    expect(server.reports).toContainEqual({
      index: 1,
      report: expect.objectContaining({ allowedFailure: true, exitCode: 2 }),
    });
    expect(server.finished.get(attemptId)).toEqual({ status: "failure", reason: 'step "step" failed: exit code 3' });
    await agent.drain();
    expect(readdirSync(join(host.stateDir, "attempts"))).toEqual([]);
  });

  test("lets a step do what it likes to its repository, and no other build sees it", async () => {
    const script = `cd .git/objects/pack; chmod 777 *; for file in *; do echo evil > $file; done
      cd /workspace; rm -rf .git README.md; ls -A | wc -l`;
    const hostile = await offer([step(script)]);
    await startAgent(hostile.pool);
    await server.until(() => server.finished.has(hostile.attemptId));
    expect(server.log(0)).toBe("0\n");
    server.logs.clear();
    // Without the origin, a damaged mirror could not be mended unseen.
    renameSync(join(dir.path, "origin"), join(dir.path, "away"));
    const next = await offer([step("git fsck --full && cat README.md")]);
    await startAgent(next.pool);
    await server.until(() => server.finished.has(next.attemptId));
    renameSync(join(dir.path, "away"), join(dir.path, "origin"));
    expect(server.log(0)).toContain("hello\n");
  });

  test("drops an attempt that is another's", async () => {
    const { attemptId, pool } = await offer([step("true")]);
    server.owners.set(attemptId, "somebody else");
    const agent = await startAgent(pool);
    await server.until(() => server.requests.length > 1);
    await agent.drain();
    expect(server.requests).toEqual(["GET /api/agent/hello", "POST /api/agent/claim"]);
  });

  test("reports a commit that does not exist in the first step's log", async () => {
    const missing = "1234567890123456789012345678901234567890";
    const build = { id: "1", number: 1, event: "push", ref: "refs/heads/main", commit: missing } as const;
    const { attemptId, pool } = await offer([step("true"), step("true")], { build });
    await startAgent(pool);
    await server.until(() => server.finished.has(attemptId));
    expect(server.log(0)).toContain(`Cannot find commit ${missing}`);
    expect(stepStatuses()).toEqual(["0 running", "0 failure", "1 skipped"]);
    expect(server.finished.get(attemptId)?.status).toBe("failure");
  });

  test("keeps the credentials of the clone URL out of everything", async () => {
    const repository = {
      id: "9",
      name: "ada/private",
      cloneUrl: `${server.url.replace("//", "//ada:hunter22-secret@")}/repo.git`,
    };
    const { attemptId, pool } = await offer([step("true")], { repository });
    await startAgent(pool);
    await server.until(() => server.finished.has(attemptId));
    expect(server.finished.get(attemptId)?.status).toBe("error");
    expect(server.requests).toContain("GET /repo.git/info/refs?service=git-upload-pack");
    expect(JSON.stringify([...server.finished.values(), server.reports, server.log(0)])).not.toContain("hunter22");
  });

  test("masks the values that came with the claim", async () => {
    const { attemptId, pool } = await offer([step("echo token is $TOKEN", { env: { TOKEN: "very-secret" } })], {
      maskedValues: ["very-secret"],
    });
    await startAgent(pool);
    await server.until(() => server.finished.has(attemptId));
    expect(server.log(0)).toBe("token is ***\n");
  });

  test("sends output while the step runs", async () => {
    const { attemptId, pool } = await offer([step("echo first; while [ ! -e go ]; do sleep 0.02; done; echo second")]);
    await startAgent(pool);
    await server.until(() => server.log(0) === "first\n");
    expect(server.finished.has(attemptId)).toBe(false);
    const workspace = join(host.stateDir, "attempts", attemptId, "workspace");
    mkdirSync(join(workspace, "go"));
    await server.until(() => server.finished.has(attemptId));
    expect(server.log(0)).toBe("first\nsecond\n");
  });

  test("stops a job that is canceled, at once through Redis", async () => {
    const { attemptId, pool } = await offer([step("echo on; sleep 60"), step("true")]);
    await startAgent(pool);
    await server.until(() => server.log(0) === "on\n");
    await new CancelChannel(connection).publish(attemptId, "canceled by Ada");
    await server.until(() => server.finished.has(attemptId));
    expect(server.finished.get(attemptId)).toEqual({ status: "canceled", reason: "canceled by Ada" });
    expect(stepStatuses()).toEqual(["0 running", "0 canceled", "1 skipped"]);
  });

  test("stops a job that is canceled, at the latest with the next renewal", async () => {
    server.leaseMs = 1_500;
    const { attemptId, pool } = await offer([step("echo on; sleep 60")]);
    await startAgent(pool);
    await server.until(() => server.log(0) === "on\n");
    server.canceled = true;
    await server.until(() => server.finished.has(attemptId));
    expect(server.finished.get(attemptId)?.status).toBe("canceled");
  });

  test("stops without another word when the attempt became another's", async () => {
    server.leaseMs = 1_500;
    const { attemptId, pool } = await offer([step("echo on; exec sleep 60")]);
    const agent = await startAgent(pool);
    await server.until(() => server.log(0) === "on\n");
    server.jobs.delete(attemptId);
    await server.until(() => server.requests.at(-1)?.endsWith("/renew") === true);
    const told = server.requests.length;
    await agent.drain();
    expect(server.requests.slice(told).filter((line) => !line.endsWith("/renew"))).toEqual([]);
    expect(server.finished.size).toBe(0);
  });

  test("kills the containers when it cannot renew for as long as the lease lasts, and reports once it can", async () => {
    server.leaseMs = 1_200;
    const { attemptId, pool } = await offer([step(`echo on; exec sleep ${own + 61}`)]);
    const agent = await startAgent(pool);
    await server.until(() => server.log(0) === "on\n");
    const isRunning = () => processesOf(`sleep ${own + 61}`).length > 0;
    while (!isRunning()) await new Promise((resolve) => setTimeout(resolve, 20));
    await server.stop();
    // The agent notices by itself: nobody tells it anything now.
    while (isRunning()) await new Promise((resolve) => setTimeout(resolve, 20));
    await server.start();
    await server.until(() => server.finished.has(attemptId));
    expect(server.finished.get(attemptId)).toMatchObject({
      status: "canceled",
      reason: /could not reach the server for 1 s/,
    });
    await agent.drain();
  });

  test("loses nothing when the server restarts in the middle of a job", async () => {
    const { attemptId, pool } = await offer([
      step("seq 1 50000; while [ ! -e go ]; do sleep 0.02; done; seq 50001 100000"),
      step("echo last"),
    ]);
    await startAgent(pool);
    await server.until(() => server.log(0).length > 0);
    await server.stop();
    mkdirSync(join(host.stateDir, "attempts", attemptId, "workspace", "go"));
    // It comes back with less of the log than it had acknowledged, as after a crash.
    server.logs.set(0, (server.logs.get(0) ?? Buffer.alloc(0)).subarray(0, 1000));
    await server.start();
    await server.until(() => server.finished.has(attemptId));
    expect(server.log(0) === Array.from({ length: 100_000 }, (_, n) => `${n + 1}\n`).join("")).toBe(true);
    expect(server.log(1)).toBe("last\n");
    expect(server.finished.get(attemptId)).toEqual({ status: "success" });
  });

  test("tries a claim again until the server is there and knows the token", async () => {
    const { attemptId, pool } = await offer([step("true")]);
    const answers = [503, 401, 500];
    server.intercept = (path) => {
      const status = path.endsWith("/claim") ? answers.shift() : undefined;
      return status === undefined ? undefined : { status };
    };
    await startAgent(pool);
    await server.until(() => server.finished.has(attemptId));
    expect(answers).toEqual([]);
  });

  test("takes nothing out of the queue before the server knows its token", async () => {
    const { attemptId, pool } = await offer([step("true")]);
    let isKnown = false;
    server.intercept = () => (isKnown ? undefined : { status: 401 });
    await startAgent(pool);
    await server.until(() => server.requests.length >= 2);
    expect(new Set(server.requests)).toEqual(new Set(["GET /api/agent/hello"]));
    expect(await queue.waiting(pool)).toBe(1);
    isKnown = true;
    await server.until(() => server.finished.has(attemptId));
  });

  test("drain gives a claim back that is not answered, and waits for no server", async () => {
    const { attemptId, pool } = await offer([step("true")]);
    server.intercept = (path) => (path.endsWith("/claim") ? { status: 503 } : undefined);
    const agent = await startAgent(pool);
    await server.until(() => server.requests.some((line) => line.endsWith("/claim")));
    await agent.drain();
    await agent.stop();
    expect(server.owners.has(attemptId)).toBe(false);
    expect(await queue.has(pool, attemptId)).toBe(false);
  });

  test("drain ends while the server is away", async () => {
    const { pool } = await offer([step("true")]);
    server.intercept = () => ({ status: 503 });
    const agent = await startAgent(pool);
    await server.until(() => server.requests.length > 0);
    await agent.drain();
    expect(await queue.waiting(pool)).toBe(1);
  });

  test("goes on when the server takes no more of a log", async () => {
    server.intercept = (path) => (path.includes("/log?") ? { status: 413, body: { offset: 3 } } : undefined);
    const { attemptId, pool } = await offer([step("seq 1 1000")]);
    await startAgent(pool);
    await server.until(() => server.finished.has(attemptId));
    expect(server.finished.get(attemptId)).toEqual({ status: "success" });
  });

  test("drain finishes what runs and takes no more", async () => {
    const first = await offer([step("echo on; while [ ! -e go ]; do sleep 0.02; done")]);
    const agent = await startAgent(first.pool);
    await server.until(() => server.log(0) === "on\n");
    const drained = agent.drain();
    await queue.enqueue(first.pool, "too-late");
    mkdirSync(join(host.stateDir, "attempts", first.attemptId, "workspace", "go"));
    await drained;
    expect(server.finished.get(first.attemptId)).toEqual({ status: "success" });
    expect(await queue.has(first.pool, "too-late")).toBe(true);
    expect(server.requests.filter((line) => line.endsWith("/claim"))).toHaveLength(1);
  });

  test("stop cancels what runs and says so", async () => {
    const { attemptId, pool } = await offer([step(`echo on; exec sleep ${own + 62}`)]);
    const agent = await startAgent(pool);
    await server.until(() => server.log(0) === "on\n");
    const drained = agent.drain();
    await agent.stop();
    await drained;
    expect(server.finished.get(attemptId)).toEqual({ status: "canceled", reason: 'agent "tester" was stopped' });
    expect(processesOf(`sleep ${own + 62}`)).toEqual([]);
    expect(existsSync(join(host.stateDir, "attempts", attemptId))).toBe(false);
  });
});

function processesOf(command: string): string[] {
  return readdirSync("/proc").filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").join(" ").trim() === command;
    } catch {
      return false;
    }
  });
}
