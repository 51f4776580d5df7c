/** Runs the steps of one job, each in its own fresh container. */
import { join } from "node:path";
import type { JobSpec, StepSpec } from "../pipelines/index.ts";
import { type Host, type Image, ImageError, type JobNetwork, resolveImage, type UidRange } from "../runtime/index.ts";
import { abortReason, JobTimeout } from "./abort.ts";
import { asError } from "./cause.ts";
import { lowerResources, type StepCeiling } from "./ceiling.ts";
import { formatDuration } from "./duration.ts";
import { maskText, SecretIndex } from "./masker.ts";
import type { JobReporter, JobResult, StepResult } from "./report.ts";
import { secretForms } from "./secret-forms.ts";
import { StepRun } from "./step.ts";
import { StepLog } from "./step-log.ts";

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
  /** Values to mask in logs and reasons. */
  readonly maskedValues?: readonly string[];
  /** Where the steps' logs are spooled as `<index>.log`; must exist. Without: output goes to the reporter only. */
  readonly logDir?: string;
  /** The most that each step gets, whatever the pipeline asks for. */
  readonly ceiling?: StepCeiling;
  readonly reporter: JobReporter;
  /** Canceling; the reason is a string or an Error whose message says why. */
  readonly signal?: AbortSignal;
}

/** What all steps of a job share. */
export interface JobContext extends JobOptions {
  readonly uidRange: UidRange;
  /** The job's network; claimed at its beginning if a step wants it. */
  readonly jobNetwork: Promise<JobNetwork> | undefined;
  /** How often the job's network has refused a destination so far. */
  readonly refused: Map<string, number>;
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
export async function executeJob(job: JobSpec, options: JobOptions): Promise<JobResult> {
  const secrets = compileSecrets(options.maskedValues ?? []);
  const cleanups: Promise<void>[] = [];
  const problem = (error: unknown) => options.reporter.problem?.(asError(error));
  const timeout = new AbortController();
  const timer = setTimeout(
    () => timeout.abort(new JobTimeout(`job time limit of ${formatDuration(job.timeoutMs)} reached`)),
    // A timer's longest delay; longer ones would fire at once.
    Math.min(job.timeoutMs, 2 ** 31 - 1),
  );
  const signal = AbortSignal.any([timeout.signal, ...(options.signal === undefined ? [] : [options.signal])]);
  let uidRange: UidRange | undefined;
  let setupError: Error | undefined;
  try {
    uidRange = options.host.claimUidRange();
  } catch (error) {
    setupError = asError(error);
  }
  const jobNetwork = job.steps.some(({ network }) => network === "job") ? options.host.claimNetwork() : undefined;
  jobNetwork?.catch(() => {}); // the step that wants it says so
  const context = {
    ...options,
    signal,
    jobNetwork,
    refused: new Map<string, number>(),
    later: (cleanup: Promise<void>) => void cleanups.push(cleanup.catch(problem)),
  };
  await using images = new ImageCache(options, signal);
  const ready = options.workspace.ready ?? Promise.resolve();
  // Images in the repository are there when the commit is.
  for (const { image } of job.steps) if (!image.startsWith("./")) images.prefetch(image);

  const prepareStep = (index: number): StepRun | undefined => {
    const asked = job.steps[index];
    if (asked === undefined || uidRange === undefined) return undefined;
    const step = { ...asked, resources: lowerResources(asked.resources, options.ceiling) };
    const log = openLog(step, index, { ...options, secrets });
    return new StepRun(step, { ...context, uidRange, index, log, image: (when) => images.get(step.image, when) });
  };

  const steps: StepResult[] = [];
  let end: Omit<JobResult, "steps"> | undefined = setupError && { status: "error", reason: setupError.message };
  let next = prepareStep(0);
  const early = options.workspace.ready !== undefined && next?.prepareWithoutWorkspace() === true;
  try {
    await ready;
  } catch (error) {
    if (early) next?.discard();
    clearTimeout(timer);
    await Promise.all(cleanups);
    await release(jobNetwork);
    uidRange?.[Symbol.dispose]();
    throw error;
  }
  for (const { image } of job.steps) images.prefetch(image);
  for (const [index, step] of job.steps.entries()) {
    if (next === undefined || end !== undefined || (signal.aborted && !next.hasBegun)) {
      end ??= judgeAbort(signal);
      steps.push({ status: "skipped" });
      options.reporter.stepFinished?.(index, { status: "skipped" }, undefined);
      continue;
    }
    const current: StepRun = next;
    options.reporter.stepStarted?.(index, { startedAtMs: Date.now(), log: current.log });
    const outcome = await current.run({
      running: () => {
        next = prepareStep(index + 1);
        next?.prepare();
      },
      succeeded: () => {
        if (next !== current && !signal.aborted) next?.begin();
      },
    });
    // Its program never ran: the next one's container has not been prepared.
    if (next === current) next = prepareStep(index + 1);
    const result = maskReason(judgeStep(step, outcome, signal), secrets);
    // Not waited for: the next step need not wait for this one's log to reach the disk.
    context.later(current.log.close());
    steps.push(result);
    options.reporter.stepFinished?.(index, result, current.log);
    end = judgeJob(step, result, signal);
  }
  next?.discard();
  clearTimeout(timer);
  await Promise.all(cleanups);
  await release(jobNetwork);
  uidRange?.[Symbol.dispose]();
  return { ...(end ?? { status: "success" }), steps };
}

/** Ends the job's network, if there ever was one. */
async function release(network: Promise<JobNetwork> | undefined): Promise<void> {
  const claimed = await network?.catch(() => undefined);
  claimed?.[Symbol.dispose]();
}

function compileSecrets(values: readonly string[]): SecretIndex | undefined {
  const forms = secretForms(values);
  return forms.length === 0 ? undefined : new SecretIndex(forms);
}

/** Looks up all of a job's images at its beginning, so that no step waits for one. */
class ImageCache implements AsyncDisposable {
  readonly #unneeded = new AbortController();
  readonly #found = new Map<string, Promise<Image>>();
  readonly #options: JobOptions;
  readonly #signal: AbortSignal;

