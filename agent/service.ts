/** Runs one service: its container, its readiness, its output into its log. */
import { formatBytes, type ServiceSpec } from "../pipelines/index.ts";
import {
  type Container,
  type ContainerConfig,
  type ContainerResult,
  execInContainer,
  type ExecProcess,
  type Image,
  ImageError,
  runContainer,
} from "../runtime/index.ts";
import { abortReason } from "./abort.ts";
import { asError } from "./cause.ts";
import { stepEnvironment } from "./environment.ts";
import type { JobContext } from "./job.ts";
import type { SharedNetwork } from "./job-network.ts";
import { LastLines } from "./last-lines.ts";
import type { StepResult } from "./report.ts";
import { RunningStep } from "./running-step.ts";
import { waitUntilReady } from "./service-ready.ts";
import { containerFacts } from "./step.ts";
import type { StepLog } from "./step-log.ts";

export interface ServiceContext extends JobContext {
  readonly network: SharedNetwork;
  /** Behind those of the steps. */
  readonly index: number;
  readonly log: StepLog;
  readonly lastLines: LastLines;
  readonly image: (when: "now") => Promise<Image>;
  /** For the log of the first one that runs in the image; empty for the others. */
  readonly imageNotes: () => readonly string[];
}

/** How long a readiness script may run each time. */
const longestScriptMs = 10_000;

/**
 * One run of one service.
 *
 * What becomes of it is told by `ended`, which never rejects; `ready` says when the steps may begin.
 */
export class ServiceRun {
  /** Resolves when the service runs and is ready; never if it ends before. */
  readonly ready: Promise<void>;
  /** Resolves with its result when nothing of it is left running. */
  readonly ended: Promise<StepResult>;
  readonly #spec: ServiceSpec;
  readonly #context: ServiceContext;
  readonly #ready = Promise.withResolvers<void>();
  readonly #over = new AbortController();
  readonly #startedAtMs = Date.now();
  #container: Container | undefined;
  #running: RunningStep | undefined;
  /** Why it was stopped before its time. */
  #problem: string | undefined;
  #isReady = false;
  #isStopped = false;

  /** Starts it. */
  constructor(spec: ServiceSpec, context: ServiceContext) {
    this.#spec = spec;
    this.#context = context;
    context.log.onDrain = () => this.#container?.resumeOutput();
    context.log.onFull = () =>
      this.#container?.kill("log", `printed more than ${formatBytes(spec.resources.logBytes)}`);
    this.ready = this.#ready.promise;
    this.ended = this.#run();
  }

  /** SIGTERM to all of its processes, or to its program what its image says, and SIGKILL after the grace time: its job is over. */
  stop(): void {
    this.#isStopped = true;
    this.#over.abort(new Error("the job is over"));
    this.#container?.stop("canceled", "the job is over");
  }

