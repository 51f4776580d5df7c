/** What agents and local runs may be told about the resources of steps. */
import type { StepCeiling } from "../agent/index.ts";
import { LIMITS, parseSize } from "../pipelines/index.ts";
import type { Ceiling } from "../runtime/index.ts";
import { UsageError } from "./arguments.ts";
import type { Context } from "./verb.ts";

export const limitOptions = {
  memory: {
    value: "SIZE",
    help: "Memory of all steps together, like 8GiB (SLIPWAY_MEMORY)\n[default: the machine's but a tenth]",
  },
  cpus: { value: "N", help: "CPU cores of all steps together, like 3.5 (SLIPWAY_CPUS) [default: all]" },
  cpuset: { value: "LIST", help: "The CPUs that steps run on, like 0-3,8 (SLIPWAY_CPUSET) [default: all]" },
  pids: {
    value: "N",
    help: "Processes of all steps together (SLIPWAY_PIDS)\n[default: three quarters of what the kernel allows]",
  },
  disk: { value: "SIZE", help: "What all steps together may add to the disk, like 50GiB (SLIPWAY_DISK)" },
  log: { value: "SIZE", help: "What each step may print, like 100MiB (SLIPWAY_LOG)" },
} as const;

type LimitValues = { readonly [Key in keyof typeof limitOptions]: string | undefined };

/** What was given, of all steps together and of each. */
export interface Limits {
  readonly together: Ceiling;
  readonly each: StepCeiling;
}

/** @throws {UsageError} Naming the option or variable that is wrong. */
export function parseLimits(values: LimitValues, { environment }: Context): Limits {
  const given = <T>(name: keyof LimitValues, parse: (text: string, what: string) => T): T | undefined => {
    const variable = `SLIPWAY_${name.toUpperCase()}`;
    const option = values[name];
    if (option !== undefined) return parse(option, `--${name}`);
    const text = environment[variable];
    return text === undefined || text === "" ? undefined : parse(text, variable);
  };
  const memoryBytes = given("memory", size(LIMITS.memoryMinBytes));
  const cpu = given("cpus", number({ least: LIMITS.cpuMin, most: 100_000, whole: false }));
  const cpuset = given("cpuset", list);
  const pids = given("pids", number({ least: 1, most: LIMITS.pidsMax, whole: true }));
  const diskBytes = given("disk", size(LIMITS.diskMinBytes));
  const logBytes = given("log", size(LIMITS.logMinBytes));
  return {
    together: {
      ...(memoryBytes !== undefined && { memoryBytes }),
      ...(cpu !== undefined && { cpu }),
      ...(cpuset !== undefined && { cpuset }),
      ...(pids !== undefined && { pids }),
      ...(diskBytes !== undefined && { diskBytes }),
    },
    each: { ...(logBytes !== undefined && { logBytes }) },
  };
}

/** The options as they were given, for another command line; variables of the environment get there by themselves. */
export function limitArguments(values: LimitValues): string[] {
  return Object.keys(limitOptions).flatMap((name) => {
    const value = values[name as keyof LimitValues];
    return value === undefined ? [] : [`--${name}`, value];
  });
}

function size(least: number): (text: string, what: string) => number {
  return (text, what) => {
    const parsed = parseSize(text, { least, most: LIMITS.sizeMaxBytes });
    if (parsed.ok) return parsed.value;
    throw new UsageError(`${what} cannot be ${JSON.stringify(text)}: ${parsed.problem}; ${parsed.suggestion}`);
  };
}

function number(range: {
  readonly least: number;
  readonly most: number;
  readonly whole: boolean;
}): (text: string, what: string) => number {
  return (text, what) => {
    const value = Number(text);
    const form = range.whole ? /^\d{1,9}$/ : /^\d{1,6}(?:\.\d{1,6})?$/;
    if (form.test(text) && value >= range.least && value <= range.most) return value;
    const kind = range.whole ? "a whole number" : "a number";
    throw new UsageError(`${what} must be ${kind} from ${range.least} to ${range.most}, not ${JSON.stringify(text)}`);
  };
}

/** @see cpuset(7), "List format" */
function list(text: string, what: string): string {
  if (/^\d{1,5}(?:-\d{1,5})?(?:,\d{1,5}(?:-\d{1,5})?)*$/.test(text)) return text;
  throw new UsageError(`${what} must be a list of CPUs like 0-3,8, not ${JSON.stringify(text)}`);
}
