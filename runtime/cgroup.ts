/**
 * Control groups: one per container, below one per agent, on cgroup v2 and on v1 or hybrid hosts.
 *
 * The agent's has the ceiling for all containers together; the agent itself is not in it. It gets the files of every
 * hierarchy ahead, for launchers join before anybody knows what their container will ask for.
 *
 * @see {@link https://docs.kernel.org/admin-guide/cgroup-v2.html} and admin-guide/cgroup-v1/
 */
import { existsSync } from "node:fs";
import { rmdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { type CgroupHost, makeAgentCgroup, makeDirectory, readWords } from "./cgroup-host.ts";
import { type CgroupDirectory, setLimits } from "./cgroup-limits.ts";
import { removeCgroupTree, tryRemove } from "./cgroup-sweep.ts";
import { type CgroupUsage, reachedOwnLimit, readMemory, readOomKills, readUsage } from "./cgroup-usage.ts";
import { O_DIRECTORY, O_RDONLY, O_WRONLY } from "./linux.ts";
import type { OciResources } from "./oci-config.ts";
import type { Removals } from "./removals.ts";
import { open } from "./syscall.ts";

/** An agent's part of the cgroup tree. */
export class Cgroups {
  readonly version: 1 | 2;
  readonly #directories: readonly CgroupDirectory[];

  private constructor(version: 1 | 2, directories: readonly CgroupDirectory[]) {
    this.version = version;
    this.#directories = directories;
  }

  /**
   * Makes the agent's directory in every hierarchy, `name` below the agent's own cgroup, anew if one was left there.
   *
   * @throws {Error} Naming the directory and what mends it.
   */
  static open({ version, hierarchies }: CgroupHost, name: string): Cgroups {
    const directories = hierarchies.map((hierarchy): CgroupDirectory => {
      const { path } = makeAgentCgroup(hierarchy, version, name);
      // What somebody left has his limits.
      removeCgroupTree(path);
      return { version, ...makeAgentCgroup(hierarchy, version, name) };
    });
    return new Cgroups(version, directories);
  }

  /** The directories that `open` would make; their leftovers belong to whoever used this name before. */
  get directories(): readonly string[] {
    return this.#directories.map(({ path }) => path);
  }

  /** v1: the controllers of each hierarchy that limits a container's processes, as its mount option names them. */
  get controllerSets(): readonly string[] {
    const limiting = ["memory", "cpu", "cpuacct", "pids"];
    return this.#directories
      .filter(({ controllers }) => controllers.some((name) => limiting.includes(name)))
      .map(({ controllers }) => controllers.join(","));
  }

  /** Whether a cgroup of a container has this file. */
  has(controller: string, file: string): boolean {
    const directory = this.#directories.find(({ controllers }) => controllers.includes(controller));
    return directory !== undefined && existsSync(`${directory.path}/${file}`);
  }

  /** Limits all containers together. @throws {OciConfigError} Naming what this host cannot set. */
  limit(resources: OciResources): void {
    setLimits(this.#directories, resources);
  }

  /** Makes a container's cgroup, without limits yet. @throws {Error} */
  create(id: string): Cgroup {
    const made: CgroupDirectory[] = [];
    try {
      for (const directory of this.#directories) {
        const path = `${directory.path}/${id}`;
        makeDirectory(path);
        made.push({ ...directory, path });
      }
      return new Cgroup(made);
    } catch (error) {
      for (const { path } of made) tryRemove(path);
      throw error;
    }
  }

  /** Removes the agent's directories; containers' cgroups must be gone. */
  close(): void {
    for (const { path } of this.#directories) tryRemove(path);
  }
}

/** One container's cgroup. */
export class Cgroup {
  readonly version: 1 | 2;
  readonly #directories: readonly CgroupDirectory[];

  constructor(directories: readonly CgroupDirectory[]) {
    this.version = directories.some(({ version }) => version === 1) ? 1 : 2;
    this.#directories = directories;
  }

  /** How the kernel's log ends its name: `/slipway-1e68-5y0i3/c5`. */
  get logName(): string {
    const [{ path } = { path: "" }] = this.#directories;
    return path.split("/").slice(-2).join("/");
  }

  /**
   * Sets its limits; before the first process joins, for memory that is used already may be over the limit.
   *
   * @throws {OciConfigError} Naming what this host cannot set.
   */
  limit(resources: OciResources): void {
    setLimits(this.#directories, resources);
  }

  /** Descriptors with which a process joins by writing "0"; the caller closes them. None on v2: clone3 does it there. */
  openForJoining(): readonly number[] {
    if (this.version === 2) return [];
    return this.#directories.map(({ path }) => open(`${path}/cgroup.procs`, O_WRONLY));
  }

  /** v2: the directory for CLONE_INTO_CGROUP; the caller closes it. */
  openDirectory(): number | undefined {
    const [first] = this.#directories;
    return this.version === 2 && first !== undefined ? open(first.path, O_RDONLY | O_DIRECTORY) : undefined;
  }

  /** The processes in it now, as host ids. */
  processes(): number[] {
    const directory = this.#directories.find(({ controllers }) => controllers.includes("pids")) ?? this.#directories[0];
    return directory === undefined ? [] : readWords(`${directory.path}/cgroup.procs`).map(Number);
  }

  usage(): CgroupUsage {
    return readUsage(this.#directories);
  }

  /** How many of its processes the kernel has killed for memory. */
  oomKills(): number {
    return readOomKills(this.#directories);
  }

  /** The memory it uses now, where that is counted. */
  memoryBytes(): number | undefined {
    return readMemory(this.#directories);
  }

  /** Whether its own limit was the end of its memory, not the agent's or the machine's; where the kernel tells. */
  reachedOwnMemoryLimit(): boolean | undefined {
    return reachedOwnLimit(this.#directories);
  }

  /**
   * Removes it. Its processes must have been reaped; the kernel may need a moment to notice.
   *
   * @param removals Whose thread does it, if it runs anyway.
   */
  async remove(removals?: Removals): Promise<void> {
    if (removals?.isThread) return removals.remove({ cgroups: this.#directories.map(({ path }) => path) });
    for (const { path } of this.#directories) {
      // Not synchronously: rmdir waits for whoever changes cgroups on this host.
      for (let attempt = 0; !(await isRemoved(path)); attempt++) {
        if (attempt === 200) throw new Error(`Cannot remove cgroup "${path}": it is still in use after a second`);
        await delay(5);
      }
    }
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
