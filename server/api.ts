import { createReadStream } from "node:fs";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import type { Access } from "./access.ts";
import { parse } from "./agent-api.ts";
import type { BuildWatch } from "./build-watch.ts";
import { findBuild } from "./builds.ts";
import { CloneUrlError, redactUrl } from "./clone-url.ts";
import { type Trigger, deliveryBuilds, findDelivery, listDeliveries, storeDelivery } from "./deliveries.ts";
import { hasAll, streamBuild } from "./events.ts";
import { HttpError } from "./http-error.ts";
import type { Inbox } from "./inbox.ts";
import type { LogKey, LogStore } from "./log-store.ts";
import { isRefName } from "./mirror.ts";
import type { Planner } from "./planner.ts";
import {
  NameTakenError,
  type Repository,
  addRepository,
  findRepository,
  listRepositories,
  removeRepository,
} from "./repositories.ts";
import type { Scheduler } from "./scheduler.ts";
import type { Store } from "./store.ts";
import { newId } from "./token.ts";
import { type BuildView, listBuilds, viewBuild } from "./view.ts";

export interface ApiOptions {
  readonly store: Store;
  readonly inbox: Inbox;
  readonly scheduler: Scheduler;
  readonly planner: Planner;
  readonly logs: LogStore;
  readonly watch: BuildWatch;
  readonly access: Access;
}

/** How long an API call waits for its build to be planned; the fetch itself has its own limit. */
const planWaitMs = 45_000;

type ById = { Params: { id: string } };

/** Serves what dashboard, command line and programs use; docs/api.md describes it. */
export async function serveApi(app: FastifyInstance, options: ApiOptions): Promise<void> {
  const { access } = options;
  app.addHook("onRequest", async (request) => {
    if (request.method === "GET" || request.method === "HEAD") access.requireReader(request);
    else access.requireAdmin(request);
  });
  serveRepositories(app, options);
  serveBuilds(app, options);
  serveFollowing(app, options);
}

const nameCharacters = /^[^\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]*$/u;
const newRepositorySchema = z.strictObject({
  name: z.string().trim().min(1).max(300).regex(nameCharacters, "must hold no control or invisible characters"),
  cloneUrl: z.string().min(1).max(2000),
  secret: z.string().min(8).max(200).optional(),
});

function serveRepositories(app: FastifyInstance, { store, planner, scheduler, logs }: ApiOptions): void {
  app.get("/api/repositories", async () => ({ repositories: listRepositories(store).map(showRepository) }));

  app.get<ById>("/api/repositories/:id", async (request) => showRepository(repositoryOf(store, request.params.id)));

  app.post("/api/repositories", async (request, reply) => {
    try {
      const repository = addRepository(store, parse(newRepositorySchema, request.body));
      return reply.code(201).send({ ...showRepository(repository), secret: repository.secret });
    } catch (error) {
      if (error instanceof CloneUrlError) throw new HttpError(400, error.message);
      if (error instanceof NameTakenError) throw new HttpError(409, error.message);
      throw error;
    }
  });

  app.delete<ById>("/api/repositories/:id", async (request, reply) => {
    const { id } = repositoryOf(store, request.params.id);
    const builds = store.all<{ id: string }>("SELECT id FROM builds WHERE repository_id = ?", id);
    for (const build of builds) scheduler.cancel(build.id, "the repository was deleted");
    removeRepository(store, id);
    await planner.forget(id);
    for (const build of builds) await logs.remove(build.id);
    return reply.code(204).send();
  });

  app.get<{ Params: { id: string; number: string } }>("/api/repositories/:id/builds/:number", async (request) => {
    const { id, number } = request.params;
    const row = store.get<{ id: string }>(
      "SELECT id FROM builds WHERE repository_id = ? AND number = ?",
      id,
      Number(number) || 0,
    );
    if (!row) throw new HttpError(404, `The repository has no build ${number.slice(0, 20)}`);
    return viewBuild(store, row.id);
  });

  const deliveriesSchema = z.object({ repository: z.string().optional(), limit: limitSchema });
  app.get("/api/deliveries", async (request) => {
    const { repository, limit } = parse(deliveriesSchema, request.query);
    const deliveries = listDeliveries(store, { limit, repositoryId: repository });
    return {
      deliveries: deliveries.map(({ seq, ...delivery }) => ({ ...delivery, builds: deliveryBuilds(store, seq) })),
    };
  });
}

