import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { keptReportSchema, logRecordBytes } from "../queue/index.ts";
import type { Access } from "./access.ts";
import { agentToken, parse } from "./agent-api.ts";
import { buildOf, logKey } from "./api.ts";
import { type AttemptRow, recognizedAttempt } from "./attempts.ts";
import type { BuildWatch } from "./build-watch.ts";
import { HttpError } from "./http-error.ts";
import { discardKept, isKept, reportKept } from "./kept.ts";
import type { LogKey, LogStore } from "./log-store.ts";
import type { ShellEvent, ShellRelay, ShellTarget } from "./shell-relay.ts";
import type { Store } from "./store.ts";
import type { BuildView } from "./view.ts";
import type { WebSockets } from "./web-sockets.ts";

export interface ShellApiOptions {
  readonly store: Store;
  readonly watch: BuildWatch;
  readonly access: Access;
  readonly relay: ShellRelay;
  readonly sockets: WebSockets;
  readonly leaseMs: number;
  /** Has the agent of an attempt ask the server about it. */
  readonly wake: (attemptId: string) => void;
}

type ById = { Params: { id: string } };

const shellSchema = z.object({
  job: z.string().min(1),
  step: z.string().min(1),
  attempt: z.coerce.number().int().positive().optional(),
});
const discardSchema = shellSchema.partial();

/** Serves shells and kept steps, to people and to agents. */
export async function serveShells(app: FastifyInstance, options: ShellApiOptions): Promise<void> {
  const { store, watch, access, relay, sockets, leaseMs, wake } = options;
  // A GET that changes something: reading may be free, this is not.
  const asAdmin = { onRequest: async (request: FastifyRequest) => access.requireAdmin(request) };
  const asAgent = { onRequest: async (request: FastifyRequest) => access.requireAgent(request) };

  app.get<ById>("/api/builds/:id/shell", asAdmin, async (request, reply) => {
    const build = buildOf(store, request.params.id);
    const target = targetOf(store, build, logKey(build, parse(shellSchema, request.query)));
    const session = relay.begin(target);
    try {
      session.connect(await sockets.accept(request, reply), request.ip);
    } catch (error) {
      session.end(undefined);
      throw error;
    }
  });

  app.post<ById>("/api/builds/:id/discard", asAdmin, async (request) => {
    const build = buildOf(store, request.params.id);
    const { job, step, attempt } = parse(discardSchema, request.body);
    if ((job === undefined) !== (step === undefined))
      throw new HttpError(400, 'Give both "job" and "step", or neither');
    const key = job === undefined || step === undefined ? undefined : logKey(build, { job, step, attempt });
    const which = key && { attemptId: attemptOf(store, key).id, step: key.step };
    const attempts = discardKept(store, build.id, which);
    if (attempts.length === 0) throw new HttpError(409, `Nothing is kept of ${which ? "this step" : "this build"}`);
    for (const id of attempts) wake(id);
    watch.wake(build.id);
    return buildOf(store, build.id);
  });

  app.post<{ Params: { attemptId: string } }>("/api/agent/attempts/:attemptId/kept", asAgent, async (request) => {
    const { attemptId: id } = request.params;
    const report = { ...parse(keptReportSchema, request.body), leaseMs };
    const { discard, changedBuildId } = reportKept(store, { id, token: agentToken(request) }, report);
    if (changedBuildId !== undefined) watch.wake(changedBuildId);
    return { leaseMs, shells: relay.waiting(id), discard };
  });

  app.get<{ Params: { session: string } }>("/api/agent/shells/:session", asAgent, async (request, reply) => {
    const session = relay.find(request.params.session);
    recognizedAttempt(store, session.target.attemptId, agentToken(request));
    session.join(await sockets.accept(request, reply));
  });
}

/** Finds the attempt that a log's key names. */
function attemptOf(store: Store, { buildId, job, attempt }: LogKey): Pick<AttemptRow, "id" | "agent" | "status"> {
  const row = store.get<Pick<AttemptRow, "id" | "agent" | "status">>(
    `SELECT a.id, a.agent, a.status FROM attempts a JOIN jobs j ON j.id = a.job_id
     WHERE a.build_id = ? AND j.position = ? AND a.n = ?`,
    buildId,
    job,
    attempt,
  );
  if (!row) throw new HttpError(409, "The job has not begun: no agent has it yet");
  return row;
}

/** @throws {HttpError} 409 if there is nothing to be entered, naming what there is. */
function targetOf(store: Store, build: BuildView, key: LogKey): ShellTarget {
  const { id: attemptId, agent, status } = attemptOf(store, key);
  const row = store.get<{ status: string }>(
    "SELECT status FROM steps WHERE attempt_id = ? AND position = ?",
    attemptId,
    key.step,
  );
  const isRunning = status === "running" && row?.status === "running";
  if (isRunning || isKept(store, attemptId, key.step)) {
    return { buildId: build.id, attemptId, step: key.step, agent: agent ?? "unknown" };
  }
  const state = row === undefined ? "has not begun" : `is over (${row.status}) and not kept`;
  const open = build.jobs.flatMap(({ name, attempts }) =>
    [...(attempts.at(-1)?.steps ?? []), ...(attempts.at(-1)?.services ?? [])]
      .filter((step) => step.status === "running" || step.kept !== undefined)
      .map((step) => `${name}/${step.name} (${step.kept ? "kept" : "running"})`),
  );
  const others = open.length === 0 ? "" : `; a shell can be opened in ${open.slice(0, 10).join(", ")}`;
  throw new HttpError(409, `Step ${key.step} of job "${build.jobs[key.job]?.name ?? ""}" ${state}${others}`);
}

/**
 * Writes a session into the log of a step that has ended; that of one that runs is its agent's to write.
 *
 * @returns What was written, if anything was.
 */
export async function noteSession(
  { store, logs }: { readonly store: Store; readonly logs: LogStore },
  { buildId, attemptId, step }: ShellTarget,
  event: { readonly by: string } & ShellEvent,
): Promise<void> {
  const row = store.get<{ job: number; attempt: number; status: string }>(
    "SELECT j.position AS job, a.n AS attempt, a.status FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.id = ?",
    attemptId,
  );
  if (!row || row.status === "running") return;
  const what = event.kind === "opened" ? "opened" : `closed after ${Math.round(event.durationMs / 1000)} s`;
  const bytes = Buffer.from(`shell ${what} by ${event.by}\n`);
  const index = Buffer.alloc(logRecordBytes);
  index.writeUInt32LE(bytes.length, 0);
  index.writeDoubleLE(Date.now(), 8);
  const key = { buildId, job: row.job, attempt: row.attempt, step };
  // Another session's note may come first.
  for (let outcome = "mismatch"; outcome === "mismatch"; ) {
    ({ outcome } = await logs.append(key, await logs.lengthBytes(key), { bytes, index }));
  }
}
