import { readFileSync } from "node:fs";

/** A process that a reused pid cannot be mistaken for. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat, clock ticks after boot; empty without /proc. */
  readonly startedAtTicks: string;
  readonly bootId: string;
}

/** Identifies a live process; `undefined` if there is none of that pid, or only its zombie. */
export function identify(pid: number): ProcessIdentity | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The second field is the program's name in parentheses and may hold anything, proc_pid_stat(5).
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const [state] = fields;
    const startedAtTicks = fields[19];
    if (startedAtTicks === undefined || state === "Z" || state === "X") return undefined;
    return { pid, startedAtTicks, bootId: readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim() };
  } catch {
    return undefined;
  }
}

/** Tells whether exactly this process still lives. */
export function isAlive(identity: ProcessIdentity): boolean {
  const now = identify(identity.pid);
  return now !== undefined && now.startedAtTicks === identity.startedAtTicks && now.bootId === identity.bootId;
}
