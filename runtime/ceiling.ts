/** The most that all containers of an agent use together. */
import { readFileSync } from "node:fs";
import { totalmem } from "node:os";
import { type CgroupHost, ownLimit, readLimit } from "./cgroup-host.ts";
import type { Ceiling, StepResources } from "./step-resources.ts";

const MiB = 1024 ** 2;

/**
 * What the machine, or the cgroup that the agent is in, has, without what agent, server and system live on: a tenth of the
 * memory, and at least 256 MiB and at most 1 GiB of it; a quarter of the processes.
 */
export function defaultCeiling(host: CgroupHost): Ceiling {
  const memoryFile = host.version === 1 ? "memory.limit_in_bytes" : "memory.max";
  const memory = ownLimit(host, "memory", (directory) => readLimit(`${directory}/${memoryFile}`));
  const pids = ownLimit(host, "pids", (directory) => readLimit(`${directory}/pids.max`));
  const cpu = ownCpu(host);
  return {
    memoryBytes: withoutReserve(Math.min(totalmem(), memory ?? Infinity)),
    pids: Math.max(1, Math.floor(Math.min(readNumber("threads-max"), readNumber("pid_max"), pids ?? Infinity) * 0.75)),
    ...(cpu !== undefined && { cpu }),
  };
}

/** Exported for its test. */
export function withoutReserve(totalBytes: number): number {
  const reserve = Math.min(Math.max(totalBytes / 10, 256 * MiB), 1024 * MiB, totalBytes / 4);
  return Math.floor(totalBytes - reserve);
}

/** What one container may be given at most, so that its limits say what it really has. */
export function lowerToCeiling(asked: StepResources, ceiling: Ceiling): StepResources {
  const least = (value: number, most: number | undefined) => Math.min(value, most ?? Infinity);
  const diskBytes = least(asked.diskBytes ?? Infinity, ceiling.diskBytes);
  return {
    ...asked,
    memoryBytes: least(asked.memoryBytes, ceiling.memoryBytes),
    cpu: least(asked.cpu, ceiling.cpu),
    pids: least(asked.pids, ceiling.pids),
    ...(diskBytes < Infinity && { diskBytes }),
  };
}

/** v1 refuses a child a larger share of the CPU than its parent's. */
function ownCpu(host: CgroupHost): number | undefined {
  if (host.version === 2) return undefined;
  return ownLimit(host, "cpu", (directory) => {
    const [quota, period] = ["quota", "period"].map((name) => readLimit(`${directory}/cpu.cfs_${name}_us`));
    return quota === undefined || period === undefined ? undefined : quota / period;
  });
}

function readNumber(name: string): number {
  return Number(readFileSync(`/proc/sys/kernel/${name}`, "utf8"));
}
