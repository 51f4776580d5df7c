import { execFileSync } from "node:child_process";
import { createHmac, randomUUID } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import {
  attemptTokenHeader,
  type ClaimedJob,
  connectRedis,
  type EmbeddedRedis,
  type FinishReport,
  JobQueue,
  type LogStream,
  startEmbeddedRedis,
  type StepReport,
} from "../../queue/index.ts";
import { type BuildView, Server, type ServerOptions } from "../../server/index.ts";

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  // oxlint-disable-next-line typescript/no-explicit-any -- what an answer holds is what the test asserts
  readonly json: any;
}

/** A directory with a Redis, and a server on both that can be stopped and started again. */
export class Harness implements AsyncDisposable {
  readonly dir: string;
  readonly redis: EmbeddedRedis;
  readonly options: Partial<ServerOptions>;
  #server: Server | undefined;

  private constructor(dir: string, redis: EmbeddedRedis, options: Partial<ServerOptions>) {
    this.dir = dir;
    this.redis = redis;
    this.options = options;
  }

  static async start(options: Partial<ServerOptions> = {}): Promise<Harness> {
    const dir = mkdtempSync(join(tmpdir(), "slipway-server-"));
    const redis = await startEmbeddedRedis({ dir: join(dir, "redis") });
    const harness = new Harness(dir, redis, options);
    await harness.startServer();
    return harness;
  }

  /** Replaced by a test that runs the server in a process of its own. */
  get server(): Pick<Server, "address" | "adminToken" | "agentToken"> {
    if (!this.#server) throw new Error("the server is stopped");
    return this.#server;
  }

  get dataDir(): string {
    return join(this.dir, "data");
  }

  async startServer(): Promise<void> {
    this.#server = await Server.start({ dataDir: this.dataDir, port: 0, redisUrl: this.redis.url, ...this.options });
  }

  async stopServer(): Promise<void> {
    await this.#server?.[Symbol.asyncDispose]();
    this.#server = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stopServer();
    await this.redis[Symbol.asyncDispose]();
    rmSync(this.dir, { recursive: true, force: true });
  }

  /** Sends a request as the administrator; `headers` with an undefined `authorization` sends none. */
  async call(
    method: string,
    path: string,
    options: { readonly body?: unknown; readonly headers?: Record<string, string | undefined> } = {},
  ): Promise<Answer> {
    const isRaw = typeof options.body === "string" || options.body instanceof Uint8Array;
    const headers = Object.entries({
      authorization: `Bearer ${this.server.adminToken}`,
      ...(options.body !== undefined && !isRaw && { "content-type": "application/json" }),
      ...options.headers,
    }).filter((entry): entry is [string, string] => entry[1] !== undefined);
    const response = await fetch(this.server.address + path, {
      method,
      headers,
      redirect: "manual",
      ...(options.body !== undefined && {
        body: (isRaw ? options.body : JSON.stringify(options.body)) as string | Uint8Array<ArrayBuffer>,
      }),
    });
    const text = await response.text();
    return { status: response.status, headers: response.headers, text, json: parse(text) };
  }

  /** Registers a new Git repository. */
  async repository(name = `owner/${randomUUID().slice(0, 8)}`): Promise<TestRepository> {
    const bare = join(this.dir, "git", `${randomUUID()}.git`);
    const work = join(this.dir, "git", randomUUID());
    mkdirSync(work, { recursive: true });
    git(this.dir, "init", "-q", "--bare", "-b", "main", bare);
    git(this.dir, "init", "-q", "-b", "main", work);
    const answer = await this.call("POST", "/api/repositories", { body: { name, cloneUrl: bare } });
    return new TestRepository(this, { bare, work, name, id: answer.json.id, secret: answer.json.secret });
  }

  async build(id: string): Promise<BuildView> {
    return (await this.call("GET", `/api/builds/${id}`)).json;
  }

  /** Waits until a build's deliveries are evaluated and returns the builds, newest first. */
  async builds(repositoryId: string): Promise<BuildView[]> {
    await until(async () => {
      const { json } = await this.call("GET", `/api/deliveries?repository=${repositoryId}`);
      return json.deliveries.every((delivery: { status: string }) => delivery.status !== "pending");
    });
    return (await this.call("GET", `/api/builds?repository=${repositoryId}`)).json.builds;
  }

  /** Waits for a build to be over. */
  async finished(id: string): Promise<BuildView> {
    await until(async () => (await this.build(id)).finishedAtMs !== undefined);
    return this.build(id);
  }

  /** Takes the next attempt out of the real queue and claims it, as an agent does. */
  async claim(pool = "default", agent = "test-agent"): Promise<TestAttempt> {
    const redis = connectRedis(this.redis.url);
    await using queue = new JobQueue(redis);
    try {
      const [attemptId] = await until(async () => {
        const ids = await queue.list(pool);
        return ids.length > 0 ? ids : undefined;
      });
      await queue.discard(pool, attemptId as string);
      const answer = await this.agentCall("POST", "/api/agent/claim", { body: { attemptId, agent } });
      if (answer.status !== 200) throw new Error(`claim answered ${answer.status}: ${answer.text}`);
      return new TestAttempt(this, answer.json);
    } finally {
      await redis.close();
    }
  }

  async agentCall(method: string, path: string, options: Parameters<Harness["call"]>[2] = {}): Promise<Answer> {
    const authorization = `Bearer ${this.server.agentToken}`;
    return this.call(method, path, { ...options, headers: { authorization, ...options.headers } });
  }
}

/** An attempt that a test plays the agent of. */
export class TestAttempt {
  readonly #harness: Harness;
  readonly claimed: ClaimedJob;

