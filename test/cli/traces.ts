/** What a command may leave on a machine: processes, mounts, cgroups, files. */
import { randomUUID } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { removeCgroupTree } from "../../runtime/cgroup-sweep.ts";

const markName = "SLIPWAY_TEST_MARK";

/** Recognises what belongs to one command by a variable in its environment and its temporary directory. */
export class Traces {
  readonly environment: NodeJS.ProcessEnv;
  readonly #directory: string;
  readonly #mark = randomUUID();
  readonly #cgroups = new Set<string>();

  /** @param directory The command's own TMPDIR; everything it makes is below it. */
  constructor(directory: string) {
    this.#directory = directory;
    this.environment = { TMPDIR: directory, [markName]: this.#mark };
  }

  /** Remembers the cgroups that agents in the directory use; called while they run. */
  look(): void {
    for (const stateDir of this.#stateDirs()) {
      const found = statSync(stateDir, { throwIfNoEntry: false });
      if (found === undefined) continue;
      const { dev, ino } = found;
      this.#cgroups.add(`slipway-${dev.toString(36)}-${ino.toString(36)}`);
    }
  }

  get hasSeenCgroups(): boolean {
    return this.#cgroups.size > 0;
  }

  /** Command lines of processes that carry the mark. */
  processes(): string[] {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .flatMap((pid) => {
        try {
          const isOurs = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").includes(`${markName}=${this.#mark}`);
          return isOurs ? [`${pid} ${readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim()}`] : [];
        } catch {
          return []; // It has ended meanwhile.
        }
      });
  }

  /** Everything that is left; empty if nothing is. */
  left(): Record<string, readonly string[]> {
    const all = {
      processes: this.processes(),
      mounts: readFileSync("/proc/self/mounts", "utf8")
        .split("\n")
        .filter((line) => line.includes(this.#directory)),
      cgroups: this.#leftCgroups(),
      files: readdirSync(this.#directory),
    };
    return Object.fromEntries(Object.entries(all).filter(([, list]) => list.length > 0));
  }

  #stateDirs(): string[] {
    return findDirectories(
      this.#directory,
      (path) => existsSync(join(path, "lock")) && existsSync(join(path, "skeleton")),
    );
  }

  /** What an agent that was killed leaves for the next one to sweep, which does so after a minute; tells what is still used. */
  removeCgroups(): string[] {
    for (const path of this.#leftCgroups()) removeCgroupTree(path);
    return this.#leftCgroups();
  }

  #leftCgroups(): string[] {
    return [...this.#cgroups].flatMap((name) =>
      cgroupParents()
        .map((parent) => join(parent, name))
        .filter((path) => existsSync(path)),
    );
  }
}

/** Where agents that are started from here make their cgroups: in every hierarchy at its root, or below our own. */
function cgroupParents(): string[] {
  const hierarchies = ["", ...readdirSync("/sys/fs/cgroup")].map((name) => join("/sys/fs/cgroup", name));
  const own = readFileSync("/proc/self/cgroup", "utf8")
    .trim()
    .split("\n")
    .map((line) => line.slice(line.indexOf("/")));
  return [...new Set(hierarchies.flatMap((hierarchy) => [hierarchy, ...own.map((path) => join(hierarchy, path))]))];
}

/** The outermost ones; what is removed while we look is not there. */
function findDirectories(path: string, isWanted: (path: string) => boolean): string[] {
  if (isWanted(path)) return [path];
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .flatMap(({ name }) => findDirectories(join(path, name), isWanted));
  } catch {
    return [];
  }
}
