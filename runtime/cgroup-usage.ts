/** What the kernel has counted of a cgroup, v1 and v2. */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import type { CgroupDirectory } from "./cgroup-limits.ts";

/** A field is absent where this host does not count it. */
export interface CgroupUsage extends Partial<IoUsage> {
  readonly cpuTimeMs?: number;
  /** How long its processes were kept from the CPU by the limit, summed over CPUs; and in how many periods of 0.1 s. */
  readonly cpuThrottledMs?: number;
  readonly cpuThrottledPeriods?: number;
  readonly memoryPeakBytes?: number;
  readonly pidsPeak?: number;
  /** Processes that the kernel killed for memory. */
  readonly oomKills: number;
  /** Forks that were refused because of the pids limit. */
  readonly pidsRefused: number;
}

/** What came from and went to disks; on v1 without what the kernel wrote back later on nobody's account. */
export interface IoUsage {
  readonly ioReadBytes: number;
  readonly ioWriteBytes: number;
  readonly ioReadOperations: number;
  readonly ioWriteOperations: number;
}

/** Reads all counters. @param directories The cgroup's, of all hierarchies. */
export function readUsage(directories: readonly CgroupDirectory[]): CgroupUsage {
  const files = new Files(directories);
  return files.version === 2 ? usageV2(files) : usageV1(files);
}

/** Reads one counter alone: it is looked at often. */
export function readOomKills(directories: readonly CgroupDirectory[]): number {
  const files = new Files(directories);
  return files.key("memory", files.version === 2 ? "memory.events" : "memory.oom_control", "oom_kill") ?? 0;
}

/**
 * Whether its own limit was ever in the way of its processes, not one below it; for v2, where events below count here, too.
 * v1 counts each cgroup's own anyway.
 */
export function hadOwnOom(directories: readonly CgroupDirectory[]): boolean {
  const files = new Files(directories);
  if (files.version === 1) return true;
  return (files.key("memory", "memory.events.local", "oom") ?? 1) > 0;
}

/** The memory in use now; undefined if it is not counted. */
export function readMemory(directories: readonly CgroupDirectory[]): number | undefined {
  const files = new Files(directories);
  return files.number("memory", files.version === 2 ? "memory.current" : "memory.usage_in_bytes");
}

/** Whether its own limit was the end of its memory, not one above; undefined where the kernel does not tell. */
export function reachedOwnLimit(directories: readonly CgroupDirectory[]): boolean | undefined {
  const files = new Files(directories);
  const count = files.version === 2 ? files.key("memory", "memory.events", "oom") : undefined;
  return count === undefined ? undefined : count > 0;
}

function usageV2(files: Files): CgroupUsage {
  const milliseconds = (key: string) => divide(files.key("cpu", "cpu.stat", key), 1000);
  return compact({
    cpuTimeMs: milliseconds("usage_usec"),
    cpuThrottledMs: milliseconds("throttled_usec"),
    cpuThrottledPeriods: files.key("cpu", "cpu.stat", "nr_throttled"),
    memoryPeakBytes: files.number("memory", "memory.peak"),
    pidsPeak: files.number("pids", "pids.peak"),
    ...parseIoStat(files.read("io", "io.stat")),
    oomKills: files.key("memory", "memory.events", "oom_kill") ?? 0,
    pidsRefused: files.key("pids", "pids.events", "max") ?? 0,
  });
}

function usageV1(files: Files): CgroupUsage {
  return compact({
    cpuTimeMs: divide(files.number("cpuacct", "cpuacct.usage"), 1e6),
    cpuThrottledMs: divide(files.key("cpu", "cpu.stat", "throttled_time"), 1e6),
    cpuThrottledPeriods: files.key("cpu", "cpu.stat", "nr_throttled"),
    memoryPeakBytes: files.number("memory", "memory.max_usage_in_bytes"),
    pidsPeak: files.number("pids", "pids.peak"),
    ...parseBlkio(
      files.read("blkio", "blkio.throttle.io_service_bytes_recursive"),
      files.read("blkio", "blkio.throttle.io_serviced_recursive"),
    ),
    oomKills: files.key("memory", "memory.oom_control", "oom_kill") ?? 0,
    pidsRefused: files.key("pids", "pids.events", "max") ?? 0,
  });
}

