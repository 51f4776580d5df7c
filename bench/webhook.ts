/**
 * From a webhook to the first step's process: server, Redis, agent and Git as in `slipway up`, mirror and image warm.
 *
 * The step itself says when it runs: the first thing its shell does is to print the time. Every build is a new commit.
 */
import { execFileSync } from "node:child_process";
import { createHmac, randomUUID } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { pino } from "pino";
import { ProcessTree } from "../cli/process-tree.ts";
import { machine, milliseconds, summarize, table } from "./stats.ts";
import { readFileSync } from "node:fs";

const pipelineFile = `
jobs:
  first:
    steps:
      - run: date +%s%N
`;

export async function benchWebhook(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-"));
  const logger = pino({ level: "silent" });
  const stop = new AbortController();
  const tree = await ProcessTree.start({
    dataDir: join(directory, "data"),
    host: "127.0.0.1",
    port: 0,
    jobs: 2,
    allow: [],
    logLevel: "error",
    log: "inherit",
    environment: process.env,
    logger,
  });
  try {
    const api = new Api(tree.url, readFileSync(join(directory, "data", "admin-token"), "utf8").trim());
    const { bare, work, git } = makeRepository(directory);
    const repository = (await api.post("/api/repositories", { name: "bench/latency", cloneUrl: bare })) as {
      webhookPath: string;
      secret: string;
    };
    const answered: number[] = [];
    const started: number[] = [];
    const warmUp = 5;
    for (let run = -warmUp; run < options.runs; run++) {
      writeFileSync(join(work, "file"), `${run}\n`);
      git("commit", "--quiet", "--all", "--message", `commit ${run}`);
      git("push", "--quiet", "origin", "main");
      const commit = git("rev-parse", "HEAD").trim();
      const body = JSON.stringify({
        ref: "refs/heads/main",
        before: "0".repeat(40),
        after: commit,
        repository: { full_name: "bench/latency", clone_url: bare, default_branch: "main" },
        head_commit: { id: commit, message: `commit ${run}` },
      });
      const sentAtMs = performance.timeOrigin + performance.now();
      const response = await api.hook(repository.webhookPath, repository.secret, body);
      const answeredMs = performance.timeOrigin + performance.now() - sentAtMs;
      if (response !== 202) throw new Error(`Cannot measure: the webhook was answered ${response}`);
      const startedAtMs = await api.firstStepStarted(commit);
      if (run < 0) continue;
      answered.push(answeredMs);
      started.push(startedAtMs - sentAtMs);
    }
    const rows = [
      { name: "webhook sent → answered 202", ...summarize(answered) },
      { name: "webhook sent → first step's process running", ...summarize(started) },
    ];
    if (options.json) {
      console.log(JSON.stringify({ benchmark: "webhook", machine: machine(), unit: "ms", results: rows }));
    } else {
      console.log(`Webhook to first step, ms. ${machine()}\n`);
      console.log(
        table(
          ["", "min", "median", "p99"],
          rows.map((row) => [row.name, ...[row.min, row.median, row.p99].map(milliseconds)]),
        ),
      );
    }
  } finally {
    stop.abort();
    await tree.drain(stop.signal);
    rmSync(directory, { recursive: true, force: true });
  }
}

function makeRepository(directory: string) {
  const bare = join(directory, "repository.git");
  const work = join(directory, "work");
  const env = { ...process.env, GIT_CONFIG_GLOBAL: "/dev/null", GIT_CONFIG_NOSYSTEM: "1" };
  const run = (...args: string[]) => execFileSync("git", args, { encoding: "utf8", env });
  run("init", "--quiet", "--bare", "--initial-branch=main", bare);
  run("init", "--quiet", "--initial-branch=main", work);
  const git = (...args: string[]) =>
    run("-C", work, "-c", "user.name=bench", "-c", "user.email=bench@example.invalid", ...args);
  writeFileSync(join(work, ".slipway.yml"), pipelineFile);
  writeFileSync(join(work, "file"), "start\n");
  git("add", "--all");
  git("remote", "add", "origin", bare);
  return { bare, work, git };
}

class Api {
  readonly #url: string;
  readonly #token: string;

  constructor(url: string, token: string) {
    this.#url = url;
    this.#token = token;
  }

  async post(path: string, body: unknown): Promise<unknown> {
    const headers = { authorization: `Bearer ${this.#token}`, "content-type": "application/json" };
    const response = await fetch(this.#url + path, { method: "POST", headers, body: JSON.stringify(body) });
    if (!response.ok) throw new Error(`Cannot post ${path}: ${response.status} ${await response.text()}`);
    return response.json();
  }

  async hook(path: string, secret: string, body: string): Promise<number> {
    const response = await fetch(new URL(path, this.#url), {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "x-github-event": "push",
        "x-github-delivery": randomUUID(),
        "x-hub-signature-256": `sha256=${createHmac("sha256", secret).update(body).digest("hex")}`,
      },
      body,
    });
    await response.arrayBuffer();
    return response.status;
  }

  /** The time that the step has printed, in milliseconds since the epoch. */
  async firstStepStarted(commit: string): Promise<number> {
    for (const deadline = Date.now() + 60_000; Date.now() < deadline; await delay(10)) {
      const { builds } = (await this.#get("/api/builds?limit=5")) as {
        builds: { id: string; status: string; event: { commit: string } }[];
      };
      const build = builds.find((one) => one.event.commit === commit);
      if (build === undefined || build.status === "queued" || build.status === "running") continue;
      if (build.status !== "success") throw new Error(`Cannot measure: build ${build.id} ended with ${build.status}`);
      const log = await fetch(`${this.#url}/api/builds/${build.id}/log?job=first&step=0`);
      return Number(BigInt((await log.text()).trim()) / 1000n) / 1000;
    }
    const seen = JSON.stringify(await this.#get("/api/builds?limit=2"));
    throw new Error(`Cannot measure: the build of ${commit} did not end within 60 s: ${seen}`);
  }

  async #get(path: string): Promise<unknown> {
    const response = await fetch(this.#url + path);
    if (!response.ok) throw new Error(`Cannot get ${path}: ${response.status}`);
    return response.json();
  }
}
