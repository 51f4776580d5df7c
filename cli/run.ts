/** `slipway run`: this checkout's pipeline on this machine, with the planner and the job executor of server and agent. */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import {
  formatDiagnostic,
  parsePipeline,
  planBuild,
  type JobSpec,
  type Pipeline,
  type PipelineEvent,
} from "../pipelines/index.ts";
import { parseAllowed } from "./agent.ts";
import { parseArguments, parseChoice, parseCount, UsageError, type Usage, type Values } from "./arguments.ts";
import { didYouMean } from "./did-you-mean.ts";
import { limitOptions, parseLimits } from "./limits.ts";
import { openHost } from "./local-host.ts";
import { networkOptions, parseNetworks } from "./networks.ts";
import { findPipelineFile } from "./pipeline-file.ts";
import { findRegistrySettings, imageStoreDir, registriesOption } from "./registries.ts";
import { findSecrets, secretOptions } from "./local-secrets.ts";
import { StopSignals } from "./signals.ts";
import { dataDirOption, exitCodes, findDataDir, type Context, type Verb } from "./verb.ts";

const usage = {
  name: "run",
  summary: "Run this checkout's pipeline here: no server, no Redis",
  description: `
Every step runs in its own fresh container, as on an agent. Jobs see the working tree as it is, uncommitted changes and
all, copy-on-write: nothing they do changes it. Without --event every job runs; with it, the pipeline's "on" decides as it
would on the server.

The first Ctrl-C cancels the jobs and cleans up, the second stops at once.`,
  options: {
    job: { value: "NAME", multiple: true, help: "Run only this job, without those it needs; may be repeated" },
    event: { value: "EVENT", help: "Run what this event would: push, tag or pull_request" },
    branch: { value: "NAME", help: "The branch (or with --event tag, the tag) [default: the one checked out]" },
    jobs: { short: "j", value: "N", help: "Jobs to run at the same time [default: one per core]" },
    "shell-on-failure": { help: "Open a shell in the step that fails, as it is then; its job goes on when it ends" },
    file: { short: "f", value: "FILE", help: "The pipeline file [default: the nearest .slipway.yml]" },
    allow: {
      value: "WEAKNESS",
      multiple: true,
      help: "Run although this is missing: no-cgroups (no memory, cpu and pids limits)",
    },
    explain: {
      help: "Run nothing: print what each step's container would be, as JSON with an OCI config.json for each",
    },
    ...secretOptions,
    ...networkOptions,
    ...limitOptions,
    registries: registriesOption,
    "data-dir": dataDirOption,
  },
  examples: [
    ["slipway run", "all jobs, side by side where they do not need each other"],
    ["slipway run --job test --job lint", "two of them"],
    ["slipway run --job test --shell-on-failure", "and have a look at the step that fails"],
    ["slipway run --event tag --branch v1.2.0", "what pushing this tag would run"],
    ["slipway run --job test --explain | jq '.[0].config'", "the configuration of the first step's container"],
  ],
} as const satisfies Usage;

