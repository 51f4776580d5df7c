/** `slipway lint`: every problem of every file at once, of the Dockerfiles that a pipeline builds, too. */
import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { formatDiagnostic, parsePipeline, type Diagnostic, type Pipeline } from "../pipelines/index.ts";
import { parseArguments, type Usage } from "./arguments.ts";
import type { CheckedDockerfile } from "./lint-dockerfile.ts";
import { findPipelineFile } from "./pipeline-file.ts";
import { exitCodes, type Context, type Verb } from "./verb.ts";

const usage = {
  name: "lint",
  operands: "[FILE...]",
  summary: "Check pipeline files, all problems at once",
  description: `
Without a FILE the .slipway.yml of this directory or the nearest one above it is checked; FILE may be - for standard input.
Dockerfiles that its steps build are checked, too, if they are in the checkout. Each problem comes with its line and column
and, where there is one, a suggestion. Exits with 1 if there is an error;
warnings alone are no failure.`,
  options: {
    json: { help: "Print one JSON array of problems: file, line, column, severity, message, suggestion" },
  },
  examples: [
    ["slipway lint", "check this checkout's pipeline"],
    ["slipway lint ci/*.yml", "check several files"],
    ["git show HEAD:.slipway.yml | slipway lint -", "check what was committed"],
  ],
  count: { least: 0, most: Infinity },
} as const satisfies Usage;

async function run(argv: readonly string[], context: Context): Promise<number> {
  const { values, operands } = parseArguments(usage, argv);
  const pipelines = operands.length > 0 ? operands : [findPipelineFile(context.directory)];
  const files = [...pipelines];
  const diagnostics: Diagnostic[] = [];
  for (const file of pipelines) {
    const parsed = parsePipeline(read(file, context), { file });
    diagnostics.push(...parsed.diagnostics);
    for (const checked of await dockerfilesOf(file, parsed.pipeline, context)) {
      if (files.includes(checked.file)) continue;
      files.push(checked.file);
      diagnostics.push(...checked.diagnostics);
    }
  }
  const errorCount = diagnostics.filter(({ severity }) => severity === "error").length;
  if (values.json) {
    context.print(`${JSON.stringify(diagnostics, undefined, 2)}\n`);
  } else {
    for (const diagnostic of diagnostics)
      context.print(`${formatDiagnostic(diagnostic, { color: context.colours })}\n\n`);
    context.print(summary(files, errorCount, diagnostics.length - errorCount, context));
  }
  return errorCount > 0 ? exitCodes.buildFailed : exitCodes.success;
}

/** What is wrong with the Dockerfiles in the same checkout. */
async function dockerfilesOf(
  file: string,
  pipeline: Pipeline | undefined,
  { directory }: Context,
): Promise<readonly CheckedDockerfile[]> {
  if (pipeline?.jobs.some(({ steps }) => steps.some(({ build }) => build !== undefined)) !== true) return [];
  const { checkDockerfiles } = await import("./lint-dockerfile.ts");
  return checkDockerfiles(pipeline, { above: file === "-" ? directory : dirname(resolve(directory, file)), directory });
}

/** @throws {Error} If the file cannot be read. */
function read(file: string, context: Context): Uint8Array {
  try {
    return readFileSync(file === "-" ? 0 : resolve(context.directory, file));
  } catch (error) {
    throw new Error(`Cannot read pipeline ${JSON.stringify(file)}: ${(error as Error).message}`, { cause: error });
  }
}

function summary(files: readonly string[], errorCount: number, warningCount: number, { paint }: Context): string {
  const what = files.length === 1 ? files[0] : `${files.length} files`;
  const warnings = warningCount === 0 ? "" : `, ${plural(warningCount, "warning")}`;
  if (errorCount > 0) return `${paint("red", "✗")} ${what}: ${plural(errorCount, "error")}${warnings}\n`;
  return `${paint("green", "✓")} ${what}: no errors${warnings}\n`;
}

function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

export const verbs: Readonly<Record<string, Verb>> = { lint: { usage, run } };
