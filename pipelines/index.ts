/** What a pipeline file means: its schema, parser, job graph and plan. Imports nothing of ours. */
export type * from "./pipeline.ts";
