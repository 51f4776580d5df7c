/**
 * Control groups: one per container, below one per agent, on cgroup v2 and on v1 or hybrid hosts.
 *
 * @see {@link https://docs.kernel.org/admin-guide/cgroup-v2.html} and admin-guide/cgroup-v1/
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { rmdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { O_DIRECTORY, O_RDONLY, O_WRONLY } from "./linux.ts";
import { open } from "./syscall.ts";

export interface CgroupLimits {
  readonly memoryBytes: number;
  /** CPU cores. */
  readonly cpu: number;
  readonly pids: number;
}

/** What the kernel counted; a field is absent where this host does not count it. */
export interface CgroupUsage {
  readonly cpuTimeMs?: number;
  readonly memoryPeakBytes?: number;
  readonly pidsPeak?: number;
  /** Processes that the kernel killed for memory. */
  readonly oomKills: number;
  /** Forks that were refused because of the pids limit. */
  readonly pidsRefused: number;
}

/** One mounted v1 hierarchy that we use, or the v2 hierarchy with all controllers. */
interface Hierarchy {
  /** The agent's directory in it, in which containers' directories are made. */
  readonly directory: string;
  readonly controllers: ReadonlySet<string>;
}

const CGROUP2_SUPER_MAGIC = 0x63677270;
const wantedControllers = ["memory", "cpu", "pids"] as const;
const cpuPeriodUs = 100_000;

/** Where this host's cgroups are; found once, by looking. */
export interface CgroupHost {
  readonly version: 1 | 2;
  /** Each hierarchy's mount point and our own path in it. */
  readonly hierarchies: readonly {
    readonly mountPoint: string;
    readonly ownPath: string;
    readonly controllers: readonly string[];
  }[];
  /** Of memory, cpu and pids, those that cannot be had. */
  readonly missing: readonly string[];
}

