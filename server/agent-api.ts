import type { FastifyInstance, FastifyRequest } from "fastify";
import type { z } from "zod";
import { jobParts, type JobSpec } from "../pipelines/index.ts";
import {
  attemptTokenHeader,
  type BuildEnd,
  claimRequestSchema,
  finishReportSchema,
  type ImagePin,
  imagePinSchema,
  stepReportSchema,
  type RenewResponse,
} from "../queue/index.ts";
import type { Access } from "./access.ts";
import {
  type AttemptRow,
  claimAttempt,
  ownedAttempt,
  recognizedAttempt,
  renewAttempt,
  reportStep,
} from "./attempts.ts";
import type { BuildWatch } from "./build-watch.ts";
import { findBuild, type JobRow, findJob } from "./builds.ts";
import { HttpError } from "./http-error.ts";
import { agreeOnImage } from "./image-pins.ts";
import { LogChunkError, maxChunkBodyBytes, parseLogChunk } from "./log-chunk.ts";
import type { LogStore } from "./log-store.ts";
import type { Scheduler } from "./scheduler.ts";
import type { SecretKeys } from "./secret-keys.ts";
import type { ShellRelay } from "./shell-relay.ts";
import type { Store } from "./store.ts";

export interface AgentApiOptions {
  readonly store: Store;
  readonly logs: LogStore;
  readonly watch: BuildWatch;
  readonly scheduler: Scheduler;
  readonly access: Access;
  readonly relay: ShellRelay;
  readonly leaseMs: number;
  /** Open the secrets of jobs. */
  readonly keys: SecretKeys;
}

type AttemptRoute = { Params: { attemptId: string } };
type StepRoute = { Params: { attemptId: string; index: string } };
type LogRoute = StepRoute & { Querystring: { offset?: string } };

/** Serves the protocol of queue/protocol.ts: hello, claim, renew, steps, logs, images, the build's end, finish. */
export async function serveAgents(app: FastifyInstance, options: AgentApiOptions): Promise<void> {
  const { store, logs, watch, scheduler, access, relay, leaseMs, keys } = options;
  app.addHook("onRequest", async (request) => access.requireAgent(request));
  app.addContentTypeParser(
    "application/octet-stream",
    { parseAs: "buffer", bodyLimit: maxChunkBodyBytes },
    (_request, body, done) => done(null, body),
  );

  app.get("/api/agent/hello", async (_request, reply) => reply.code(204).send());

  app.post("/api/agent/claim", async (request) => {
    const { attemptId, agent } = parse(claimRequestSchema, request.body);
    const claimed = claimAttempt(store, attemptId, { agent, leaseMs, keys });
    watch.wake(claimed.build.id);
    return claimed;
  });

  app.post<AttemptRoute>("/api/agent/attempts/:attemptId/renew", async (request): Promise<RenewResponse> => {
    const { attemptId } = request.params;
    const canceled = renewAttempt(store, attemptId, { token: agentToken(request), leaseMs });
    const shells = relay.waiting(attemptId);
    return { canceled, leaseMs, ...(shells.length > 0 && { shells }) };
  });

  app.post<StepRoute>("/api/agent/attempts/:attemptId/steps/:index", async (request, reply) => {
    const { attempt, step } = ownedStep(store, request);
    reportStep(store, attempt, step, parse(stepReportSchema, request.body));
    watch.wake(attempt.buildId);
    return reply.code(204).send();
  });

  app.put<LogRoute>(
    "/api/agent/attempts/:attemptId/steps/:index/log",
    { bodyLimit: maxChunkBodyBytes },
    async (request, reply) => {
      const { attempt, step, job } = ownedStep(store, request);
      const key = { buildId: attempt.buildId, job: job.position, attempt: attempt.n, step };
      const { outcome, lengthBytes } = await logs.append(
        key,
        readOffset(request.query.offset),
        readChunk(request.body),
      );
      switch (outcome) {
        case "appended":
          watch.wake(attempt.buildId);
          return { offset: lengthBytes };
        case "repeat":
          return { offset: lengthBytes };
        case "mismatch":
          return reply
            .code(416)
            .send({ error: `The log has ${lengthBytes} bytes: send what comes next`, offset: lengthBytes });
        case "full":
          return reply
            .code(413)
            .send({ error: `The log is full at ${lengthBytes} bytes: send no more of it`, offset: lengthBytes });
      }
    },
  );

  app.post<AttemptRoute>("/api/agent/attempts/:attemptId/images", async (request): Promise<ImagePin> => {
    const attempt = ownedAttempt(store, request.params.attemptId, agentToken(request));
    const { name, digest } = parse(imagePinSchema, request.body);
    return { name, digest: agreeOnImage(store, attempt.buildId, { name, digest }) };
  });

  app.get<AttemptRoute>("/api/agent/attempts/:attemptId/build", async (request): Promise<BuildEnd> => {
    const { buildId } = recognizedAttempt(store, request.params.attemptId, agentToken(request));
    const build = findBuild(store, buildId);
    if (build?.finishedAtMs == null) return { ended: false };
    return { ended: true, succeeded: build.status === "success" };
  });

  app.post<AttemptRoute>("/api/agent/attempts/:attemptId/finish", async (request, reply) => {
    scheduler.finish(request.params.attemptId, agentToken(request), parse(finishReportSchema, request.body));
    return reply.code(204).send();
  });
}

/** The attempt's fencing token. @throws {HttpError} 400 */
export function agentToken(request: FastifyRequest): string {
  const value = request.headers[attemptTokenHeader];
  if (typeof value !== "string") throw new HttpError(400, `The header ${attemptTokenHeader} is missing`);
  return value;
}

function ownedStep(
  store: Store,
  request: FastifyRequest<StepRoute>,
): { attempt: AttemptRow; job: JobRow; step: number } {
  const attempt = ownedAttempt(store, request.params.attemptId, agentToken(request));
  const job = findJob(store, attempt.jobId) as JobRow;
  const parts = jobParts(JSON.parse(job.spec) as JobSpec);
  const step = /^\d{1,6}$/.test(request.params.index) ? Number(request.params.index) : -1;
  if (!(step in parts))
    throw new HttpError(
      404,
      `The job has ${parts.length} steps and services; there is none at position "${request.params.index.slice(0, 20)}"`,
    );
  return { attempt, job, step };
}

function readOffset(text: string | undefined): number {
  const offset = /^\d{1,15}$/.test(text ?? "") ? Number(text) : -1;
  if (offset < 0)
    throw new HttpError(400, "The query's \"offset\" must be the log's length in bytes before this chunk");
  return offset;
}

function readChunk(body: unknown) {
  try {
    return parseLogChunk(Buffer.isBuffer(body) ? body : Buffer.alloc(0));
  } catch (error) {
    if (error instanceof LogChunkError) throw new HttpError(400, error.message);
    throw error;
  }
}

/** Parses a JSON body at the edge. @throws {HttpError} 400 naming the field. */
export function parse<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value ?? {});
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const field = issue?.path.join(".");
  throw new HttpError(
    400,
    `Cannot read the request${field ? `: "${field}"` : ""}: ${issue?.message ?? "it is not as expected"}`,
  );
}
