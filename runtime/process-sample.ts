/** Looks at the processes of a container, for hosts on which the kernel's log cannot be read. */
import { readFileSync } from "node:fs";
import type { OomProcess } from "./oom-log.ts";

/** Looking takes some 20 µs a process. */
const mostProcesses = 256;

/** The processes and the memory of each; those that are gone meanwhile are left out. */
export function sampleProcesses(pids: readonly number[]): OomProcess[] {
  return pids.slice(0, mostProcesses).flatMap((pid) => {
    try {
      const status = readFileSync(`/proc/${pid}/status`, "latin1");
      const kilobytes = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+) kB$`, "m").exec(status)?.[1] ?? 0);
      const name = /^Name:\t(.*)$/m.exec(status)?.[1] ?? "";
      const uid = Number(/^Uid:\t(\d+)/m.exec(status)?.[1] ?? -1);
      return [{ pid, uid, name: printable(name), memoryBytes: (kilobytes("RssAnon") + kilobytes("RssShmem")) * 1024 }];
    } catch {
      return [];
    }
  });
}

export function totalMemory(processes: readonly OomProcess[]): number {
  return processes.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
}

/** As the kernel's log would write it; status has a few characters escaped already. */
function printable(name: string): string {
  return name.replaceAll(/[^\x20-\x7e]/g, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
