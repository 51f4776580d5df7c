/** Removes cgroups that agents have left behind. */
import { readdirSync, rmdirSync, statSync } from "node:fs";
import { readWords } from "./cgroup-host.ts";
import { LOCK_EX, LOCK_NB, LOCK_SH, O_DIRECTORY, O_RDONLY } from "./linux.ts";
import { close, open, trySyscall } from "./syscall.ts";

/** Removes a directory of the cgroup file system with all below; leftovers whose processes are gone. */
export function removeCgroupTree(path: string): void {
  removeCgroupsBelow(path);
  tryRemove(path);
}

/** The same without the directory itself. */
export function removeCgroupsBelow(path: string): void {
  for (const name of directoriesIn(path)) removeCgroupTree(`${path}/${name}`);
}

/** True if it is gone. */
export function tryRemove(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  }
}

/**
 * Marks a directory as a living agent's, which on v2 may have no process in it for days. The mark goes with this process,
 * or when the caller closes the descriptor. @see flock(2)
 */
export function lockAgentCgroup(path: string): number {
  const fd = open(path, O_RDONLY | O_DIRECTORY);
  trySyscall("flock", fd, LOCK_SH | LOCK_NB);
  return fd;
}

/** Whether the mark is there. */
function isLocked(path: string): boolean {
  let fd: number;
  try {
    fd = open(path, O_RDONLY | O_DIRECTORY);
  } catch {
    return false; // gone meanwhile
  }
  const result = trySyscall("flock", fd, LOCK_EX | LOCK_NB);
  close(fd);
  return result < 0;
}

/**
 * Removes the directories of agents that are gone for good, whose state directory nobody will use again: a living agent
 * has locked its own, and what it started may be in there. Young ones are left alone, for their agent may be starting.
 */
export function sweepDeadAgents(parent: string, ownName: string, minimumAgeMs = 60_000): void {
  for (const name of directoriesIn(parent)) {
    if (!/^slipway-[0-9a-z]+-[0-9a-z]+$/.test(name) || name === ownName) continue;
    const directory = `${parent}/${name}`;
    const stat = statSync(directory, { throwIfNoEntry: false });
    if (stat === undefined || Date.now() - stat.ctimeMs < minimumAgeMs) continue;
    if (!isLocked(directory) && !hasProcesses(directory)) removeCgroupTree(directory);
  }
}

function hasProcesses(directory: string): boolean {
  if (readWords(`${directory}/cgroup.procs`).length > 0) return true;
  return directoriesIn(directory).some((name) => hasProcesses(`${directory}/${name}`));
}

/** The cgroups right below one. */
export function directoriesIn(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
  } catch {
    return []; // gone meanwhile
  }
}