  constructor(options: JobOptions, signal: AbortSignal) {
    this.#options = options;
    this.#signal = AbortSignal.any([signal, this.#unneeded.signal]);
  }

  prefetch(reference: string): void {
    if (this.#found.has(reference)) return;
    const image = this.#resolve(reference);
    this.#found.set(reference, image);
    image.catch(() => {});
  }

  /**
   * @param when "now": an image that was not there at the job's beginning may be what an earlier step has made, and is looked up
   *   once more. "ahead": an earlier step may still be making it.
   */
  async get(reference: string, when: "ahead" | "now"): Promise<Image> {
    try {
      return await (this.#found.get(reference) ?? this.#resolve(reference));
    } catch (error) {
      if (when === "ahead" || !(error instanceof ImageError)) throw error;
      const again = this.#resolve(reference);
      this.#found.set(reference, again);
      return await again;
    }
  }

  #resolve(reference: string): Promise<Image> {
    const { host, workspace } = this.#options;
    return resolveImage(reference, { baseDir: workspace.dir, storeDir: host.imageStoreDir, signal: this.#signal });
  }

  /** Stops what no step came to need: the workspace may be deleted afterwards. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#unneeded.abort();
    await Promise.allSettled(this.#found.values());
  }
}

function openLog(
  step: StepSpec,
  index: number,
  { reporter, logDir, secrets }: JobOptions & { readonly secrets: SecretIndex | undefined },
): StepLog {
  return new StepLog({
    secrets,
    limitBytes: step.resources.logBytes,
    ...(logDir !== undefined && { path: join(logDir, `${index}.log`) }),
    ...(reporter.stepOutput !== undefined && {
      tap: (stream, bytes, timeMs) => reporter.stepOutput?.(index, stream, bytes, timeMs),
    }),
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

function judgeJob(step: StepSpec, result: StepResult, signal: AbortSignal): Omit<JobResult, "steps"> | undefined {
  switch (result.status) {
    case "success":
    case "skipped":
      return undefined;
    case "failure":
      if (result.allowedFailure === true) return undefined;
      if (signal.reason instanceof JobTimeout) return judgeAbort(signal);
      return { status: "failure", reason: `step "${step.name}" failed: ${result.reason ?? "unknown reason"}` };
    case "error":
      return { status: "error", reason: `step "${step.name}": ${result.reason ?? "unknown reason"}` };
    case "canceled":
      return judgeAbort(signal);
  }
}

function judgeAbort(signal: AbortSignal): Omit<JobResult, "steps"> {
  if (signal.reason instanceof JobTimeout) return { status: "failure", reason: signal.reason.message };
  return { status: "canceled", reason: abortReason(signal) };
}
