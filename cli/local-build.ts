/** Runs one build in this process: no server, no Redis. */
import { basename } from "node:path";
import {
  buildVariables,
  executeJob,
  explainJob,
  type GivenSecrets,
  type JobOptions,
  type JobResult,
  sharedPins,
  StagedCaches,
  type StepCeiling,
  type StepResult,
} from "../agent/index.ts";
import { advance, type JobSpec, type PipelineEvent, type Status } from "../pipelines/index.ts";
import type { Host, RegistryClient } from "../runtime/index.ts";
import { HeldOutput } from "./held-output.ts";
import { LocalShells } from "./local-shell.ts";
import { duration, plain } from "./terminal.ts";
import { Transcript, type Outcome } from "./transcript.ts";
import { exitCodes, type Context } from "./verb.ts";

export interface LocalBuildOptions {
  readonly host: Host;
  readonly registry: RegistryClient;
  readonly root: string;
  readonly event: PipelineEvent;
  readonly jobs: readonly JobSpec[];
  readonly jobsAtOnce: number;
  /** The most that each step gets. */
  readonly ceiling: StepCeiling;
  readonly secrets: GivenSecrets;
  /** A person looks at the step that fails before its job goes on. */
  readonly shellOnFailure: boolean;
  /** Canceling. */
  readonly signal: AbortSignal;
  readonly context: Context;
}

/** One build in this process: the planner's jobs, run by the agent's executor as their needs allow. */
export class LocalBuild {
  readonly #options: Omit<LocalBuildOptions, "shellOnFailure">;
  readonly #transcript: Transcript;
  readonly #statuses = new Map<string, Status>();
  readonly #running = new Map<string, Promise<void>>();
  readonly #pins = sharedPins();
  readonly #shells: LocalShells | undefined;
  readonly #caches: StagedCaches;

