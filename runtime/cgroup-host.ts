/** Where this host's cgroups are, and the agent's place among them. */
import { existsSync, mkdirSync, readFileSync, statfsSync, writeFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { isRootless } from "./file-owners.ts";
import { agentLeaf, delegatedPart, othersIn } from "./user-cgroup.ts";

/** Those without which the agent does not isolate. */
export const requiredControllers = ["memory", "cpu", "pids"] as const;
/** Those that are used where they are: I/O has another name in each version; cpuacct is where v1 counts CPU time. */
const furtherControllers = { 1: ["cpuacct", "blkio"], 2: ["cpuset", "io"] } as const;
/** Used on request only: on v1 every hierarchy has to be joined. */
const cpuset = "cpuset";

const CGROUP2_SUPER_MAGIC = 0x63677270;

/** Found once, by looking. */
export interface CgroupHost {
  readonly version: 1 | 2;
  readonly hierarchies: readonly CgroupHierarchy[];
  /**
   * Beside v1: those that limit nothing here. A nested step gets a part of them, as its containers want it (devices,
   * name=systemd), or so that it cannot mount the whole.
   */
  readonly others: readonly (CgroupHierarchy & { readonly version: 1 | 2 })[];
  /** Of memory, cpu and pids, those that cannot be had. */
  readonly missing: readonly string[];
}

/** A mounted hierarchy and our own path in it. */
export interface CgroupHierarchy {
  readonly mountPoint: string;
  readonly ownPath: string;
  readonly controllers: readonly string[];
}

/**
 * The cgroups that this agent may use: all that are mounted, or for an ordinary user those that are delegated. Undefined if
 * no cgroup file system is mounted.
 *
 * @param options.cpuset On v1 the hierarchy of cpuset is wanted, too. @default false
 */
export function findCgroups(options: { readonly cpuset?: boolean } = {}): CgroupHost | undefined {
  const host = findMountedCgroups(options);
  return host === undefined || !isRootless() ? host : delegatedPart(host);
}

/** Looks at /proc/self/mountinfo and /proc/self/cgroup. */
export function findMountedCgroups(options: { readonly cpuset?: boolean } = {}): CgroupHost | undefined {
  const mounts = cgroupMounts();
  const own = ownPaths();
  const unified = mounts.find((mount) => mount.type === "cgroup2");
  const v1 = mounts.filter((mount) => mount.type === "cgroup");
  if (unified !== undefined && v1.length === 0) {
    const controllers = readWords(`${unified.mountPoint}/cgroup.controllers`);
    return {
      version: 2,
      hierarchies: [{ mountPoint: unified.mountPoint, ownPath: own.get("") ?? "/", controllers }],
      others: [],
      missing: requiredControllers.filter((name) => !controllers.includes(name)),
    };
  }
  const wanted = new Set<string>([
    ...requiredControllers,
    ...furtherControllers[1],
    ...(options.cpuset ? [cpuset] : []),
  ]);
  const used = v1.filter((mount) => mount.controllers.some((name) => wanted.has(name)));
  if (used.length === 0) return undefined;
  const found = new Set(used.flatMap((mount) => mount.controllers));
  const place = ({ mountPoint, controllers, type }: (typeof v1)[number]): CgroupHierarchy => {
    const ownPath = own.get(type === "cgroup2" ? "" : (controllers[0] ?? "")) ?? "/";
    return { mountPoint, ownPath, controllers: type === "cgroup2" ? [] : controllers };
  };
  return {
    version: 1,
    hierarchies: used.map(place),
    others: mounts
      .filter((mount) => !used.includes(mount))
      .map((mount) => ({ ...place(mount), version: mount.type === "cgroup2" ? 2 : 1 })),
    missing: requiredControllers.filter((name) => !found.has(name)),
  };
}

function cgroupMounts(): { mountPoint: string; type: string; controllers: string[] }[] {
  const mounts: { mountPoint: string; type: string; controllers: string[] }[] = [];
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    // 36 35 98:0 / /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory
    const [left, right] = line.split(" - ");
    const mountPoint = left?.split(" ")[4];
    const [type, , options] = right?.split(" ") ?? [];
    if (mountPoint === undefined || (type !== "cgroup" && type !== "cgroup2")) continue;
    const controllers = (options ?? "")
      .split(",")
      .filter((option) => !/^(?:rw|ro|xattr|clone_children|noprefix|cpuset_v2_mode|release_agent=.*)$/.test(option));
    if (mounts.every((mount) => mount.mountPoint !== mountPoint)) mounts.push({ mountPoint, type, controllers });
  }
  return mounts;
}

/** Controller to path, as /proc/self/cgroup has it; the key of v2 is the empty string. */
function ownPaths(): Map<string, string> {
  const paths = new Map<string, string>();
  for (const line of readFileSync("/proc/self/cgroup", "utf8").trim().split("\n")) {
    const [, controllers = "", path = "/"] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    for (const name of controllers.split(",")) paths.set(name, path);
  }
  return paths;
}

/**
 * Makes the agent's directory in a hierarchy, `name` below the agent's own cgroup, and lets its children have the controllers.
 *
 * On v2 a cgroup with processes cannot have controllers for its children, so the agent moves itself into a leaf if it is
 * alone in its cgroup, and else makes its directory below the root of what it sees.
 *
 * @returns The directory and the controllers that can be used in it.
 * @throws {Error} Naming the directory and what mends it.
 */
