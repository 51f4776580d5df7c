/** What steps used, as a person reads it. */
import { formatBytes } from "../pipelines/index.ts";
import type { Usage } from "../queue/index.ts";
import { duration } from "./terminal.ts";

/** `cpu 1.20 s, memory 480 MiB, 12 processes, wrote 1.2 GiB`: what is known and not nothing. */
export function usageText(usage: Usage): string {
  const { cpuTimeMs, cpuThrottledMs = 0, memoryPeakBytes, pidsPeak, ioReadBytes = 0, ioWriteBytes = 0 } = usage;
  const parts = [`cpu ${duration(cpuTimeMs)}`];
  if (cpuThrottledMs >= 1) parts.push(`throttled ${duration(cpuThrottledMs)}`);
  if (memoryPeakBytes !== undefined) parts.push(`memory ${formatBytes(memoryPeakBytes)}`);
  if (pidsPeak !== undefined) parts.push(pidsPeak === 1 ? "1 process" : `${pidsPeak} processes`);
  if (ioReadBytes > 0) parts.push(`read ${formatBytes(ioReadBytes)}`);
  if (ioWriteBytes > 0) parts.push(`wrote ${formatBytes(ioWriteBytes)}`);
  if (usage.diskBytes !== undefined && usage.diskBytes > 0) parts.push(`keeps ${formatBytes(usage.diskBytes)} of disk`);
  return parts.join(", ");
}

/** Of steps that ran one after the other: sums, and the peaks of all. */
export function sumUsage(usages: readonly Usage[]): Usage | undefined {
  const [first, ...rest] = usages;
  if (first === undefined) return undefined;
  return rest.reduce<Usage>((sum, usage) => {
    const add = (key: keyof Usage) => both(sum[key], usage[key], (a, b) => a + b);
    const peak = (key: keyof Usage) => both(sum[key], usage[key], Math.max);
    return known({
      cpuTimeMs: sum.cpuTimeMs + usage.cpuTimeMs,
      cpuThrottledMs: add("cpuThrottledMs"),
      cpuThrottledPeriods: add("cpuThrottledPeriods"),
      memoryPeakBytes: peak("memoryPeakBytes"),
      pidsPeak: peak("pidsPeak"),
      ioReadBytes: add("ioReadBytes"),
      ioWriteBytes: add("ioWriteBytes"),
      ioReadOperations: add("ioReadOperations"),
      ioWriteOperations: add("ioWriteOperations"),
    });
  }, first);
}

function both(
  a: number | undefined,
  b: number | undefined,
  join: (a: number, b: number) => number,
): number | undefined {
  return a === undefined || b === undefined ? (a ?? b) : join(a, b);
}

function known(usage: { [Key in keyof Usage]: Usage[Key] | undefined }): Usage {
  return Object.fromEntries(Object.entries(usage).filter(([, value]) => value !== undefined)) as unknown as Usage;
}
