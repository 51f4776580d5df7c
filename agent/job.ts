/** Runs the steps of one job, each in its own fresh container. */
import { join } from "node:path";
import { BuildError, FileWorkers } from "../build/index.ts";
import type { JobSpec, StepSpec } from "../pipelines/index.ts";
import type { Host, ImagePins, RegistryClient, UidRange } from "../runtime/index.ts";
import { abortReason, JobTimeout, ServiceFailure } from "./abort.ts";
import { BuildRun } from "./build-run.ts";
import { isBuild, resolveBuild } from "./build-spec.ts";
import { BuiltImages } from "./built-images.ts";
import { asError } from "./cause.ts";
import { lowerResources, type StepCeiling } from "./ceiling.ts";
import { formatDuration } from "./duration.ts";
import { type CachePolicy, JobCaches } from "./job-caches.ts";
import { JobImages, type NamedImage } from "./job-images.ts";
import { type GivenSecrets, JobSecrets } from "./job-secrets.ts";
import { openRegistry } from "./job-registry.ts";
import { SharedNetwork, StepNetwork, wantsNetwork } from "./job-network.ts";
import type { KeptNetwork, KeptStep } from "./kept-step.ts";
import { maskText, SecretIndex } from "./masker.ts";
import type { JobReporter, JobResult, StepResult } from "./report.ts";
import type { RunnableStep } from "./runnable-step.ts";
import { secretForms } from "./secret-forms.ts";
import { Services, skipServices } from "./services.ts";
import { type StepContext, StepRun } from "./step.ts";
import { StepsAhead } from "./steps-ahead.ts";
import type { StepAccess } from "./step-access.ts";
import { type LogTap, StepLog } from "./step-log.ts";
import { keepFew, MadeParts } from "./strangers-images.ts";
import { limitUntrusted, refuseUntrusted, type UntrustedPolicy } from "./untrusted.ts";

export interface JobOptions {
  readonly host: Host;
  /** Names the containers, with the step's index behind it; [A-Za-z0-9_.-], unique on this host while the job runs. */
  readonly id: string;
  /**
   * The checked-out commit, owned by root. `copyOnWrite` shows it to the steps without ever changing it. The directory
   * must exist; with `ready` it may still be being filled, and the first step's container is created meanwhile.
   */
  readonly workspace: { readonly dir: string; readonly copyOnWrite?: boolean; readonly ready?: Promise<void> };
  /** The `SLIPWAY_` variables of this job; see `buildVariables`. */
  readonly variables: Readonly<Record<string, string>>;
  /** What asks registries for images. @default one that knows no credentials and no settings */
  readonly registry?: RegistryClient;
  /** What the jobs of the build have agreed on. @default nothing: this job asks for itself */
  readonly pins?: ImagePins;
  /** The values of secrets that the pipeline names. @default none: a job that names some is not run */
  readonly secrets?: GivenSecrets;
  /** Further values to mask in logs and reasons; secrets are. */
  readonly maskedValues?: readonly string[];
  /** What images that steps build are, beside being images. @default no names, and one cache for all */
  readonly builds?: BuildPolicy;
  /** Where the steps' logs are spooled as `<index>.log`; must exist. Without: output goes to the reporter only. */
  readonly logDir?: string;
  /** The most that each step gets, whatever the pipeline asks for. */
  readonly ceiling?: StepCeiling;
  /** The commit may be a stranger's: what it gets. */
  readonly untrusted?: UntrustedPolicy | undefined;
  /** Between SIGTERM and SIGKILL for services, when the steps have ended. @default 10000 */
  readonly serviceGraceMs?: number;
  readonly reporter: JobReporter;
  /** What nested steps keep between builds. @default nothing */
  readonly cachePolicy?: CachePolicy;
  /** Is offered ways into steps. */
  readonly access?: StepAccess;
  /** Canceling; the reason is a string or an Error whose message says why. */
  readonly signal?: AbortSignal;
}

/** How images are built for one job. */
export interface BuildPolicy {
  /** What builds of other trust share no caches with. */
  readonly cacheNamespace: string;
  /** Tags become names of the store, as `docker build --tag` has it: for who owns it. */
  readonly namesImages: boolean;
}

/** How a job ended. */
type JobEnd = Pick<JobResult, "status" | "reason">;

