import type { JobSpec, ServiceSpec, StepSpec } from "./pipeline.ts";

/** What the containers of a job are, by position: its steps, then its services. */
export function jobParts({ steps, services = [] }: JobSpec): readonly (StepSpec | ServiceSpec)[] {
  return [...steps, ...services];
}
