/** Takes attempts from the queue and works on them. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Logger } from "pino";
import {
  CancelChannel,
  type CancelSubscription,
  connectRedis,
  JobWorker,
  type RedisConnection,
} from "../queue/index.ts";
import type { Host, RegistryClient } from "../runtime/index.ts";
import { containerName, runAttempt } from "./attempt.ts";
import { BuildEnds } from "./build-ends.ts";
import { asError } from "./cause.ts";
import type { StepCeiling } from "./ceiling.ts";
import { ImageRoom } from "./image-room.ts";
import type { KeepLimits } from "./kept-steps.ts";
import { FencedError, ServerClient, UnansweredError } from "./server-client.ts";
import { Shells } from "./shells.ts";
import { StagedCaches } from "./staged-caches.ts";
import { defaultUntrustedPolicy, type UntrustedPolicy } from "./untrusted.ts";

export interface AgentOptions {
  readonly serverUrl: string;
  /** The agent token. */
  readonly token: string;
  readonly redisUrl: string;
  /** Stays the caller's; dispose of it after `stop`. */
  readonly host: Host;
  /** What asks registries for images; the caller's as well. */
  readonly registry: RegistryClient;
  /** For mirrors, workspaces and logs; this agent's alone. */
  readonly dataDir: string;
  readonly pools: readonly string[];
  /** How many jobs run at once. */
  readonly jobs: number;
  /** What the server calls this agent. */
  readonly name: string;
  /** What jobs of untrusted builds get. @default `defaultUntrustedPolicy` */
  readonly untrusted?: UntrustedPolicy;
  /** The most that each step gets. What all get together is the host's ceiling. */
  readonly ceiling?: StepCeiling;
  /** What is kept of failed steps. @default four of them, 16 GiB, a day */
  readonly keep?: Partial<KeepLimits>;
  /** What the image store may have. @default a third of its file system */
  readonly imageBudgetBytes?: number;
  readonly logger: Logger;
}

/**
 * How long an agent tries to claim what it has taken out of the queue. Then another agent may: the server finds the attempt
 * gone from the queue and puts it there again.
 */
const claimPatienceMs = 10_000;
const defaultKeep: KeepLimits = { steps: 4, bytes: 16 * 1024 ** 3, timeMs: 24 * 3600 * 1000 };

/** How long a stopping agent tries to tell the server how its jobs ended. */
const lastReportsMs = 15_000;

/**
 * One agent: takes attempts out of its pools, claims them, runs them.
 *
 * What gives it the right to an attempt is the server's lease alone. The lock that BullMQ keeps in Redis saves needless
 * deliveries, no more: a job goes on when Redis is away, and an attempt delivered twice is claimed once.
 */
export class Agent implements AsyncDisposable {
  readonly #options: AgentOptions;
  readonly #client: ServerClient;
  readonly #shells: Shells;
  readonly #images: ImageRoom;
  readonly #caches: StagedCaches;
  readonly #ends: BuildEnds;
  readonly #running = new Map<string, AbortController>();
  readonly #cleanups = new Set<Promise<void>>();
  readonly #giveUp = new AbortController();
  readonly #draining = new AbortController();
  #redis: RedisConnection | undefined;
  #worker: JobWorker | undefined;
  #cancellations: CancelSubscription | undefined;
  #stopping: Promise<void> | undefined;

