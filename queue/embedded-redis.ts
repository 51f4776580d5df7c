import { type ChildProcess, execFile, spawn } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  openSync,
  closeSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { chmod, writeFile } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { dirname, isAbsolute, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { z } from "zod";
import { identify, isAlive, type ProcessIdentity } from "./process-identity.ts";
import { maxSocketPathBytes } from "./redis-address.ts";
import { findRedisServer, installHint, serverVersion } from "./redis-server.ts";

export interface EmbeddedRedisOptions {
  /** Holds the append-only file, the log and normally the socket; made, with mode 0700, if it is missing. */
  readonly dir: string;
  /** A `redis-server` or `valkey-server` program. @default what {@link findRedisServer} finds */
  readonly binary?: string;
  /** Told about the server's deaths and restarts, and about a socket elsewhere. Must not throw. */
  readonly onNotice?: (message: string) => void;
  /** Cancels the start; afterwards it has no effect, the owner disposes. */
  readonly signal?: AbortSignal;
}

export interface EmbeddedRedis extends AsyncDisposable {
  /** For {@link connectRedis}: `unix:///…`. The same for the whole life, over restarts. */
  readonly url: string;
  /** Of the server that runs now; `undefined` while a dead one waits for its restart. */
  readonly pid: number | undefined;
  readonly logFile: string;
}

const stopMs = 10_000;
/** Loading a large file says LOADING all the time; a server that says nothing at all for so long is stuck. */
const silentStartMs = 30_000;
const pollMs = 5;
const firstBackoffMs = 100;
const maxBackoffMs = 5_000;
/** After so long a life a death counts as the first one again. */
const settledMs = 30_000;
const maxLogBytes = 4 << 20;

/**
 * Starts a Redis server of our own: a child process on a private Unix socket, with an append-only file in `dir`.
 *
 * It restarts the server when that dies, and it is the only one on `dir`: a second start is refused while the first one's
 * process lives. The server dies with this process, also when this process is killed: the kernel signals it
 * (PR_SET_PDEATHSIG, by `setpriv` where there is one), and what should have survived regardless is stopped at the next
 * start. It runs in its own session, so Ctrl-C in the terminal does not reach it before its clients are done.
 *
 * @throws {Error} If no server program is found, another process uses `dir`, or the server cannot start (a damaged file, a
 * full disk): then with the last lines of its log.
 */
export async function startEmbeddedRedis(options: EmbeddedRedisOptions): Promise<EmbeddedRedis> {
  options.signal?.throwIfAborted();
  if (!isAbsolute(options.dir)) throw cannotStart(options.dir, "the directory must be an absolute path");
  const binary = await chooseBinary(options);
  mkdirSync(options.dir, { recursive: true, mode: 0o700 });
  await chmod(options.dir, 0o700);
  const dir = realpathSync(options.dir);
  const lock = await lockDirectory(dir);
  try {
    await stopOrphan(dir, options.onNotice);
    const socket = await chooseSocket(dir, options.onNotice);
    const server = new Supervisor({ ...options, dir, binary, socket, launcher: await deathSignalLauncher(), lock });
    await server.start(options.signal);
    return server;
  } catch (error) {
    lock.close();
    throw error;
  }
}

interface SupervisorOptions extends EmbeddedRedisOptions {
  readonly binary: string;
  readonly socket: string;
  /** What stands before the server's command line, if anything. */
  readonly launcher: readonly string[];
  readonly lock: Server;
}

class Supervisor implements EmbeddedRedis {
  readonly url: string;
  readonly logFile: string;
  readonly #options: SupervisorOptions;
  readonly #stopRequest = new AbortController();
  readonly #killAtExit = () => this.#child?.kill("SIGTERM");
  #child: ChildProcess | undefined;
  #restarting: Promise<void> = Promise.resolve();
  #backoffMs = firstBackoffMs;
  #disposal: Promise<void> | undefined;

  constructor(options: SupervisorOptions) {
    this.#options = options;
    this.url = `unix://${encodeURI(options.socket).replace(/[?#]/g, encodeURIComponent)}`;
    this.logFile = join(options.dir, "redis.log");
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  async start(signal: AbortSignal | undefined): Promise<void> {
    rotateLog(this.logFile);
    // Where setpriv is missing this covers at least process.exit().
    process.on("exit", this.#killAtExit);
    try {
      await this.#launch(signal);
    } catch (error) {
      await this[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#stop();
    await this.#disposal;
  }

  async #stop(): Promise<void> {
    const { dir, socket, lock } = this.#options;
    this.#stopRequest.abort();
    await this.#restarting;
    // SIGTERM makes Redis write out and fsync its append-only file.
    if (this.#child !== undefined) await terminate(this.#child);
    process.off("exit", this.#killAtExit);
    rmSync(pidFile(dir), { force: true });
    rmSync(socket, { force: true });
    if (dirname(socket) !== dir) rmSync(dirname(socket), { recursive: true, force: true });
    await new Promise<void>((resolve) => lock.close(() => resolve()));
  }

  /** Starts the server once and waits until it takes commands; watches over it from then on. */
  async #launch(signal: AbortSignal | undefined): Promise<void> {
    const { dir, binary, socket, launcher } = this.#options;
    const log = openSync(this.logFile, "a", 0o600);
    const logStart = statSync(this.logFile).size;
    const [program, ...rest] = [...launcher, binary, ...serverArguments(dir, socket)];
    const child = spawn(program ?? binary, rest, {
      cwd: dir,
      stdio: ["ignore", log, log],
      detached: true,
    });
    closeSync(log);
    const died = exitOf(child);
    const startedAtMs = performance.now();
    this.#child = child;
    try {
      // Before the wait: a start that is killed here leaves a server that the next start has to find.
      await this.#writePidFile(child);
      await untilReady(socket, { died, signal });
    } catch (error) {
      this.#child = undefined;
      await terminate(child);
      if (signal?.aborted === true) throw error;
      const reason = error instanceof Error ? error.message : String(error);
      throw cannotStart(dir, `${reason}\n${logTail(this.logFile, logStart)}(log: ${this.logFile})`);
    }
    void this.#watch(died, startedAtMs);
  }

  async #watch(died: Promise<string>, startedAtMs: number): Promise<void> {
    const how = await died;
    this.#child = undefined;
    if (this.#stopRequest.signal.aborted) return;
    if (performance.now() - startedAtMs > settledMs) this.#backoffMs = firstBackoffMs;
    this.#restarting = this.#restart(how);
  }

  async #restart(how: string): Promise<void> {
    const { signal } = this.#stopRequest;
    let reason = `Redis ${how}`;
    while (!signal.aborted) {
      this.#options.onNotice?.(`${reason}; starting it again in ${this.#backoffMs} ms (log: ${this.logFile})`);
      await delay(this.#backoffMs, undefined, { signal }).catch(() => {});
      this.#backoffMs = Math.min(this.#backoffMs * 2, maxBackoffMs);
      if (signal.aborted) return;
      try {
        await this.#launch(signal);
        return;
      } catch (error) {
        reason = error instanceof Error ? error.message : String(error);
      }
    }
  }

  async #writePidFile(child: ChildProcess): Promise<void> {
    const { dir, socket } = this.#options;
    const server = child.pid === undefined ? undefined : identify(child.pid);
    if (server === undefined) return; // It could not be spawned, or is dead: the wait for it says so.
    const text = JSON.stringify({ server, socket } satisfies PidFile);
    await writeFile(`${pidFile(dir)}.new`, text, { mode: 0o600 });
    renameSync(`${pidFile(dir)}.new`, pidFile(dir));
  }
}

function serverArguments(dir: string, socket: string): readonly string[] {
  const settings: Readonly<Record<string, string>> = {
    port: "0",
    unixsocket: socket,
    unixsocketperm: "700",
    dir,
    appendonly: "yes",
    appendfsync: "everysec",
    "aof-load-truncated": "yes",
    save: "",
    "maxmemory-policy": "noeviction",
    databases: "1",
    daemonize: "no",
  };
  return Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
}

async function chooseBinary({ binary, dir }: EmbeddedRedisOptions): Promise<string> {
  if (binary === undefined) {
    const found = await findRedisServer();
    if (found !== undefined) return found.path;
    throw cannotStart(dir, `neither valkey-server nor redis-server is installed; as root run: ${installHint()}`);
  }
  if ((await serverVersion(binary)) !== undefined) return binary;
  throw cannotStart(dir, `"${binary}" does not run, or is no Redis or Valkey server`);
}

/**
 * Takes the directory for this process: an abstract Unix socket is a lock that the kernel releases however we die, and that
 * nobody can hold twice (unix(7)). Named after the inode, it does not care by which path the directory is reached.
 */
async function lockDirectory(dir: string): Promise<Server> {
  const { dev, ino } = statSync(dir, { bigint: true });
  const server = createServer((client) => client.destroy());
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(`\0slipway-redis-${dev}-${ino}`, resolve);
  try {
    await promise;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EADDRINUSE") throw inUse(dir);
    throw error;
  }
  server.off("error", reject);
  server.unref();
  return server;
}

const pidFileSchema = z.object({
  server: z.object({ pid: z.number().int().positive(), startedAtTicks: z.string(), bootId: z.string() }),
  socket: z.string(),
});
type PidFile = z.infer<typeof pidFileSchema>;

function pidFile(dir: string): string {
  return join(dir, "redis.pid.json");
}

/** Stops the server that an owner left behind when it was killed; we hold the lock, so that owner is dead. */
async function stopOrphan(dir: string, onNotice: EmbeddedRedisOptions["onNotice"]): Promise<void> {
  const left = readPidFile(dir);
  if (left !== undefined) {
    if (isAlive(left.server)) {
      onNotice?.(`stopping the Redis (process ${left.server.pid}) that an earlier, killed owner left in "${dir}"`);
      await stopStranger(left.server);
    }
    rmSync(left.socket, { force: true });
    if (dirname(left.socket) !== dir) rmSync(dirname(left.socket), { recursive: true, force: true });
    rmSync(pidFile(dir), { force: true });
  }
  // The lock does not reach beyond this network namespace, a socket in a shared directory does.
  if ((await ping(join(dir, socketName))) !== undefined) throw inUse(dir);
}

function readPidFile(dir: string): PidFile | undefined {
  try {
    return pidFileSchema.parse(JSON.parse(readFileSync(pidFile(dir), "utf8")));
  } catch {
    return undefined; // Never written, or cut off: a server that is left shows at its socket.
  }
}

async function stopStranger(server: ProcessIdentity): Promise<void> {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    const deadlineMs = performance.now() + stopMs;
    if (!isAlive(server)) return;
    try {
      process.kill(server.pid, signal);
    } catch {
      return; // It ended meanwhile.
    }
    while (isAlive(server) && performance.now() < deadlineMs) await delay(pollMs);
  }
}

const socketName = "redis.sock";

/** `dir`'s own, or, where that path is too long for a socket, one in a new private directory. */
async function chooseSocket(dir: string, onNotice: EmbeddedRedisOptions["onNotice"]): Promise<string> {
  const socket = join(dir, socketName);
  if (Buffer.byteLength(socket) <= maxSocketPathBytes) return socket;
  const elsewhere = join(privateDirectory(), socketName);
  onNotice?.(`the path "${socket}" is too long for a Unix socket: the socket of Redis is "${elsewhere}"`);
  return elsewhere;
}

function privateDirectory(): string {
  try {
    return mkdtempSync("/run/slipway-redis-");
  } catch {
    return mkdtempSync("/tmp/slipway-redis-"); // Only root writes to /run. mkdtemp makes it 0700.
  }
}

/**
 * The command that makes the kernel send SIGTERM to the server when we die, PR_SET_PDEATHSIG(2const); setpriv becomes the
 * server, so its pid and its exit are the server's. Empty where util-linux's setpriv is missing (BusyBox's cannot do it).
 */
async function deathSignalLauncher(): Promise<readonly string[]> {
  const launcher = ["setpriv", "--pdeathsig", "TERM"];
  try {
    await promisify(execFile)("setpriv", ["--pdeathsig", "TERM", "true"], { timeout: 10_000 });
    return launcher;
  } catch {
    return [];
  }
}

/** Resolves, never rejects, with how the process ended: `was killed by SIGKILL`. */
function exitOf(child: ChildProcess): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<string>();
  child.once("error", (error) => resolve(`could not be started: ${error.message}`));
  child.once("exit", (code, signal) => resolve(signal === null ? `exited with ${code}` : `was killed by ${signal}`));
  return promise;
}

async function untilReady(
  socket: string,
  { died, signal }: { readonly died: Promise<string>; readonly signal: AbortSignal | undefined },
): Promise<void> {
  let heardAtMs = performance.now();
  for (;;) {
    signal?.throwIfAborted();
    const answer = await Promise.race([ping(socket), died.then((how) => ({ how }))]);
    if (typeof answer === "object") throw new Error(`the server ${answer.how}`);
    if (answer === "+PONG") return;
    // -LOADING: it reads its append-only file.
    if (answer !== undefined) heardAtMs = performance.now();
    if (performance.now() - heardAtMs > silentStartMs) {
      throw new Error(`the server did not answer within ${silentStartMs / 1_000} s`);
    }
    await Promise.race([delay(pollMs), died]);
  }
}

/** The first line of the answer to PING; `undefined` if nobody listens there or nobody answers. */
async function ping(socket: string): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  const stream = connect(socket);
  stream.setTimeout(1_000, () => resolve(undefined));
  stream.on("error", () => resolve(undefined));
  stream.on("close", () => resolve(undefined));
  stream.on("data", (data) => resolve(data.toString("latin1").split("\r\n")[0]));
  stream.write("PING\r\n");
  try {
    return await promise;
  } finally {
    stream.destroy();
  }
}

/** SIGTERM, then SIGKILL; resolves once the process is gone. */
async function terminate(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), stopMs);
  await gone;
  clearTimeout(timer);
}

/** Keeps one older log. */
function rotateLog(file: string): void {
  const size = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
  if (size > maxLogBytes) renameSync(file, `${file}.1`);
}

/** What the server wrote since `start`, its last 10 lines. */
function logTail(file: string, start: number): string {
  const lines = readFileSync(file).subarray(start).toString("utf8").trimEnd().split("\n").slice(-10);
  return lines.map((line) => `  ${line}\n`).join("");
}

function inUse(dir: string): Error {
  return cannotStart(dir, "another process runs Redis there; stop that process, or use another directory");
}

function cannotStart(dir: string, reason: string): Error {
  return new Error(`Cannot start Redis in "${dir}": ${reason}`);
}
