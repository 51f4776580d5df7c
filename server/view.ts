import type { Refused, Usage } from "../queue/index.ts";
import type { JobSpec, PipelineEvent, Status } from "../pipelines/index.ts";
import type { Diagnostics } from "./builds.ts";
import type { Store } from "./store.ts";
import { isUntrusted } from "./trust.ts";

/** A build as the API shows it in lists. Times are milliseconds since the epoch; absent fields are not known (yet). */
export interface BuildSummary {
  readonly id: string;
  readonly number: number;
  readonly repository: { readonly id: string; readonly name: string };
  readonly status: Status;
  readonly reason?: string;
  readonly event: PipelineEvent;
  /** Its commit may be a stranger's: it has fewer rights and smaller limits. */
  readonly untrusted?: true;
  readonly title?: string;
  readonly author?: string;
  readonly rerunOf?: string;
  readonly cancelReason?: string;
  /** Grows with every change. */
  readonly version: number;
  readonly createdAtMs: number;
  readonly startedAtMs?: number;
  readonly finishedAtMs?: number;
}

/** A build as the API shows it alone. */
export interface BuildView extends BuildSummary {
  readonly diagnostics?: Diagnostics;
  readonly jobs: readonly JobView[];
}

export interface JobView {
  readonly position: number;
  readonly name: string;
  readonly needs: readonly string[];
  readonly pool: string;
  readonly status: Status;
  readonly reason?: string;
  readonly startedAtMs?: number;
  readonly finishedAtMs?: number;
  /** Names, in order, before any attempt exists. */
  readonly stepNames: readonly string[];
  /** Of the services beside them, likewise. */
  readonly serviceNames: readonly string[];
  /** The last one counts. */
  readonly attempts: readonly AttemptView[];
}

export interface AttemptView {
  readonly n: number;
  readonly status: Status;
  readonly reason?: string;
  readonly agent?: string;
  readonly createdAtMs: number;
  readonly startedAtMs?: number;
  readonly finishedAtMs?: number;
  readonly steps: readonly StepView[];
  readonly services: readonly StepView[];
}

/** A step, or a service. */
export interface StepView {
  /** In the job; those of services follow those of steps. */
  readonly position: number;
  readonly name: string;
  readonly status: Status;
  readonly reason?: string;
  readonly exitCode?: number;
  readonly signal?: string;
  readonly allowedFailure?: boolean;
  readonly usage?: Usage;
  /** What its network has refused. */
  readonly refused?: Refused;
  /** Of the image that it has built. */
  readonly imageDigest?: string;
  readonly startedAtMs?: number;
  readonly finishedAtMs?: number;
  /** Its root file system is kept by the agent for a shell: until when, and what it takes there. */
  readonly kept?: { readonly untilMs: number; readonly bytes?: number };
}

type Row<T> = { [K in keyof T]-?: undefined extends T[K] ? Exclude<T[K], undefined> | null : T[K] };
type SummaryRow = Row<Omit<BuildSummary, "repository" | "event" | "untrusted">> & {
  seq: number;
  repositoryId: string;
  repositoryName: string;
  event: string;
};
type JobRow = Row<Omit<JobView, "needs" | "pool" | "stepNames" | "serviceNames" | "attempts">> & {
  id: number;
  spec: string;
};
type AttemptRow = Row<Omit<AttemptView, "steps" | "services">> & { id: string; jobId: number };
type StepRow = Row<Omit<StepView, "name" | "usage" | "refused" | "allowedFailure" | "kept">> & {
  attemptId: string;
  usage: string | null;
  refused: string | null;
  allowedFailure: number;
  keptUntilMs: number | null;
  keptBytes: number | null;
};

const summary = `SELECT b.seq, b.id, b.number, b.repository_id AS repositoryId, r.name AS repositoryName, b.status, b.reason,
  b.event, b.title, b.author, b.rerun_of AS rerunOf, b.cancel_reason AS cancelReason, b.version,
  b.created_at_ms AS createdAtMs, b.started_at_ms AS startedAtMs, b.finished_at_ms AS finishedAtMs
  FROM builds b JOIN repositories r ON r.id = b.repository_id`;

/** Lists builds, newest first; `before` is the id of the last one of the page before. */
export function listBuilds(
  store: Store,
  options: { readonly limit: number; readonly repositoryId?: string | undefined; readonly before?: string | undefined },
): BuildSummary[] {
  const repositoryId = options.repositoryId ?? null;
  const before = options.before ?? null;
  const rows = store.all<SummaryRow>(
    `${summary} WHERE (?1 IS NULL OR b.repository_id = ?1)
       AND (?2 IS NULL OR b.seq < (SELECT seq FROM builds WHERE id = ?2)) ORDER BY b.seq DESC LIMIT ?3`,
    repositoryId,
    before,
    options.limit,
  );
  return rows.map(toSummary);
}

