/** `slipway oci pause|resume|ps|update|events`: what callers of runc do with containers beyond the specification. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseArguments, UsageError, type Usage } from "./arguments.ts";
import { type OciCommand, type OciGlobal, oneId, splitCommand } from "./oci-command.ts";
import { exitCodes, type Context } from "./verb.ts";

const bytes = { value: "BYTES", help: "" } as const;

export const controlUsages = {
  pause: {
    name: "oci pause",
    summary: "Stop all processes of a container",
    ...oneId,
    options: {},
    examples: [["slipway oci pause hello", "Stop them"]],
  },
  resume: {
    name: "oci resume",
    summary: "Let the processes of a paused container run on",
    ...oneId,
    options: {},
    examples: [["slipway oci resume hello", "Let them run on"]],
  },
  ps: {
    name: "oci ps",
    summary: "List the processes of a container",
    operands: "ID [PS-OPTION...]",
    count: { least: 1, most: 100 },
    options: { format: { short: "f", value: "FORMAT", help: "table, as ps(1) prints it, or json [default: table]" } },
    examples: [["slipway oci ps hello aux", "List them as `ps aux` would"]],
  },
  update: {
    name: "oci update",
    summary: "Change the limits of a container",
    ...oneId,
    options: {
      resources: { short: "r", value: "FILE", help: "linux.resources as JSON instead of options; - is standard input" },
      memory: { ...bytes, help: "Limit of memory; k, m, g may follow" },
      "memory-reservation": { ...bytes, help: "Memory that is left to it when others need some" },
      "memory-swap": { ...bytes, help: "Limit of memory and swap together, -1 for none" },
      "kernel-memory": { ...bytes, help: "Accepted: kernels do not limit it apart any more" },
      "kernel-memory-tcp": { ...bytes, help: "Accepted, as above" },
      "cpu-period": { value: "US", help: "Period of the CPU quota" },
      "cpu-quota": { value: "US", help: "CPU time in a period, -1 for no limit" },
      "cpu-burst": { value: "US", help: "What may be saved up beyond the quota" },
      "cpu-share": { value: "NUMBER", help: "Weight, 2 to 262144" },
      "cpu-rt-period": { value: "US", help: "Period of the real-time quota" },
      "cpu-rt-runtime": { value: "US", help: "Real-time CPU time in a period" },
      "cpu-idle": { value: "0|1", help: "1: runs only when nothing else does" },
      "cpuset-cpus": { value: "LIST", help: "CPUs, as 0-3,7" },
      "cpuset-mems": { value: "LIST", help: "Memory nodes" },
      "blkio-weight": { value: "NUMBER", help: "Weight of its I/O, 10 to 1000" },
      "pids-limit": { value: "NUMBER", help: "How many processes it may have, -1 for no limit" },
    },
    examples: [["slipway oci update --memory 512m hello", "Give it 512 MiB"]],
  },
  events: {
    name: "oci events",
    summary: "Print statistics and events of a container, a line of JSON each, until it stops",
    ...oneId,
    options: {
      stats: { help: "Print the statistics once" },
      interval: { value: "SECONDS", help: "Between two statistics; s, ms, m may follow [default: 5s]" },
    },
    examples: [["slipway oci events --stats hello", "Print them once"]],
  },
} as const satisfies Readonly<Record<string, Usage>>;

export const controlCommands: Readonly<Record<keyof typeof controlUsages, OciCommand>> = {
  pause: async (argv, _, { root }) => {
    const { operands } = parseArguments(controlUsages.pause, argv);
    const { pauseContainer } = await import("../runtime/oci.ts");
    pauseContainer(root, operands[0] ?? "");
    return exitCodes.success;
  },
  resume: async (argv, _, { root }) => {
    const { operands } = parseArguments(controlUsages.resume, argv);
    const { resumeContainer } = await import("../runtime/oci.ts");
    resumeContainer(root, operands[0] ?? "");
    return exitCodes.success;
  },
  ps,
  update,
  events,
};

async function ps(argv: readonly string[], context: Context, { root }: OciGlobal): Promise<number> {
  const { own, command } = splitCommand(argv, controlUsages.ps.options);
  const { values, operands } = parseArguments(controlUsages.ps, own);
  const { format = "table" } = values;
  if (format !== "table" && format !== "json") throw new UsageError(`--format must be table or json, not "${format}"`);
  const { containerProcesses } = await import("../runtime/oci.ts");
  const pids = new Set(containerProcesses(root, operands[0] ?? ""));
  if (format === "json") {
    context.print(`${JSON.stringify([...pids])}\n`);
    return exitCodes.success;
  }
  const options = command.length > 0 ? command : ["-ef"];
  const { status, stdout, stderr, error } = spawnSync("ps", options, { encoding: "utf8" });
  if (status !== 0) {
    throw new Error(`Cannot list processes: "ps ${options.join(" ")}": ${error?.message ?? stderr.trim()}`);
  }
  const [title = "", ...lines] = stdout.split("\n");
  const column = title.trim().split(/\s+/).indexOf("PID");
  if (column < 0) throw new Error(`Cannot list processes: "ps ${options.join(" ")}" shows no column PID`);
  const ours = lines.filter((line) => pids.has(Number(line.trim().split(/\s+/)[column])));
  context.print([title, ...ours].map((line) => `${line}\n`).join(""));
  return exitCodes.success;
}

async function update(argv: readonly string[], context: Context, { root, warn }: OciGlobal): Promise<number> {
  const { values, operands } = parseArguments(controlUsages.update, argv);
  const { parseOciResources, updateContainer } = await import("../runtime/oci.ts");
  const { resources } = values;
  const path = resources === "-" || resources === undefined ? 0 : resolve(context.directory, resources);
  const text = resources === undefined ? resourcesOf(values) : readFileSync(path, "utf8");
  for (const name of ["kernel-memory", "kernel-memory-tcp"] as const) {
    if (values[name] !== undefined) warn(`--${name} does nothing: kernels do not limit it apart any more`);
  }
  updateContainer(root, operands[0] ?? "", parseOciResources(text));
  return exitCodes.success;
}

/** Options as linux.resources; its parser says what is wrong with a number. */
function resourcesOf(values: ReturnType<typeof parseArguments<typeof controlUsages.update.options>>["values"]): string {
  const number = (name: keyof typeof values) => given(name, parseNumber);
  const memory = (name: keyof typeof values) => given(name, parseBytes);
  const given = <T>(name: keyof typeof values, parse: (name: string, text: string) => T): T | undefined => {
    const text = values[name];
    return text === undefined ? undefined : parse(name, text);
  };
  return JSON.stringify({
    memory: {
      limit: memory("memory"),
      reservation: memory("memory-reservation"),
      swap: memory("memory-swap"),
    },
    cpu: {
      shares: number("cpu-share"),
      quota: number("cpu-quota"),
      burst: number("cpu-burst"),
      period: number("cpu-period"),
      realtimeRuntime: number("cpu-rt-runtime"),
      realtimePeriod: number("cpu-rt-period"),
      idle: number("cpu-idle"),
      cpus: values["cpuset-cpus"],
      mems: values["cpuset-mems"],
    },
    pids: { limit: number("pids-limit") },
    blockIO: { weight: number("blkio-weight") },
  });
}