/** What all steps of a job share. */
export interface JobContext extends Omit<JobOptions, "secrets"> {
  readonly secrets: JobSecrets;
  /** What logs and terminals do not show. */
  readonly masked: SecretIndex | undefined;
  readonly registry: RegistryClient;
  /** Is told what images are made of. */
  readonly made: MadeParts;
  readonly uidRange: UidRange;
  /** Absent where no step wants it. */
  readonly network: SharedNetwork | undefined;
  /** Images that registries do not give to anybody are not the job's. */
  readonly publicOnly: boolean;
  /** Of the job's nested steps. */
  readonly caches: JobCaches;
  readonly signal: AbortSignal;
  /** Runs beside the following steps; the job waits for it at its end. */
  readonly later: (cleanup: Promise<void>) => void;
}

/**
 * Runs a job's steps in order and says what became of them. What goes wrong is in the result; the only exception is the
 * one with which `workspace.ready` rejects, before any step has been started.
 *
 * A step that fails ends the job (later steps are `skipped`) unless the pipeline allows it to fail. When the promise
 * resolves, no container is left and all logs are complete.
 */
export async function executeJob(asked: JobSpec, options: JobOptions): Promise<JobResult> {
  const made = new MadeParts();
  try {
    return await runJob(asked, { ...options, made });
  } finally {
    // Now that the job does not hold it any more.
    if (options.untrusted !== undefined) {
      await keepFew(options.host, made).catch((error: unknown) => options.reporter.problem?.(asError(error)));
    }
  }
}

