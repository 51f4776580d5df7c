/** What agents keep of failed steps, as they say it; the agents are the ones who know. */
import type { KeptReport } from "../queue/index.ts";
import { recognizedAttempt } from "./attempts.ts";
import { touch } from "./builds.ts";
import type { Store } from "./store.ts";

interface KeptRow {
  readonly attemptId: string;
  readonly position: number;
  readonly untilMs: number;
  readonly bytes: number | null;
  readonly discarded: number;
}

const columns = "attempt_id AS attemptId, position, until_ms AS untilMs, bytes, discarded";

/**
 * Takes down what the agent of an attempt keeps; nothing else of it is kept from now on.
 *
 * @returns The steps that are to be discarded, and the build if something changed for who looks at it.
 * @throws {FencedError} If the attempt is not this agent's.
 */
export function reportKept(
  store: Store,
  attempt: { readonly id: string; readonly token: string },
  report: KeptReport & { readonly leaseMs: number },
): { readonly discard: readonly number[]; readonly changedBuildId: string | undefined } {
  return store.transaction(() => {
    const { id, buildId, jobId } = recognizedAttempt(store, attempt.id, attempt.token);
    const before = new Map(keptOf(store, id).map((row) => [row.position, row]));
    let hasChanged = report.steps.length !== before.size;
    const leaseUntilMs = Date.now() + report.leaseMs;
    for (const { step, untilMs, bytes = null } of report.steps) {
      const row = before.get(step);
      before.delete(step);
      hasChanged ||= row === undefined || row.untilMs !== untilMs || row.bytes !== bytes;
      store.run(
        `INSERT INTO kept (attempt_id, position, until_ms, bytes, lease_until_ms) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET until_ms = excluded.until_ms, bytes = excluded.bytes, lease_until_ms = excluded.lease_until_ms`,
        id,
        step,
        untilMs,
        bytes,
        leaseUntilMs,
      );
    }
    for (const position of before.keys()) {
      store.run("DELETE FROM kept WHERE attempt_id = ? AND position = ?", id, position);
    }
    if (hasChanged) touch(store, buildId, jobId);
    const discard = keptOf(store, id).flatMap((row) => (row.discarded === 1 ? [row.position] : []));
    return { discard, changedBuildId: hasChanged ? buildId : undefined };
  });
}

function keptOf(store: Store, attemptId: string): KeptRow[] {
  return store.all<KeptRow>(`SELECT ${columns} FROM kept WHERE attempt_id = ?`, attemptId);
}

/** Tells whether a step can still be entered. */
export function isKept(store: Store, attemptId: string, step: number): boolean {
  return keptOf(store, attemptId).some((row) => row.position === step && row.discarded === 0);
}

/**
 * Marks what is kept of a build, or of one step of it, as not wanted any more; it is no longer shown, and the agents remove it
 * when they hear of it.
 *
 * @returns The attempts whose agents are to be told.
 */
export function discardKept(
  store: Store,
  buildId: string,
  which?: { readonly attemptId: string; readonly step: number },
): string[] {
  return store.transaction(() => {
    const rows = store
      .all<KeptRow & { readonly jobId: number }>(
        `SELECT ${columns}, job_id AS jobId FROM kept k JOIN attempts a ON a.id = k.attempt_id
         WHERE a.build_id = ? AND discarded = 0`,
        buildId,
      )
      .filter((row) => which === undefined || (row.attemptId === which.attemptId && row.position === which.step));
    for (const { attemptId, position, jobId } of rows) {
      store.run("UPDATE kept SET discarded = 1 WHERE attempt_id = ? AND position = ?", attemptId, position);
      touch(store, buildId, jobId);
    }
    return [...new Set(rows.map(({ attemptId }) => attemptId))];
  });
}

/** Forgets what agents have not confirmed for a whole lease: they are gone, and what they kept with them. */
export function expireKept(store: Store, nowMs: number): string[] {
  const expired = store.all<{ attemptId: string; buildId: string; jobId: number }>(
    `SELECT DISTINCT attempt_id AS attemptId, build_id AS buildId, job_id AS jobId FROM kept k JOIN attempts a
     ON a.id = k.attempt_id WHERE k.lease_until_ms < ?`,
    nowMs,
  );
  if (expired.length === 0) return [];
  store.transaction(() => {
    store.run("DELETE FROM kept WHERE lease_until_ms < ?", nowMs);
    for (const { buildId, jobId } of expired) touch(store, buildId, jobId);
  });
  return [...new Set(expired.map(({ buildId }) => buildId))];
}