  constructor({ shellOnFailure, ...options }: LocalBuildOptions) {
    const held = new HeldOutput(options.context.print);
    const context = { ...options.context, print: held.print };
    this.#options = { ...options, context };
    this.#transcript = new Transcript(options.jobs, context);
    this.#caches = new StagedCaches({
      host: options.host,
      onProblem: (error) => context.warn(`slipway: ${error.message}`),
    });
    this.#shells = shellOnFailure ? new LocalShells({ context, held, signal: options.signal }) : undefined;
    for (const { name } of options.jobs) this.#statuses.set(name, "queued");
  }

  /** Runs the jobs in the order of their needs and says how it went as an exit code. */
  async run(): Promise<number> {
    const { jobs, jobsAtOnce, context, signal } = this.#options;
    const startedAtMs = performance.now();
    for (;;) {
      if (signal.aborted) this.#cancelQueued(signal);
      const next = advance(jobs, this.#statuses);
      for (const { name, reason } of next.skipped) this.#end(name, { status: "skipped", reason });
      if (next.finished) {
        await this.#endCaches(next.status === "success");
        context.print(`\n${this.#transcript.summary()}${this.#verdict(next.status, performance.now() - startedAtMs)}`);
        return next.status === "success" || next.status === "skipped"
          ? exitCodes.success
          : this.#failureCode(next.status);
      }
      for (const name of next.ready.slice(0, jobsAtOnce - this.#running.size)) this.#start(name);
      await Promise.race(this.#running.values());
    }
  }

  #start(name: string): void {
    const job = this.#options.jobs.find((candidate) => candidate.name === name);
    if (job === undefined) throw new Error(`No job ${JSON.stringify(name)} in the plan`);
    this.#statuses.set(name, "running");
    const startedAtMs = performance.now();
    const ended = this.#execute(job).then(({ status, reason }) => {
      this.#running.delete(name);
      this.#end(name, { status, durationMs: performance.now() - startedAtMs, ...(reason !== undefined && { reason }) });
    });
    this.#running.set(name, ended);
  }

  /** Prints what the containers of all steps would be, as one JSON array. */
  async explain(): Promise<number> {
    const { jobs, context, signal } = this.#options;
    const steps: { job: string; step: string }[] = [];
    for (const job of jobs) {
      for (const step of await explainJob(job, { ...this.#jobOptions(job), signal })) {
        const { name, ...explained } = step;
        const made =
          "config" in explained
            ? {
                config: JSON.parse(explained.config) as unknown,
                operations: explained.operations.trimEnd().split("\n"),
              }
            : explained;
        steps.push(Object.assign({ job: job.name, step: name }, made));
      }
    }
    context.print(`${JSON.stringify(steps, undefined, 2)}\n`);
    return exitCodes.success;
  }

  #jobOptions(job: JobSpec): Omit<JobOptions, "reporter" | "signal"> {
    const { host, registry, root, event, jobs } = this.#options;
    const repository = { name: basename(root) };
    return {
      host,
      id: `run-${process.pid}-${jobs.indexOf(job)}`,
      workspace: { dir: root, copyOnWrite: true },
      registry,
      pins: this.#pins,
      variables: buildVariables(job, { ...event, number: 0, event: event.kind }, repository),
      ceiling: this.#options.ceiling,
      secrets: this.#options.secrets,
      builds: { cacheNamespace: "", namesImages: true },
      // Whatever is checked out: what a person tries is a person's own.
      cachePolicy: {
        namespace: `local ${root}`,
        mayKeep: () => Promise.resolve(true),
        leave: (cache) => this.#caches.add({ ...cache, attemptId: job.name, buildId: "" }),
      },
    };
  }

  async #execute(job: JobSpec): Promise<Pick<JobResult, "status" | "reason">> {
    const { context, signal } = this.#options;
    // A shell's step is told when the shell begins.
    let told: number | undefined;
    const stepFinished = (index: number, result: StepResult) => {
      if (index !== told) this.#transcript.stepFinished(job.name, index, outcome(result));
    };
    const access = this.#shells?.access(job, (index, result) => {
      stepFinished(index, result);
      told = index;
    });
    return await executeJob(job, {
      ...this.#jobOptions(job),
      reporter: {
        stepStarted: (index) => this.#transcript.stepStarted(job.name, index),
        stepOutput: (index, stream, bytes) => this.#transcript.output(job.name, index, streams[stream], bytes),
        stepFinished,
        problem: (error) => context.warn(`slipway: ${error.message}`),
      },
      ...(access !== undefined && { access }),
      signal,
    });
  }

  #cancelQueued(signal: AbortSignal): void {
    const reason = (signal.reason as Error).message;
    for (const [name, status] of this.#statuses)
      if (status === "queued") this.#end(name, { status: "canceled", reason });
  }

  #end(name: string, end: Outcome): void {
    this.#statuses.set(name, end.status);
    this.#transcript.jobFinished(name, end);
  }

  async #endCaches(succeeded: boolean): Promise<void> {
    for (const { name } of this.#options.jobs) await this.#caches.end(name, { succeeded });
  }

  #failureCode(status: Status): number {
    return status === "error" ? exitCodes.ourError : exitCodes.buildFailed;
  }

  #verdict(status: Status, durationMs: number): string {
    const { paint } = this.#options.context;
    const text = `${plain(basename(this.#options.root))}: ${status} in ${duration(durationMs)}`;
    return `${paint(status === "success" ? "green" : status === "skipped" ? "dim" : "red", text)}\n`;
  }
}

const streams = { 0: "slipway", 1: "stdout", 2: "stderr" } as const;

/** A step's result as the transcript shows it. */
function outcome({ status, exitCode, reason, allowedFailure, startedAtMs, finishedAtMs, usage }: StepResult): Outcome {
  const durationMs = startedAtMs !== undefined && finishedAtMs !== undefined ? finishedAtMs - startedAtMs : undefined;
  return {
    status,
    ...(durationMs !== undefined && { durationMs }),
    ...(exitCode !== undefined && { exitCode }),
    ...(reason !== undefined && { reason }),
    ...(allowedFailure !== undefined && { allowedFailure }),
    ...(usage !== undefined && { usage }),
  };
}
