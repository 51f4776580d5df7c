/** The environment of a step: all of it, and nothing of the agent's own. */
import type { BuildInfo, RepositoryInfo } from "../queue/index.ts";
import type { Image } from "../runtime/index.ts";
import type { JobSpec, StepSpec } from "../pipelines/index.ts";

/** Where every step finds the workspace. */
export const workspaceTarget = "/workspace";

/** What a step has unless its image or its pipeline says otherwise. */
const defaults: Readonly<Record<string, string>> = {
  PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  HOME: "/root",
  LANG: "C.UTF-8",
  CI: "true",
};

/**
 * Says to the steps of one job what they run for: `SLIPWAY_REPOSITORY`, `SLIPWAY_COMMIT` and so on.
 *
 * What does not apply (the tag of a push to a branch) is absent, not empty.
 */
export function buildVariables(
  job: Pick<JobSpec, "name">,
  build: Omit<BuildInfo, "id">,
  repository: Pick<RepositoryInfo, "name">,
): Record<string, string> {
  return {
    SLIPWAY_REPOSITORY: repository.name,
    SLIPWAY_BUILD_NUMBER: String(build.number),
    SLIPWAY_EVENT: build.event,
    SLIPWAY_COMMIT: build.commit,
    SLIPWAY_REF: build.ref,
    ...(build.branch !== undefined && { SLIPWAY_BRANCH: build.branch }),
    ...(build.tag !== undefined && { SLIPWAY_TAG: build.tag }),
    ...(build.pullRequest !== undefined && { SLIPWAY_PULL_REQUEST: String(build.pullRequest.number) }),
    ...(build.untrusted === true && { SLIPWAY_UNTRUSTED: "true" }),
    SLIPWAY_JOB: job.name,
  };
}

/** The variables of a step that need no image to be known: those of the pipeline, and Slipway's own, which hold. */
export function pipelineVariables(
  step: Pick<StepSpec, "name" | "env">,
  variables: Readonly<Record<string, string>>,
): Record<string, string> {
  return { CI: "true", ...givenVariables(step, variables) };
}

/** What is said for the step: by the pipeline, and against that by Slipway. */
function givenVariables(
  step: Pick<StepSpec, "name" | "env">,
  variables: Readonly<Record<string, string>>,
): Record<string, string> {
  return {
    ...step.env,
    ...variables,
    SLIPWAY: "true",
    SLIPWAY_STEP: step.name,
    SLIPWAY_WORKSPACE: workspaceTarget,
  };
}

/**
 * Merges the whole environment of a step.
 *
 * Later wins: defaults (HOME is that of the image's user), the image's, the pipeline's, its secrets, the `SLIPWAY_` variables;
 * these last no pipeline can forge.
 */
export function stepEnvironment(
  step: Pick<StepSpec, "name" | "env">,
  image: Pick<Image, "config" | "user">,
  variables: Readonly<Record<string, string>>,
  secrets: Readonly<Record<string, string>> = {},
): Record<string, string> {
  const { config, user } = image;
  return {
    ...defaults,
    ...(user !== undefined && { HOME: user.home }),
    ...config.env,
    ...givenVariables({ ...step, env: { ...step.env, ...secrets } }, variables),
  };
}
