import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { connectRedis, JobQueue, startEmbeddedRedis } from "../../queue/index.ts";
import { Server } from "../../server/index.ts";
import { Harness, type TestAttempt, type TestRepository, twoJobs, until } from "./harness.ts";

let harness: Harness;
let repository: TestRepository;

beforeEach(async () => {
  harness = await Harness.start();
  repository = await harness.repository();
});
afterEach(async () => {
  for (const child of children) child.kill("SIGKILL");
  children.clear();
  await harness[Symbol.asyncDispose]();
});
const children = new Set<ChildProcess>();

/** Replaces the harness's server by one in a process of its own; the harness talks to whichever is up. */
async function startProcess(): Promise<ChildProcess> {
  const script = fileURLToPath(new URL("server-process.ts", import.meta.url));
  const options = { dataDir: harness.dataDir, port: 0, redisUrl: harness.redis.url };
  const child = fork(script, [JSON.stringify(options)]);
  children.add(child);
  const [it] = (await once(child, "message")) as [{ address: string; adminToken: string; agentToken: string }];
  Object.defineProperty(harness, "server", { value: it, configurable: true });
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}

describe("kill -9 of the server", () => {
  test("loses no acknowledged delivery and builds none twice", async () => {
    const commits = Array.from({ length: 6 }, (_, i) => repository.commit({ ".slipway.yml": twoJobs, i: String(i) }));
    await harness.stopServer();
    const built: string[] = [];
    for (let round = 0; round < 3; round++) {
      const child = await startProcess();
      for (const commit of commits.slice(round * 2, round * 2 + 2)) {
        expect((await repository.hook(repository.payload(commit), { delivery: commit })).status).toBe(202);
        built.push(commit);
      }
      // Right after the answers: evaluated, half evaluated or not yet, as it happens.
      await kill(child);
    }
    const last = await startProcess();
    for (const commit of built) await repository.hook(repository.payload(commit), { delivery: commit });
    const builds = await harness.builds(repository.id);
    expect(builds.map((build) => build.event.commit).sort()).toEqual([...built].sort());
    expect(builds.map((build) => build.number)).toEqual([6, 5, 4, 3, 2, 1]);
    // And each runs.
    for (let i = 0; i < 12; i++) await (await harness.claim()).succeed();
    for (const build of builds) expect((await harness.finished(build.id)).status).toBe("success");
    await kill(last);
  });

  test("between any two requests of an agent loses nothing that was answered", async () => {
    await repository.push(twoJobs);
    await harness.stopServer();
    let child = await startProcess();
    const restart = async () => {
      await kill(child);
      child = await startProcess();
    };
    const attempt = await harness.claim();
    await restart();
    expect((await attempt.step(0, { status: "running" })).status).toBe(204);
    let text = "";
    for (let i = 0; i < 3; i++) {
      const line = `line ${i}\n`;
      expect((await attempt.log(0, text.length, { stream: 1, text: line })).status).toBe(200);
      text += line;
      await restart();
    }
    expect((await attempt.call("POST", "/renew")).status).toBe(200);
    expect((await attempt.step(0, { status: "success", exitCode: 0 })).status).toBe(204);
    await restart();
    expect((await attempt.finish({ status: "success" })).status).toBe(204);
    await restart();
    expect((await attempt.finish({ status: "success" })).status).toBe(204);
    const { json } = await harness.call("GET", "/api/builds");
    const build = await harness.build(json.builds[0].id);
    expect(build.jobs[0]).toMatchObject({ status: "success", attempts: [{ n: 1, steps: [{ status: "success" }] }] });
    expect((await harness.call("GET", `/api/builds/${build.id}/log?job=first&step=0`)).text).toBe(text);
    await (await harness.claim()).succeed();
    expect((await harness.finished(build.id)).status).toBe("success");
    await kill(child);
  });
});

