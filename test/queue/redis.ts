/** What the tests of queue/ share: temporary directories and bare redis-servers that a test may kill. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Redis } from "ioredis";
import { findRedisServer } from "../../queue/index.ts";

export interface TemporaryDirectory extends AsyncDisposable {
  readonly path: string;
}

export async function temporaryDirectory(): Promise<TemporaryDirectory> {
  const path = await mkdtemp("/tmp/slipway-queue-");
  return { path, [Symbol.asyncDispose]: async () => await rm(path, { recursive: true, force: true }) };
}

/** A redis-server under the test's own control, unlike the embedded one not restarted by anybody else. */
export class TestRedis implements AsyncDisposable {
  readonly url: string;
  readonly socket: string;
  readonly #dir: TemporaryDirectory;
  readonly #settings: readonly string[];
  #child: ChildProcess | undefined;

  private constructor(dir: TemporaryDirectory, settings: readonly string[]) {
    this.#dir = dir;
    this.#settings = settings;
    this.socket = join(dir.path, "redis.sock");
    this.url = `unix://${this.socket}`;
  }

  static async start(...settings: readonly string[]): Promise<TestRedis> {
    const redis = new TestRedis(await temporaryDirectory(), settings);
    await redis.start();
    return redis;
  }

  async start(): Promise<void> {
    const server = await findRedisServer();
    if (server === undefined) throw new Error("the tests of queue/ need a redis-server or valkey-server");
    const fixed = ["--port", "0", "--unixsocket", this.socket, "--dir", this.#dir.path, "--save", ""];
    // always: with everysec, Redis may answer before it writes while the disk is slow, and lose that to a kill -9.
    const durable = ["--appendonly", "yes", "--appendfsync", "always"];
    // A test process that is killed, for running out of time, disposes of nothing: the kernel does.
    const child = spawn("setpriv", ["--pdeathsig", "KILL", server.path, ...fixed, ...durable, ...this.#settings], {
      stdio: "ignore",
    });
    this.#child = child;
    await answers(this.socket);
  }

  /** `kill -9`; resolves once the server is gone. */
  async kill(): Promise<void> {
    await this.#end("SIGKILL");
  }

  /** Deletes what a killed server had written. */
  async forget(): Promise<void> {
    await rm(join(this.#dir.path, "appendonlydir"), { recursive: true });
  }

  /** Makes the server stop answering, as a hung machine would; its connections stay open. */
  freeze(): void {
    this.#child?.kill("SIGSTOP");
  }

  thaw(): void {
    this.#child?.kill("SIGCONT");
  }

  /** A client to look at, or into, what Slipway wrote; disposed of by the caller. */
  client(): Redis & Disposable {
    return lookInto(this.socket);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#end("SIGKILL");
    await this.#dir[Symbol.asyncDispose]();
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await gone;
  }
}

export function lookInto(socket: string): Redis & Disposable {
  const client = new Redis({ path: socket, retryStrategy: null });
  return Object.assign(client, { [Symbol.dispose]: () => client.disconnect() });
}

/** Resolves once a server takes connections on the socket; it may still want a password. */
export async function answers(socket: string): Promise<void> {
  for (;;) {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const stream = connect(socket, () => stream.write("PING\r\n"));
    stream.on("error", () => resolve(false));
    stream.on("data", (data) => resolve(!data.toString().startsWith("-LOADING")));
    const up = await promise;
    stream.destroy();
    if (up) return;
    await delay(2);
  }
}

/** Asks until the answer is true; the test's own time limit ends it. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await delay(5);
}
