/**
 * A container's cgroup given to its root, who may then make cgroups below it for containers of its own.
 *
 * On v2 the limits are on the container's cgroup, which stays the agent's; a directory below it is given away, and the
 * container's processes are in one below that: a cgroup with processes may not hand controllers on to those below it. On
 * v1 the directories are given away and the files in them, the limits, are not; the freezer is not given away, for what is
 * frozen there cannot be killed. The container has a directory in every hierarchy: whoever may mount one sees from his own
 * directory down.
 *
 * @see {@link https://docs.kernel.org/admin-guide/cgroup-v2.html#delegation}
 */
import { chownSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { agentCgroupPath, type CgroupHost, makeAgentCgroup, makeDirectory, readWords } from "./cgroup-host.ts";
import type { CgroupDirectory } from "./cgroup-limits.ts";
import type { ShownHierarchy } from "./cgroup-mounts.ts";
import { directoriesIn } from "./cgroup-sweep.ts";

/** What a container that has its cgroup for itself needs to be told. */
export interface Delegation {
  /** All directories of the container, to be removed with everything below. */
  readonly directories: readonly string[];
  /** cgroup.procs in which its first process joins, before it makes a cgroup namespace. */
  readonly join: readonly string[];
  /** v2: cgroup.procs to which it goes then. */
  readonly leaf?: string;
  /** What /sys/fs/cgroup shows. */
  readonly shown: readonly ShownHierarchy[];
}

/** Hierarchies beside v1 that limit nothing here. An agent without nested steps makes nothing in them. */
export class OtherHierarchies {
  readonly #hierarchies: CgroupHost["others"];
  readonly #name: string;

  /** @param name The agent's. */
  constructor(hierarchies: CgroupHost["others"], name: string) {
    this.#hierarchies = hierarchies;
    this.#name = name;
  }

  /** The agent's directories, whether they are there or not. */
  get directories(): readonly string[] {
    return this.#hierarchies.map((hierarchy) => agentCgroupPath(hierarchy, this.#name));
  }

  /** Makes a container's directories. */
  make(id: string): CgroupDirectory[] {
    return this.#hierarchies.map((hierarchy) => {
      const { version, controllers } = hierarchy;
      const parent = agentCgroupPath(hierarchy, this.#name);
      if (version === 1) makeAgentCgroup(hierarchy, 1, this.#name);
      else makeDirectory(parent);
      const path = `${parent}/${id}`;
      makeDirectory(path);
      return { path, version, controllers };
    });
  }
}

/** @throws {Error} Naming the directory that cannot be given away. */
export function delegate(container: {
  readonly directories: readonly CgroupDirectory[];
  readonly owner: number;
  readonly others: () => readonly CgroupDirectory[];
}): Delegation {
  const { directories, owner, others } = container;
  const [first] = directories;
  if (first !== undefined && first.version === 2) return delegateUnified(first, owner);
  const further = others();
  const given = [...directories, ...further].filter(
    ({ version, controllers }) => version === 1 && !controllers.includes("freezer"),
  );
  for (const { path } of given) give(path, owner, ["cgroup.procs", "tasks"]);
  return {
    directories: [...directories, ...further].map(({ path }) => path),
    join: further.map(({ path }) => `${path}/cgroup.procs`),
    shown: given.map(({ version, controllers }) => {
      const [only = ""] = controllers;
      const name = controllers.length === 1 && only.startsWith("name=") ? only.slice(5) : controllers.join(",");
      return { name, version, controllers };
    }),
  };
}

function delegateUnified({ path, controllers }: CgroupDirectory, owner: number): Delegation {
  const given = `${path}/delegated`;
  const leaf = `${given}/step`;
  for (const controller of controllers) {
    try {
      writeFileSync(`${path}/cgroup.subtree_control`, `+${controller}`);
    } catch {
      // its container goes without it
    }
  }
  for (const directory of [given, leaf]) {
    makeDirectory(directory);
    give(directory, owner, delegatable());
  }
  return {
    directories: [path],
    join: [`${given}/cgroup.procs`],
    leaf: `${leaf}/cgroup.procs`,
    shown: [{ name: "", version: 2, controllers: [] }],
  };
}

/** The files that the kernel means to be given away (Linux 4.15). */
function delegatable(): readonly string[] {
  try {
    return readFileSync("/sys/kernel/cgroup/delegate", "utf8").trim().split("\n");
  } catch {
    return ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
  }
}

function give(directory: string, owner: number, files: readonly string[]): void {
  chownSync(directory, owner, owner);
  for (const file of files) {
    if (existsSync(`${directory}/${file}`)) chownSync(`${directory}/${file}`, owner, owner);
  }
}

/** The processes of a cgroup and of all below it. */
export function processesBelow(path: string): number[] {
  const own = readWords(`${path}/cgroup.procs`).map(Number);
  return [...own, ...directoriesIn(path).flatMap((name) => processesBelow(`${path}/${name}`))];
}

/** Lifts the limits on CPU time that a container has set below itself: who is killed needs some of it to end. */
export function liftCpuLimits(path: string, version: 1 | 2): void {
  const [file, none] = version === 2 ? ["cpu.max", "max"] : ["cpu.cfs_quota_us", "-1"];
  for (const name of directoriesIn(path)) {
    try {
      writeFileSync(`${path}/${name}/${file}`, none);
    } catch {
      // gone meanwhile, or without this controller
    }
    liftCpuLimits(`${path}/${name}`, version);
  }
}
