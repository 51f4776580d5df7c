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
import { type CgroupHost, makeAgentCgroup, readWords } from "./cgroup-host.ts";
import { delegate, type Delegation, liftCpuLimits, OtherHierarchies, processesBelow } from "./cgroup-delegation.ts";
import { type CgroupDirectory, setLimits } from "./cgroup-limits.ts";
import { lockAgentCgroup, removeCgroupsBelow, removeCgroupTree, tryRemove } from "./cgroup-sweep.ts";
import { type CgroupUsage, hadOwnOom, reachedOwnLimit, readMemory, readOomKills, readUsage } from "./cgroup-usage.ts";
import { O_DIRECTORY, O_RDONLY } from "./linux.ts";
import type { OciResources } from "./oci-config.ts";
import type { Launchers } from "./launcher.ts";
import { close, open } from "./syscall.ts";

/** An agent's part of the cgroup tree. */
export class Cgroups {
  readonly version: 1 | 2;
  readonly #directories: readonly CgroupDirectory[];
  readonly #others: OtherHierarchies;
  /** Say that the agent lives, for as long as it does. */
  readonly #locks: readonly number[];

  private constructor(version: 1 | 2, directories: readonly CgroupDirectory[], others: OtherHierarchies) {
    this.version = version;
    this.#directories = directories;
    this.#others = others;
    this.#locks = directories.map(({ path }) => lockAgentCgroup(path));
  }

  /**
   * Makes the agent's directory in every hierarchy, `name` below the agent's own cgroup, anew if one was left there.
   *
   * @throws {Error} Naming the directory and what mends it.
   */
  static open({ version, hierarchies, others }: CgroupHost, name: string): Cgroups {
    const directories = hierarchies.map((hierarchy): CgroupDirectory => {
      const { path } = makeAgentCgroup(hierarchy, version, name);
      // What somebody left has his limits.
      removeCgroupTree(path);
      return { version, ...makeAgentCgroup(hierarchy, version, name) };
    });
    return new Cgroups(version, directories, new OtherHierarchies(others, name));
  }

  /** The directories that `open` would make; their leftovers belong to whoever used this name before. */
  get directories(): readonly string[] {
    return this.#directories.map(({ path }) => path);
  }

  /** Those that nested steps have made since, or before; they may be missing. */
  get otherDirectories(): readonly string[] {
    return this.#others.directories;
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

  /** The cgroup of a container that somebody else makes: a directory of this name in each of `directories`. */
  at(id: string): Cgroup {
    const directories = this.#directories.map((directory) => ({ ...directory, path: `${directory.path}/${id}` }));
    return new Cgroup(directories, { id, hierarchies: this.#others });
  }

  /** Removes the agent's directories; containers' cgroups must be gone. */
  close(): void {
    for (const path of [...this.directories, ...this.otherDirectories]) tryRemove(path);
    for (const fd of this.#locks) close(fd);
  }
}

/** One container's cgroup. */
export class Cgroup {
  readonly version: 1 | 2;
  readonly #directories: readonly CgroupDirectory[];
  readonly #others: { readonly id: string; readonly hierarchies: OtherHierarchies };
  #delegation: Delegation | undefined;

  constructor(
    directories: readonly CgroupDirectory[],
    others: { readonly id: string; readonly hierarchies: OtherHierarchies },
  ) {
    this.version = directories.some(({ version }) => version === 1) ? 1 : 2;
    this.#directories = directories;
    this.#others = others;
  }

  /**
   * Gives the container's root, a user of the host, the right to make cgroups of its own below it. Its limits stay out of
   * reach: they are in files that are not given away, on v2 in a directory above.
   *
   * @throws {Error} Naming the directory.
   */
  delegate(owner: number): Delegation {
    const { id, hierarchies } = this.#others;
    this.#delegation ??= delegate({ directories: this.#directories, owner, others: () => hierarchies.make(id) });
    return this.#delegation;
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

  /** v2: the directory for CLONE_INTO_CGROUP; the caller closes it. */
  openDirectory(): number | undefined {
    const [first] = this.#directories;
    return this.version === 2 && first !== undefined ? open(first.path, O_RDONLY | O_DIRECTORY) : undefined;
  }

  /** The processes in it now, as host ids. */
  processes(): number[] {
    const directory = this.#directories.find(({ controllers }) => controllers.includes("pids")) ?? this.#directories[0];
    if (directory === undefined) return [];
    if (this.#delegation !== undefined) return processesBelow(directory.path);
    return readWords(`${directory.path}/cgroup.procs`).map(Number);
  }

  /** Lets processes that have been killed end: whoever has cgroups of his own may have left them hardly any CPU time. */
  hasten(): void {
    if (this.#delegation === undefined) return;
    const directory = this.#directories.find(({ controllers }) => controllers.includes("cpu"));
    if (directory !== undefined) liftCpuLimits(directory.path, directory.version);
  }

  usage(): CgroupUsage {
    const usage = readUsage(this.#directories);
    return this.#isOthersOom() ? { ...usage, oomKills: 0 } : usage;
  }

  /** Whoever has cgroups of his own may limit them, and what is killed for that is his affair. */
  #isOthersOom(): boolean {
    return this.#delegation !== undefined && !hadOwnOom(this.#directories);
  }

  /** How many of its processes the kernel has killed for memory. */
  oomKills(): number {
    return this.#isOthersOom() ? 0 : readOomKills(this.#directories);
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
   * @param launchers Whose process does it, if it can.
   */
  async remove(launchers?: Launchers): Promise<void> {
    if (this.#delegation === undefined && (await launchers?.removeCgroup(this.#others.id))) return;
    const paths = this.#delegation?.directories ?? this.#directories.map(({ path }) => path);
    if (this.#delegation !== undefined) for (const path of paths) removeCgroupsBelow(path);
    for (const path of paths) {
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
