/** What an OCI container's processes are in its namespaces. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

export { mapUserNamespace, writeIdMaps } from "./user-namespace.ts";

/** A process's id in its own, innermost pid namespace. */
export function innermostPid(pid: number): number {
  const line = /^NSpid:\s*(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(line?.trim().split(/\s+/).at(-1) ?? pid);
}

/** The processes of the pid namespace whose first a process is; it alone, if it is another's; none if it is gone. */
export function namespaceProcesses(pid: number): number[] {
  const wanted = pidNamespace(pid);
  if (wanted === undefined) return [];
  // One that was joined is another container's, or the host's.
  if (!isFirst(pid)) return [pid];
  const all = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return all.map(Number).filter((each) => pidNamespace(each) === wanted);
}

function isFirst(pid: number): boolean {
  try {
    return innermostPid(pid) === 1;
  } catch {
    return false; // gone
  }
}

function pidNamespace(pid: number | "self"): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return undefined; // gone, or another user's
  }
}
