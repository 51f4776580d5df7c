import type { Diagnostic, JobSpec, PipelineEvent, Status } from "../pipelines/index.ts";
import type { Trigger } from "./deliveries.ts";
import type { Store } from "./store.ts";
import { newId } from "./token.ts";

/** What is wrong with a pipeline file, for people and for programs. */
export interface Diagnostics {
  readonly formatted: string;
  readonly items: readonly Diagnostic[];
}

export interface NewBuild {
  readonly repositoryId: string;
  readonly deliverySeq: number;
  readonly trigger: Trigger;
  readonly commit: string;
  readonly title: string;
  readonly author: string;
  /** Empty where there is nothing to run: then `outcome` says why. */
  readonly jobs: readonly JobSpec[];
  readonly outcome?: { readonly status: Status; readonly reason: string };
  readonly diagnostics?: Diagnostics;
}

/** A row of `builds`, as the scheduler sees it. */
export interface BuildRow {
  readonly id: string;
  readonly repositoryId: string;
  readonly number: number;
  readonly event: string;
  readonly status: Status;
  readonly version: number;
  readonly cancelReason: string | null;
  readonly startedAtMs: number | null;
  readonly finishedAtMs: number | null;
}

/** A row of `jobs`. */
export interface JobRow {
  readonly id: number;
  readonly buildId: string;
  readonly position: number;
  readonly name: string;
  readonly spec: string;
  readonly status: Status;
}

const buildColumns = `id, repository_id AS repositoryId, number, event, status, version, cancel_reason AS cancelReason,
  started_at_ms AS startedAtMs, finished_at_ms AS finishedAtMs`;
const jobColumns = "id, build_id AS buildId, position, name, spec, status";

/**
 * Adds a build with its jobs under the repository's next number. Call it in the transaction that settles the delivery:
 * a delivery leads to a build once or not at all.
 */
export function createBuild(store: Store, build: NewBuild): { readonly id: string; readonly number: number } {
  const id = newId("b");
  const nowMs = Date.now();
  const event = pipelineEvent(build.trigger, build.commit);
  const numbered = store.get<{ number: number }>(
    "UPDATE repositories SET next_build_number = next_build_number + 1 WHERE id = ? RETURNING next_build_number - 1 AS number",
    build.repositoryId,
  );
  if (!numbered) throw new Error(`Cannot create a build: repository "${build.repositoryId}" was deleted`);
  store.run(
    `INSERT INTO builds (id, repository_id, number, delivery_seq, event, title, author, rerun_of, status, reason, diagnostics,
       created_at_ms, finished_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    id,
    build.repositoryId,
    numbered.number,
    build.deliverySeq,
    JSON.stringify(event),
    build.title,
    build.author,
    build.trigger.rerunOf ?? null,
    build.outcome?.status ?? "queued",
    build.outcome?.reason ?? null,
    build.diagnostics ? JSON.stringify(build.diagnostics) : null,
    nowMs,
    build.outcome ? nowMs : null,
  );
  for (const [position, job] of build.jobs.entries()) {
    store.run(
      "INSERT INTO jobs (build_id, position, name, spec, status) VALUES (?, ?, ?, ?, 'queued')",
      id,
      position,
      job.name,
      JSON.stringify(job),
    );
  }
  return { id, number: numbered.number };
}

export function findBuild(store: Store, id: string): BuildRow | undefined {
  return store.get<BuildRow>(`SELECT ${buildColumns} FROM builds WHERE id = ?`, id);
}

/** Lists the ids of the builds that are not finished, oldest first. */
export function unfinishedBuilds(store: Store): string[] {
  return store
    .all<{ id: string }>("SELECT id FROM builds WHERE finished_at_ms IS NULL ORDER BY seq")
    .map((row) => row.id);
}

export function buildJobs(store: Store, buildId: string): JobRow[] {
  return store.all<JobRow>(`SELECT ${jobColumns} FROM jobs WHERE build_id = ? ORDER BY position`, buildId);
}

export function findJob(store: Store, id: number): JobRow | undefined {
  return store.get<JobRow>(`SELECT ${jobColumns} FROM jobs WHERE id = ?`, id);
}

/**
 * Counts a change to a build, and to one of its jobs: followers ask for what is newer than they know.
 */
export function touch(store: Store, buildId: string, jobId?: number): void {
  store.run("UPDATE builds SET version = version + 1 WHERE id = ?", buildId);
  if (jobId !== undefined) {
    store.run("UPDATE jobs SET version = (SELECT version FROM builds WHERE id = build_id) WHERE id = ?", jobId);
  }
}

/** Ends or changes a job; times are set where they are given. */
export function setJob(
  store: Store,
  job: Pick<JobRow, "id" | "buildId">,
  change: { status: Status; reason?: string | undefined; startedAtMs?: number; finishedAtMs?: number },
): void {
  store.run(
    `UPDATE jobs SET status = ?, reason = ?, started_at_ms = coalesce(started_at_ms, ?), finished_at_ms = ? WHERE id = ?`,
    change.status,
    change.reason ?? null,
    change.startedAtMs ?? null,
    change.finishedAtMs ?? null,
    job.id,
  );
  touch(store, job.buildId, job.id);
}

function pipelineEvent(trigger: Trigger, commit: string): PipelineEvent {
  const { kind, ref, byCommit, branch, tag, pullRequest } = trigger;
  return {
    kind,
    ref,
    commit,
    ...(byCommit && { byCommit }),
    ...(branch && { branch }),
    ...(tag && { tag }),
    ...(pullRequest && { pullRequest }),
  };
}