  constructor(harness: Harness, claimed: ClaimedJob) {
    this.#harness = harness;
    this.claimed = claimed;
  }

  call(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Answer> {
    const { attemptId, token } = this.claimed;
    return this.#harness.agentCall(method, `/api/agent/attempts/${attemptId}${path}`, {
      ...(body !== undefined && { body }),
      headers: { [attemptTokenHeader]: token, ...headers },
    });
  }

  step(index: number, report: StepReport): Promise<Answer> {
    return this.call("POST", `/steps/${index}`, report);
  }

  finish(report: FinishReport): Promise<Answer> {
    return this.call("POST", "/finish", report);
  }

  log(index: number, offset: number, ...records: readonly LogPart[]): Promise<Answer> {
    return this.call("PUT", `/steps/${index}/log?offset=${offset}`, logBody(records), {
      "content-type": "application/octet-stream",
    });
  }

  /** Runs every step with success and finishes. */
  async succeed(): Promise<void> {
    for (const index of this.claimed.job.steps.keys()) {
      await this.step(index, { status: "running" });
      await this.step(index, { status: "success", exitCode: 0 });
    }
    await this.finish({ status: "success" });
  }
}

export interface LogPart {
  readonly stream: LogStream;
  readonly text: string | Uint8Array;
  readonly timeMs?: number;
}

export function logBody(parts: readonly LogPart[]): Uint8Array {
  const bytes = parts.map(({ text }) => Buffer.from(text as string));
  const head = Buffer.alloc(4 + parts.length * 16);
  head.writeUInt32LE(parts.length, 0);
  for (const [i, { stream, timeMs = 1_700_000_000_000 }] of parts.entries()) {
    head.writeUInt32LE((bytes[i] as Buffer).length, 4 + i * 16);
    head.writeUInt32LE(stream, 8 + i * 16);
    head.writeDoubleLE(timeMs, 12 + i * 16);
  }
  return Buffer.concat([head, ...bytes]);
}

/** A registered repository with a clone to commit in. */
export class TestRepository {
  readonly #harness: Harness;
  readonly bare: string;
  readonly work: string;
  readonly name: string;
  readonly id: string;
  readonly secret: string;

  constructor(harness: Harness, it: { bare: string; work: string; name: string; id: string; secret: string }) {
    this.#harness = harness;
    this.bare = it.bare;
    this.work = it.work;
    this.name = it.name;
    this.id = it.id;
    this.secret = it.secret;
  }

