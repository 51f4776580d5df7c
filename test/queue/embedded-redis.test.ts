import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { mkdir, readFile, symlink, truncate, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import {
  checkRedis,
  connectRedis,
  type EmbeddedRedis,
  findRedisServer,
  JobQueue,
  startEmbeddedRedis,
} from "../../queue/index.ts";
import { identify, isAlive } from "../../queue/process-identity.ts";
import { answers, lookInto, temporaryDirectory, until } from "./redis.ts";

const yes = () => true;
const no = () => false;

async function enqueue(redis: EmbeddedRedis, ...attemptIds: readonly string[]): Promise<void> {
  await using connection = connectRedis(redis.url);
  await using queue = new JobQueue(connection);
  for (const attemptId of attemptIds) await queue.enqueue("default", attemptId);
}

async function list(redis: EmbeddedRedis): Promise<string[]> {
  await using connection = connectRedis(redis.url);
  await using queue = new JobQueue(connection);
  await until(() => queue.list("default").then(yes, no));
  return (await queue.list("default")).sort();
}

function socketOf(redis: EmbeddedRedis): string {
  return redis.url.replace("unix://", "");
}

function appendOnlyFile(dir: string): string {
  const directory = join(dir, "appendonlydir");
  const name = readdirSync(directory).find((file) => file.endsWith(".incr.aof"));
  return join(directory, name ?? "no append-only file");
}

async function serverPath(): Promise<string> {
  return (await findRedisServer())?.path ?? "";
}

describe("startEmbeddedRedis", () => {
  test("starts a Redis that fits, private to its directory, and leaves nothing behind", async () => {
    await using dir = await temporaryDirectory();
    const data = join(dir.path, "data");
    const redis = await startEmbeddedRedis({ dir: data });
    const server = identify(redis.pid ?? 0)!;
    {
      await using connection = connectRedis(redis.url);
      expect(await checkRedis(connection)).toEqual([]);
    }
    expect(statSync(data).mode & 0o777).toBe(0o700);
    expect(statSync(socketOf(redis)).mode & 0o777).toBe(0o700);
    expect(isAlive(server)).toBe(true);
    await redis[Symbol.asyncDispose]();
    expect(isAlive(server)).toBe(false);
    expect(redis.pid).toBeUndefined();
    expect(readdirSync(data).sort()).toEqual(["appendonlydir", "redis.log"]);
  });

  test("keeps what was queued over a stop and a start", async () => {
    await using dir = await temporaryDirectory();
    {
      await using redis = await startEmbeddedRedis({ dir: dir.path });
      await enqueue(redis, "a1", "a2");
    }
    await using redis = await startEmbeddedRedis({ dir: dir.path });
    expect(await list(redis)).toEqual(["a1", "a2"]);
  });

  test("restarts a killed server, with everything that was acknowledged", async () => {
    await using dir = await temporaryDirectory();
    const notices: string[] = [];
    await using redis = await startEmbeddedRedis({ dir: dir.path, onNotice: (text) => notices.push(text) });
    await enqueue(redis, "a1", "a2");
    for (const round of [1, 2]) {
      const { pid, url } = redis;
      await written(redis);
      process.kill(pid!, "SIGKILL");
      await until(() => redis.pid !== undefined && redis.pid !== pid);
      expect(redis.url).toBe(url);
      expect(await list(redis)).toEqual(["a1", "a2"]);
      expect(notices).toHaveLength(round);
    }
    expect(notices[0]).toMatch(/^Redis was killed by SIGKILL; starting it again in \d+ ms \(log: .*redis\.log\)$/);
  });

  test("can be disposed of while it waits to restart", async () => {
    await using dir = await temporaryDirectory();
    const noticed = Promise.withResolvers<string>();
    const redis = await startEmbeddedRedis({ dir: dir.path, onNotice: noticed.resolve });
    process.kill(redis.pid!, "SIGKILL");
    await noticed.promise;
    await redis[Symbol.asyncDispose]();
    await redis[Symbol.asyncDispose]();
    await using _again = await startEmbeddedRedis({ dir: dir.path });
    expect(redis.pid).toBeUndefined();
  });

  test("loads an append-only file whose end was cut off by a crash", async () => {
    await using dir = await temporaryDirectory();
    {
      await using redis = await startEmbeddedRedis({ dir: dir.path });
      await enqueue(redis, "a1", "a2");
    }
    const file = appendOnlyFile(dir.path);
    await truncate(file, statSync(file).size - 7);
    await using redis = await startEmbeddedRedis({ dir: dir.path });
    expect(await list(redis)).toContain("a1");
  });

  test("says what Redis says about a damaged append-only file, and lets go of the directory", async () => {
    await using dir = await temporaryDirectory();
    {
      await using redis = await startEmbeddedRedis({ dir: dir.path });
      await enqueue(redis, "a1");
    }
    const file = appendOnlyFile(dir.path);
    const sound = await readFile(file);
    await writeFile(file, Buffer.concat([Buffer.from("garbage\r\n"), sound]));
    const start = startEmbeddedRedis({ dir: dir.path });
    await expect(start).rejects.toThrow(
      /^Cannot start Redis in ".*": the server exited with 1\n[^]*Bad file format .*redis-check-aof[^]*\(log: .*\)$/,
    );
    await writeFile(file, sound);
    await using redis = await startEmbeddedRedis({ dir: dir.path });
    expect(await list(redis)).toEqual(["a1"]);
  });

  test("refuses a directory in use, by whatever path, and leaves its owner alone", async () => {
    await using dir = await temporaryDirectory();
    const [data, link] = [join(dir.path, "data"), join(dir.path, "link")];
    await using redis = await startEmbeddedRedis({ dir: data });
    await symlink(data, link);
    for (const path of [data, link]) {
      await expect(startEmbeddedRedis({ dir: path })).rejects.toThrow("another process runs Redis there");
    }
    await enqueue(redis, "a1");
    expect(await list(redis)).toEqual(["a1"]);
  });

  test("of several at once, one starts", async () => {
    await using dir = await temporaryDirectory();
    const starts = await Promise.allSettled([1, 2, 3].map(() => startEmbeddedRedis({ dir: dir.path })));
    const started = starts.filter((start) => start.status === "fulfilled");
    expect(started).toHaveLength(1);
    await started[0]?.value[Symbol.asyncDispose]();
  });

  test("refuses a directory that a Redis it does not know listens in", async () => {
    await using dir = await temporaryDirectory();
    const socket = join(dir.path, "redis.sock");
    const stranger = spawn(await serverPath(), ["--port", "0", "--unixsocket", socket, "--save", ""], {
      cwd: dir.path,
      stdio: "ignore",
    });
    try {
      await answers(socket);
      await expect(startEmbeddedRedis({ dir: dir.path })).rejects.toThrow("another process runs Redis there");
      expect(stranger.exitCode).toBeNull();
    } finally {
      await end(stranger);
    }
  });

  test("puts the socket elsewhere if the path is too long, says so and removes it", async () => {
    await using dir = await temporaryDirectory();
    const data = join(dir.path, "d".repeat(100));
    const notices: string[] = [];
    const redis = await startEmbeddedRedis({ dir: data, onNotice: (text) => notices.push(text) });
    const socket = socketOf(redis);
    expect(dirname(socket)).not.toBe(data);
    expect(statSync(dirname(socket)).mode & 0o777).toBe(0o700);
    expect(notices).toEqual([expect.stringMatching(/is too long for a Unix socket: the socket of Redis is ".*"$/)]);
    expect(await list(redis)).toEqual([]);
    await redis[Symbol.asyncDispose]();
    expect(existsSync(dirname(socket))).toBe(false);
    expect(existsSync(join(data, "appendonlydir"))).toBe(true);
  });

  test("the directory's name may hold anything", async () => {
    await using dir = await temporaryDirectory();
    await using redis = await startEmbeddedRedis({ dir: join(dir.path, "a b%20?#\"'ü") });
    await enqueue(redis, "a1");
    expect(await list(redis)).toEqual(["a1"]);
  });

  test("the server is out of reach of Ctrl-C: it has its own session", async () => {
    await using dir = await temporaryDirectory();
    await using redis = await startEmbeddedRedis({ dir: dir.path });
    const stat = readFileSync(`/proc/${redis.pid}/stat`, "latin1");
    const [_state, _parent, group, session] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    expect([group, session]).toEqual([String(redis.pid), String(redis.pid)]);
  });

  test("the server dies with an owner that is killed, and nothing acknowledged is lost", async () => {
    await using dir = await temporaryDirectory();
    const { owner, pid } = await startOwner(dir.path, {});
    const server = identify(pid)!;
    await enqueueAt(join(dir.path, "redis.sock"), "a1");
    await end(owner);
    await until(() => !isAlive(server));
    await using redis = await startEmbeddedRedis({ dir: dir.path });
    expect(await list(redis)).toEqual(["a1"]);
  });

  test("without setpriv the next start stops what a killed owner left", async () => {
    await using dir = await temporaryDirectory();
    const { owner, pid } = await startOwner(dir.path, { PATH: "/nonexistent" });
    const server = identify(pid)!;
    await enqueueAt(join(dir.path, "redis.sock"), "a1");
    await end(owner);
    expect(isAlive(server)).toBe(true);
    const notices: string[] = [];
    await using redis = await startEmbeddedRedis({ dir: dir.path, onNotice: (text) => notices.push(text) });
    expect(isAlive(server)).toBe(false);
    expect(notices).toEqual([
      `stopping the Redis (process ${pid}) that an earlier, killed owner left in "${dir.path}"`,
    ]);
    expect(await list(redis)).toEqual(["a1"]);
  });

  test("a process that got the pid of a dead server is left alone", async () => {
    await using dir = await temporaryDirectory();
    const bystander = spawn("sleep", ["1000"]);
    try {
      const server = { ...identify(bystander.pid ?? 0), startedAtTicks: "1" };
      const data = join(dir.path, "data");
      await mkdir(data);
      // And what lies where the directory was before it was moved here, too.
      const socket = join(dir.path, "redis.sock");
      await writeFile(socket, "precious");
      await writeFile(join(data, "redis.pid.json"), JSON.stringify({ server, socket }));
      await using redis = await startEmbeddedRedis({ dir: data });
      expect(await list(redis)).toEqual([]);
      expect(await readFile(socket, "utf8")).toBe("precious");
      expect([bystander.exitCode, bystander.signalCode]).toEqual([null, null]);
    } finally {
      await end(bystander);
    }
  });

  test("names the reason why it cannot start", async () => {
    await using dir = await temporaryDirectory();
    const start = async (options: object) => await startEmbeddedRedis({ dir: dir.path, ...options });
    await expect(start({ binary: "/nonexistent/redis-server" })).rejects.toThrow(
      '"/nonexistent/redis-server" does not',
    );
    await expect(start({ binary: "/bin/true" })).rejects.toThrow('"/bin/true" does not run, or is no Redis');
    await expect(start({ dir: "data" })).rejects.toThrow("the directory must be an absolute path");
    await expect(start({ signal: AbortSignal.abort(new Error("stopped by ann")) })).rejects.toThrow("stopped by ann");
    await mkdir(join(dir.path, "redis.log"));
    await expect(start({})).rejects.toThrow("redis.log");
  });
});

async function startOwner(dir: string, env: object): Promise<{ owner: ChildProcess; pid: number }> {
  const program = fileURLToPath(new URL("embedded-owner.ts", import.meta.url));
  const owner = spawn(process.execPath, [program, dir, await serverPath()], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  for await (const line of createInterface(owner.stdout)) return { owner, pid: Number(line) };
  throw new Error("the owner ended without a word");
}

/** Resolves once what Redis has acknowledged is in its file: with everysec a busy disk may make it late. */
async function written(redis: EmbeddedRedis): Promise<void> {
  using client = lookInto(socketOf(redis));
  await until(async () => (await client.info("persistence")).includes("aof_buffer_length:0"));
}

async function enqueueAt(socket: string, attemptId: string): Promise<void> {
  await using connection = connectRedis(socket);
  await using queue = new JobQueue(connection);
  await queue.enqueue("default", attemptId);
}

async function end(child: ChildProcess): Promise<void> {
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await gone;
}
