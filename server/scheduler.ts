import type { Logger } from "pino";
import { advance, jobParts, type JobSpec, type Status } from "../pipelines/index.ts";
import {
  type AttemptRow,
  addAttempt,
  buildAttempts,
  endAttempt,
  expiredAttempts,
  extendLeases,
  findAttempt,
  finishAttempt,
  queuedAttempts,
} from "./attempts.ts";
import type { BuildWatch } from "./build-watch.ts";
import { buildJobs, findBuild, findJob, setJob, touch, unfinishedBuilds } from "./builds.ts";
import type { Dispatcher } from "./dispatcher.ts";
import type { FinishReport } from "../queue/index.ts";
import { expireKept } from "./kept.ts";
import type { LogStore } from "./log-store.ts";
import type { Store } from "./store.ts";

/** A job whose agents get lost is tried this often. */
const maxAttempts = 3;
const expiryIntervalMs = 1_000;

export interface SchedulerOptions {
  readonly store: Store;
  readonly dispatcher: Dispatcher;
  readonly watch: BuildWatch;
  readonly logs: LogStore;
  readonly leaseMs: number;
  readonly reconcileMs: number;
  readonly logger: Logger;
}

/**
 * Moves builds on: makes attempts for jobs whose needs are met, hands them to the dispatcher, notices lost agents, ends
 * builds.
 *
 * What is decided is first in the store and then in Redis. Whatever happens in between (a killed server, a Redis that is
 * away or has forgotten), reconciliation finds attempts that are queued in the store and unknown to Redis, and enqueues
 * them again under the same id.
 */
export class Scheduler implements AsyncDisposable {
  readonly #options: SchedulerOptions;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #enqueuing = new Set<string>();
  /** What Redis has not answered yet. */
  readonly #underWay = new Set<Promise<void>>();
  #reconciling = false;
  #redisIsAway = false;

  constructor(options: SchedulerOptions) {
    this.#options = options;
  }