/** Looks at /proc/self/mountinfo and /proc/self/cgroup. Returns undefined if no cgroup file system is mounted. */
export function findCgroups(): CgroupHost | undefined {
  const mounts = cgroupMounts();
  const own = ownPaths();
  const unified = mounts.find((mount) => mount.type === "cgroup2");
  const v1 = mounts.filter((mount) => mount.type === "cgroup");
  if (unified !== undefined && v1.length === 0) {
    const controllers = readWords(`${unified.mountPoint}/cgroup.controllers`);
    return {
      version: 2,
      hierarchies: [{ mountPoint: unified.mountPoint, ownPath: own.get("") ?? "/", controllers }],
      missing: wantedControllers.filter((name) => !controllers.includes(name)),
    };
  }
  // cpuacct is where v1 counts CPU time; cheap to join where it is mounted together with cpu, as systemd does.
  const used = v1.filter((mount) => mount.controllers.some((name) => [...wantedControllers, "cpuacct"].includes(name)));
  if (used.length === 0) return undefined;
  const found = new Set(used.flatMap((mount) => mount.controllers));
  return {
    version: 1,
    hierarchies: used.map((mount) => ({
      mountPoint: mount.mountPoint,
      ownPath: own.get(mount.controllers[0] ?? "") ?? "/",
      controllers: mount.controllers,
    })),
    missing: wantedControllers.filter((name) => !found.has(name)),
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
    const controllers = (options ?? "").split(",").filter((option) => option !== "rw" && option !== "ro");
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

/** An agent's part of the cgroup tree. */
export class Cgroups {
  readonly version: 1 | 2;
  readonly #hierarchies: readonly Hierarchy[];

  private constructor(version: 1 | 2, hierarchies: readonly Hierarchy[]) {
    this.version = version;
    this.#hierarchies = hierarchies;
  }

  /**
   * Makes the agent's directory in every hierarchy, `name` below the agent's own cgroup.
   *
   * On v2 a cgroup with processes cannot have controllers for its children, so the agent moves itself into a leaf if it is
   * alone in its cgroup, and else makes its directory below the root of what it sees.
   *
   * @throws {Error} Naming the directory and what mends it.
   */
  static open(host: CgroupHost, name: string): Cgroups {
    const hierarchies = host.hierarchies.map(({ mountPoint, ownPath, controllers }): Hierarchy => {
      const own = host.version === 1 ? visiblePath(mountPoint, ownPath) : delegatedParent(mountPoint, ownPath);
      const directory = `${own === "/" ? mountPoint : mountPoint + own}/${name}`;
      makeDirectory(directory);
      if (host.version === 2) enableControllers(directory, controllers);
      return { directory, controllers: new Set(controllers) };
    });
    return new Cgroups(host.version, hierarchies);
  }

  /** The directories that `open` would make; their leftovers belong to whoever used this name before. */
  get directories(): readonly string[] {
    return this.#hierarchies.map(({ directory }) => directory);
  }

  /** The controllers of each hierarchy as its mount option names them: `memory`, `cpu,cpuacct`. */
  get controllerSets(): readonly string[] {
    return this.#hierarchies.map(({ controllers }) => [...controllers].join(","));
  }

  /** Makes a container's cgroup, without limits yet. @throws {Error} */
  create(id: string): Cgroup {
    const made: Hierarchy[] = [];
    try {
      for (const { directory, controllers } of this.#hierarchies) {
        makeDirectory(`${directory}/${id}`);
        made.push({ directory: `${directory}/${id}`, controllers });
      }
      return new Cgroup(this.version, made);
    } catch (error) {
      for (const { directory } of made) tryRemove(directory);
      throw error;
    }
  }

  /** Removes the agent's directories; containers' cgroups must be gone. */
  close(): void {
    for (const { directory } of this.#hierarchies) tryRemove(directory);
  }
}

/** One container's cgroup. */
export class Cgroup {
  readonly version: 1 | 2;
  readonly #hierarchies: readonly Hierarchy[];

  constructor(version: 1 | 2, hierarchies: readonly Hierarchy[]) {
    this.version = version;
    this.#hierarchies = hierarchies;
  }

  /** Sets its limits; before the first process joins, for memory that is used already may be over the limit. @throws {Error} */
  limit({ memoryBytes, cpu, pids }: CgroupLimits): void {
    const quotaUs = Math.max(1000, Math.round(cpu * cpuPeriodUs));
    if (this.version === 2) {
      this.#write("memory", "memory.max", `${memoryBytes}`);
      this.#write("memory", "memory.swap.max", "0", { optional: true });
      this.#write("cpu", "cpu.max", `${quotaUs} ${cpuPeriodUs}`);
      this.#write("pids", "pids.max", `${pids}`);
      return;
    }
    this.#write("memory", "memory.limit_in_bytes", `${memoryBytes}`);
    // Absent where the kernel does not account swap.
    this.#write("memory", "memory.memsw.limit_in_bytes", `${memoryBytes}`, { optional: true });
    this.#write("cpu", "cpu.cfs_quota_us", `${quotaUs}`);
    this.#write("pids", "pids.max", `${pids}`);
  }

  /** Descriptors with which a process joins by writing "0"; the caller closes them. None on v2: clone3 does it there. */
  openForJoining(): readonly number[] {
    if (this.version === 2) return [];
    return this.#hierarchies.map(({ directory }) => open(`${directory}/cgroup.procs`, O_WRONLY));
  }

  /** v2: the directory for CLONE_INTO_CGROUP; the caller closes it. */
  openDirectory(): number | undefined {
    const [first] = this.#hierarchies;
    return this.version === 2 && first !== undefined ? open(first.directory, O_RDONLY | O_DIRECTORY) : undefined;
  }

  /** The processes in it now, as host ids. */
  processes(): number[] {
    const hierarchy = this.#with("pids") ?? this.#hierarchies[0];
    if (hierarchy === undefined) return [];
    return readWords(`${hierarchy.directory}/cgroup.procs`).map(Number);
  }

  usage(): CgroupUsage {
    if (this.version === 2) {
      const cpuTimeUs = this.#readKey("cpu", "cpu.stat", "usage_usec");
      return compact({
        cpuTimeMs: cpuTimeUs === undefined ? undefined : cpuTimeUs / 1000,
        memoryPeakBytes: this.#readNumber("memory", "memory.peak"),
        pidsPeak: this.#readNumber("pids", "pids.peak"),
        oomKills: this.#readKey("memory", "memory.events", "oom_kill") ?? 0,
        pidsRefused: this.#readKey("pids", "pids.events", "max") ?? 0,
      });
    }
    const cpuTimeNs = this.#readNumber("cpuacct", "cpuacct.usage");
    return compact({
      cpuTimeMs: cpuTimeNs === undefined ? undefined : cpuTimeNs / 1e6,
      memoryPeakBytes: this.#readNumber("memory", "memory.max_usage_in_bytes"),
      pidsPeak: this.#readNumber("pids", "pids.peak"),
      oomKills: this.#readKey("memory", "memory.oom_control", "oom_kill") ?? 0,
      pidsRefused: this.#readKey("pids", "pids.events", "max") ?? 0,
    });
  }

  /** Removes it. Its processes must have been reaped; the kernel may need a moment to notice. */
  async remove(): Promise<void> {
    for (const { directory } of this.#hierarchies) {
      // Not synchronously: rmdir waits for whoever changes cgroups on this host.
      for (let attempt = 0; !(await isRemoved(directory)); attempt++) {
        if (attempt === 200) throw new Error(`Cannot remove cgroup "${directory}": it is still in use after a second`);
        await delay(5);
      }
    }
  }

  #with(controller: string): Hierarchy | undefined {
    return this.#hierarchies.find(({ controllers }) => controllers.has(controller));
  }

  #write(controller: string, file: string, value: string, { optional = false } = {}): void {
    const hierarchy = this.#with(controller);
    if (hierarchy === undefined) return;
    const path = `${hierarchy.directory}/${file}`;
    try {
      writeFileSync(path, value);
    } catch (error) {
      if (optional) return;
      throw new Error(`Cannot limit a container: write ${value} to "${path}"`, { cause: error });
    }
  }

  #read(controller: string, file: string): string | undefined {
    const hierarchy = this.#with(controller);
    if (hierarchy === undefined) return undefined;
    try {
      return readFileSync(`${hierarchy.directory}/${file}`, "utf8");
    } catch {
      return undefined; // this kernel does not have the file
    }
  }

  #readNumber(controller: string, file: string): number | undefined {
    const text = this.#read(controller, file);
    return text === undefined ? undefined : Number(text.trim());
  }

  #readKey(controller: string, file: string, key: string): number | undefined {
    const value = new RegExp(`^${key} (\\d+)$`, "m").exec(this.#read(controller, file) ?? "")?.[1];
    return value === undefined ? undefined : Number(value);
  }
}