describe("Redis", () => {
  const restartRedis = async (forget: boolean) => {
    await harness.redis[Symbol.asyncDispose]();
    const dir = join(harness.dir, "redis");
    if (forget) rmSync(dir, { recursive: true });
    return startEmbeddedRedis({ dir });
  };

  test("away: builds are accepted, and run once it is back", async () => {
    await harness.redis[Symbol.asyncDispose]();
    const build = await repository.push(twoJobs);
    expect(build).toMatchObject({ status: "queued", jobs: [{ attempts: [{ status: "queued" }] }, {}] });
    await using _redis = await startEmbeddedRedis({ dir: join(harness.dir, "redis") });
    await (await harness.claim()).succeed();
    await (await harness.claim()).succeed();
    expect((await harness.finished(build.id)).status).toBe("success");
  });

  test("away when the server starts: it starts, and builds run later", async () => {
    await harness.stopServer();
    await harness.redis[Symbol.asyncDispose]();
    await harness.startServer();
    const build = await repository.push(twoJobs);
    await using _redis = await startEmbeddedRedis({ dir: join(harness.dir, "redis") });
    expect((await harness.claim()).claimed.build.id).toBe(build.id);
  });

  test("that has forgotten everything is told again", async () => {
    const build = await repository.push(twoJobs);
    await using _redis = await restartRedis(true);
    expect((await harness.claim()).claimed.build.id).toBe(build.id);
  });

  test("that an agent took an attempt from without claiming it is told again", async () => {
    const build = await repository.push(twoJobs);
    await using redis = connectRedis(harness.redis.url);
    await using queue = new JobQueue(redis);
    const [id] = await until(async () => {
      const ids = await queue.list("default");
      return ids.length > 0 && ids;
    });
    await queue.discard("default", id as string);
    expect((await harness.claim()).claimed).toMatchObject({ attemptId: id, build: { id: build.id } });
  });

  test("that evicts keys is refused with the setting that mends it", async () => {
    await harness.stopServer();
    const socket = connect(new URL(harness.redis.url).pathname);
    socket.write("CONFIG SET maxmemory-policy allkeys-lru\r\n");
    await once(socket, "data");
    socket.destroy();
    await expect(harness.startServer()).rejects.toThrow(/maxmemory-policy.*noeviction/);
  });
});

describe("Server.start", () => {
  test("refuses a data directory that another server uses", async () => {
    await expect(Server.start({ dataDir: harness.dataDir, port: 0, redisUrl: harness.redis.url })).rejects.toThrow(
      /another Slipway server uses this data directory/,
    );
    expect((await harness.call("GET", "/healthz")).json).toEqual({ status: "ok" });
  });

  test("refuses a port that is in use and lets go of everything", async () => {
    const dataDir = mkdtempSync(join(tmpdir(), "slipway-second-"));
    const port = Number(new URL(harness.server.address).port);
    await expect(Server.start({ dataDir, port, redisUrl: harness.redis.url })).rejects.toThrow(
      /Cannot listen on .*choose another/,
    );
    await using server = await Server.start({ dataDir, port: 0, redisUrl: harness.redis.url });
    expect(server.url).toBe(server.address);
    rmSync(dataDir, { recursive: true, force: true });
  });

  test("gives running attempts a whole lease, so that its own absence loses no agent", async () => {
    const build = await repository.push(twoJobs);
    const attempt: TestAttempt = await harness.claim();
    await harness.stopServer();
    // As if it had been away for longer than the lease.
    const { DatabaseSync } = await import("node:sqlite");
    const db = new DatabaseSync(join(harness.dataDir, "slipway.sqlite"));
    db.exec("UPDATE attempts SET lease_until_ms = 1 WHERE status = 'running'");
    db.close();
    await harness.startServer();
    await attempt.succeed();
    await (await harness.claim()).succeed();
    const finished = await harness.finished(build.id);
    expect(finished.jobs[0]?.attempts).toHaveLength(1);
    expect(finished.status).toBe("success");
  });
});
