/** What a container's end means: the reason in words, and what was used. */
import { constants } from "node:os";
import type { CgroupUsage } from "./cgroup-usage.ts";
import type { ContainerResult, ContainerUsage, EndReason } from "./container-config.ts";
import type { DiskLimit } from "./disk-limit.ts";
import { SIGKILL } from "./linux.ts";
import { decodeWaitStatus, type Reaped } from "./reaper.ts";
import type { StepResources } from "./step-resources.ts";

/** Why the agent has ended it. */
export interface StopReason {
  readonly reason: Exclude<EndReason, "exited" | "signaled" | "oom">;
  /** `it ran for longer than 5 s` */
  readonly message: string;
}

/** All that is known when every process of a container is gone. */
export interface ContainerEnd {
  /** As wait(2) gives it; undefined if init was killed, and the payload with it. */
  readonly payloadStatus: number | undefined;
  /** What has killed init, if that is known. */
  readonly initSignal: number | undefined;
  readonly stopped: StopReason | undefined;
  readonly granted: StepResources;
  readonly startedAtMs: number;
  readonly finishedAtMs: number;
  /** Without a cgroup there is none. */
  readonly usage: CgroupUsage | undefined;
  /** What init and those that it has waited for have read and written. */
  readonly waited: Partial<Reaped>;
  readonly disk: DiskLimit | undefined;
  /** Says what used the memory. */
  readonly explainOom: () => string;
}

/** The result of a container whose program has run. */
export function describeEnd(end: ContainerEnd): ContainerResult {
  const { usage, startedAtMs, finishedAtMs } = end;
  const oomKilled = (usage?.oomKills ?? 0) > 0;
  let status: { exitCode?: number; signal?: number } =
    end.payloadStatus === undefined ? { signal: end.initSignal ?? SIGKILL } : decodeWaitStatus(end.payloadStatus);
  // It was quicker than the kill: v1 kills one process only.
  if (oomKilled && end.stopped === undefined && status.exitCode === 0) status = { signal: SIGKILL };
  const exitCode = status.exitCode ?? 128 + (status.signal ?? 0);
  const signal = status.signal === undefined ? undefined : signalName(status.signal);
  const { reason, message } = explainEnd(end, { exitCode, signal, oomKilled });
  return {
    reason,
    exitCode,
    ...(signal === undefined ? {} : { signal }),
    oomKilled,
    ...(message === undefined ? {} : { message }),
    startedAtMs,
    finishedAtMs,
    usage: describeUsage(usage, end.waited, end.disk?.size?.bytes),
  };
}

function explainEnd(
  { usage, stopped, granted, disk, explainOom }: ContainerEnd,
  status: { readonly exitCode: number; readonly signal: string | undefined; readonly oomKilled: boolean },
): Pick<ContainerResult, "reason" | "message"> {
  const { exitCode, signal, oomKilled } = status;
  const refused = usage?.pidsRefused ?? 0;
  const forks = refused === 0 ? "" : ` (${refused} forks were refused at the limit of ${granted.pids} processes)`;
  if (stopped !== undefined) {
    const how = { timeout: "timed out", canceled: "canceled", disk: "killed", log: "killed" }[stopped.reason];
    return { reason: stopped.reason, message: `${how}: ${stopped.message}${forks}` };
  }
  if (oomKilled) return { reason: "oom", message: explainOom() };
  if (signal !== undefined) return { reason: "signaled", message: `killed by ${signal}${forks}` };
  if (exitCode === 0) return { reason: "exited" };
  const full = disk?.explainFailure();
  if (full !== undefined) return { reason: "disk", message: `exit code ${exitCode}: ${full}` };
  return { reason: "exited", ...(refused > 0 && { message: `exit code ${exitCode}${forks}` }) };
}

function signalName(signal: number): string {
  const found = Object.entries(constants.signals).find(([, number]) => number === signal);
  return found?.[0] ?? `signal ${signal}`;
}

/** @param waited Of init, which has waited for everybody. */
function describeUsage(
  counted: CgroupUsage | undefined,
  waited: Partial<Reaped>,
  diskBytes: number | undefined,
): ContainerUsage {
  const { oomKills: _, pidsRefused: __, ...usage } = counted ?? { oomKills: 0, pidsRefused: 0 };
  // v1 counts no cached writes, and a process none that it had no part in: the larger of both is nearer to the truth.
  const [read, written] = [
    Math.max(usage.ioReadBytes ?? 0, waited.readBytes ?? 0),
    Math.max(usage.ioWriteBytes ?? 0, waited.writtenBytes ?? 0),
  ];
  return {
    ...usage,
    cpuTimeMs: usage.cpuTimeMs ?? waited.cpuTimeMs ?? 0,
    ioReadBytes: read,
    ioWriteBytes: written,
    // Less than nothing: the step has deleted what was there before.
    ...(diskBytes !== undefined && { diskBytes: Math.max(0, diskBytes) }),
  };
}
