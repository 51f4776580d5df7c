/** What the containers of a job's steps would be. */
import type { JobSpec } from "../pipelines/index.ts";
import { explainProgram, formatOciConfig } from "../runtime/index.ts";
import { lowerResources } from "./ceiling.ts";
import { JobImages } from "./job-images.ts";
import type { JobOptions } from "./job.ts";
import { StepLog } from "./step-log.ts";
import { StepRun } from "./step.ts";

/** One step's container as its author or a reviewer would want to see it. */
export interface ExplainedStep {
  readonly name: string;
  /** A config.json of the OCI runtime specification. */
  readonly config: string;
  /** The system calls that make the container of it, one a line, each with its name. */
  readonly operations: string;
}

/**
 * Describes the steps of a job without running them. Images are looked up, and pulled if the pipeline says so; nothing else is made.
 *
 * @throws {ImageError} If an image cannot be had.
 */
export async function explainJob(
  job: JobSpec,
  options: Omit<JobOptions, "reporter"> & { readonly signal: AbortSignal },
): Promise<ExplainedStep[]> {
  using uidRange = options.host.claimUidRange();
  await using images = new JobImages(options, options.signal);
  const explained: ExplainedStep[] = [];
  for (const [index, planned] of job.steps.entries()) {
    const step = { ...planned, resources: lowerResources(planned.resources, options.ceiling) };
    const run = new StepRun(step, {
      ...options,
      uidRange,
      index,
      reporter: {},
      network: undefined,
      later: () => {},
      log: new StepLog({}),
      wanted: planned.resources,
      image: (when) => images.get(step, when),
      imageNotes: () => [],
    });
    const { config, operations } = await run.explain();
    explained.push({ name: step.name, config: formatOciConfig(config), operations: explainProgram(operations) });
  }
  return explained;
}
