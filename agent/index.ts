/**
 * One job on this machine: claim, checkout, steps, logs.
 *
 * `executeJob` runs the steps of one job in containers and tells a `JobReporter`; `slipway run` uses it in process. `checkout`
 * makes a workspace of a commit out of a bare *mirror* of its repository. An `Agent` takes attempts from the queue, claims them
 * over HTTP, checks out, executes and reports. A *spool* is a step's log on this machine's disk, from which it is sent.
 */
export { buildVariables, stepEnvironment, workspaceTarget } from "./environment.ts";
export { lowerResources, type StepCeiling } from "./ceiling.ts";
export { wantsNetwork } from "./job-network.ts";
export { executeJob, type JobOptions } from "./job.ts";
export { type ExplainedStep, explainJob } from "./explain.ts";
export type { JobReporter, JobResult, StepResult } from "./report.ts";
export { defaultUntrustedPolicy, type UntrustedPolicy } from "./untrusted.ts";
export { StepLog, type LogTap, type StepLogOptions } from "./step-log.ts";
export { SecretIndex } from "./masker.ts";
export type { GivenSecrets } from "./job-secrets.ts";
export { secretForms } from "./secret-forms.ts";
export { formatDuration } from "./duration.ts";
export { sharedPins } from "./image-pins.ts";
export { StagedCaches } from "./staged-caches.ts";
export { Agent, type AgentOptions } from "./agent.ts";
export type { KeepLimits } from "./kept-steps.ts";
export type { KeptStep } from "./kept-step.ts";
export type { Enterable, Entered, EnterOptions, StepAccess } from "./step-access.ts";
export { checkout, type CheckoutOptions } from "./checkout.ts";
export { CheckoutError } from "./checkout-error.ts";
