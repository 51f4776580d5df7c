/** `slipway demo`: the whole way of a build on one machine, with nothing left afterwards. */
import { closeSync, openSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { HostNetworks } from "../runtime/index.ts";
import type { BuildSummary } from "../server/index.ts";
import type { Api } from "./api.ts";
import { parseAllowed } from "./agent.ts";
import { networkArguments } from "./networks.ts";
import { parseArguments, parseCount, type Usage } from "./arguments.ts";
import { aborted, StopSignals } from "./signals.ts";
import { duration } from "./terminal.ts";
import { exitCodes, type Context, type Verb } from "./verb.ts";

const usage = {
  name: "demo",
  summary: "Show all of it in a few seconds, in a temporary directory",
  description: `
Starts an embedded Redis, a server and an agent, creates a Git repository with a small project, pushes to it, and follows the
build that the push starts. Exits with the build's exit code; nothing is left behind. Ctrl-C ends it early.`,
  options: {
    keep: { help: "Stay up afterwards, to open the dashboard and push to the repository" },
    port: { value: "PORT", help: "Port of the dashboard [default: any free one]" },
    allow: {
      value: "WEAKNESS",
      multiple: true,
      help: "Run although this is missing: no-cgroups (no memory, cpu and pids limits)",
    },
  },
  examples: [
    ["slipway demo", "a few seconds"],
    ["slipway demo --keep --port 7433", "until Ctrl-C, dashboard on http://127.0.0.1:7433"],
  ],
} as const satisfies Usage;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(usage, argv);
  const port = parseCount("--port", values.port ?? "0", { least: 0, most: 65_535 });
  const allow = parseAllowed(values.allow);
  using signals = new StopSignals();
  await using cleanup = new AsyncDisposableStack();
  const directory = await mkdtemp(join(tmpdir(), "slipway-demo-"));
  cleanup.defer(() => rm(directory, { recursive: true, force: true }));
  context.print(
    `${context.paint("bold", "Slipway demo")}: Redis, server, agent and a Git repository in ${directory}\n\n`,
  );
  try {
    return await new Demo({ directory, port, allow, keep: values.keep }, context, cleanup).run(signals);
  } catch (error) {
    if (!signals.drain.aborted) throw error;
    context.warn(`slipway: Demo ended early: ${(signals.drain.reason as Error).message}`);
    return exitCodes.buildFailed;
  }
}

function noop(): void {}

interface DemoOptions {
  readonly directory: string;
  readonly port: number;
  readonly allow: readonly string[];
  readonly keep: boolean;
}

class Demo {
  readonly #options: DemoOptions;
  readonly #context: Context;
  readonly #cleanup: AsyncDisposableStack;

  /** @param cleanup Gets what must be undone; disposed by the caller, whatever happens. */
  constructor(options: DemoOptions, context: Context, cleanup: AsyncDisposableStack) {
    this.#options = options;
    this.#context = context;
    this.#cleanup = cleanup;
  }

