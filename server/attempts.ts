import { timingSafeEqual } from "node:crypto";
import type { BuildInfo, ClaimedJob, FinishReport, StepReport } from "../queue/index.ts";
import type { JobSpec, PipelineEvent, Status } from "../pipelines/index.ts";
import { findBuild, findJob, setJob, touch } from "./builds.ts";
import { claimSecrets } from "./claim-secrets.ts";
import { parseCloneUrl } from "./clone-url.ts";
import { imagePins } from "./image-pins.ts";
import { findRepository } from "./repositories.ts";
import type { SecretKeys } from "./secret-keys.ts";
import type { Store } from "./store.ts";
import { isUntrusted } from "./trust.ts";
import { hashToken, newId, newToken } from "./token.ts";

/** A row of `attempts`. */
export interface AttemptRow {
  readonly id: string;
  readonly buildId: string;
  readonly jobId: number;
  readonly ordinal: number;
  readonly n: number;
  readonly pool: string;
  readonly status: Status;
  readonly agent: string | null;
  readonly tokenHash: Uint8Array | null;
}

/** Somebody else owns the job now, or nobody does: the agent stops. Answered as 409. */
export class FencedError extends Error {
  override readonly name = "FencedError";
}

const columns = "id, build_id AS buildId, job_id AS jobId, ordinal, n, pool, status, agent, token_hash AS tokenHash";

/** Adds the next attempt at a job, waiting for an agent. */
export function addAttempt(
  store: Store,
  job: { readonly id: number; readonly buildId: string; readonly spec: string },
): AttemptRow {
  const id = newId("a");
  const { pool } = JSON.parse(job.spec) as JobSpec;
  store.run(
    `INSERT INTO attempts (id, build_id, job_id, ordinal, n, pool, status, created_at_ms)
     SELECT ?1, ?2, ?3, (SELECT count(*) FROM attempts WHERE build_id = ?2), (SELECT count(*) + 1 FROM attempts WHERE job_id = ?3),
       ?4, 'queued', ?5`,
    id,
    job.buildId,
    job.id,
    pool,
    Date.now(),
  );
  touch(store, job.buildId, job.id);
  return findAttempt(store, id) as AttemptRow;
}

export function findAttempt(store: Store, id: string): AttemptRow | undefined {
  return store.get<AttemptRow>(`SELECT ${columns} FROM attempts WHERE id = ?`, id);
}

/** Lists the attempts of a build, in the order they were made. */
export function buildAttempts(store: Store, buildId: string): AttemptRow[] {
  return store.all<AttemptRow>(`SELECT ${columns} FROM attempts WHERE build_id = ? ORDER BY ordinal`, buildId);
}

/** Lists the attempts that wait for an agent, oldest first. */
export function queuedAttempts(store: Store): AttemptRow[] {
  return store.all<AttemptRow>(`SELECT ${columns} FROM attempts WHERE status = 'queued' ORDER BY created_at_ms`);
}

/** Lists the running attempts whose agent has not answered for a whole lease. */
export function expiredAttempts(store: Store, nowMs: number): AttemptRow[] {
  return store.all<AttemptRow>(
    `SELECT ${columns} FROM attempts WHERE status = 'running' AND lease_until_ms < ?`,
    nowMs,
  );
}

/** Gives every running attempt a whole lease: while the server was away no agent could renew. */
export function extendLeases(store: Store, untilMs: number): void {
  store.run("UPDATE attempts SET lease_until_ms = ? WHERE status = 'running'", untilMs);
}

/** Ends an attempt from the server's side; its token is worthless from now on. */
export function endAttempt(store: Store, attempt: AttemptRow, outcome: { status: Status; reason: string }): void {
  endSteps(store, attempt.id, outcome.status, outcome.reason);
  store.run(
    "UPDATE attempts SET status = ?, reason = ?, token_hash = NULL, lease_until_ms = NULL, finished_at_ms = ? WHERE id = ?",
    outcome.status,
    outcome.reason,
    Date.now(),
    attempt.id,
  );
  touch(store, attempt.buildId, attempt.jobId);
}

/**
 * Gives a waiting attempt to an agent: the lease begins, the fencing token is made.
 *
 * @throws {FencedError} If it does not wait any more.
 */
export function claimAttempt(
  store: Store,
  id: string,
  options: { readonly agent: string; readonly leaseMs: number; readonly keys: SecretKeys },
): ClaimedJob {
  return store.transaction(() => {
    const attempt = findAttempt(store, id);
    if (attempt?.status !== "queued") throw new FencedError(fenceText(id, attempt));
    const job = findJob(store, attempt.jobId);
    const build = findBuild(store, attempt.buildId);
    const repository = build && findRepository(store, build.repositoryId);
    if (!job || !build || !repository) throw new FencedError(fenceText(id, undefined));
    const token = newToken();
    const nowMs = Date.now();
    store.run(
      "UPDATE attempts SET status = 'running', agent = ?, token_hash = ?, lease_until_ms = ?, started_at_ms = ? WHERE id = ?",
      options.agent,
      hashToken(token),
      nowMs + options.leaseMs,
      nowMs,
      id,
    );
    store.run(
      "UPDATE builds SET status = 'running', started_at_ms = coalesce(started_at_ms, ?) WHERE id = ?",
      nowMs,
      attempt.buildId,
    );
    setJob(store, job, { status: "running", startedAtMs: nowMs });
    const event = JSON.parse(build.event) as PipelineEvent;
    const { kind, ...where } = event;
    const info: BuildInfo = {
      id: build.id,
      number: build.number,
      event: kind,
      ...where,
      ...(isUntrusted(event) && { untrusted: true }),
    };
    const spec = JSON.parse(job.spec) as JobSpec;
    return {
      attemptId: id,
      token,
      leaseMs: options.leaseMs,
      ...claimSecrets(store, options.keys, { job: spec, event, repository }),
      job: spec,
      build: info,
      repository: { id: repository.id, name: repository.name, cloneUrl: repository.cloneUrl },
      maskedValues: parseCloneUrl(repository.cloneUrl).secrets,
      images: imagePins(store, build.id),
    };
  });
}

