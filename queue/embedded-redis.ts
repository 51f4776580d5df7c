import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, closeSync, mkdirSync, openSync, readFileSync, realpathSync, renameSync, statSync } from "node:fs";
import type { Server } from "node:net";
import { isAbsolute, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { cannotStart, chooseSocket, lockDirectory, notePid, stopOrphan, tidyUp } from "./redis-directory.ts";
import { deathSignalLauncher, exitOf, serverArguments, terminate, untilReady } from "./redis-process.ts";
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
  chmodSync(options.dir, 0o700);
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
    tidyUp(dir, socket);
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
      notePid(dir, { pid: child.pid, socket });
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
