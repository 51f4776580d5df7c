/** Runs one step: its image, its container, its output into its log. */
import { mkdirSync } from "node:fs";
import { formatBytes, type Resources, type StepSpec } from "../pipelines/index.ts";
import {
  type Container,
  type ContainerResult,
  explainContainer,
  type Image,
  ImageError,
  type PreparedConfig,
  prepareContainer,
  type ProcessConfig,
  UnknownNameError,
} from "../runtime/index.ts";
import { abortReason } from "./abort.ts";
import { asError } from "./cause.ts";
import { stepEnvironment } from "./environment.ts";
import { StepNetwork, takeRefused } from "./job-network.ts";
import type { JobContext } from "./job.ts";
import { KeptStep } from "./kept-step.ts";
import type { StepResult } from "./report.ts";
import type { RunnableStep } from "./runnable-step.ts";
import { RunningStep } from "./running-step.ts";
import type { Enterable } from "./step-access.ts";
import type { StepLog } from "./step-log.ts";

export interface StepContext extends JobContext {
  readonly index: number;
  readonly log: StepLog;
  /** What the pipeline asks for; the step may be given less. */
  readonly wanted: Resources;
  /** @throws {ImageError} If the pipeline names an image that cannot be used. */
  readonly image: (when: "ahead" | "now") => Promise<Image>;
  /** For the log of the first step that runs in the image; empty for the others. */
  readonly imageNotes: () => readonly string[];
}

/**
 * One run of one step, whose container may be created while the step before it still runs.
 *
 * The container's remains are removed beside the following steps (`later`), for the user waits for the job, not for them.
 */
export class StepRun implements RunnableStep {
  readonly log: StepLog;
  readonly #step: StepSpec;
  readonly #context: StepContext;
  readonly #network: StepNetwork;
  #prepared: Promise<Container | undefined> = Promise.resolve(undefined);
  /** The prepared container, once it is there, and what will run in it unless something is learned until then. */
  #ahead: { readonly container: Container; readonly process: ProcessConfig } | undefined;
  #container: Container | undefined;
  /** Its program was started before `run` was called. */
  #begun: Promise<void> | undefined;
  /** Output of that time: who reports the step has not been told of it yet. */
  #held: { readonly stream: 1 | 2; readonly bytes: Buffer }[] | undefined;
  #onSucceeded: (() => void) | undefined;
  #running: RunningStep | undefined;
  #env: Readonly<Record<string, string>> = {};
  #config: PreparedConfig | undefined;
  /** Where the container's changes are if they may have to be kept. */
  #writableDir: string | undefined;
  /** Where builders in it keep their layers, if that outlives it. */
  #stores: string | undefined;
  #gone: Promise<void> = Promise.resolve();

  constructor(step: StepSpec, context: StepContext) {
    this.log = context.log;
    this.#step = step;
    this.#context = context;
    this.#network = new StepNetwork(context.network, step);
    this.log.onDrain = () => this.#container?.resumeOutput();
    this.log.onFull = () =>
      (this.#container ?? this.#ahead?.container)?.kill(
        "log",
        `printed more than ${formatBytes(step.resources.logBytes)}`,
      );
  }