const limitSchema = z.coerce.number().int().min(1).max(200).default(50);
const listSchema = z.object({ repository: z.string().optional(), before: z.string().optional(), limit: limitSchema });
const cancelSchema = z.object({ reason: z.string().trim().min(1).max(500).optional() });
const manualSchema = z
  .strictObject({
    repositoryId: z.string(),
    ref: z.string().min(1).max(1000).optional(),
    commit: z
      .string()
      .regex(/^(?:[0-9a-f]{40}|[0-9a-f]{64})$/, "must be all 40 or 64 hexadecimal digits of a commit")
      .optional(),
  })
  .refine((body) => body.ref ?? body.commit, { error: 'give "ref" or "commit" (or both)' });

function serveBuilds(app: FastifyInstance, options: ApiOptions): void {
  const { store, scheduler } = options;
  app.get("/api/builds", async (request) => {
    const { repository, before, limit } = parse(listSchema, request.query);
    return { builds: listBuilds(store, { limit, repositoryId: repository, before }) };
  });

  app.get<ById>("/api/builds/:id", async (request) => buildOf(store, request.params.id));

  app.post<ById>("/api/builds/:id/cancel", async (request) => {
    const build = buildOf(store, request.params.id);
    const { reason = "canceled by hand" } = parse(cancelSchema, request.body);
    if (!scheduler.cancel(build.id, reason))
      throw new HttpError(409, `Build ${build.number} is over (${build.status})`);
    return buildOf(store, build.id);
  });

  app.post<ById>("/api/builds/:id/rerun", async (request, reply) => {
    const build = buildOf(store, request.params.id);
    const { commit, byCommit, kind, ref, branch, tag, pullRequest } = build.event;
    const trigger: Trigger = {
      kind,
      ref,
      commit,
      rerunOf: build.id,
      ...(byCommit && { byCommit }),
      ...(branch && { branch }),
      ...(tag && { tag }),
      ...(pullRequest && { pullRequest }),
      ...(build.title && { title: build.title }),
      ...(build.author && { author: build.author }),
    };
    return startByHand(reply, options, { repositoryId: build.repository.id, event: "rerun", trigger });
  });

  app.post("/api/builds", async (request, reply) => {
    const { repositoryId, ref, commit } = parse(manualSchema, request.body);
    repositoryOf(store, repositoryId);
    return startByHand(reply, options, { repositoryId, event: "manual", trigger: manualTrigger(ref, commit) });
  });
}

function manualTrigger(given: string | undefined, commit: string | undefined): Trigger {
  const ref =
    given === undefined ? "HEAD" : given.startsWith("refs/") || given === "HEAD" ? given : `refs/heads/${given}`;
  if (!isRefName(ref))
    throw new HttpError(400, `"${given?.slice(0, 100)}" is not a name git allows for a branch or a ref`);
  return {
    kind: "manual",
    ref,
    ...(commit && { commit, byCommit: true as const }),
    ...(ref.startsWith("refs/heads/") && { branch: ref.slice("refs/heads/".length) }),
    ...(ref.startsWith("refs/tags/") && { tag: ref.slice("refs/tags/".length) }),
  };
}

/** A build asked for here is a delivery like any other: stored first, then evaluated. */
async function startByHand(
  reply: FastifyReply,
  { store, inbox }: ApiOptions,
  given: { readonly repositoryId: string; readonly event: string; readonly trigger: Trigger },
): Promise<unknown> {
  const { delivery } = storeDelivery(store, {
    repositoryId: given.repositoryId,
    forge: "slipway",
    forgeDeliveryId: `slipway:${newId("d")}`,
    event: given.event,
    headers: {},
    body: new Uint8Array(0),
    outcome: { trigger: given.trigger },
  });
  inbox.wake(given.repositoryId);
  await inbox.settled(delivery.id, planWaitMs);
  const settled = findDelivery(store, delivery.id);
  const [buildId] = deliveryBuilds(store, delivery.seq);
  if (buildId !== undefined) return reply.code(201).send(viewBuild(store, buildId));
  if (settled?.status === "pending") return reply.code(202).send({ delivery: delivery.id, status: "pending" });
  throw new HttpError(422, `No build was started: ${settled?.reason ?? "the repository was deleted"}`, {
    delivery: delivery.id,
  });
}

