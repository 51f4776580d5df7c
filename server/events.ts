import type { FastifyReply } from "fastify";
import type { ServerResponse } from "node:http";
import { jobParts, type JobSpec } from "../pipelines/index.ts";
import { buildAttempts } from "./attempts.ts";
import type { BuildWatch } from "./build-watch.ts";
import { buildJobs } from "./builds.ts";
import { LogCursor } from "./log-cursor.ts";
import { decodeRecords } from "./log-chunk.ts";
import type { LogKey, LogReader, LogStore } from "./log-store.ts";
import type { Store } from "./store.ts";
import { viewBuild, viewJobs, viewSummary } from "./view.ts";

const heartbeatMs = 15_000;
/** Of log text in one event. */
const maxEventBytes = 64 << 10;

export interface EventOptions {
  readonly store: Store;
  readonly logs: LogStore;
  readonly watch: BuildWatch;
  /** What the client had when its connection broke. */
  readonly lastEventId: string | undefined;
  /** The position of the one job whose logs are wanted, or "none". @default all jobs */
  readonly job?: number | "none" | undefined;
  /** Of a longer log only the last so many bytes are sent. @default everything */
  readonly tailBytes?: number | undefined;
}

/** One log that is being followed. */
interface Followed {
  readonly job: number;
  readonly attempt: number;
  readonly ordinal: number;
  readonly step: number;
  reader: LogReader | undefined;
}

/**
 * Sends a build as server-sent events until it is over or the client is gone.
 *
 * `snapshot` is the whole build; then `job` and `build` say what changed, `log` carries output, `end` closes. Every event's
 * id says how much of each log the client has, so a client that reconnects (to whichever server process) gets what it
 * lacks, once. Nothing is kept for a client but the positions: what it is too slow to take waits in the files.
 */
export async function streamBuild(reply: FastifyReply, buildId: string, options: EventOptions): Promise<void> {
  reply.hijack();
  const client = new EventClient(reply.raw);
  await using follower = new BuildFollower(buildId, options);
  client.open(reply.getHeaders() as Record<string, string>);
  while (!client.gone) {
    // Asked for before looking: a change while we look wakes us at once.
    const wait = options.watch.next(buildId, heartbeatMs);
    const outcome = await follower.pass(client);
    if (outcome === "more" || outcome === "end" || client.gone) wait.stop();
    if (outcome === "end") break;
    if (outcome === "more") continue;
    await Promise.race([wait.changed, client.closed]);
    wait.stop();
    if (!client.gone) await client.comment("ping");
  }
  client.end();
}

/** Tells whether a client that shows this id has all of a build that is over: then it need not connect again. */
export function hasAll(buildId: string, { store, lastEventId, job: wanted }: EventOptions): boolean {
  const cursor = LogCursor.parse(lastEventId);
  const build = viewSummary(store, buildId);
  if (build?.finishedAtMs === undefined || build.version !== cursor.version) return false;
  const jobs = buildJobs(store, buildId).filter(({ position }) => wanted === undefined || wanted === position);
  const jobIds = new Set(jobs.map(({ id }) => id));
  return buildAttempts(store, buildId).every(({ jobId, ordinal }) => !jobIds.has(jobId) || cursor.isDone(ordinal));
}

/** Finds out what a client lacks and sends it, a bounded amount at a time. */
class BuildFollower implements AsyncDisposable {
  readonly #buildId: string;
  readonly #options: EventOptions;
  readonly #cursor: LogCursor;
  #version = 0;
  #isFresh: boolean;
  #followed: Followed[] = [];
  #known = 0;

  constructor(buildId: string, options: EventOptions) {
    this.#buildId = buildId;
    this.#options = options;
    this.#cursor = LogCursor.parse(options.lastEventId);
    this.#isFresh = this.#cursor.version === 0;
  }

