/** Says in words how a container's memory came to its end. */
import { formatBytes } from "./bytes.ts";
import type { OomKill, OomProcess, OomReport } from "./oom-log.ts";

/** What is known; each may be absent. */
export interface OomFacts {
  /** The container's own. */
  readonly limitBytes: number;
  readonly peakBytes?: number;
  /** Its init, which is nothing of the step's. */
  readonly initPid: number;
  readonly cgroup: string;
  /** The kernel's, the best there is. */
  readonly report?: OomReport;
  readonly kill?: OomKill;
  /** What was seen shortly before. */
  readonly sample?: readonly OomProcess[];
  /** Whether its own limit was reached, where counters tell. */
  readonly reachedOwnLimit?: boolean;
}

/**
 * `killed: used 512 MiB of 512 MiB (12 processes, largest: node 480 MiB)`, or what is known of it.
 *
 * Where another limit was reached, that of all containers or the machine's, it says so.
 */
export function describeOom(facts: OomFacts): string {
  const { report, limitBytes, peakBytes } = facts;
  const used = report?.usedBytes ?? peakBytes;
  const who = describeProcesses(facts);
  switch (whoseLimit(facts)) {
    case "own":
      return used === undefined
        ? `killed: used all of its ${formatBytes(limitBytes)}${parenthesis([who])}`
        : `killed: used ${formatBytes(Math.min(used, limitBytes))} of ${formatBytes(limitBytes)}${parenthesis([who])}`;
    case "agent": {
      const all =
        report?.usedBytes === undefined || report.limitBytes === undefined
          ? "more than they may"
          : `${formatBytes(report.usedBytes)} of ${formatBytes(report.limitBytes)}`;
      return `killed: all steps of this agent together used ${all}${parenthesis([ownPart(facts), who])}`;
    }
    case "machine":
      return `killed: the machine had no memory left${parenthesis([ownPart(facts), who])}`;
  }
}

function whoseLimit({ report, cgroup, reachedOwnLimit, peakBytes, limitBytes }: OomFacts): "own" | "agent" | "machine" {
  if (report !== undefined) {
    if (report.limitedCgroup === undefined) return "machine";
    return `${report.limitedCgroup}/`.includes(`/${cgroup}/`) ? "own" : "agent";
  }
  if (reachedOwnLimit !== undefined) return reachedOwnLimit ? "own" : "agent";
  // The kernel counts in batches: at its limit a cgroup may seem to be just below it.
  return peakBytes === undefined || peakBytes > limitBytes * 0.95 ? "own" : "agent";
}

function ownPart({ peakBytes, limitBytes }: OomFacts): string | undefined {
  return peakBytes === undefined
    ? undefined
    : `this step up to ${formatBytes(peakBytes)} of its ${formatBytes(limitBytes)}`;
}

function describeProcesses({ report, kill, sample, initPid }: OomFacts): string | undefined {
  const processes = (report?.processes ?? []).filter(({ pid }) => pid !== initPid);
  const largest = largestOf(processes);
  if (largest !== undefined) {
    // Where the list does not tell the memory of processes from the files they show, this line does of one of them.
    const bytes = kill?.pid === largest.pid ? kill.memoryBytes : largest.memoryBytes;
    return `${count(processes.length)}, largest: ${largest.name} ${formatBytes(bytes)}`;
  }
  if (kill !== undefined) return `largest: ${kill.name} ${formatBytes(kill.memoryBytes)}`;
  const seen = (sample ?? []).filter(({ pid }) => pid !== initPid);
  const biggest = largestOf(seen);
  if (biggest === undefined) return undefined;
  return `${count(seen.length)} shortly before, largest: ${biggest.name} ${formatBytes(biggest.memoryBytes)}`;
}

function largestOf(processes: readonly OomProcess[]): OomProcess | undefined {
  return processes.reduce<OomProcess | undefined>(
    (largest, process) => (process.memoryBytes > (largest?.memoryBytes ?? -1) ? process : largest),
    undefined,
  );
}

function count(processes: number): string {
  return processes === 1 ? "1 process" : `${processes} processes`;
}

function parenthesis(parts: readonly (string | undefined)[]): string {
  const said = parts.filter((part) => part !== undefined);
  return said.length === 0 ? "" : ` (${said.join("; ")})`;
}