  /** Commits files and pushes them; returns the commit. */
  commit(
    files: Readonly<Record<string, string>>,
    options: { readonly branch?: string; readonly message?: string } = {},
  ): string {
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(dirname(join(this.work, name)), { recursive: true });
      // Never through a link that an earlier test has left.
      rmSync(join(this.work, name), { recursive: true, force: true });
      writeFileSync(join(this.work, name), text);
    }
    git(this.work, "add", "--all");
    git(this.work, "commit", "-q", "--allow-empty", "-m", options.message ?? "a commit");
    git(this.work, "push", "-q", "-f", this.bare, `HEAD:refs/heads/${options.branch ?? "main"}`);
    return git(this.work, "rev-parse", "HEAD");
  }

  payload(commit: string, ref = "refs/heads/main"): Record<string, unknown> {
    return { ref, before: "0".repeat(40), after: commit, repository: { full_name: this.name, clone_url: this.bare } };
  }

  /** Sends a signed webhook. */
  hook(payload: unknown, options: HookOptions = {}): Promise<Answer> {
    return sendHook(this.#harness, payload, { path: `/hooks/${this.id}`, secret: this.secret, ...options });
  }

  /** Commits a pipeline, sends the webhook and returns the build. */
  async push(pipeline: string): Promise<BuildView> {
    await this.hook(this.payload(this.commit({ ".slipway.yml": pipeline })));
    const [build] = await this.#harness.builds(this.id);
    if (!build) throw new Error("no build was made");
    return this.#harness.build(build.id);
  }
}

export interface HookOptions {
  readonly path?: string;
  readonly secret?: string;
  readonly event?: string;
  readonly delivery?: string;
  readonly headers?: Record<string, string | undefined>;
}

export function sendHook(harness: Harness, payload: unknown, options: HookOptions): Promise<Answer> {
  const body = typeof payload === "string" ? payload : JSON.stringify(payload);
  return harness.call("POST", options.path ?? "/hooks", {
    body,
    headers: {
      authorization: undefined,
      "content-type": "application/json",
      "x-github-event": options.event ?? "push",
      "x-github-delivery": options.delivery ?? randomUUID(),
      "x-hub-signature-256": sign(body, options.secret ?? ""),
      ...options.headers,
    },
  });
}

export function sign(body: string | Uint8Array, secret: string): string {
  return `sha256=${createHmac("sha256", secret).update(body).digest("hex")}`;
}

export function git(cwd: string, ...args: readonly string[]): string {
  const env = {
    PATH: process.env["PATH"],
    HOME: cwd,
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_CONFIG_NOSYSTEM: "1",
    GIT_AUTHOR_NAME: "Ada",
    GIT_AUTHOR_EMAIL: "ada@example.com",
    GIT_COMMITTER_NAME: "Ada",
    GIT_COMMITTER_EMAIL: "ada@example.com",
  };
  return execFileSync("git", args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] })
    .toString()
    .trim();
}

/** Asks until the answer is neither false nor undefined; the test's own time limit ends a wait in vain. */
export async function until<T>(ask: () => Promise<T | false | undefined> | T | false | undefined): Promise<T> {
  for (;;) {
    const answer = await ask();
    if (answer !== false && answer !== undefined) return answer;
    await delay(10);
  }
}

export interface ServerEvent {
  readonly event: string;
  readonly id: string;
  // oxlint-disable-next-line typescript/no-explicit-any -- what an event holds is what the test asserts
  readonly data: any;
}

/** Follows an event stream as a browser does; ends with the stream or when the consumer stops. */
export async function* follow(harness: Harness, path: string, lastEventId?: string): AsyncGenerator<ServerEvent> {
  const abort = new AbortController();
  try {
    const response = await fetch(harness.server.address + path, {
      signal: abort.signal,
      headers: lastEventId === undefined ? {} : { "last-event-id": lastEventId },
    });
    if (response.status !== 200 || !response.body) throw new Error(`the stream answered ${response.status}`);
    let buffered = "";
    let id = lastEventId ?? "";
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      buffered += chunk;
      const blocks = buffered.split("\n\n");
      buffered = blocks.pop() ?? "";
      for (const block of blocks) {
        const fields = new Map(
          block.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]),
        );
        id = fields.get("id") ?? id;
        const event = fields.get("event");
        if (event !== undefined) yield { event, id, data: JSON.parse(fields.get("data") ?? "null") };
      }
    }
  } finally {
    abort.abort();
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Two jobs of one step each, the second after the first. */
export const twoJobs = `
on: { push: {} }
jobs:
  first:
    steps:
      - name: greet
        run: echo hello
  second:
    needs: [first]
    steps:
      - name: part
        run: echo bye
`;