  /** Sends what is there; `more` if there may be more, `end` if the build is over and the client has all of it. */
  async pass(client: EventClient): Promise<"more" | "idle" | "end"> {
    const { store } = this.#options;
    const build = viewSummary(store, this.#buildId);
    if (!build) return "end";
    const since = this.#cursor.version;
    if (build.version !== this.#version) {
      this.#version = build.version;
      this.#cursor.version = build.version;
      await this.#follow();
      if (this.#isFresh) await client.send("snapshot", viewBuild(store, this.#buildId), this.#cursor.id());
      else if (build.version !== since) {
        for (const job of viewJobs(store, this.#buildId, since)) await client.send("job", job);
        await client.send("build", build, this.#cursor.id());
      }
      this.#isFresh = false;
    }
    const sent = await this.#sendLogs(client);
    if (sent || client.gone) return "more";
    if (build.finishedAtMs === undefined || viewSummary(store, this.#buildId)?.version !== this.#version) return "idle";
    await client.send("end", { status: build.status }, this.#cursor.id());
    return "end";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { reader } of this.#followed) await reader?.[Symbol.asyncDispose]();
  }

  /** Takes up attempts that are new since the last time. */
  async #follow(): Promise<void> {
    const { store } = this.#options;
    const attempts = buildAttempts(store, this.#buildId);
    if (attempts.length === this.#known) return;
    const jobs = new Map(buildJobs(store, this.#buildId).map((job) => [job.id, job]));
    for (const attempt of attempts.slice(this.#known)) {
      const job = jobs.get(attempt.jobId);
      const { job: wanted } = this.#options;
      if (!job || (wanted !== undefined && wanted !== job.position)) continue;
      for (const step of jobParts(JSON.parse(job.spec) as JobSpec).keys()) {
        if (this.#cursor.isDone(attempt.ordinal)) continue;
        this.#followed.push({
          job: job.position,
          attempt: attempt.n,
          ordinal: attempt.ordinal,
          step,
          reader: undefined,
        });
      }
    }
    this.#known = attempts.length;
  }

  /** One event per log at most, so that no job waits for another's flood. */
  async #sendLogs(client: EventClient): Promise<boolean> {
    // Before reading: of an attempt that is over now, the end we find is its end.
    const running = new Set<number>();
    const queued = new Set<number>();
    for (const { ordinal, status } of buildAttempts(this.#options.store, this.#buildId)) {
      if (status === "running") running.add(ordinal);
      if (status === "queued") queued.add(ordinal);
    }
    let sent = false;
    const unfinished = new Set<number>(running);
    const done = new Set<Followed>();
    for (const log of this.#followed) {
      if (client.gone) return false;
      if (queued.has(log.ordinal)) continue;
      const isOver = !running.has(log.ordinal);
      if (await this.#sendLog(client, log, isOver)) {
        sent = true;
        unfinished.add(log.ordinal);
      } else if (isOver) {
        done.add(log);
      }
    }
    for (const log of done) await log.reader?.[Symbol.asyncDispose]();
    this.#followed = this.#followed.filter((log) => !done.has(log));
    for (const { ordinal } of done) if (!unfinished.has(ordinal)) this.#cursor.done(ordinal);
    return sent;
  }

  async #sendLog(client: EventClient, log: Followed, isOver: boolean): Promise<boolean> {
    const { job, attempt, ordinal, step } = log;
    const key = { buildId: this.#buildId, job, attempt, step };
    log.reader ??= await this.#options.logs.reader(key, await this.#start(log, key));
    const offset = log.reader?.offset ?? 0;
    const piece = await log.reader?.peek(maxEventBytes);
    if (!log.reader || !piece) return false;
    const isLast = isOver && (await this.#options.logs.lengthBytes(key)) <= offset + piece.bytes.length;
    const { text, records, usedBytes } = decodeRecords(piece.bytes, piece.records, isLast);
    if (usedBytes === 0) return false;
    await log.reader.advance(usedBytes);
    this.#cursor.set(ordinal, step, offset + usedBytes);
    await client.send("log", { job, step, attempt, offset, bytes: usedBytes, records, text }, this.#cursor.id());
    return true;
  }

  /** Where to begin: behind what the client has, or so far from the end as it wants. */
  async #start({ ordinal, step }: Followed, key: LogKey): Promise<number> {
    const had = this.#cursor.offset(ordinal, step);
    const { tailBytes, logs } = this.#options;
    if (had > 0 || tailBytes === undefined) return had;
    return Math.max(0, (await logs.lengthBytes(key)) - tailBytes);
  }
}

/** The writing end of one event stream; waits for the client instead of buffering for it. */
class EventClient {
  readonly #response: ServerResponse;
  readonly closed: Promise<void>;
  gone = false;

  constructor(response: ServerResponse) {
    this.#response = response;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    response.once("close", () => {
      this.gone = true;
      resolve();
    });
    response.on("error", () => {});
  }

  open(headers: Readonly<Record<string, string>>): void {
    this.#response.writeHead(200, {
      ...headers,
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-store",
      // Else nginx would collect events before it hands them on.
      "x-accel-buffering": "no",
    });
    this.#response.write("retry: 1000\n\n");
  }

  async send(event: string, data: unknown, id?: string): Promise<void> {
    // JSON has no raw line feeds, so the data is one line whatever a log holds.
    await this.#write(`event: ${event}\n${id === undefined ? "" : `id: ${id}\n`}data: ${JSON.stringify(data)}\n\n`);
  }

  async comment(text: string): Promise<void> {
    await this.#write(`: ${text}\n\n`);
  }

  end(): void {
    if (!this.gone) this.#response.end();
  }

  async #write(text: string): Promise<void> {
    if (this.gone || this.#response.write(text)) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#response.once("drain", resolve);
    await Promise.race([promise, this.closed]);
    this.#response.off("drain", resolve);
  }
}