/** io.stat of v2: `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`. Devices made of others are counted there. */
export function parseIoStat(text: string | undefined): IoUsage | undefined {
  if (text === undefined) return undefined;
  const sum = { rbytes: 0, wbytes: 0, rios: 0, wios: 0 };
  for (const line of text.split("\n")) {
    const [device = "", ...words] = line.split(" ");
    if (!/^\d+:\d+$/.test(device) || isMadeOfOthers(device)) continue;
    for (const word of words) {
      const [key = "", value] = word.split("=");
      if (Object.hasOwn(sum, key)) sum[key as keyof typeof sum] += Number(value);
    }
  }
  return {
    ioReadBytes: sum.rbytes,
    ioWriteBytes: sum.wbytes,
    ioReadOperations: sum.rios,
    ioWriteOperations: sum.wios,
  };
}

/** blkio of v1: `8:0 Read 4096`, a line for each kind of each device. */
export function parseBlkio(bytes: string | undefined, operations: string | undefined): IoUsage | undefined {
  if (bytes === undefined || operations === undefined) return undefined;
  const sum = (text: string, kind: string) => {
    let total = 0;
    for (const [, device = "", found, value] of text.matchAll(/^(\d+:\d+) (\w+) (\d+)$/gm)) {
      if (found === kind && !isMadeOfOthers(device)) total += Number(value);
    }
    return total;
  };
  return {
    ioReadBytes: sum(bytes, "Read"),
    ioWriteBytes: sum(bytes, "Write"),
    ioReadOperations: sum(operations, "Read"),
    ioWriteOperations: sum(operations, "Write"),
  };
}

/** Of device mapper and RAID: what goes to them goes to their parts, too. */
function isMadeOfOthers(device: string): boolean {
  try {
    return readdirSync(`/sys/dev/block/${device}/slaves`).length > 0;
  } catch {
    return false;
  }
}

/** The files of one cgroup, wherever they are, each read once. */
class Files {
  readonly version: 1 | 2;
  readonly #directories: readonly CgroupDirectory[];
  readonly #read = new Map<string, string | undefined>();

  constructor(directories: readonly CgroupDirectory[]) {
    this.#directories = directories;
    this.version = directories.some(({ version }) => version === 1) ? 1 : 2;
  }

  read(controller: string, file: string): string | undefined {
    if (this.#read.has(file)) return this.#read.get(file);
    const path = this.#directories.find(({ controllers }) => controllers.includes(controller))?.path;
    const text = path === undefined ? undefined : readText(`${path}/${file}`);
    this.#read.set(file, text);
    return text;
  }

  number(controller: string, file: string): number | undefined {
    const text = this.read(controller, file);
    return text === undefined ? undefined : Number(text.trim());
  }

  key(controller: string, file: string, key: string): number | undefined {
    const text = this.read(controller, file);
    if (text === undefined) return undefined;
    const value = new RegExp(`^${key} (\\d+)$`, "m").exec(text)?.[1];
    return value === undefined ? undefined : Number(value);
  }
}

/** The whole of a small file, with as few system calls as it takes: a step's end waits for it. */
function readText(path: string): string | undefined {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return undefined; // this kernel does not have the file
  }
  try {
    const length = readSync(fd, buffer);
    return length < buffer.length ? buffer.toString("latin1", 0, length) : readFileSync(path, "latin1");
  } catch {
    return undefined;
  } finally {
    closeSync(fd);
  }
}

const buffer = Buffer.allocUnsafeSlow(4096);

function divide(value: number | undefined, by: number): number | undefined {
  return value === undefined ? undefined : value / by;
}

function compact(usage: { [Key in keyof CgroupUsage]?: CgroupUsage[Key] | undefined }): CgroupUsage {
  return Object.fromEntries(Object.entries(usage).filter(([, value]) => value !== undefined)) as unknown as CgroupUsage;
}
