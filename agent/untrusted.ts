/**
 * What jobs of untrusted builds get: those whose commit, pipeline file included, may be a stranger's. The server says which, from
 * what the forge has signed; the limits are the agent's. Nothing here can be changed by what is in the repository.
 */
import { jobParts, type JobSpec, type StepSpec } from "../pipelines/index.ts";
import { lowerResources, type StepCeiling } from "./ceiling.ts";

export interface UntrustedPolicy {
  /** Of each step and service. */
  readonly ceiling: StepCeiling;
  /** Of each step, and of the job. */
  readonly timeoutMs: number;
  /** Whether they reach private networks, as other jobs do. */
  readonly privateNetworks: boolean;
  /** Whether they get images for which the agent has credentials. */
  readonly privateImages: boolean;
  /** Whether their failed steps are kept for a shell. */
  readonly keepsFailed: boolean;
}

const MiB = 2 ** 20;
const GiB = 2 ** 30;

/** What holds where the operator says nothing. */
export const defaultUntrustedPolicy: UntrustedPolicy = {
  ceiling: { cpu: 1, memoryBytes: 2 * GiB, pids: 512, diskBytes: 5 * GiB, logBytes: 64 * MiB },
  timeoutMs: 30 * 60_000,
  privateNetworks: false,
  privateImages: false,
  keepsFailed: false,
};

/** The same job within the policy's limits, and without credentials of registries. */
export function limitUntrusted(asked: JobSpec, { ceiling, timeoutMs }: UntrustedPolicy): JobSpec {
  const { registries: _none, ...job } = asked;
  return {
    ...job,
    timeoutMs: Math.min(job.timeoutMs, timeoutMs),
    steps: job.steps.map((step) => ({
      ...step,
      timeoutMs: Math.min(step.timeoutMs, timeoutMs),
      resources: lowerResources(step.resources, ceiling),
    })),
    ...(job.services !== undefined && {
      services: job.services.map((service) => ({
        ...service,
        resources: lowerResources(service.resources, ceiling),
      })),
    }),
  };
}

/** Why a job is not run at all, if so: it asks for a right that cannot be lowered. */
export function refuseUntrusted(job: JobSpec): string | undefined {
  for (const part of jobParts(job)) {
    const right = wantedRight(part);
    if (right !== undefined) {
      return `"${part.name}" wants ${right}, which commits of strangers do not get; push the branch to this repository to run it`;
    }
  }
  return undefined;
}

function wantedRight(part: object & Partial<StepSpec>): string | undefined {
  if (part.network === "host") return "network: host";
  if (part.build?.push !== undefined) return "push";
  if (part.build !== undefined && Object.keys(part.build.secrets).length > 0) return "secrets";
  // Rights that steps may have by now or will: what is not known here is not given.
  for (const right of ["nested", "privileged", "secrets"]) {
    const wanted: unknown = (part as Readonly<Record<string, unknown>>)[right];
    if (wanted !== undefined && wanted !== false && !isEmpty(wanted)) return right;
  }
  return undefined;
}

function isEmpty(value: unknown): boolean {
  return typeof value === "object" && (value === null || Object.keys(value).length === 0);
}