async function runJob(asked: JobSpec, options: JobOptions & { readonly made: MadeParts }): Promise<JobResult> {
  const { untrusted } = options;
  const job = untrusted === undefined ? asked : limitUntrusted(asked, untrusted);
  const refusal = untrusted === undefined ? undefined : refuseUntrusted(asked);
  if (refusal !== undefined) return refuseJob(job, options, refusal);
  const given = new JobSecrets(job, options.secrets);
  if (given.problem !== undefined) return refuseJob(job, options, given.problem);
  const secrets = compileSecrets([...(options.maskedValues ?? []), ...given.maskedValues]);
  const cleanups: Promise<void>[] = [];
  const problem = (error: unknown) => options.reporter.problem?.(asError(error));
  const timeout = new AbortController();
  const timer = setTimeout(
    () => timeout.abort(new JobTimeout(`job time limit of ${formatDuration(job.timeoutMs)} reached`)),
    // A timer's longest delay; longer ones would fire at once.
    Math.min(job.timeoutMs, 2 ** 31 - 1),
  );
  const failure = new AbortController();
  const signal = AbortSignal.any([
    timeout.signal,
    failure.signal,
    ...(options.signal === undefined ? [] : [options.signal]),
  ]);
  let uidRange: UidRange | undefined;
  let setupError: Error | undefined;
  try {
    uidRange = options.host.claimUidRange();
  } catch (error) {
    setupError = asError(error);
  }
  const network = openNetwork(job, { ...options, uidRange, signal });
  const caches = new JobCaches({
    host: options.host,
    id: options.id,
    policy: options.cachePolicy,
    signal,
    onProblem: problem,
  });
  using own = openRegistry(job, { ...options, secrets: given });
  const { registry, publicOnly } = own;
  const context = {
    ...options,
    secrets: given,
    masked: secrets,
    registry,
    publicOnly,
    signal,
    network,
    caches,
    later: (cleanup: Promise<void>) => void cleanups.push(cleanup.catch(problem)),
  };
  const built = announceBuilds(job, options);
  await using workers = new FileWorkers();
  await using images = new JobImages({ ...options, registry, publicOnly, built }, signal);
  const ready = options.workspace.ready ?? Promise.resolve();
  // Images in the repository are there when the commit is.
  const inImages = [...imagedSteps(job), ...(job.services ?? [])];
  for (const named of inImages) if (!named.image.startsWith("./")) images.prefetch(named);

  const getImage = async (named: NamedImage, when: "ahead" | "now") => {
    const image = await images.get(named, when);
    if (uidRange !== undefined) await options.host.prepareLayers(image.layers, uidRange);
    return image;
  };
  const prepareStep = (index: number): RunnableStep | undefined => {
    const specified = job.steps[index];
    if (specified === undefined || uidRange === undefined) return undefined;
    const step = { ...specified, resources: lowerResources(specified.resources, options.ceiling) };
    const log = openLog(step, index, { ...options, secrets });
    if (isBuild(step)) return new BuildRun(step, { ...context, uidRange, index, log, images, built, workers });
    const named = { ...step, index };
    const image: StepContext["image"] = (when) => getImage(named, when);
    const imageNotes = () => images.takeNotes(named);
    const wanted = asked.steps[index]?.resources ?? specified.resources;
    return new StepRun(step, { ...context, uidRange, index, log, image, imageNotes, wanted });
  };

  const over = Promise.withResolvers<void>();
  const steps: StepResult[] = [];
  let end: JobEnd | undefined = setupError && { status: "error", reason: setupError.message };
  const ahead = new StepsAhead(prepareStep, options.host.limits.ceiling);
  if (options.workspace.ready !== undefined) ahead.fillEarly();
  try {
    await ready;
    if (uidRange !== undefined) {
      const { dir, copyOnWrite } = options.workspace;
      if (copyOnWrite === true && (await images.haveUsers())) options.host.workspaces.copy(dir, uidRange);
      await options.host.workspaces.give(options.workspace, uidRange);
    }
  } catch (error) {
    ahead.discard();
    clearTimeout(timer);
    await Promise.all(cleanups);
    await caches.finish({ succeeded: false });
    await network?.release();
    uidRange?.[Symbol.dispose]();
    throw error;
  }
  for (const named of inImages) images.prefetch(named);
  const services =
    network === undefined || uidRange === undefined || end !== undefined
      ? undefined
      : new Services(job, {
          ...context,
          network,
          uidRange,
          image: (spec) => ({ image: (when) => getImage(spec, when), imageNotes: () => images.takeNotes(spec) }),
          openLog: (spec, index, tap) => openLog(spec, index, { ...options, secrets, tap }),
          fail: (reason) => failure.abort(reason),
          finish: (result) => maskReason(result, secrets),
        });
  await services?.start();
  if (end === undefined && !signal.aborted) {
    if (options.workspace.ready === undefined) ahead.fill();
    else ahead.fillFirst();
  }
  for (const [index, step] of job.steps.entries()) {
    const current = end === undefined ? ahead.take() : undefined;
    if (current === undefined || (signal.aborted && !current.hasBegun)) {
      current?.discard();
      ahead.discard();
      end ??= judgeAbort(signal);
      steps.push({ status: "skipped" });
      options.reporter.stepFinished?.(index, { status: "skipped" }, undefined);
      continue;
    }
    options.reporter.stepStarted?.(index, { startedAtMs: Date.now(), log: current.log });
    const outcome = await current.run({
      running: (running) => {
        options.access?.running(index, running);
        ahead.fill();
      },
      succeeded: () => {
        if (!signal.aborted) ahead.begin();
      },
    });
    const result = maskReason(judgeStep(step, outcome, signal), secrets);
    end = judgeJob(step, result, signal);
    const kept = await offer(current, result, { index, isLast: end !== undefined, access: options.access });
    if (kept !== undefined && uidRange !== undefined) {
      kept.adopt({
        uidRange,
        image: images.hold(),
        network: newNetwork(job, step, { ...options, uidRange }),
        jobOver: over.promise,
      });
      uidRange = undefined;
    }
    // Not waited for: the next step need not wait for this one's log to reach the disk.
    context.later(current.log.close());
    steps.push(result);
    options.reporter.stepFinished?.(index, result, current.log);
  }
  ahead.discard();
  clearTimeout(timer);
  const ended = (await services?.stop()) ?? skipServices(job, options.reporter);
  await Promise.all(cleanups);
  await caches.finish({ succeeded: end === undefined });
  await network?.release();
  uidRange?.[Symbol.dispose]();
  over.resolve();
  return { ...(end ?? { status: "success" }), steps, services: ended };
}

/** Steps that run in an image. */
function imagedSteps({ steps }: JobSpec): (StepSpec & { readonly index: number })[] {
  return steps.flatMap((step, index) => (isBuild(step) ? [] : [{ ...step, index }]));
}

/** Tells what images there will be. */
export function announceBuilds(
  { steps }: JobSpec,
  { pins, variables }: Pick<JobOptions, "pins" | "variables">,
): BuiltImages {
  const built = new BuiltImages(pins);
  for (const [index, step] of steps.entries()) {
    if (!isBuild(step)) continue;
    try {
      const { names, pushNames } = resolveBuild(step, variables);
      for (const name of [...names, ...pushNames]) built.announce(name, index, step.name);
    } catch (error) {
      // The step says so when its turn has come.
      if (!(error instanceof BuildError)) throw error;
    }
  }
  return built;
}

