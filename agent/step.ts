/** Runs one step: its image, its container, its output into its log. */
import type { StepSpec } from "../pipelines/index.ts";
import {
  type Container,
  type ContainerConfig,
  type ContainerResult,
  type Image,
  ImageError,
  runContainer,
} from "../runtime/index.ts";
import { abortReason } from "./abort.ts";
import { asError } from "./cause.ts";
import { stepEnvironment } from "./environment.ts";
import type { JobContext } from "./job.ts";
import type { StepResult } from "./report.ts";
import type { StepLog } from "./step-log.ts";

export interface StepContext extends JobContext {
  /** @throws {ImageError} If the pipeline names an image that cannot be used. */
  readonly image: () => Promise<Image>;
  readonly log: StepLog;
}

/**
 * Runs one step and says what became of it. Never throws.
 *
 * The container's remains are removed beside the following steps (`later`), for the user waits for the job, not for them.
 */
export async function runStep(index: number, step: StepSpec, context: StepContext): Promise<StepResult> {
  const { log, signal } = context;
  const startedAtMs = Date.now();
  let container: Container | undefined;
  try {
    const image = await context.image();
    signal.throwIfAborted();
    const output: ContainerConfig["output"] = (stream, chunk) => log.write(stream === "stdout" ? 1 : 2, chunk);
    log.onDrain = () => container?.resumeOutput();
    container = await runContainer(context.host, containerConfig(index, step, image, context, output));
    const result = await container.result;
    return describe(result, log);
  } catch (error) {
    return { ...describeError(step, asError(error), context), startedAtMs, finishedAtMs: Date.now() };
  } finally {
    if (container !== undefined) context.later(container[Symbol.asyncDispose]());
  }
}

/** All that does not depend on earlier steps, so that a container can be created while the step before it still runs. */
function containerConfig(
  index: number,
  step: StepSpec,
  image: Image,
  context: StepContext,
  output: ContainerConfig["output"],
): ContainerConfig {
  return {
    id: `${context.id}-${index}`,
    image,
    uidRange: context.uidRange,
    // `--` for a script that begins with a dash; the step's name is $0, so the shell's own complaints begin with it.
    args: ["/bin/sh", "-e", "-c", "--", step.run, step.name],
    env: stepEnvironment(step, image.config, context.variables),
    workspace: context.workspace,
    resources: step.resources,
    network: step.network,
    timeoutMs: step.timeoutMs,
    signal: context.signal,
    output,
  };
}

function describe(result: ContainerResult, log: StepLog): StepResult {
  const { startedAtMs, finishedAtMs, exitCode, cpuTimeMs, memoryPeakBytes, pidsPeak } = result;
  const facts = {
    startedAtMs,
    finishedAtMs,
    exitCode,
    ...(result.signal !== undefined && { signal: result.signal }),
    usage: {
      cpuTimeMs,
      ...(memoryPeakBytes !== undefined && { memoryPeakBytes }),
      ...(pidsPeak !== undefined && { pidsPeak }),
    },
  };
  if (result.reason === "exited") {
    if (exitCode === 0) return { status: "success", ...facts };
    return { status: "failure", reason: result.message ?? `exit code ${exitCode}`, ...facts };
  }
  const reason = result.message ?? (result.signal === undefined ? result.reason : `killed by ${result.signal}`);
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
  if (error.name === "ExecError") {
    const reason = `Cannot execute /bin/sh in image "${step.image}": ${error.message}`;
    log.note(reason);
    return { status: "failure", exitCode: error.code === "ENOENT" ? 127 : 126, reason };
  }
  log.note(`error of the agent: ${error.message}`);
  return { status: "error", reason: error.message };
}
