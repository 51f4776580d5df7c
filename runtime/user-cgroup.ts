/** The cgroup of an agent that has no rights outside: one that somebody has delegated to its user. */
import { accessSync, constants, readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { type CgroupHierarchy, type CgroupHost, readWords, requiredControllers } from "./cgroup-host.ts";
import { enterScope, findUserManager } from "./systemd-scope.ts";

/** Where agents have put themselves, so that the cgroup above can have controllers for its children. */
export const agentLeaf = "slipway-agent";

/** The directory that a process of this hierarchy may arrange: its own, or the one above the leaf that it has moved to. */
export function ownDirectory({ mountPoint, ownPath }: CgroupHierarchy): string {
  const path = basename(ownPath) === agentLeaf ? dirname(ownPath) : ownPath;
  return path === "/" ? mountPoint : mountPoint + path;
}

/** What is left of a host's cgroups for an ordinary user: the hierarchies, and their controllers, that are delegated. */
export function delegatedPart(host: CgroupHost): CgroupHost {
  const hierarchies = host.hierarchies
    .filter((hierarchy) => isDelegated(ownDirectory(hierarchy)))
    .map((hierarchy) =>
      host.version === 1
        ? hierarchy
        : { ...hierarchy, controllers: readWords(`${ownDirectory(hierarchy)}/cgroup.controllers`) },
    );
  const found = new Set(hierarchies.flatMap(({ controllers }) => controllers));
  return { ...host, hierarchies, missing: requiredControllers.filter((name) => !found.has(name)) };
}

function isDelegated(directory: string): boolean {
  try {
    for (const path of [directory, `${directory}/cgroup.procs`]) accessSync(path, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/**
 * Sees to it that this process is in a cgroup of its own, where the user's systemd can make one. Without a service manager,
 * and on v1, what there is must do.
 *
 * @param host Of v2; all of it.
 * @throws {Error} If the service manager refuses.
 */
export async function claimUserCgroup(host: CgroupHost): Promise<void> {
  const [unified] = host.hierarchies;
  if (host.version === 1 || unified === undefined) return;
  const directory = ownDirectory(unified);
  if (isDelegated(directory) && othersIn(directory).length === 0) return;
  const manager = findUserManager();
  if (manager !== undefined) await enterScope(manager);
}

/** Processes of a cgroup beside this one. */
export function othersIn(directory: string): string[] {
  return readWords(`${directory}/cgroup.procs`).filter((pid) => Number(pid) !== process.pid);
}

/** What gives a user a delegated cgroup. */
export function mendDelegation(host: CgroupHost): string {
  const user = process.geteuid?.() ?? 0;
  if (host.version === 1)
    return "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or run agents with --allow no-cgroups";
  if (findUserManager() !== undefined && host.hierarchies.length > 0) {
    return `delegate them to users' service managers: systemctl edit user@.service, [Service] Delegate=cpu cpuset io memory pids, then log in again`;
  }
  const initSystem = readText("/proc/1/comm");
  if (initSystem === "systemd") {
    return `give the user a service manager, which delegates: loginctl enable-linger ${user}; or run the agent as a service with User= and Delegate=yes`;
  }
  return "make a cgroup for the agent, give it to the user (directory, cgroup.procs, cgroup.subtree_control) and start the agent in it; or --allow no-cgroups";
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return "";
  }
}