/** Shows a build without its jobs. */
export function viewSummary(store: Store, id: string): BuildSummary | undefined {
  const row = store.get<SummaryRow>(`${summary} WHERE b.id = ?`, id);
  return row && toSummary(row);
}

/** Shows a build with its jobs, attempts and steps. */
export function viewBuild(store: Store, id: string): BuildView | undefined {
  const build = viewSummary(store, id);
  if (!build) return undefined;
  const row = store.get<{ diagnostics: string | null }>("SELECT diagnostics FROM builds WHERE id = ?", id);
  return {
    ...build,
    ...(row?.diagnostics && { diagnostics: JSON.parse(row.diagnostics) as Diagnostics }),
    jobs: viewJobs(store, id),
  };
}

/** Shows the jobs of a build that changed after `sinceVersion`. */
export function viewJobs(store: Store, buildId: string, sinceVersion = 0): JobView[] {
  const jobs = store.all<JobRow>(
    `SELECT id, position, name, spec, status, reason, started_at_ms AS startedAtMs, finished_at_ms AS finishedAtMs
     FROM jobs WHERE build_id = ? AND version > ? ORDER BY position`,
    buildId,
    sinceVersion,
  );
  if (jobs.length === 0) return [];
  const attempts = store.all<AttemptRow>(
    `SELECT a.id, a.job_id AS jobId, a.n, a.status, a.reason, a.agent, a.created_at_ms AS createdAtMs,
       a.started_at_ms AS startedAtMs, a.finished_at_ms AS finishedAtMs
     FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.build_id = ? AND j.version > ? ORDER BY a.n`,
    buildId,
    sinceVersion,
  );
  const steps = store.all<StepRow>(
    `SELECT s.attempt_id AS attemptId, s.position, s.status, s.reason, s.exit_code AS exitCode, s.signal,
       s.allowed_failure AS allowedFailure, s.usage, s.refused, s.image_digest AS imageDigest, s.started_at_ms AS startedAtMs,
       s.finished_at_ms AS finishedAtMs, k.until_ms AS keptUntilMs, k.bytes AS keptBytes
     FROM steps s JOIN attempts a ON a.id = s.attempt_id JOIN jobs j ON j.id = a.job_id
     LEFT JOIN kept k ON k.attempt_id = s.attempt_id AND k.position = s.position AND k.discarded = 0
     WHERE a.build_id = ? AND j.version > ?`,
    buildId,
    sinceVersion,
  );
  const attemptsOf = Map.groupBy(attempts, (attempt) => attempt.jobId);
  const stepsOf = Map.groupBy(steps, (step) => step.attemptId);
  return jobs.map(({ id, spec: json, ...job }) => {
    const spec = JSON.parse(json) as JobSpec;
    return {
      ...known(job),
      needs: spec.needs,
      pool: spec.pool,
      stepNames: spec.steps.map((step) => step.name),
      serviceNames: (spec.services ?? []).map((service) => service.name),
      attempts: (attemptsOf.get(id) ?? []).map((attempt) => toAttempt(attempt, stepsOf.get(attempt.id) ?? [], spec)),
    };
  });
}

function toSummary({ seq: _seq, repositoryId, repositoryName, event, ...row }: SummaryRow): BuildSummary {
  const parsed = JSON.parse(event) as PipelineEvent;
  return {
    ...known(row),
    repository: { id: repositoryId, name: repositoryName },
    event: parsed,
    ...(isUntrusted(parsed) && { untrusted: true }),
  };
}

/** A step nobody has reported yet has no row. */
function toAttempt(
  { id: _id, jobId: _jobId, ...attempt }: AttemptRow,
  steps: readonly StepRow[],
  spec: JobSpec,
): AttemptView {
  const isOver = attempt.finishedAtMs !== null;
  const view = (name: string, position: number): StepView => {
    const step = steps.find((row) => row.position === position);
    if (!step) return { position, name, status: isOver ? "skipped" : "queued" };
    const { attemptId: _attemptId, usage, refused, allowedFailure, keptUntilMs, keptBytes, ...row } = step;
    return {
      ...known(row),
      name,
      ...(allowedFailure === 1 && { allowedFailure: true }),
      ...(usage && { usage: JSON.parse(usage) as Usage }),
      ...(refused && { refused: JSON.parse(refused) as Refused }),
      ...(keptUntilMs !== null && { kept: { untilMs: keptUntilMs, ...(keptBytes !== null && { bytes: keptBytes }) } }),
    };
  };
  return {
    ...known(attempt),
    steps: spec.steps.map(({ name }, position) => view(name, position)),
    services: (spec.services ?? []).map(({ name }, i) => view(name, spec.steps.length + i)),
  };
}

type Known<T> = { [K in keyof T as null extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as null extends T[K] ? K : never]?: Exclude<T[K], null>;
};

/** Leaves out what is NULL (or an empty text) in a row. */
function known<T extends object>(row: T): Known<T> {
  return Object.fromEntries(Object.entries(row).filter(([, value]) => value !== null && value !== "")) as Known<T>;
}