  /** Creates the container up to the moment before its program is executed. What is not possible yet is left to `run`. */
  async prepare(): Promise<void> {
    const { host, image, signal } = this.#context;
    const create = async () => {
      const found = await image("ahead");
      const network = await this.#network.container();
      await this.#takeCache();
      if (signal.aborted) return undefined;
      const container = prepareContainer(host, this.#prepareConfig(found, network));
      const process = this.#processConfig(found);
      container.stage(process);
      this.#ahead = { container, process };
      return container;
    };
    this.#prepared = create().catch(() => undefined);
    const container = await this.#prepared;
    await container?.created.catch(() => this.#giveUp(container));
  }

  /** What could not be created while others' containers wait may be possible when they are gone: left to `run`. */
  #giveUp(container: Container): void {
    const isNeeded = this.#container !== undefined || this.#begun !== undefined || this.#writableDir !== undefined;
    if (isNeeded || this.#ahead?.container !== container) return;
    this.#ahead = undefined;
    this.#prepared = Promise.resolve(undefined);
    this.#context.later(container[Symbol.asyncDispose]());
  }

  /** What its container would be, and how it would be made; nothing is. */
  async explain(): Promise<ReturnType<typeof explainContainer>> {
    const { host, image, uidRange } = this.#context;
    const found = await image("now");
    const { network, nested } = this.#step;
    // The job's, which nobody makes for this.
    const named = {
      namespaceFd: -1,
      resolvConf: "",
      hosts: () => "",
      ...(nested && { owner: uidRange.userNamespaceFd }),
    };
    const config = this.#prepareConfig(found, network === "none" || network === "host" ? network : named);
    return explainContainer(host, config, this.#processConfig(found));
  }

  /**
   * Starts the program now if its container is there, for the step before has just succeeded and all of it is gone: nobody
   * waits for that one's accounts. `run` must follow, or `discard`.
   */
  begin(): void {
    if (this.#ahead === undefined || !this.#network.isReady) return;
    const { container, process } = this.#ahead;
    this.#held = [];
    this.#begun = container.start(process);
    this.#begun.catch(() => undefined); // `run` hears of it
  }

  get hasBegun(): boolean {
    return this.#begun !== undefined;
  }

  /** Creates the container while the workspace is still being filled; undefined if its image will be in there. */
  prepareWithoutWorkspace(): Promise<void> | undefined {
    return this.#step.image.startsWith("./") ? undefined : this.prepare();
  }

  /** Removes what was prepared for a step that is not run. */
  discard(): void {
    const remove = async () => {
      const container = await this.#prepared;
      await container?.[Symbol.asyncDispose]();
    };
    this.#gone = remove();
    this.#context.later(this.#gone);
    void this.#prepared.then(() => this.forget());
  }

  /**
   * Runs the step and says what became of it. Never throws.
   *
   * @param on.running Called when its program runs.
   * @param on.succeeded Called when it has succeeded and nothing of it runs any more, before its result is put together.
   */
  async run(on: { readonly running: (step: Enterable) => void; readonly succeeded?: () => void }): Promise<StepResult> {
    const startedAtMs = Date.now();
    this.#onSucceeded = on.succeeded;
    try {
      if (this.#begun === undefined) await this.#start();
      else {
        this.#container = this.#ahead?.container;
        this.#noteImage();
        this.#noteCache();
        this.#reportHeld();
        await this.#begun;
      }
      if (this.#container === undefined) throw new Error("Cannot run the step: it has no container");
      this.#running = new RunningStep(this.#container, {
        env: this.#env,
        log: this.log,
        masked: this.#context.masked,
      });
      on.running(this.#running);
      this.#noteWeight();
      const result = await this.#container.result;
      return {
        ...describe(result, this.log, this.#lowered(result)),
        ...(await takeRefused(this.#network, this.#context)),
      };
    } catch (error) {
      return { ...describeError(this.#step, asError(error), this.#context), startedAtMs, finishedAtMs: Date.now() };
    } finally {
      this.#running?.end();
      if (this.#container !== undefined) {
        this.#gone = this.#container[Symbol.asyncDispose]();
        this.#context.later(this.#gone);
      }
    }
  }

  /**
   * Hands over what the step has left; undefined if it was not to be kept, or there is nothing to look at. Else `forget` must
   * follow.
   */
  keep(): KeptStep | undefined {
    const writableDir = this.#writableDir;
    if (this.#running === undefined || writableDir === undefined || this.#config === undefined) return undefined;
    this.#writableDir = undefined;
    const { signal: _, timeoutMs: __, onExit: ___, nested, ...config } = this.#config;
    // The job's copy of a cache goes with the job.
    const { stores: ____, ...own } = nested ?? { home: "" };
    return new KeptStep({
      host: this.#context.host,
      config: { ...config, writableDir, ...(nested !== undefined && { nested: own }) },
      env: this.#env,
      masked: this.#context.masked,
      network: {
        enter: async () => {
          await this.#network.begin();
          return { network: await this.#network.container(), leave: async () => {} };
        },
      },
      gone: this.#gone,
    });
  }

  /** Removes what was to be kept and is not. */
  forget(): void {
    const { host, later } = this.#context;
    const writableDir = this.#writableDir;
    this.#writableDir = undefined;
    if (writableDir !== undefined) later(this.#gone.then(() => host.removeTree(writableDir)));
  }

  async #start(): Promise<void> {
    const { host, image, signal } = this.#context;
    const prepared = await this.#prepared;
    const found = await image("now").finally(() => this.#noteImage());
    await this.#takeCache();
    this.#noteCache();
    signal.throwIfAborted();
    const config = prepared === undefined ? this.#prepareConfig(found, await this.#network.container()) : undefined;
    await this.#network.begin();
    // Known before it runs: what it writes may have to wait for the log, and is then resumed.
    this.#container = config === undefined ? prepared : prepareContainer(host, config);
    await this.#container?.start(this.#ahead?.process ?? this.#processConfig(found));
  }

  #noteImage(): void {
    for (const note of this.#context.imageNotes()) this.log.note(note);
  }

  /** The job's copy: there it is, whoever has made it. */
  async #takeCache(): Promise<void> {
    const { containerCache } = this.#step;
    if (containerCache !== undefined) this.#stores = await this.#context.caches.get(containerCache);
  }

  #noteCache(): void {
    const { containerCache } = this.#step;
    if (containerCache === undefined) return;
    for (const note of this.#context.caches.takeNotes(containerCache)) this.log.note(note);
  }

  /** A share of the disk is a wish: a host that cannot grant it runs the step all the same. */
  #noteWeight(): void {
    const problem = this.#context.host.limits.weightProblem(this.#step.resources);
    if (problem !== undefined) this.log.note(`io weight ${this.#step.resources.io?.weight} has no effect: ${problem}`);
  }

  /** Says that the limit for which a step ended is not the pipeline's. */
  #lowered({ reason }: ContainerResult): string | undefined {
    const limits = { oom: "memoryBytes", disk: "diskBytes", log: "logBytes" } as const;
    if (reason !== "oom" && reason !== "disk" && reason !== "log") return undefined;
    const key = limits[reason];
    const { wanted, host } = this.#context;
    const granted = { ...this.#step.resources, ...host.limits.granted(this.#step.resources) }[key];
    if (granted >= wanted[key]) return undefined;
    return `the pipeline asks for ${formatBytes(wanted[key])}, this agent gives ${formatBytes(granted)}`;
  }

  #write(stream: 1 | 2, chunk: Uint8Array): boolean {
    if (this.#held === undefined) return this.log.write(stream, chunk);
    this.#held.push({ stream, bytes: Buffer.from(chunk) });
    return false;
  }

  #reportHeld(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    for (const { stream, bytes } of held) this.log.write(stream, bytes);
    this.#container?.resumeOutput();
  }

  #prepareConfig(image: Image, network: PreparedConfig["network"]): PreparedConfig {
    const { id, index, uidRange, workspace, signal } = this.#context;
    const { resources, timeoutMs } = this.#step;
    const output: PreparedConfig["output"] = (stream, chunk) => this.#write(stream === "stdout" ? 1 : 2, chunk);
    // Whoever begins now must not be told what this one was refused.
    const onExit: PreparedConfig["onExit"] = ({ succeeded }) => {
      if (succeeded && this.#network.endsClean()) this.#onSucceeded?.();
    };
    const name = `${id}-${index}`;
    this.#config = {
      id: name,
      image,
      ...(image.user !== undefined && { user: image.user }),
      uidRange,
      workspace,
      resources,
      network,
      timeoutMs,
      signal,
      output,
      onExit,
      mounts: this.#context.secrets.mounts(this.#step.secrets),
      ...(this.#step.nested && { nested: this.#nestedConfig(image) }),
      ...(this.#isToBeKept && { writableDir: this.#makeWritableDir(name) }),
    };
    return this.#config;
  }

  get #isToBeKept(): boolean {
    return this.#context.access?.keeps(this.#step) === true;
  }

  #makeWritableDir(name: string): string {
    this.#writableDir = `${this.#context.host.keptDir}/${name}`;
    mkdirSync(this.#writableDir, { recursive: true, mode: 0o700 });
    this.#context.host.workspaces.adopt(this.#writableDir);
    return this.#writableDir;
  }

  #processConfig(image: Image): ProcessConfig {
    this.#env = this.#environment(image);
    return {
      // `--` for a script that begins with a dash; the step's name is $0, so the shell's own complaints begin with it.
      args: ["/bin/sh", "-e", "-c", "--", this.#step.run ?? "", this.#step.name],
      env: this.#env,
    };
  }

  #nestedConfig(image: Image): NonNullable<PreparedConfig["nested"]> {
    const { HOME: home = "/root" } = this.#environment(image);
    return {
      home,
      ...(image.config.volumes !== undefined && { volumes: image.config.volumes }),
      ...(this.#stores !== undefined && { stores: this.#stores }),
    };
  }

  #environment(image: Image): Record<string, string> {
    const { secrets, variables } = this.#context;
    return stepEnvironment(this.#step, image, variables, secrets.variables(this.#step.secrets));
  }
}

/** What a container's result says in numbers. */
export function containerFacts(result: ContainerResult): Omit<StepResult, "status"> {
  const { startedAtMs, finishedAtMs, exitCode, usage } = result;
  return {
    startedAtMs,
    finishedAtMs,
    exitCode,
    ...(result.signal !== undefined && { signal: result.signal }),
    usage,
  };
}

/** @param lowered Why it had less than the pipeline asks for, if it had. */
function describe(result: ContainerResult, log: StepLog, lowered: string | undefined): StepResult {
  const { exitCode } = result;
  const facts = containerFacts(result);
  if (result.reason === "exited") {
    if (exitCode === 0) return { status: "success", ...facts };
    return { status: "failure", reason: result.message ?? `exit code ${exitCode}`, ...facts };
  }
  const why = result.message ?? (result.signal === undefined ? result.reason : `killed by ${result.signal}`);
  const reason = lowered === undefined ? why : `${why}; ${lowered}`;
  log.note(reason);
  return { status: result.reason === "canceled" ? "canceled" : "failure", reason, ...facts };
}

/** Errors of the user's own making end the step as a shell would end it; all others are ours. */
function describeError(step: StepSpec, error: ReturnType<typeof asError>, { log, signal }: StepContext): StepResult {
  if (signal.aborted) {
    log.note(abortReason(signal));
    return { status: "canceled", reason: abortReason(signal) };
  }
  if (error instanceof ImageError) {
    log.note(error.message);
    return { status: "failure", exitCode: 127, reason: error.message };
  }
  if (error instanceof UnknownNameError) {
    log.note(error.message);
    return { status: "failure", reason: error.message };
  }
  if (error.name === "ExecError") {
    const reason = `image "${step.image}": ${error.message}`;
    log.note(reason);
    return { status: "failure", exitCode: error.code === "ENOENT" ? 127 : 126, reason };
  }
  log.note(`error of the agent: ${error.message}`);
  return { status: "error", reason: error.message };
}
