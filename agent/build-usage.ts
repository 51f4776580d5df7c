/** What the commands of an image's build have used, together. */
import type { Usage } from "../queue/index.ts";

const summed = [
  "cpuThrottledMs",
  "cpuThrottledPeriods",
  "ioReadBytes",
  "ioWriteBytes",
  "ioReadOperations",
  "ioWriteOperations",
  "diskBytes",
] as const;
const peaks = ["memoryPeakBytes", "pidsPeak"] as const;

/**
 * Counts command by command. Times and bytes are sums; a peak is that of the command which had the highest, though others may
 * have run beside it. What no command had counted is absent, as it is for a step.
 */
export class BuildUsage {
  #total: Usage | undefined;

  add(usage: Usage): void {
    const before = this.#total;
    const total: { -readonly [Key in keyof Usage]: Usage[Key] } = {
      ...before,
      cpuTimeMs: (before?.cpuTimeMs ?? 0) + usage.cpuTimeMs,
    };
    for (const key of summed) if (usage[key] !== undefined) total[key] = (total[key] ?? 0) + usage[key];
    for (const key of peaks) if (usage[key] !== undefined) total[key] = Math.max(total[key] ?? 0, usage[key]);
    this.#total = total;
  }

  /** Undefined if no command has run: all was in the cache, or nothing but files were copied. */
  get total(): Usage | undefined {
    return this.#total;
  }
}
