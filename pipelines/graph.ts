/** The one place that knows when a job is ready, when it is skipped and when a build is finished. */
import type { JobSpec, Status } from "./pipeline.ts";

export interface Advance {
  /**
   * Queued jobs whose needs have all succeeded, in the order given. A job stays here until its status is another one:
   * whoever starts jobs must not start one twice.
   */
  readonly ready: readonly string[];
  /** Queued jobs that can no longer run, each after those it needs: record them as skipped. */
  readonly skipped: readonly { readonly name: string; readonly reason: string }[];
  /** Of the build, with `skipped` already counted in. */
  readonly status: Status;
  /** Nothing runs and nothing can be started any more. */
  readonly finished: boolean;
}

/**
 * Tells what follows from the statuses of a build's jobs. Pure: the same answer for the same statuses, so it may be asked
 * again after a crash.
 *
 * A job without a status is queued. A job is skipped once a job it needs has failed, errored, was canceled or skipped.
 * The build is `queued` until a job has started, `running` while any job runs or can still run, and then the worst of its
 * jobs: `error`, else `failure`, else `canceled`, else `success`; `skipped` only if every job was skipped.
 */
export function advance(
  jobs: readonly Pick<JobSpec, "name" | "needs">[],
  statuses: ReadonlyMap<string, Status>,
): Advance {
  const skipped = findSkipped(jobs, statuses);
  const statusOf = (name: string): Status => (skipped.has(name) ? "skipped" : (statuses.get(name) ?? "queued"));
  const ready = jobs
    .filter((job) => statusOf(job.name) === "queued" && job.needs.every((need) => statusOf(need) === "success"))
    .map((job) => job.name);
  const all = jobs.map((job) => statusOf(job.name));
  const finished = !all.some((status) => status === "queued" || status === "running");
  return {
    ready,
    skipped: [...skipped].map(([name, reason]) => ({ name, reason })),
    status: finished ? finalStatus(all) : all.every((status) => status === "queued") ? "queued" : "running",
    finished,
  };
}

/** Spreads from every job that did not succeed to the queued jobs that need it. */
function findSkipped(
  jobs: readonly Pick<JobSpec, "name" | "needs">[],
  statuses: ReadonlyMap<string, Status>,
): Map<string, string> {
  const dependents = new Map<string, string[]>();
  for (const job of jobs) {
    for (const need of job.needs) {
      const list = dependents.get(need);
      if (list === undefined) dependents.set(need, [job.name]);
      else list.push(job.name);
    }
  }
  const skipped = new Map<string, string>();
  const lost = jobs.map((job) => job.name).filter((name) => isLost(statuses.get(name)));
  // Grows while it is walked: a skipped job makes those that need it skipped.
  for (const name of lost) {
    for (const dependent of dependents.get(name) ?? []) {
      if (skipped.has(dependent) || (statuses.get(dependent) ?? "queued") !== "queued") continue;
      skipped.set(dependent, explain(name, skipped.has(name) ? "skipped" : statuses.get(name)));
      lost.push(dependent);
    }
  }
  return skipped;
}

function isLost(status: Status | undefined): boolean {
  return status === "failure" || status === "error" || status === "canceled" || status === "skipped";
}

function explain(need: string, status: Status | undefined): string {
  const what = status === "failure" ? "failed" : status === "error" ? "ended with an error" : `was ${status}`;
  return `it needs ${JSON.stringify(need)}, which ${what}`;
}

/** What broke in our machinery outranks what broke in the user's, because nothing else in the build can be trusted then. */
function finalStatus(all: readonly Status[]): Status {
  for (const status of ["error", "failure", "canceled"] as const) {
    if (all.includes(status)) return status;
  }
  return all.length > 0 && all.every((status) => status === "skipped") ? "skipped" : "success";
}