  /** Takes up what an earlier server left, and from then on watches leases and the queue. */
  start(): void {
    const { store, leaseMs, reconcileMs } = this.#options;
    extendLeases(store, Date.now() + leaseMs);
    for (const buildId of unfinishedBuilds(store)) this.advance(buildId);
    this.#track(this.#reconcile());
    this.#timers.push(
      setInterval(() => this.#expire(), Math.min(expiryIntervalMs, leaseMs)),
      setInterval(() => this.#track(this.#reconcile()), reconcileMs),
    );
  }

  /** Starts every job of a build that can start, and ends the build if none is left. */
  advance(buildId: string): void {
    const { store, watch } = this.#options;
    const attempts = store.transaction(() => this.#decide(buildId));
    watch.wake(buildId);
    if (findBuild(store, buildId)?.finishedAtMs != null) this.#tellEnd(buildId);
    for (const attempt of attempts) this.#track(this.#enqueue(attempt));
  }

  /**
   * Ends an attempt as its agent says and moves its build on.
   *
   * @throws {FencedError} If the attempt is not this agent's.
   */
  finish(attemptId: string, token: string, report: FinishReport): void {
    const { store } = this.#options;
    const ended = store.transaction(
      () => {
        if (!finishAttempt(store, attemptId, token, report)) return undefined;
        const attempt = findAttempt(store, attemptId) as AttemptRow;
        // Canceled by nobody here: the agent was stopped. The job is not to blame.
        if (report.status === "canceled") this.#retry(attempt, report.reason ?? "the agent was stopped", "canceled");
        return attempt;
      },
      { durable: true },
    );
    if (!ended) return;
    this.advance(ended.buildId);
    this.#closeLogs(ended);
  }

  /** Cancels a build; `false` if it is over already. What runs is told to stop, and ends with its agent's answer or its lease. */
  cancel(buildId: string, reason: string): boolean {
    const { store, dispatcher } = this.#options;
    const active = store.transaction(
      () => {
        const build = findBuild(store, buildId);
        if (!build || build.finishedAtMs !== null) return undefined;
        store.run("UPDATE builds SET cancel_reason = coalesce(cancel_reason, ?) WHERE id = ?", reason, buildId);
        touch(store, buildId);
        const attempts = buildAttempts(store, buildId).filter(
          ({ status }) => status === "queued" || status === "running",
        );
        for (const attempt of attempts) {
          if (attempt.status === "queued") endAttempt(store, attempt, { status: "canceled", reason });
        }
        return attempts;
      },
      { durable: true },
    );
    if (!active) return false;
    for (const { id, pool, status } of active) {
      const told = status === "queued" ? dispatcher.remove(pool, id) : dispatcher.cancel(id, reason);
      this.#track(told.catch((error: unknown) => this.#redisFailed(error)));
    }
    this.advance(buildId);
    return true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    await Promise.all(this.#underWay);
  }

  #track(work: Promise<void>): void {
    this.#underWay.add(work);
    void work.finally(() => this.#underWay.delete(work));
  }

  /** In a transaction. Returns the attempts to hand out. */
  #decide(buildId: string): AttemptRow[] {
    const { store } = this.#options;
    const build = findBuild(store, buildId);
    if (!build || build.finishedAtMs !== null) return [];
    const nowMs = Date.now();
    const jobs = buildJobs(store, buildId);
    const hasAttempt = new Set(
      buildAttempts(store, buildId)
        .filter(isActive)
        .map((attempt) => attempt.jobId),
    );
    const statuses = new Map<string, Status>(jobs.map((job) => [job.name, job.status]));
    if (build.cancelReason !== null) {
      for (const job of jobs) {
        if (job.status !== "queued") continue;
        setJob(store, job, { status: "canceled", reason: build.cancelReason, finishedAtMs: nowMs });
        statuses.set(job.name, "canceled");
      }
    }
    const specs = jobs.map((job) => JSON.parse(job.spec) as JobSpec);
    const next = advance(specs, statuses);
    const byName = new Map(jobs.map((job) => [job.name, job]));
    for (const { name, reason } of next.skipped) {
      const job = byName.get(name);
      if (job) setJob(store, job, { status: "skipped", reason, finishedAtMs: nowMs });
    }
    if (next.finished) {
      const isCanceled = build.cancelReason !== null && [...statuses.values()].includes("canceled");
      store.run(
        "UPDATE builds SET status = ?, reason = ?, finished_at_ms = ? WHERE id = ?",
        isCanceled ? "canceled" : next.status,
        isCanceled ? build.cancelReason : null,
        nowMs,
        buildId,
      );
      touch(store, buildId);
      return [];
    }
    return next.ready.flatMap((name) => {
      const job = byName.get(name);
      return job && !hasAttempt.has(job.id) ? [addAttempt(store, job)] : [];
    });
  }

  /** Agents keep what their jobs have left for later builds until they know whether this one has succeeded. */
  #tellEnd(buildId: string): void {
    const { store, dispatcher } = this.#options;
    const leaves = new Set(
      buildJobs(store, buildId).flatMap(({ id, spec }) =>
        (JSON.parse(spec) as JobSpec).steps.some(({ containerCache }) => containerCache !== undefined) ? [id] : [],
      ),
    );
    if (leaves.size === 0) return;
    for (const { id, jobId, status } of buildAttempts(store, buildId)) {
      // Else they ask by themselves, later.
      if (leaves.has(jobId) && status === "success") this.#track(dispatcher.wake(id).catch(() => {}));
    }
  }

  async #enqueue({ pool, id }: Pick<AttemptRow, "pool" | "id">): Promise<void> {
    if (this.#enqueuing.has(id)) return;
    this.#enqueuing.add(id);
    try {
      await this.#options.dispatcher.enqueue(pool, id);
      this.#redisAnswered();
      // Canceled while it was on its way.
      if (!isActive(findAttempt(this.#options.store, id))) await this.#options.dispatcher.remove(pool, id);
    } catch (error) {
      this.#redisFailed(error);
    } finally {
      this.#enqueuing.delete(id);
    }
  }

  async #reconcile(): Promise<void> {
    if (this.#reconciling) return;
    this.#reconciling = true;
    try {
      const pools = Map.groupBy(queuedAttempts(this.#options.store), (attempt) => attempt.pool);
      for (const [pool, attempts] of pools) {
        const known = new Set(await this.#options.dispatcher.list(pool));
        this.#redisAnswered();
        for (const attempt of attempts) {
          if (!known.has(attempt.id) && !this.#redisIsAway) await this.#enqueue(attempt);
        }
      }
    } catch (error) {
      this.#redisFailed(error);
    } finally {
      this.#reconciling = false;
    }
  }

  #expire(): void {
    const { store, dispatcher, logger, leaseMs, watch } = this.#options;
    for (const buildId of expireKept(store, Date.now())) watch.wake(buildId);
    for (const attempt of expiredAttempts(store, Date.now())) {
      const lost = `agent lost: ${attempt.agent ?? "it"} did not answer for ${leaseMs / 1000} s`;
      logger.warn({ attempt: attempt.id, agent: attempt.agent, build: attempt.buildId }, lost);
      store.transaction(() => {
        const build = findBuild(store, attempt.buildId);
        const status = build?.cancelReason != null ? "canceled" : "error";
        endAttempt(store, attempt, { status, reason: lost });
        this.#retry(attempt, lost, status);
      });
      this.#track(dispatcher.remove(attempt.pool, attempt.id).catch((error: unknown) => this.#redisFailed(error)));
      this.advance(attempt.buildId);
      this.#closeLogs(attempt);
    }
  }

  /** In a transaction: lets the job wait for its next attempt, or ends it if it had enough of them or was canceled. */
  #retry(attempt: AttemptRow, reason: string, status: "error" | "canceled"): void {
    const { store } = this.#options;
    const isCanceled = findBuild(store, attempt.buildId)?.cancelReason != null;
    const job = { id: attempt.jobId, buildId: attempt.buildId };
    if (!isCanceled && attempt.n < maxAttempts) {
      const { n } = attempt;
      return setJob(store, job, { status: "queued", reason: `attempt ${n} of ${maxAttempts}: ${reason}` });
    }
    setJob(store, job, { status, reason, finishedAtMs: Date.now() });
  }

  #closeLogs(attempt: AttemptRow): void {
    const { store, logs, logger } = this.#options;
    const job = findJob(store, attempt.jobId);
    if (!job) return;
    const parts = jobParts(JSON.parse(job.spec) as JobSpec);
    const keys = parts.map((_, step) => ({ buildId: attempt.buildId, job: job.position, attempt: attempt.n, step }));
    const failed = (error: unknown) => logger.error({ err: error, attempt: attempt.id }, "cannot close its logs");
    this.#track(logs.close(keys).catch(failed));
  }

  #redisFailed(error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    if (!this.#redisIsAway) this.#options.logger.warn({ reason }, "Redis is away: builds are accepted and wait");
    this.#redisIsAway = true;
  }

  #redisAnswered(): void {
    if (this.#redisIsAway) this.#options.logger.info("Redis is back");
    this.#redisIsAway = false;
  }
}

function isActive(attempt: AttemptRow | undefined): boolean {
  return attempt?.status === "queued" || attempt?.status === "running";
}