type RunValues = Values<typeof usage.options>;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values } = parseArguments(usage, argv);
  const jobsAtOnce = parseCount("--jobs", values.jobs ?? String(availableParallelism()), { least: 1, most: 1000 });
  const allow = parseAllowed(values.allow);
  const networks = parseNetworks(values, context);
  const limits = parseLimits(values, context);
  const secrets = findSecrets(values, context);
  const file = values.file ?? findPipelineFile(context.directory);
  const pipeline = readPipeline(file, context);
  if (pipeline === undefined) return exitCodes.buildFailed;
  const root = dirname(resolve(context.directory, file));
  const event = await describeEvent(root, values);
  const plan = planBuild(pipeline, event);
  if (!plan.matched) {
    context.warn(`slipway: Nothing to run: ${plan.reason}`);
    return exitCodes.success;
  }
  const jobs = selectJobs(plan.jobs, values.job);
  using signals = new StopSignals();
  // Only now: what needs the kernel is heavy, and a mistake in the pipeline should be told before.
  const [{ LocalBuild }, { wantsNetwork }, { RegistryClient }] = await Promise.all([
    import("./local-build.ts"),
    import("../agent/index.ts"),
    import("../runtime/index.ts"),
  ]);
  using registry = new RegistryClient(await findRegistrySettings(values, context));
  const directory = join(findDataDir(values, context), "run");
  await using host = await openHost(directory, {
    imageStoreDir: imageStoreDir(values, context),
    allow,
    networks,
    ceiling: limits.together,
  });
  // Meanwhile images are looked up; a step that gets none says why.
  if (!values.explain && jobs.some(wantsNetwork)) void host.openNetworks().catch(() => {});
  const cancel = AbortSignal.any([signals.drain, context.outputClosed]);
  signals.stop.addEventListener("abort", () => process.exit(exitCodes.buildFailed));
  const build = new LocalBuild({
    host,
    registry,
    root,
    event,
    jobs,
    jobsAtOnce,
    ceiling: limits.each,
    secrets,
    shellOnFailure: values["shell-on-failure"],
    signal: cancel,
    context,
  });
  return await (values.explain ? build.explain() : build.run());
}

/** Prints the problems; undefined if one is an error. */
function readPipeline(file: string, context: Context): Pipeline | undefined {
  let source: Uint8Array;
  try {
    source = readFileSync(resolve(context.directory, file));
  } catch (error) {
    throw new Error(`Cannot read pipeline ${JSON.stringify(file)}: ${(error as Error).message}`, { cause: error });
  }
  const { pipeline, diagnostics } = parsePipeline(source, { file });
  for (const diagnostic of diagnostics)
    context.warn(`${formatDiagnostic(diagnostic, { color: context.errorColours })}\n`);
  return pipeline;
}

async function describeEvent(root: string, values: RunValues): Promise<PipelineEvent> {
  const kind =
    values.event === undefined ? "manual" : parseChoice("--event", values.event, ["push", "tag", "pull_request"]);
  if (kind === "tag" && values.branch === undefined)
    throw new UsageError("--event tag needs the tag's name: --branch NAME");
  const ask = async (...args: readonly string[]) => {
    try {
      return (await promisify(execFile)("git", ["-C", root, ...args])).stdout.trim();
    } catch {
      // No Git, no repository, or no commit in it yet: the working tree can be built all the same.
      return "";
    }
  };
  const [head, current] = await Promise.all([ask("log", "-1", "--format=%H%n%B"), ask("branch", "--show-current")]);
  const [hash = "", message] = head.split(/\n(.*)/s);
  const commit = hash === "" ? "0".repeat(40) : hash;
  const said = message === undefined ? {} : { message };
  const branch = values.branch ?? (current === "" ? "main" : current);
  switch (kind) {
    case "tag":
      return { kind, ref: `refs/tags/${branch}`, commit, tag: branch };
    case "pull_request":
      return { kind, ref: "refs/pull/1/head", commit, branch, pullRequest: { number: 1, fromFork: false }, ...said };
    case "push":
    case "manual":
      return { kind, ref: `refs/heads/${branch}`, commit, branch, ...said };
  }
}

/** The named jobs alone: what they need from others is taken as met. */
function selectJobs(jobs: readonly JobSpec[], names: readonly string[]): readonly JobSpec[] {
  if (names.length === 0) return jobs;
  const all = jobs.map(({ name }) => name);
  for (const name of names) {
    if (!all.includes(name))
      throw new UsageError(
        `There is no job ${JSON.stringify(name)}${didYouMean(name, all)}; there are ${all.join(", ")}`,
      );
  }
  const selected = jobs.filter(({ name }) => names.includes(name));
  return selected.map((job) => ({ ...job, needs: job.needs.filter((need) => names.includes(need)) }));
}

export const verbs: Readonly<Record<string, Verb>> = { run: { usage, run } };