/** A cgroup namespace shows only what is below its root: an own path that is not there is the root itself. */
function visiblePath(mountPoint: string, ownPath: string): string {
  return ownPath !== "/" && existsSync(mountPoint + ownPath) ? ownPath : "/";
}

function delegatedParent(mountPoint: string, ownPath: string): string {
  const path = visiblePath(mountPoint, ownPath);
  if (path === "/") return "/";
  const directory = mountPoint + path;
  const others = readWords(`${directory}/cgroup.procs`).filter((pid) => Number(pid) !== process.pid);
  // Others are there, a login session for example: their cgroup is not ours to rearrange.
  if (others.length > 0) return "/";
  makeDirectory(`${directory}/slipway-agent`);
  writeFileSync(`${directory}/slipway-agent/cgroup.procs`, `${process.pid}`);
  enableControllers(directory, readWords(`${directory}/cgroup.controllers`));
  return path;
}

/** Lets children of a directory have the controllers we use, from the root of the hierarchy down. */
function enableControllers(directory: string, available: readonly string[]): void {
  const parents: string[] = [];
  for (let at = directory; isCgroup2(at) && at !== "/"; at = at.slice(0, at.lastIndexOf("/"))) parents.unshift(at);
  for (const parent of parents) {
    for (const name of [...wantedControllers, "cpuset", "io"]) {
      if (!available.includes(name) || readWords(`${parent}/cgroup.subtree_control`).includes(name)) continue;
      try {
        writeFileSync(`${parent}/cgroup.subtree_control`, `+${name}`);
      } catch (error) {
        if (name === "cpuset" || name === "io") continue;
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

function makeDirectory(path: string): void {
  try {
    mkdirSync(path, { mode: 0o755 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return;
    throw new Error(`Cannot make cgroup "${path}": mount the cgroup file system writable for the agent`, {
      cause: error,
    });
  }
}

/** True if it is gone. */
function tryRemove(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  }
}

async function isRemoved(path: string): Promise<boolean> {
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT";
  }
}

/** Removes a directory of the cgroup file system with all below; leftovers whose processes are gone. */
export function removeCgroupTree(path: string): void {
  try {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      if (entry.isDirectory()) removeCgroupTree(`${path}/${entry.name}`);
    }
  } catch {
    return; // gone already
  }
  tryRemove(path);
}

/**
 * Removes the directories of agents that are gone for good, whose state directory nobody will use again: a living agent
 * always has processes in its own, launchers at least. Young ones are left alone, for their agent may be starting.
 */
export function sweepDeadAgents(parent: string, ownName: string, minimumAgeMs = 60_000): void {
  for (const { name } of readdirSync(parent, { withFileTypes: true }).filter((entry) => entry.isDirectory())) {
    if (!/^slipway-[0-9a-z]+-[0-9a-z]+$/.test(name) || name === ownName) continue;
    const directory = `${parent}/${name}`;
    const stat = statSync(directory, { throwIfNoEntry: false });
    if (stat === undefined || Date.now() - stat.ctimeMs < minimumAgeMs) continue;
    if (!hasProcesses(directory)) removeCgroupTree(directory);
  }
}

function hasProcesses(directory: string): boolean {
  if (readWords(`${directory}/cgroup.procs`).length > 0) return true;
  try {
    const below = readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    return below.some(({ name }) => hasProcesses(`${directory}/${name}`));
  } catch {
    return false; // gone meanwhile
  }
}

function readWords(path: string): string[] {
  try {
    return readFileSync(path, "utf8").split(/\s+/).filter(Boolean);
  } catch {
    return [];
  }
}

function compact(usage: { [Key in keyof CgroupUsage]: CgroupUsage[Key] | undefined }): CgroupUsage {
  return Object.fromEntries(Object.entries(usage).filter(([, value]) => value !== undefined)) as unknown as CgroupUsage;
}
