import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import {
  DEFAULTS,
  formatBytes,
  formatDuration,
  LIMITS,
  parsePipeline,
  pipelineJsonSchema,
  writeSize,
} from "../../pipelines/index.ts";

const text = readFileSync(new URL("../../docs/pipeline.md", import.meta.url), "utf8");

/** Every key of every mapping of the language. */
function findKeys(schema: unknown): string[] {
  if (typeof schema !== "object" || schema === null) return [];
  const own = "properties" in schema ? Object.keys(schema.properties ?? {}) : [];
  return [...own, ...Object.values(schema).flatMap((inner) => findKeys(inner))];
}

describe("docs/pipeline.md", () => {
  const blocks = [...text.matchAll(/^```yaml\n(.*?)^```$/gms)].map(([, block = ""]) => block);
  const pipelines = blocks.filter((block) => /^jobs:/m.test(block));

  test("shows whole pipelines", () => {
    expect(pipelines.length).toBeGreaterThan(4);
  });

  test.for(pipelines)("shows a pipeline without a problem: %s", (block) => {
    const { pipeline, diagnostics } = parsePipeline(block);
    expect(diagnostics).toEqual([]);
    expect(pipeline?.jobs.length).toBeGreaterThan(0);
  });

  test.for([...new Set(findKeys(pipelineJsonSchema()))])("explains the key %s", (key) => {
    expect(text).toContain(`\`${key}\``);
  });

  const { cpu, memoryBytes, pids, diskBytes, logBytes } = DEFAULTS.resources;
  test.for([
    `\`${DEFAULTS.image}\``,
    `\`${DEFAULTS.network}\``,
    `\`${DEFAULTS.pool}\``,
    `\`${formatDuration(DEFAULTS.stepTimeoutMs)}\``,
    `\`${formatDuration(DEFAULTS.jobTimeoutMs)}\``,
    `| \`${cpu}\` | ${LIMITS.cpuMin} – ${LIMITS.cpuMax} |`,
    `| \`${formatBytes(memoryBytes).replace(" ", "")}\` | ${formatBytes(LIMITS.memoryMinBytes)} – ${formatBytes(LIMITS.sizeMaxBytes)} |`,
    `| \`${pids}\` | ${LIMITS.pidsMin} – ${LIMITS.pidsMax} |`,
    `| \`${writeSize(diskBytes)}\` | ${formatBytes(LIMITS.diskMinBytes)} – ${formatBytes(LIMITS.sizeMaxBytes)} |`,
    `| \`${writeSize(logBytes)}\` | ${formatBytes(LIMITS.logMinBytes)} – ${formatBytes(LIMITS.sizeMaxBytes)} |`,
    `| none | ${formatBytes(LIMITS.rateMinBytes)}/s – ${formatBytes(LIMITS.rateMaxBytes)}/s |`,
    `| none | 1 – ${LIMITS.operationsMax} |`,
    `| 100 | 1 – ${LIMITS.ioWeightMax} |`,
    `From \`${formatDuration(LIMITS.timeoutMinMs)}\` to \`${formatDuration(LIMITS.timeoutMaxMs)}\``,
    `| the file | ${formatBytes(LIMITS.fileBytes)} |`,
    `| ${LIMITS.yamlTokens.toLocaleString("en")} |`,
    `| lists and mappings inside each other | ${LIMITS.nesting} |`,
    `| ${LIMITS.expandedValues.toLocaleString("en")} |`,
    `| jobs | ${LIMITS.jobs} |`,
    `| steps of a job | ${LIMITS.stepsPerJob} |`,
    `| services of a job | ${LIMITS.servicesPerJob} |`,
    `| arguments of a service | ${LIMITS.serviceArguments} |`,
    `| ports that a service must listen on | ${LIMITS.readyPorts} |`,
    `| destinations of an allow list | ${LIMITS.allowedDestinations} |`,
    `\`${formatDuration(DEFAULTS.readyTimeoutMs)}\``,
    `| a script | ${formatBytes(LIMITS.runBytes)} |`,
    `| the value of a variable | ${formatBytes(LIMITS.envValueBytes)} |`,
    `| variables of a step | ${LIMITS.envVariables}, ${formatBytes(LIMITS.envBytes)} together |`,
    `after merging | ${formatBytes(LIMITS.pipelineBytes)} |`,
    `| a name | ${LIMITS.nameLength} characters |`,
    `| an image | ${LIMITS.imageLength} characters |`,
    `| patterns of a list | ${LIMITS.patterns}, each of ${LIMITS.patternLength} characters |`,
    `| problems shown | ${LIMITS.diagnostics};`,
  ])("names the default or limit %s", (fact) => {
    expect(text).toContain(fact);
  });
});