function parseNumber(name: string, text: string): number {
  if (!/^-?\d{1,15}$/.test(text)) throw new UsageError(`--${name} must be a whole number, not "${text}"`);
  return Number(text);
}

/** Bytes, with the suffixes that runc takes. */
function parseBytes(name: string, text: string): number {
  const [, digits, unit = ""] = /^(-?\d{1,15})\s*([bkmgt]?)(?:i?b)?$/i.exec(text) ?? [];
  if (digits === undefined) throw new UsageError(`--${name} must be bytes as 512m, not "${text}"`);
  return Number(digits) * 1024 ** Math.max(0, "bkmgt".indexOf(unit.toLowerCase()));
}

async function events(argv: readonly string[], context: Context, { root }: OciGlobal): Promise<number> {
  const { values, operands } = parseArguments(controlUsages.events, argv);
  const intervalMs = parseInterval(values.interval ?? "5s");
  const { containerStatistics, containerState, oomKills } = await import("../runtime/oci.ts");
  const [id = ""] = operands;
  const print = (event: object) => context.print(`${JSON.stringify(event)}\n`);
  if (values.stats) {
    print(containerStatistics(root, id));
    return exitCodes.success;
  }
  const hasStopped = () => containerState(root, id).status === "stopped";
  for (let known = oomKills(root, id); ; await delay(intervalMs)) {
    if (hasStopped()) return exitCodes.success;
    try {
      const kills = oomKills(root, id);
      for (; known < kills; known++) print({ type: "oom", id });
      print(containerStatistics(root, id));
    } catch (error) {
      // It may have ended since we looked.
      if (!hasStopped()) throw error;
    }
  }
}

function parseInterval(text: string): number {
  const [, digits, unit = "s"] = /^(\d{1,6})(ms|s|m)?$/.exec(text) ?? [];
  const ms = Number(digits) * { ms: 1, s: 1000, m: 60_000 }[unit as "ms" | "s" | "m"];
  if (!(ms > 0)) throw new UsageError(`--interval must be a time as 5s, not "${text}"`);
  return ms;
}
