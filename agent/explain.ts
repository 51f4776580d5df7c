/** What the containers of a job's steps would be. */
import { formatPlatform } from "../build/index.ts";
import type { JobSpec } from "../pipelines/index.ts";
import { explainProgram, formatOciConfig } from "../runtime/index.ts";
import { isBuild, type ResolvedBuild, resolveBuild } from "./build-spec.ts";
import { NotBuiltError } from "./built-images.ts";
import { lowerResources } from "./ceiling.ts";
import { JobCaches } from "./job-caches.ts";
import { JobImages } from "./job-images.ts";
import { JobSecrets } from "./job-secrets.ts";
import { openRegistry } from "./job-registry.ts";
import { announceBuilds, type JobOptions } from "./job.ts";
import { StepLog } from "./step-log.ts";
import { StepRun } from "./step.ts";
import { MadeParts } from "./strangers-images.ts";

/** One step as its author or a reviewer would want to see it. */
export type ExplainedStep = { readonly name: string } & (
  | ExplainedContainer
  | { readonly build: ExplainedBuild }
  /** It runs in an image that the named step makes. */
  | { readonly builtBy: string }
);

/** The image that a step would build, its variables in place. */
export type ExplainedBuild = Omit<ResolvedBuild, "platforms"> & { readonly platforms: readonly string[] };

/** One step's container. */
export interface ExplainedContainer {
  /** A config.json of the OCI runtime specification. */
  readonly config: string;
  /** The system calls that make the container of it, one a line, each with its name. */
  readonly operations: string;
}

/**
 * Describes the steps of a job without running them. Images are looked up, and pulled if the pipeline says so; nothing else is made.
 *
 * @throws {ImageError} If an image cannot be had. @throws {BuildError} If a build's variable has no value.
 */
export async function explainJob(
  job: JobSpec,
  options: Omit<JobOptions, "reporter"> & { readonly signal: AbortSignal },
): Promise<ExplainedStep[]> {
  using uidRange = options.host.claimUidRange();
  const built = announceBuilds(job, options);
  const given = new JobSecrets(job, options.secrets);
  const isComplete = given.problem === undefined;
  using registries = openRegistry(isComplete ? job : { ...job, registries: [] }, { ...options, secrets: given });
  const secrets = JobSecrets.hidden(job);
  const { registry, publicOnly } = registries;
  await using images = new JobImages({ ...options, registry, publicOnly, built }, options.signal);
  const explained: ExplainedStep[] = [];
  for (const [index, planned] of job.steps.entries()) {
    if (isBuild(planned)) {
      const { platforms, ...build } = resolveBuild(planned, options.variables);
      explained.push({ name: planned.name, build: { ...build, platforms: platforms.map(formatPlatform) } });
      continue;
    }
    const step = { ...planned, resources: lowerResources(planned.resources, options.ceiling) };
    const run = new StepRun(step, {
      ...options,
      secrets,
      masked: undefined,
      registry,
      publicOnly,
      uidRange,
      made: new MadeParts(),
      index,
      reporter: {},
      network: undefined,
      caches: new JobCaches({ ...options, policy: undefined, onProblem: () => {} }),
      later: () => {},
      log: new StepLog({}),
      wanted: planned.resources,
      image: (when) => images.get({ ...step, index }, when),
      imageNotes: () => [],
    });
    let parts: Awaited<ReturnType<StepRun["explain"]>>;
    try {
      parts = await run.explain();
    } catch (error) {
      if (!(error instanceof NotBuiltError)) throw error;
      explained.push({ name: step.name, builtBy: error.step });
      continue;
    }
    const { config, operations } = parts;
    explained.push({ name: step.name, config: formatOciConfig(config), operations: explainProgram(operations) });
  }
  return explained;
}
