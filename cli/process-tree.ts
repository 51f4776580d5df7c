/** Server, agent and embedded Redis as children of this process: started in order, restarted, stopped in reverse. */
import { spawn, type ChildProcess } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Logger } from "pino";
import { startEmbeddedRedis, type EmbeddedRedis } from "../queue/index.ts";

export interface TreeOptions {
  readonly dataDir: string;
  readonly host: string;
  readonly port: number;
  readonly publicUrl?: string;
  /** Jobs at the same time. */
  readonly jobs: number;
  readonly allow: readonly string[];
  readonly logLevel: string;
  /** Further words of their command lines, understood by them. */
  readonly serverArguments?: readonly string[];
  readonly agentArguments?: readonly string[];
  /** The children's standard error: ours, or a file's descriptor. */
  readonly log: "inherit" | number;
  readonly environment: NodeJS.ProcessEnv;
  readonly logger: Logger;
  /** Gives up starting. */
  readonly signal?: AbortSignal;
}

const bin = fileURLToPath(new URL("slipway.cjs", import.meta.url));
const firstRestartMs = 500;
const lastRestartMs = 30_000;

/**
 * The running tree. A child that dies is started again after a pause that doubles; what it was doing is taken up again
 * from the data directory.
 */
export class ProcessTree {
  readonly url: string;
  readonly #redis: EmbeddedRedis;
  readonly #server: Supervised;
  readonly #agent: Supervised;

  private constructor(redis: EmbeddedRedis, server: Supervised, agent: Supervised, url: string) {
    this.#redis = redis;
    this.#server = server;
    this.#agent = agent;
    this.url = url;
  }

  /**
   * Starts Redis, then the server, then the agent.
   *
   * @throws {Error} If one of them does not come up; what was started is stopped again.
   */
  static async start(options: TreeOptions): Promise<ProcessTree> {
    mkdirSync(options.dataDir, { recursive: true, mode: 0o700 });
    await using started = new AsyncDisposableStack();
    const redis = started.use(await startEmbeddedRedis({ dir: join(options.dataDir, "redis") }));
    const common = ["--data-dir", options.dataDir, "--redis", redis.url, "--log-level", options.logLevel];
    const listen = ["--host", options.host, "--port", String(options.port)];
    if (options.publicUrl !== undefined) listen.push("--public-url", options.publicUrl);
    const serverArguments = [...listen, ...(options.serverArguments ?? []), ...common];
    const server = started.adopt(new Supervised("server", serverArguments, options), (child) => child.end());
    const { url } = await server.ready();
    if (url === undefined) throw new Error("Cannot start server: it did not say where it listens");
    const allowed = options.allow.flatMap((word) => ["--allow", word]);
    const { agentArguments: further = [] } = options;
    const agentArguments = ["--server", url, "--jobs", String(options.jobs), ...allowed, ...further, ...common];
    const agent = started.adopt(new Supervised("agent", agentArguments, options), (child) => child.end());
    await agent.ready();
    started.move();
    // A restarted server must be found where the agent and the webhooks look for it.
    server.pinPort(new URL(url).port);
    return new ProcessTree(redis, server, agent, url);
  }

  /**
   * Drains: the agent finishes what it runs, then the server and Redis stop.
   *
   * @param stop Aborted to cancel running jobs instead of waiting for them.
   */
  async drain(stop: AbortSignal): Promise<void> {
    const onStop = () => this.#agent.signal("SIGINT");
    this.#agent.signal("SIGTERM");
    if (stop.aborted) onStop();
    else stop.addEventListener("abort", onStop, { once: true });
    await this.#agent.ended();
    stop.removeEventListener("abort", onStop);
    this.#server.signal("SIGTERM");
    await this.#server.ended();
    await this.#redis[Symbol.asyncDispose]();
  }
}

interface Ready {
  readonly url?: string;
}

/** One child and its successors. */
class Supervised {
  readonly #verb: string;
  readonly #options: TreeOptions;
  readonly #ready = Promise.withResolvers<Ready>();
  readonly #ended = Promise.withResolvers<void>();
  readonly #stopping = new AbortController();
  #arguments: readonly string[];
  #child: ChildProcess | undefined;
  #wasReady = false;

  constructor(verb: string, args: readonly string[], options: TreeOptions) {
    this.#verb = verb;
    this.#arguments = args;
    this.#options = options;
    this.#ready.promise.catch(() => {});
    void this.#supervise();
  }

  /** Resolves once the first child is ready. @throws {Error} If it ended before that. */
  async ready(): Promise<Ready> {
    const { signal } = this.#options;
    if (signal === undefined) return await this.#ready.promise;
    const gaveUp = Promise.withResolvers<never>();
    const onAbort = () => gaveUp.reject(signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      return await Promise.race([this.#ready.promise, gaveUp.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** From now on the child's end is wanted. */
  signal(name: NodeJS.Signals): void {
    this.#stopping.abort();
    this.#child?.kill(name);
  }

  async end(): Promise<void> {
    // Two signals: do not drain, stop. Two different ones, because a signal that is pending already is not sent again.
    this.signal("SIGTERM");
    this.signal("SIGINT");
    await this.ended();
  }

  pinPort(port: string): void {
    const at = this.#arguments.indexOf("--port");
    this.#arguments = this.#arguments.with(at + 1, port);
  }

  async #supervise(): Promise<void> {
    const { logger } = this.#options;
    let pauseMs = firstRestartMs;
    while (!this.#stopping.signal.aborted) {
      const startedAtMs = Date.now();
      const how = await this.#run();
      if (!this.#wasReady)
        this.#ready.reject(new Error(`Cannot start ${this.#verb}: it ended with ${how}, see its log above`));
      if (this.#stopping.signal.aborted || !this.#wasReady) break;
      if (Date.now() - startedAtMs > lastRestartMs) pauseMs = firstRestartMs;
      logger.error({ how, pauseMs }, `${this.#verb} ended unexpectedly: starting it again`);
      await sleep(pauseMs, undefined, { signal: this.#stopping.signal }).catch(() => {});
      pauseMs = Math.min(2 * pauseMs, lastRestartMs);
    }
    this.#ended.resolve();
  }

  /** Runs one child to its end and says how it ended. */
  #run(): Promise<string> {
    const { log, environment } = this.#options;
    const child = spawn(process.execPath, [bin, this.#verb, ...this.#arguments], {
      // A session of its own: Ctrl-C is for us, we decide what each child is told. The IPC channel ends them if we are killed.
      detached: true,
      stdio: ["ignore", log, log, "ipc"],
      env: environment,
    });
    this.#child = child;
    child.on("message", (message: Ready) => {
      this.#wasReady = true;
      this.#ready.resolve(message);
    });
    return new Promise((resolve) => {
      child.on("error", (error) => resolve(error.message));
      child.on("exit", (code, signal) => resolve(signal === null ? `exit code ${code}` : signal));
    });
  }
}
