/** Which of the host's processes are a container's, told by /proc. */
import { readFileSync } from "node:fs";

/** Whether a process is the second one of the pid namespace that an init has begun. */
export function isPayload(pid: number, init: number): boolean {
  const ids = (id: number) =>
    /^NSpid:\t(.*)$/m.exec(readFileSync(`/proc/${id}/status`, "latin1"))?.[1]?.split("\t") ?? [];
  try {
    const own = ids(pid);
    return own.at(-1) === "2" && own.length === ids(init).length;
  } catch {
    return false; // ended meanwhile
  }
}

/** All processes below one, where no cgroup counts them. */
export function descendants(pid: number): number[] {
  const found: number[] = [];
  const ahead = [pid];
  for (let at = ahead.pop(); at !== undefined; at = ahead.pop()) {
    try {
      for (const child of readFileSync(`/proc/${at}/task/${at}/children`, "utf8").trim().split(" ").filter(Boolean)) {
        found.push(Number(child));
        ahead.push(Number(child));
      }
    } catch {
      // ended meanwhile
    }
  }
  return found;
}
