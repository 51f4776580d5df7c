import type { JobSpec, ServiceSpec, StepSpec } from "./pipeline.ts";

/** What the containers of a job are, by position: its steps, then its services. */
export function jobParts({ steps, services = [] }: JobSpec): readonly (StepSpec | ServiceSpec)[] {
  return [...steps, ...services];
}

/** Who wants a secret, and as what. */
export interface SecretUse {
  readonly secret: string;
  /** For people: `step "deploy"`. */
  readonly by: string;
  /** A variable, a file of a step or service, what commands of a build may read, or what a registry is told. */
  readonly as: "variable" | "file" | "build" | "registry";
  /** What a step or service runs in, as the pipeline has it. */
  readonly image?: string;
  /** Whom it is for; of `as: "registry"`. */
  readonly registry?: string;
}

/** All secrets that a job names. */
export function secretUses(job: JobSpec): readonly SecretUse[] {
  const uses: SecretUse[] = [];
  for (const [index, part] of jobParts(job).entries()) {
    const by = `${index < job.steps.length ? "step" : "service"} "${part.name}"`;
    for (const use of part.secrets ?? []) {
      uses.push({ secret: use.secret, by, as: "env" in use ? "variable" : "file", image: part.image });
    }
    const build = "build" in part ? part.build : undefined;
    for (const source of Object.values(build?.secrets ?? {})) {
      if ("secret" in source) uses.push({ secret: source.secret, by, as: "build" });
    }
  }
  for (const { registry, username, password } of job.registries ?? []) {
    const by = `registry "${registry}"`;
    for (const value of [username, password]) {
      if (typeof value === "object") uses.push({ secret: value.secret, by, as: "registry", registry });
    }
  }
  return uses;
}