const logSchema = z.object({
  job: z.string().min(1),
  step: z.string().min(1),
  attempt: z.coerce.number().int().positive().optional(),
  offset: z.coerce.number().int().nonnegative().default(0),
  limit: z.coerce.number().int().positive().optional(),
});

const eventsSchema = z.object({
  job: z.union([z.literal("none"), z.coerce.number().int().nonnegative()]).optional(),
  tail: z.coerce.number().int().nonnegative().optional(),
});

function serveFollowing(app: FastifyInstance, { store, logs, watch }: ApiOptions): void {
  app.get<ById>("/api/builds/:id/log", async (request, reply) => {
    const query = parse(logSchema, request.query);
    const key = logKey(buildOf(store, request.params.id), query);
    const lengthBytes = await logs.lengthBytes(key);
    const end = Math.min(lengthBytes, query.offset + (query.limit ?? lengthBytes));
    void reply
      .header("content-type", "text/plain; charset=utf-8")
      // A log is a stranger's text: nothing in it may ever run with our origin.
      .header("content-security-policy", "sandbox; default-src 'none'")
      .header("slipway-log-bytes", lengthBytes);
    if (end <= query.offset) return reply.send("");
    return reply.send(createReadStream(logs.path(key), { start: query.offset, end: end - 1 }));
  });

  app.get<ById>("/api/builds/:id/events", async (request, reply) => {
    const { id } = buildOf(store, request.params.id);
    const { job, tail: tailBytes } = parse(eventsSchema, request.query);
    const events = { store, logs, watch, lastEventId: lastEventIdOf(request), job, tailBytes };
    // 204 is the one answer that keeps an EventSource from connecting again.
    if (hasAll(id, events)) return reply.code(204).send();
    return streamBuild(reply, id, events);
  });
}

function lastEventIdOf(request: FastifyRequest): string | undefined {
  const header = request.headers["last-event-id"];
  return typeof header === "string" ? header : undefined;
}

/** Finds the log that names or positions of a job and a step mean. @throws {HttpError} 404 */
export function logKey(
  build: BuildView,
  query: { readonly job: string; readonly step: string; readonly attempt?: number | undefined },
): LogKey {
  const job =
    build.jobs.find(({ name }) => name === query.job) ??
    build.jobs.find(({ position }) => String(position) === query.job);
  if (!job) throw new HttpError(404, `Build ${build.number} has no job "${query.job.slice(0, 100)}"`);
  const names = [...job.stepNames, ...job.serviceNames];
  const named = names.indexOf(query.step);
  const step = named >= 0 ? named : names.findIndex((_, position) => String(position) === query.step);
  if (step < 0) throw new HttpError(404, `Job "${job.name}" has no step or service "${query.step.slice(0, 100)}"`);
  return { buildId: build.id, job: job.position, attempt: query.attempt ?? Math.max(1, job.attempts.length), step };
}

function repositoryOf(store: Store, id: string): Repository {
  const repository = findRepository(store, id);
  if (!repository) throw new HttpError(404, `There is no repository "${id.slice(0, 40)}"`);
  return repository;
}

/** @throws {HttpError} 404 */
export function buildOf(store: Store, id: string): BuildView {
  const build = findBuild(store, id) && viewBuild(store, id);
  if (!build) throw new HttpError(404, `There is no build "${id.slice(0, 40)}"`);
  return build;
}

function showRepository({ id, name, cloneUrl, createdAtMs }: Repository) {
  return { id, name, cloneUrl: redactUrl(cloneUrl), webhookPath: `/hooks/${id}`, createdAtMs };
}
