/** What an agent keeps of failed steps, as options of the verbs that start one. */
import { parseDuration, parseSize, type Quantity } from "../pipelines/index.ts";
import type { KeepLimits } from "../agent/index.ts";
import { parseCount, UsageError, type Options, type Values } from "./arguments.ts";

export const keepOptions = {
  "keep-steps": {
    value: "N",
    help: "Failed steps kept for a shell at the same time (keep_on_failure), 0 for none [default: 4]",
  },
  "keep-size": { value: "SIZE", help: "What they may take together, like 10GiB [default: 16GiB]" },
  "keep-time": { value: "TIME", help: "How long one is kept at the most, like 12h [default: 1d]" },
} as const satisfies Options;

type KeepValues = Values<typeof keepOptions>;

/** Reads the options. @throws {UsageError} */
export function parseKeep(values: KeepValues): Partial<KeepLimits> {
  const { "keep-steps": steps, "keep-size": size, "keep-time": time } = values;
  return {
    ...(steps !== undefined && { steps: parseCount("--keep-steps", steps, { least: 0, most: 1000 }) }),
    ...(size !== undefined && { bytes: quantity("--keep-size", size, parseSize(size)) }),
    ...(time !== undefined && { timeMs: quantity("--keep-time", time, parseDuration(time)) }),
  };
}

function quantity(option: string, text: string, parsed: Quantity): number {
  if (parsed.ok) return parsed.value;
  throw new UsageError(`${option} cannot be ${JSON.stringify(text)}: ${parsed.problem}; ${parsed.suggestion}`);
}

/** The options as they were given, for an agent that is started. */
export function keepArguments(values: KeepValues): string[] {
  return Object.keys(keepOptions).flatMap((name) => {
    const value = values[name as keyof KeepValues];
    return value === undefined ? [] : [`--${name}`, value];
  });
}