  async #run(): Promise<StepResult> {
    try {
      this.#context.signal.throwIfAborted();
      const image = await this.#context.image("now").finally(() => {
        for (const note of this.#context.imageNotes()) this.#context.log.note(note);
      });
      const network = await this.#context.network.forService();
      this.#context.signal.throwIfAborted();
      this.#container = await runContainer(this.#context.host, this.#config(image, network));
      if (this.#isStopped) this.stop();
      this.#running = new RunningStep(this.#container, {
        env: this.#program(image, "").env,
        log: this.#context.log,
        masked: this.#context.masked,
      });
      this.#context.access?.running(this.#context.index, this.#running);
      void this.#watchReadiness(this.#container, image);
      const result = await this.#container.result;
      this.#over.abort(new Error("the service has ended"));
      return this.#describe(result);
    } catch (error) {
      return { ...this.#describeError(asError(error)), startedAtMs: this.#startedAtMs, finishedAtMs: Date.now() };
    } finally {
      this.#running?.end();
      if (this.#container !== undefined) this.#context.later(this.#container[Symbol.asyncDispose]());
    }
  }

  async #watchReadiness(container: Container, image: Image): Promise<void> {
    const { ready } = this.#spec;
    const { env } = this.#program(image, "");
    const signal = AbortSignal.any([this.#over.signal, this.#context.signal]);
    try {
      const problem =
        ready &&
        (await waitUntilReady(ready, {
          pid: container.pid,
          runScript: (script, timeoutMs) => this.#runScript(container, script, { env, timeoutMs, signal }),
          signal,
        }));
      if (problem !== undefined)
        throw new Error(`it is not ready after ${(ready?.timeoutMs ?? 0) / 1000} s: ${problem}`);
      this.#isReady = true;
      this.#ready.resolve();
    } catch (error) {
      if (signal.aborted) return; // it ends, or the job does
      this.#problem = asError(error).message;
      container.stop("canceled", this.#problem);
    }
  }

  /** In the service's container. @returns Why it has not succeeded, if so. */
  async #runScript(
    container: Container,
    script: string,
    options: { readonly env: ContainerConfig["env"]; readonly timeoutMs: number; readonly signal: AbortSignal },
  ): Promise<string | undefined> {
    const { env, timeoutMs, signal } = options;
    const lastLines = new LastLines();
    let running: ExecProcess;
    try {
      running = await execInContainer(container, {
        args: ["/bin/sh", "-e", "-c", "--", script, "ready"],
        env,
        output: (_, chunk) => lastLines.write(chunk),
      });
    } catch (error) {
      signal.throwIfAborted();
      // For want of processes or memory, of which it may have more later.
      return `"ready" cannot be run: ${asError(error).message}`;
    }
    running.endInput();
    const limitMs = Math.ceil(Math.max(1, Math.min(timeoutMs, longestScriptMs)));
    const stop = AbortSignal.any([signal, AbortSignal.timeout(limitMs)]);
    const kill = () => running.signal("SIGKILL");
    stop.addEventListener("abort", kill, { once: true });
    if (stop.aborted) kill();
    const { exitCode, signal: killedBy } = await running.result;
    stop.removeEventListener("abort", kill);
    signal.throwIfAborted();
    if (exitCode === 0) return undefined;
    const why = stop.aborted
      ? `nothing for ${limitMs / 1000} s`
      : killedBy === undefined
        ? `exit code ${exitCode}`
        : killedBy;
    const last = lastLines.toString();
    return `"ready" answers ${why}${last === "" ? "" : ` (${last})`}`;
  }

  get #id(): string {
    return `${this.#context.id}-${this.#context.index}`;
  }

  #config(image: Image, network: ContainerConfig["network"]): ContainerConfig {
    const { uidRange, workspace, log, serviceGraceMs } = this.#context;
    const { resources, run, name } = this.#spec;
    return {
      id: this.#id,
      hostname: name,
      image,
      uidRange,
      // The step that runs answers for what is in there.
      workspace: { ...workspace, isOthers: true },
      resources,
      network,
      mounts: this.#context.secrets.mounts(this.#spec.secrets),
      ...(image.user !== undefined && { user: image.user }),
      ...(serviceGraceMs !== undefined && { graceMs: serviceGraceMs }),
      ...(image.config.stopSignal !== undefined && { stopSignal: image.config.stopSignal }),
      // What the image runs, it runs in a directory of its own.
      ...(run === undefined && { cwd: image.config.workingDir ?? "/" }),
      output: (stream, chunk) => log.write(stream === "stdout" ? 1 : 2, chunk),
      ...this.#program(image, run),
    };
  }

  /** @throws {ImageError} If there is nothing to run. */
  #program(image: Image, script: string | undefined): Pick<ContainerConfig, "args" | "env"> {
    const { name, args } = this.#spec;
    const { variables, secrets } = this.#context;
    const { entrypoint = [], cmd = [] } = image.config;
    const own = [...entrypoint, ...(args ?? cmd)];
    if (script === undefined && own.length === 0) {
      throw new ImageError(`Cannot run service "${name}": its image says no program; write "run: command"`);
    }
    return {
      args: script === undefined ? own : ["/bin/sh", "-e", "-c", "--", script, name],
      env: stepEnvironment(this.#spec, image, variables, secrets.variables(this.#spec.secrets)),
    };
  }

  #describe(result: ContainerResult): StepResult {
    const { exitCode, signal, ...facts } = containerFacts(result);
    if (this.#problem !== undefined) return this.#failed(this.#problem, facts);
    if (this.#isStopped) return { status: "success", ...facts };
    const ownEnd = { ...facts, ...(exitCode !== undefined && { exitCode }), ...(signal !== undefined && { signal }) };
    const why =
      result.message ?? (result.signal === undefined ? `exit code ${exitCode}` : `killed by ${result.signal}`);
    if (this.#spec.ready !== undefined && !this.#isReady) {
      const help =
        exitCode === 0 ? "; what it left in the background ended with it: let it stay in the foreground" : "";
      return this.#failed(`it ended before it was ready: ${why}${help}`, ownEnd);
    }
    if (result.reason !== "exited" || exitCode !== 0) return this.#failed(why, ownEnd);
    const reason = "it ended before the steps did";
    this.#context.log.note(reason);
    return { status: "success", reason, ...ownEnd };
  }

  #failed(why: string, facts: Omit<StepResult, "status">): StepResult {
    this.#context.log.note(why);
    const last = this.#context.lastLines.toString();
    const reason = last === "" ? why : `${why}; its last output: ${last}`;
    return { status: "failure", reason, ...(this.#spec.allowFailure && { allowedFailure: true }), ...facts };
  }

  #describeError(error: Error & { readonly code?: string }): StepResult {
    const { signal, log } = this.#context;
    if (signal.aborted) return { status: "canceled", reason: abortReason(signal) };
    if (error instanceof ImageError || error.name === "ExecError") {
      log.note(error.message);
      const allowed = this.#spec.allowFailure && { allowedFailure: true };
      return { status: "failure", exitCode: error.code === "EACCES" ? 126 : 127, reason: error.message, ...allowed };
    }
    log.note(`error of the agent: ${error.message}`);
    return { status: "error", reason: error.message };
  }
}