/** Offers a failed step to whoever keeps such; answers it if it was taken over. */
async function offer(
  step: RunnableStep,
  result: StepResult,
  { index, isLast, access }: { index: number; isLast: boolean; access: StepAccess | undefined },
): Promise<KeptStep | undefined> {
  const kept = isLast && result.status === "failure" ? step.keep() : undefined;
  step.forget();
  if (kept === undefined) return undefined;
  const note = await access?.failed(index, kept, result);
  if (note === undefined) {
    await kept[Symbol.asyncDispose]();
    return undefined;
  }
  step.log.note(note);
  return kept;
}

/** The step's network once more, for who enters it when the job's is gone. */
function newNetwork(
  job: JobSpec,
  step: StepSpec,
  options: Pick<JobOptions, "host" | "untrusted"> & { readonly uidRange: UidRange },
): KeptNetwork {
  return {
    enter: async () => {
      const shared = openNetwork(job, { ...options, signal: new AbortController().signal });
      const own = new StepNetwork(shared, step);
      const leave = async () => await shared?.release();
      try {
        const network = await own.container();
        await own.begin();
        return { network, leave };
      } catch (error) {
        await leave();
        throw error;
      }
    },
  };
}

/** Nothing of it is run. */
async function refuseJob(job: JobSpec, { workspace, reporter }: JobOptions, reason: string): Promise<JobResult> {
  await workspace.ready;
  const steps = job.steps.map((_, index): StepResult => {
    const result = { status: "skipped" } as const;
    reporter.stepFinished?.(index, result, undefined);
    return result;
  });
  return { status: "failure", reason, steps, services: skipServices(job, reporter) };
}

function compileSecrets(values: readonly (string | Uint8Array)[]): SecretIndex | undefined {
  const forms = secretForms(values);
  return forms.length === 0 ? undefined : new SecretIndex(forms);
}

/** What steps and services are in, if any of them wants it. */
function openNetwork(
  job: JobSpec,
  context: Pick<JobOptions, "host" | "untrusted"> & {
    readonly uidRange: UidRange | undefined;
    readonly signal: AbortSignal;
  },
): SharedNetwork | undefined {
  if (!wantsNetwork(job)) return undefined;
  const { host, untrusted, uidRange, signal } = context;
  const { services = [], steps } = job;
  return new SharedNetwork(host, {
    services: services.map(({ name }) => name),
    publicOnly: untrusted?.privateNetworks === false,
    owner: steps.some(({ nested, network }) => nested && network !== "none") ? uidRange : undefined,
    signal,
  });
}

function openLog(
  { resources }: Pick<StepSpec, "resources">,
  index: number,
  options: Omit<JobOptions, "secrets"> & { readonly secrets: SecretIndex | undefined; readonly tap?: LogTap },
): StepLog {
  const { reporter, logDir, secrets, tap } = options;
  return new StepLog({
    secrets,
    limitBytes: resources.logBytes,
    ...(logDir !== undefined && { path: join(logDir, `${index}.log`) }),
    tap: (stream, bytes, timeMs) => {
      tap?.(stream, bytes, timeMs);
      reporter.stepOutput?.(index, stream, bytes, timeMs);
    },
  });
}

/** A container that was stopped for the job's time limit was not canceled by anybody: that step failed. */
function judgeStep(step: StepSpec, result: StepResult, signal: AbortSignal): StepResult {
  if (result.status === "canceled" && signal.reason instanceof JobTimeout) {
    return { ...result, status: "failure", reason: signal.reason.message };
  }
  if (result.status === "failure" && step.allowFailure && !signal.aborted) return { ...result, allowedFailure: true };
  return result;
}

function maskReason(result: StepResult, secrets: SecretIndex | undefined): StepResult {
  return result.reason === undefined ? result : { ...result, reason: maskText(result.reason, secrets) };
}

function judgeJob(step: StepSpec, result: StepResult, signal: AbortSignal): JobEnd | undefined {
  switch (result.status) {
    case "success":
    case "skipped":
      return undefined;
    case "failure":
      if (result.allowedFailure === true) return undefined;
      if (signal.reason instanceof JobTimeout || signal.reason instanceof ServiceFailure) return judgeAbort(signal);
      return { status: "failure", reason: `step "${step.name}" failed: ${result.reason ?? "unknown reason"}` };
    case "error":
      return { status: "error", reason: `step "${step.name}": ${result.reason ?? "unknown reason"}` };
    case "canceled":
      return judgeAbort(signal);
  }
}

function judgeAbort(signal: AbortSignal): JobEnd {
  if (signal.reason instanceof JobTimeout) return { status: "failure", reason: signal.reason.message };
  if (signal.reason instanceof ServiceFailure) return { status: signal.reason.status, reason: signal.reason.message };
  return { status: "canceled", reason: abortReason(signal) };
}
