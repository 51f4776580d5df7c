/**
 * What a pipeline file means: its schema, parser, job graph and plan. Imports nothing of ours.
 *
 * A *pipeline* is the parsed `.slipway.yml`; *jobs* are the nodes of its graph; *steps* are the container runs of a job;
 * an *event* is what happened in the repository; a *plan* is the jobs an event starts.
 */
export type * from "./pipeline.ts";
export { DEFAULTS, LIMITS } from "./limits.ts";
export { type ParsedPipeline, parsePipeline } from "./parse.ts";
export { checkSecretValue, secretText } from "./secret-value.ts";
export { jobParts, secretUses, type SecretUse } from "./parts.ts";
export { formatDiagnostic, visible } from "./diagnostic.ts";
export { Problems } from "./problems.ts";
export { Source, type Span } from "./source.ts";
export { didYouMean, enumerate, quote } from "./suggestion.ts";
export { type BuildPlan, planBuild } from "./plan.ts";
export { type Advance, advance } from "./graph.ts";
export { expandVariables } from "./variables.ts";
export { checkGlob, matchGlob } from "./glob.ts";
export { formatBytes, formatDuration, parseDuration, parseSize, type Quantity, writeSize } from "./quantity.ts";
export { pipelineJsonSchema } from "./json-schema.ts";
export type { JsonSchema } from "./shape.ts";
