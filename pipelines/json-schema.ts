/** The language as a JSON schema, for editors. Written to pipeline.schema.json, which a test keeps equal to this. */
import { pipelineShape } from "./language.ts";
import type { JsonSchema } from "./shape.ts";

/** Describes `.slipway.yml` in JSON schema draft 7, which editors' YAML support understands best. */
export function pipelineJsonSchema(): JsonSchema {
  return {
    $schema: "http://json-schema.org/draft-07/schema#",
    title: "Slipway pipeline",
    description: "What .slipway.yml may contain; see docs/pipeline.md.",
    ...pipelineShape.schema,
  };
}
