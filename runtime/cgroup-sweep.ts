/** Removes cgroups that agents have left behind. */
import { readdirSync, rmdirSync, statSync } from "node:fs";
import { readWords } from "./cgroup-host.ts";

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
 * Removes the directories of agents that are gone for good, whose state directory nobody will use again: a living agent
 * always has processes in its own, launchers at least. Young ones are left alone, for their agent may be starting.
 */
export function sweepDeadAgents(parent: string, ownName: string, minimumAgeMs = 60_000): void {
  for (const name of directoriesIn(parent)) {
    if (!/^slipway-[0-9a-z]+-[0-9a-z]+$/.test(name) || name === ownName) continue;
    const directory = `${parent}/${name}`;
    const stat = statSync(directory, { throwIfNoEntry: false });
    if (stat === undefined || Date.now() - stat.ctimeMs < minimumAgeMs) continue;
    if (!hasProcesses(directory)) removeCgroupTree(directory);
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