  async run(signals: StopSignals): Promise<number> {
    const { environment } = this.#context;
    const { createRepository, git, installHook } = await import("./demo-repository.ts");
    const made = createRepository(this.#options.directory, environment);
    // Git must have ended before the directory can be removed, whatever became of the rest.
    this.#cleanup.defer(() => made.then(noop, noop));
    const [tree, repository] = await Promise.all([
      this.#phase("Redis, server and agent are up", this.#startTree(signals)),
      this.#phase("a bare repository and a clone of it", made),
    ]);
    const { Api: ServerApi } = await import("./api.ts");
    const api = new ServerApi(tree.url, readFileSync(join(tree.dataDir, "admin-token"), "utf8").trim());
    const registration = { name: "hello-slipway", cloneUrl: repository.bare };
    const added = await api.request<{ webhookPath: string; secret: string }>("POST", "/api/repositories", registration);
    await installHook(repository.bare, environment, { url: `${api.url}${added.webhookPath}`, secret: added.secret });
    const push = git(repository.clone, environment, "push", "--quiet", "origin", "main");
    await this.#phase("git push; the post-receive hook has sent a signed webhook", push);
    const build = await this.#phase("the server has planned the build", this.#awaitBuild(api, signals.drain));
    this.#context.print(`\n  dashboard  ${this.#context.paint("bold", `${api.url}/builds/${build.id}`)}\n\n`);

    const [{ followBuild }, { buildExitCode, verdict }] = await Promise.all([
      import("./follow.ts"),
      import("./build.ts"),
    ]);
    const stop = AbortSignal.any([signals.drain, this.#context.outputClosed]);
    const followed = await followBuild(api, build.id, this.#context, stop);
    stop.throwIfAborted();
    if (followed === undefined) throw new Error(`Cannot follow build ${build.id}: the server sent nothing`);
    this.#context.print(`\n${followed.transcript.summary()}${verdict(followed.summary, this.#context.paint)}`);
    const code = buildExitCode(followed.summary.status);
    if (this.#options.keep) await this.#keep(api.url, tree.dataDir, repository.clone, signals);
    else
      this.#context.print(
        `\nThat was it: all of it is removed now. ${this.#context.paint("bold", "npm run demo -- --keep")} stays up.\n`,
      );
    return code;
  }

  /** Waits for a part of the work and prints what it was and how long it took. */
  async #phase<T>(what: string, work: Promise<T>): Promise<T> {
    const startedAtMs = performance.now();
    const result = await work;
    const { paint, print } = this.#context;
    print(`  ${paint("green", "✓")} ${what} ${paint("dim", duration(performance.now() - startedAtMs))}\n`);
    return result;
  }

  async #startTree(signals: StopSignals): Promise<{ readonly url: string; readonly dataDir: string }> {
    const { directory, port, allow } = this.#options;
    const [{ ProcessTree }, { createLogger }] = await Promise.all([import("./process-tree.ts"), import("./log.ts")]);
    const dataDir = join(directory, "data");
    const logPath = join(directory, "slipway.log");
    const log = openSync(logPath, "a");
    this.#cleanup.defer(() => closeSync(log));
    try {
      const tree = await ProcessTree.start({
        dataDir,
        host: "127.0.0.1",
        port,
        allow,
        agentArguments: networkArguments(await this.#chooseNetworks()),
        jobs: Math.max(2, availableParallelism()),
        log,
        logLevel: "info",
        environment: { ...this.#context.environment, SLIPWAY_LOG_FORMAT: "text" },
        logger: createLogger({ component: "demo", level: "info", write: (line) => this.#context.warn(line.trimEnd()) }),
        signal: signals.drain,
      });
      // Not drained: whatever still runs is canceled.
      this.#cleanup.defer(() => tree.drain(AbortSignal.abort()));
      return { url: tree.url, dataDir };
    } catch (error) {
      if (!signals.drain.aborted) this.#context.warn(readFileSync(logPath, "utf8").trimEnd());
      throw error;
    }
  }

  /** The demo's own steps need none; what somebody pushes to it may. */
  async #chooseNetworks(): Promise<HostNetworks> {
    const { checkNetworks } = await import("../runtime/index.ts");
    const [check] = await checkNetworks();
    if (check?.ok === true) return {};
    this.#context.print(`  steps get loopback only: networks cannot be made here (${check?.found})\n`);
    return { loopbackOnly: true };
  }

  async #awaitBuild(api: Api, signal: AbortSignal): Promise<BuildSummary> {
    for (;;) {
      signal.throwIfAborted();
      const { builds } = await api.request<{ builds: BuildSummary[] }>("GET", "/api/builds?limit=1");
      if (builds[0] !== undefined) return builds[0];
      await sleep(10, undefined, { signal });
    }
  }

  async #keep(url: string, dataDir: string, clone: string, signals: StopSignals): Promise<void> {
    const { paint, print } = this.#context;
    const token = readFileSync(join(dataDir, "admin-token"), "utf8").trim();
    const rows = [
      ["dashboard", `${url}/login?token=${token}`],
      ["push a change", `cd ${clone} && git commit --allow-empty -m "My change" && git push`],
      ["follow it here", `npx slipway build log -f --data-dir ${dataDir}`],
      ["logs of server and agent", join(dataDir, "../slipway.log")],
      ["stop, and remove all of it", "Ctrl-C"],
    ] as const;
    const width = Math.max(...rows.map(([label]) => label.length));
    print(
      `\n${paint("bold", "It stays up:")}\n${rows.map(([label, text]) => `  ${label.padEnd(width)}  ${text}\n`).join("")}`,
    );
    await aborted(signals.drain);
    print("\n");
  }
}

export const verbs: Readonly<Record<string, Verb>> = { demo: { usage, run } };
