/** What an OCI container's processes are in its namespaces. */
import { readFileSync } from "node:fs";

export { mapUserNamespace, writeIdMaps } from "./user-namespace.ts";

/** A process's id in its own, innermost pid namespace. */
export function innermostPid(pid: number): number {
  const line = /^NSpid:\s*(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(line?.trim().split(/\s+/).at(-1) ?? pid);
}
