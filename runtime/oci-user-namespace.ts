/** What an OCI container's processes are in its namespaces. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

export { mapUserNamespace, writeIdMaps } from "./user-namespace.ts";

/** A process's id in its own, innermost pid namespace. */
export function innermostPid(pid: number): number {
  const line = /^NSpid:\s*(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(line?.trim().split(/\s+/).at(-1) ?? pid);
}

/** The processes of a process's pid namespace; it alone, if that is ours, too; none if it is gone. */
export function namespaceProcesses(pid: number): number[] {
  const wanted = pidNamespace(pid);
  if (wanted === undefined) return [];
  if (wanted === pidNamespace("self")) return [pid];
  const all = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return all.map(Number).filter((each) => pidNamespace(each) === wanted);
}

function pidNamespace(pid: number | "self"): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return undefined; // gone, or another user's
  }
}