export function makeAgentCgroup(
  { mountPoint, ownPath, controllers }: CgroupHierarchy,
  version: 1 | 2,
  name: string,
): { readonly path: string; readonly controllers: readonly string[] } {
  const own = version === 1 ? visiblePath(mountPoint, ownPath) : delegatedParent(mountPoint, ownPath);
  const path = `${own === "/" ? mountPoint : mountPoint + own}/${name}`;
  makeDirectory(path);
  if (version === 2) {
    enableControllers(path, controllers);
    return { path, controllers: readWords(`${path}/cgroup.subtree_control`) };
  }
  if (controllers.includes(cpuset)) inheritCpuset(path);
  return { path, controllers };
}

/** The agent's directory in a hierarchy of a host with v1. */
export function agentCgroupPath({ mountPoint, ownPath }: CgroupHierarchy, name: string): string {
  const own = visiblePath(mountPoint, ownPath);
  return `${own === "/" ? mountPoint : mountPoint + own}/${name}`;
}

/** A v1 cpuset without CPUs and memory nodes takes no process; whatever is made below is a copy. */
function inheritCpuset(path: string): void {
  writeFileSync(`${path}/cgroup.clone_children`, "1");
  for (const file of ["cpuset.cpus", "cpuset.mems"]) {
    const parent = readWords(`${path}/../${file}`);
    if (readWords(`${path}/${file}`).length === 0) writeFileSync(`${path}/${file}`, parent.join(""));
  }
}

/**
 * The least limit that this process is under itself; undefined if there is none. What is above a cgroup namespace is
 * not seen.
 *
 * @param read Reads a directory's limit; undefined where it has none.
 */
export function ownLimit(
  host: CgroupHost,
  controller: string,
  read: (directory: string) => number | undefined,
): number | undefined {
  const hierarchy = host.hierarchies.find(({ controllers }) => controllers.includes(controller));
  if (hierarchy === undefined) return undefined;
  const { mountPoint } = hierarchy;
  const own = visiblePath(mountPoint, hierarchy.ownPath);
  let least = Infinity;
  for (let path = own === "/" ? "" : own; ; path = path.slice(0, path.lastIndexOf("/"))) {
    least = Math.min(least, read(`${mountPoint}${path}`) ?? Infinity);
    if (path === "") break;
  }
  return least < Infinity ? least : undefined;
}

/** A number in a file; undefined for `max`, `-1` and what v1 says for no limit, the largest number of pages. */
export function readLimit(path: string): number | undefined {
  const [word = ""] = readWords(path);
  return /^\d+$/.test(word) && Number(word) < 2 ** 60 ? Number(word) : undefined;
}

/** A cgroup namespace shows only what is below its root: an own path that is not there is the root itself. */
function visiblePath(mountPoint: string, ownPath: string): string {
  return ownPath !== "/" && existsSync(mountPoint + ownPath) ? ownPath : "/";
}

function delegatedParent(mountPoint: string, ownPath: string): string {
  const path = visiblePath(mountPoint, isRootless() && basename(ownPath) === agentLeaf ? dirname(ownPath) : ownPath);
  if (path === "/" && !isRootless()) return "/";
  const directory = path === "/" ? mountPoint : mountPoint + path;
  const others = othersIn(directory);
  // Others are there, a login session for example: their cgroup is not ours to rearrange, unless it was delegated to them
  // and us: what started a user's agent goes along.
  if (others.length > 0 && !isRootless()) return "/";
  makeDirectory(`${directory}/${agentLeaf}`);
  for (const pid of [`${process.pid}`, ...others]) moveInto(`${directory}/${agentLeaf}`, pid);
  enableControllers(directory, readWords(`${directory}/cgroup.controllers`));
  return path;
}

function moveInto(directory: string, pid: string): void {
  try {
    writeFileSync(`${directory}/cgroup.procs`, pid);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // it has ended
  }
}

/** Lets children of a directory have the controllers we use, from the root of the hierarchy down. */
function enableControllers(directory: string, available: readonly string[]): void {
  const parents: string[] = [];
  for (let at = directory; isCgroup2(at) && at !== "/"; at = at.slice(0, at.lastIndexOf("/"))) parents.unshift(at);
  for (const parent of parents) {
    for (const name of [...requiredControllers, ...furtherControllers[2]]) {
      if (!available.includes(name) || readWords(`${parent}/cgroup.subtree_control`).includes(name)) continue;
      try {
        writeFileSync(`${parent}/cgroup.subtree_control`, `+${name}`);
      } catch (error) {
        if (furtherControllers[2].some((further) => further === name)) continue;
        throw new Error(
          `Cannot enable the ${name} controller in "${parent}": run the agent as a service with Delegate=yes, or as root outside a login session`,
          { cause: error },
        );
      }
    }
  }
}

function isCgroup2(path: string): boolean {
  try {
    return statfsSync(path).type === CGROUP2_SUPER_MAGIC;
  } catch {
    return false;
  }
}

/** Makes a cgroup, if it is not there. @throws {Error} */
export function makeDirectory(path: string): void {
  try {
    mkdirSync(path, { mode: 0o755 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return;
    throw new Error(`Cannot make cgroup "${path}": mount the cgroup file system writable for the agent`, {
      cause: error,
    });
  }
}

/** The words of a file; none if it cannot be read. */
export function readWords(path: string): string[] {
  try {
    return readFileSync(path, "utf8").split(/\s+/).filter(Boolean);
  } catch {
    return [];
  }
}