  /** @throws {Error} If the server's URL is none. */
  constructor(options: AgentOptions) {
    this.#options = options;
    this.#client = new ServerClient(options);
    this.#shells = new Shells({
      limits: { ...defaultKeep, ...options.keep },
      client: this.#client,
      logger: options.logger,
      removeDir: (dir) => this.#cleanUp(dir),
    });
    const { host, imageBudgetBytes, logger } = options;
    this.#caches = new StagedCaches({
      host,
      onProblem: (error) => logger.warn({ err: error }, error.message),
    });
    this.#ends = new BuildEnds({ client: this.#client, caches: this.#caches, logger });
    this.#images = new ImageRoom({
      storeDir: host.imageStoreDir,
      budgetBytes: imageBudgetBytes,
      onCollected: (freedBytes, keptBytes) => logger.info({ freedBytes, keptBytes }, "made room in the image store"),
      onProblem: (error) => logger.warn({ err: error }, "cannot make room in the image store"),
    });
  }

  /**
   * Removes what a killed agent left behind, and begins to take attempts. Survives server and Redis being away.
   *
   * @throws {Error} If the data directory cannot be used, or a pool's name or the Redis URL is invalid.
   */
  async start(): Promise<void> {
    const { dataDir, redisUrl, pools, jobs, name, logger } = this.#options;
    this.#cleanUp(join(dataDir, "attempts"));
    this.#images.check();
    mkdirSync(join(dataDir, "attempts"), { recursive: true, mode: 0o700 });
    this.#redis = connectRedis(redisUrl, { name: `slipway-agent-${name}`.replaceAll(/[^\w.-]/g, "_") });
    this.#cancellations = new CancelChannel(this.#redis).subscribe(
      (attemptId, reason) => this.#running.get(attemptId)?.abort(new Error(reason)),
      (attemptId) => {
        this.#shells.wake(attemptId);
        this.#ends.wake(attemptId);
      },
    );
    this.#worker = new JobWorker(this.#redis, {
      pools,
      slots: jobs,
      handler: (attemptId) => this.#handle(attemptId),
      // Else an agent that the server does not know, or cannot be reached by, would keep attempts from those that can.
      ready: () => (this.#client.isReachable ? undefined : this.#client.reach(this.#draining.signal)),
      onError: (error) => logger.warn({ err: error }, error.message),
    });
  }

  /** The attempts it works on. */
  get running(): readonly string[] {
    return [...this.#running.keys()];
  }

  /** Takes no more attempts; resolves when the running ones are finished and reported. What is not claimed by now is given back. */
  async drain(): Promise<void> {
    this.#draining.abort();
    await this.#worker?.pause();
    await this.#shells.drain();
    await Promise.all(this.#cleanups);
  }

  /**
   * Cancels what runs, reports it (the server gives it to another agent) and disconnects. Safe to call again, and while `drain`
   * waits. When it resolves no container is left.
   */
  async stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    await this.#stopping;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #stop(): Promise<void> {
    const stopped = new Error(`agent "${this.#options.name}" was stopped`);
    this.#draining.abort();
    for (const job of this.#running.values()) job.abort(stopped);
    const timer = setTimeout(() => this.#giveUp.abort(stopped), lastReportsMs);
    await this.#worker?.close({ force: true });
    clearTimeout(timer);
    await this.#shells.close();
    await this.#ends.close();
    await this.#caches[Symbol.asyncDispose]();
    await this.#images[Symbol.asyncDispose]();
    await this.#cancellations?.[Symbol.asyncDispose]();
    await this.#redis?.[Symbol.asyncDispose]();
    await Promise.all(this.#cleanups);
    this.#client[Symbol.dispose]();
  }

  async #handle(attemptId: string): Promise<void> {
    const { name, host, registry, dataDir } = this.#options;
    const logger = this.#options.logger.child({ attempt: attemptId });
    const job = new AbortController();
    // Before the claim: a cancellation that comes in between is not missed.
    this.#running.set(attemptId, job);
    try {
      const claimedAtMs = performance.now();
      const signal = AbortSignal.any([job.signal, this.#giveUp.signal]);
      const patience = AbortSignal.any([this.#draining.signal, AbortSignal.timeout(claimPatienceMs)]);
      const claim = this.#client.claim({ attemptId, agent: name }, { signal, patience });
      const claimed = await claim.catch((error: unknown) => {
        if (error instanceof FencedError || signal.aborted) logger.info(asError(error).message);
        else if (error instanceof UnansweredError) logger.warn(`gives the attempt back: ${error.message}`);
        else throw error;
      });
      if (claimed === undefined) return;
      logger.info(
        { repository: claimed.repository.name, build: claimed.build.number, job: claimed.job.name },
        "attempt claimed",
      );
      const dir = join(dataDir, "attempts", containerName(attemptId));
      const mirrorsDir = join(dataDir, "mirrors");
      const { signal: giveUp } = this.#giveUp;
      const shells = this.#shells;
      const { untrusted = defaultUntrustedPolicy, ceiling = {} } = this.#options;
      await runAttempt(claimed, {
        client: this.#client,
        host,
        shells,
        caches: this.#caches,
        registry,
        mirrorsDir,
        untrusted,
        ceiling,
        dir,
        claimedAtMs,
        logger,
        job,
        giveUp,
      });
      if (!shells.isKept(attemptId)) this.#cleanUp(dir);
      await this.#ends.follow(claimed);
    } finally {
      this.#running.delete(attemptId);
      this.#images.check();
    }
  }

  /** The name is free at once; deleting goes on beside the next attempt. */
  #cleanUp(path: string): void {
    const { host, logger } = this.#options;
    const cleanup = host
      .removeTree(path)
      .catch((error: unknown) => logger.warn({ err: error, path }, "cannot clean up"));
    this.#cleanups.add(cleanup);
    void cleanup.finally(() => this.#cleanups.delete(cleanup));
  }
}