/**
 * Finds a running attempt by its id and fencing token.
 *
 * @throws {FencedError} If it is not running or the token is another's.
 */
export function ownedAttempt(store: Store, id: string, token: string): AttemptRow {
  const attempt = findAttempt(store, id);
  if (attempt?.status !== "running" || !isOwner(attempt, token)) throw new FencedError(fenceText(id, attempt));
  return attempt;
}

/**
 * Finds an attempt that an agent has claimed by its id and fencing token, also when the agent has reported its end.
 *
 * @throws {FencedError} If the token is another's, or the server has ended the attempt.
 */
export function recognizedAttempt(store: Store, id: string, token: string): AttemptRow {
  const attempt = findAttempt(store, id);
  if (!attempt || !isOwner(attempt, token)) throw new FencedError(fenceText(id, attempt));
  return attempt;
}

/** Renews the lease; tells whether the build was canceled. */
export function renewAttempt(
  store: Store,
  id: string,
  options: { readonly token: string; readonly leaseMs: number },
): boolean {
  const attempt = ownedAttempt(store, id, options.token);
  store.run("UPDATE attempts SET lease_until_ms = ? WHERE id = ?", Date.now() + options.leaseMs, id);
  return findBuild(store, attempt.buildId)?.cancelReason != null;
}

/** Records what an agent says about a step or a service. Late and repeated reports change nothing once the step has ended. */
export function reportStep(store: Store, attempt: AttemptRow, position: number, report: StepReport): void {
  const isOver = report.status !== "running";
  store.transaction(() => {
    store.run(
      `INSERT INTO steps (attempt_id, position, status, reason, exit_code, signal, allowed_failure, usage, refused,
         image_digest, started_at_ms, finished_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT DO UPDATE SET status = excluded.status, reason = excluded.reason, exit_code = excluded.exit_code,
         signal = excluded.signal, allowed_failure = excluded.allowed_failure, usage = excluded.usage,
         refused = excluded.refused, image_digest = excluded.image_digest,
         started_at_ms = coalesce(excluded.started_at_ms, started_at_ms), finished_at_ms = excluded.finished_at_ms
       WHERE status = 'running'`,
      attempt.id,
      position,
      report.status,
      report.reason ?? null,
      report.exitCode ?? null,
      report.signal ?? null,
      report.allowedFailure ? 1 : 0,
      report.usage ? JSON.stringify(report.usage) : null,
      report.refused ? JSON.stringify(report.refused) : null,
      report.imageDigest ?? null,
      report.startedAtMs ?? (isOver ? null : Date.now()),
      isOver ? (report.finishedAtMs ?? Date.now()) : null,
    );
    touch(store, attempt.buildId, attempt.jobId);
  });
}

/**
 * Ends an attempt as its agent says; the same report again is accepted and changes nothing.
 *
 * @returns Whether this call ended it.
 * @throws {FencedError} If the attempt is not this agent's.
 */
export function finishAttempt(store: Store, id: string, token: string, report: FinishReport): boolean {
  return store.transaction(
    () => {
      const attempt = findAttempt(store, id);
      if (attempt && attempt.status === report.status && isOwner(attempt, token)) return false;
      const { jobId, buildId } = ownedAttempt(store, id, token);
      const nowMs = Date.now();
      endSteps(store, id, report.status === "success" ? "error" : report.status, "the agent did not say how it ended");
      store.run(
        "UPDATE attempts SET status = ?, reason = ?, lease_until_ms = NULL, finished_at_ms = ? WHERE id = ?",
        report.status,
        report.reason ?? null,
        nowMs,
        id,
      );
      setJob(store, { id: jobId, buildId }, { status: report.status, reason: report.reason, finishedAtMs: nowMs });
      return true;
    },
    { durable: true },
  );
}

function endSteps(store: Store, attemptId: string, status: Status, reason: string): void {
  store.run(
    "UPDATE steps SET status = ?, reason = ?, finished_at_ms = ? WHERE attempt_id = ? AND status = 'running'",
    status,
    reason,
    Date.now(),
    attemptId,
  );
}

function isOwner(attempt: AttemptRow, token: string): boolean {
  return attempt.tokenHash !== null && timingSafeEqual(attempt.tokenHash, hashToken(token));
}

function fenceText(id: string, attempt: AttemptRow | undefined): string {
  const shown = id.slice(0, 40);
  if (!attempt) return `There is no attempt "${shown}"`;
  if (attempt.status === "queued") return `Attempt "${shown}" is not claimed`;
  if (attempt.status === "running") return `Attempt "${shown}" belongs to another agent`;
  return `Attempt "${shown}" has ended (${attempt.status})`;
}
