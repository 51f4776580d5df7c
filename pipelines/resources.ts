/** `resources:`, what a step may use: its keys, and how they are handed down. */
import { DEFAULTS, LIMITS } from "./limits.ts";
import type { IoLimits, Resources } from "./pipeline.ts";
import { parseRate, parseSize, RATE_PATTERN, SIZE_PATTERN, writeSize } from "./quantity.ts";
import { type FieldValues, type Located, mapping } from "./shape.ts";
import { cores, quantity, wholeNumber } from "./value.ts";

const size = (least: number) =>
  quantity("a size like 512MiB or 2GiB", SIZE_PATTERN, (text) => parseSize(text, { least, most: LIMITS.sizeMaxBytes }));

const rate = quantity("a rate like 50MiB/s", RATE_PATTERN, (text) =>
  parseRate(text, { least: LIMITS.rateMinBytes, most: LIMITS.rateMaxBytes }),
);

const operations = wholeNumber("operations per second", { least: 1, most: LIMITS.operationsMax });

const ioTable = {
  noun: "io",
  fields: {
    weight: {
      shape: wholeNumber("shares", { least: 1, most: LIMITS.ioWeightMax }),
      summary: "The step's share of a busy disk against other steps, which have 100 each.",
    },
    read: { shape: rate, summary: "Bytes read from the disk per second, for example 50MiB/s." },
    write: { shape: rate, summary: "Bytes written to the disk per second, for example 50MiB/s." },
    read_operations: { shape: operations, summary: "Reads from the disk per second." },
    write_operations: { shape: operations, summary: "Writes to the disk per second." },
  },
  synonyms: {
    rbps: "read",
    wbps: "write",
    read_bps: "read",
    write_bps: "write",
    riops: "read_operations",
    wiops: "write_operations",
    read_iops: "read_operations",
    write_iops: "write_operations",
    reads: "read_operations",
    writes: "write_operations",
    shares: "weight",
    priority: "weight",
  },
} as const;

const resourcesTable = {
  noun: "resources",
  fields: {
    cpu: {
      shape: cores,
      summary: "CPU cores the step may use, for example 0.5.",
      default: DEFAULTS.resources.cpu,
    },
    memory: {
      shape: size(LIMITS.memoryMinBytes),
      summary: "Memory the step may use; what uses more is killed. 512MiB, 2GiB, 512M (= MiB), 500MB (decimal).",
      default: writeSize(DEFAULTS.resources.memoryBytes),
    },
    pids: {
      shape: wholeNumber("processes", { least: LIMITS.pidsMin, most: LIMITS.pidsMax }),
      summary: "Processes and threads the step may have at once.",
      default: DEFAULTS.resources.pids,
    },
    disk: {
      shape: size(LIMITS.diskMinBytes),
      summary: "What the step may add to its root file system and the workspace together; what adds more is killed.",
      default: writeSize(DEFAULTS.resources.diskBytes),
    },
    log: {
      shape: size(LIMITS.logMinBytes),
      summary: "Output the step may print; what prints more is killed.",
      default: writeSize(DEFAULTS.resources.logBytes),
    },
    io: { shape: mapping(ioTable), summary: "How fast the step may use the disk of the agent's data directory." },
  },
  synonyms: {
    cpus: "cpu",
    cores: "cpu",
    mem: "memory",
    ram: "memory",
    processes: "pids",
    pid: "pids",
    storage: "disk",
    space: "disk",
    ephemeral_storage: "disk",
    "ephemeral-storage": "disk",
    blkio: "io",
    logs: "log",
    output: "log",
  },
} as const;

/** The mapping of limits at the top, on a job or on a step. */
export const resources = mapping(resourcesTable);

type Level = Located<FieldValues<typeof resourcesTable.fields>> | undefined;

/** Takes each key, those of `io` too, from the nearest level that names it. @param levels The nearest first. */
export function resolveResources(levels: readonly Level[]): Resources {
  const find = (key: "cpu" | "memory" | "pids" | "disk" | "log") =>
    levels.find((level) => level?.value[key] !== undefined)?.value[key]?.value;
  const findIo = (key: keyof typeof ioTable.fields) =>
    levels.find((level) => level?.value.io?.value[key] !== undefined)?.value.io?.value[key]?.value;
  const io: { -readonly [Key in keyof IoLimits]: number } = {};
  for (const [key, field] of Object.entries(ioFields) as [keyof IoLimits, keyof typeof ioTable.fields][]) {
    const value = findIo(field);
    if (value !== undefined) io[key] = value;
  }
  return {
    cpu: find("cpu") ?? DEFAULTS.resources.cpu,
    memoryBytes: find("memory") ?? DEFAULTS.resources.memoryBytes,
    pids: find("pids") ?? DEFAULTS.resources.pids,
    diskBytes: find("disk") ?? DEFAULTS.resources.diskBytes,
    logBytes: find("log") ?? DEFAULTS.resources.logBytes,
    ...(Object.keys(io).length > 0 && { io }),
  };
}

const ioFields = {
  weight: "weight",
  readBytesPerSecond: "read",
  writeBytesPerSecond: "write",
  readOperationsPerSecond: "read_operations",
  writeOperationsPerSecond: "write_operations",
} as const satisfies Record<keyof IoLimits, keyof typeof ioTable.fields>;
