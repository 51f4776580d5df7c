/** The cgroup of an OCI container: where `linux.cgroupsPath` says, with what `linux.resources` says, on v1, hybrid and v2. */
import {
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { posix } from "node:path";
import { type CgroupDirectory, setLimits, writeLimit } from "./cgroup-limits.ts";
import type { OciResources } from "./oci-config.ts";
import { type DeviceRule, deviceLine } from "./oci-device-filter.ts";
import { OciConfigError } from "./oci-parser.ts";

/** Where containers go whose configuration names no absolute cgroup. */
const defaultParent = "slipway-oci";
/** Of directories below one another; each takes every hierarchy a moment. */
const deepestCgroup = 64;

/** One mounted hierarchy. */
export interface CgroupMount {
  readonly mountPoint: string;
  readonly version: 1 | 2;
  /** v1: its controllers, or `name=systemd`; v2: those it has. */
  readonly controllers: readonly string[];
}

/** A container's place in all hierarchies; plain data, kept in its state. */
export interface OciCgroup {
  readonly directories: readonly CgroupDirectory[];
  /** Those that did not exist before: the container's to remove, deepest first. */
  readonly made: readonly string[];
}

/** The hierarchies of this host, of a mount namespace's many mounts the first of each. */
export function findCgroupMounts(): readonly CgroupMount[] {
  const found = new Map<string, CgroupMount>();
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [left, right] = line.split(" - ");
    const mountPoint = left?.split(" ")[4];
    const [type, , options] = right?.split(" ") ?? [];
    if (mountPoint === undefined || (type !== "cgroup" && type !== "cgroup2")) continue;
    const controllers =
      type === "cgroup2"
        ? readWords(`${mountPoint}/cgroup.controllers`)
        : (options ?? "")
            .split(",")
            .filter((option) => !/^(?:rw|ro|xattr|noprefix|clone_children|release_agent=.*)$/.test(option));
    const key = type === "cgroup2" ? "cgroup2" : controllers.join(",");
    if (!found.has(key)) found.set(key, { mountPoint, version: type === "cgroup2" ? 2 : 1, controllers });
  }
  return [...found.values()];
}

/**
 * The path below each mount point, beginning with a slash.
 *
 * @param systemd Whether it is `slice:prefix:name`; the cgroup of the service manager whose units they are, "" for the system's.
 * @throws {OciConfigError}
 */
export function cgroupPath(id: string, cgroupsPath: string | undefined, systemd: string | undefined): string {
  if (!cgroupsPath) return `/${defaultParent}/${id}`;
  if (systemd !== undefined && !cgroupsPath.startsWith("/")) return `${systemd}${systemdPath(cgroupsPath)}`;
  if (cgroupsPath.split("/").includes("..")) {
    throw new OciConfigError(`linux.cgroupsPath ${JSON.stringify(cgroupsPath)} must not lead upwards`);
  }
  const path = posix
    .normalize(`/${cgroupsPath.startsWith("/") ? "" : `${defaultParent}/`}${cgroupsPath}`)
    .replace(/\/+$/, "");
  if (path.split("/").length > deepestCgroup + 1) {
    throw new OciConfigError(
      `linux.cgroupsPath is ${path.split("/").length - 1} cgroups deep: ${deepestCgroup} are the most`,
    );
  }
  if (path === "") throw new OciConfigError('linux.cgroupsPath "/" is not supported: it is the cgroup of everybody');
  return path;
}

/** `slice:prefix:name` as systemd would place it; the directories are made here, systemd is not asked. */
function systemdPath(cgroupsPath: string): string {
  const [slice = "", prefix = "", name = ""] = cgroupsPath.split(":");
  if (name === "" || /[/]/.test(cgroupsPath)) {
    throw new OciConfigError(`linux.cgroupsPath ${JSON.stringify(cgroupsPath)} must be SLICE:PREFIX:NAME with systemd`);
  }
  const words = (slice || "system.slice").replace(/\.slice$/, "").split("-");
  const slices = words.map((_, i) => `${words.slice(0, i + 1).join("-")}.slice`);
  const unit = name.endsWith(".slice") ? name : `${prefix === "" ? "" : `${prefix}-`}${name}.scope`;
  return `/${[...slices, unit].join("/")}`;
}

/** The cgroup of the user's service manager that this process is below of, delegated to the user; "" if there is none. */
export function userManagerCgroup(text = readFileSync("/proc/self/cgroup", "utf8")): string {
  return /^\d+:(?:name=systemd)?:(\/.*\/user@\d+\.service)(?:\/|$)/m.exec(text)?.[1] ?? "";
}

/** What `makeCgroup` would make now: to be written down before, lest a runtime that is killed leave what nobody knows of. */
export function planCgroup(path: string, mounts: readonly CgroupMount[]): OciCgroup {
  const parts = path.split("/").filter(Boolean);
  const at = (mountPoint: string, count: number) => [mountPoint, ...parts.slice(0, count)].join("/");
  const all = mounts.flatMap(({ mountPoint }) => parts.map((_, i) => at(mountPoint, i + 1)));
  return {
    directories: mounts.map(({ mountPoint, ...mount }) => ({ path: at(mountPoint, parts.length), ...mount })),
    made: all.filter((directory) => !existsSync(directory)).toSorted((a, b) => b.length - a.length),
  };
}

/** How often a parent may go while the container's own is being made. */
const mostAttempts = 1000;

/**
 * Makes the container's directories and the controllers usable in them.
 *
 * @param options.leaveOut Hierarchies in which this user may make none are left out: the container stays where its caller is.
 * @returns Where they are now.
 * @throws {Error}
 */
export function makeCgroup(
  path: string,
  mounts: readonly CgroupMount[],
  { leaveOut = false }: { readonly leaveOut?: boolean } = {},
): readonly CgroupMount[] {
  return mounts.filter((mount) => {
    for (let attempt = 1; ; attempt++) {
      try {
        makeDirectories(path, mount);
        return true;
      } catch (error) {
        const { code, message } = error as NodeJS.ErrnoException;
        if (leaveOut && (code === "EACCES" || code === "EPERM" || code === "EROFS")) return false;
        // Whoever removes the last container of a parent takes that along. ENODEV: a file of what has just gone.
        const hasGone = code === "ENOENT" || code === "ENODEV";
        if (hasGone && existsSync(mount.mountPoint) && attempt < mostAttempts) continue;
        throw new Error(`Cannot make cgroup "${path}": ${message}`, { cause: error });
      }
    }
  });
}

function makeDirectories(path: string, { mountPoint, version, controllers }: CgroupMount): void {
  let at = mountPoint;
  for (const part of path.split("/").filter(Boolean)) {
    if (version === 2) enableControllers(at, controllers);
    at = `${at}/${part}`;
    try {
      mkdirSync(at, { mode: 0o755 });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    // One that somebody else made may never have been given any.
    if (version === 1 && controllers.includes("cpuset")) copyCpuset(at);
  }
}

/** A v1 cpuset without CPUs and memory nodes takes no process. */
function copyCpuset(path: string): void {
  for (const file of ["cpuset.cpus", "cpuset.mems"]) {
    if (readText(`${path}/${file}`) !== "") continue;
    const parent = readText(`${posix.dirname(path)}/${file}`);
    if (parent) writeFileSync(`${path}/${file}`, parent);
  }
}

function enableControllers(path: string, controllers: readonly string[]): void {
  const enabled = new Set(readWords(`${path}/cgroup.subtree_control`));
  for (const name of controllers) {
    if (enabled.has(name)) continue;
    try {
      writeFileSync(`${path}/cgroup.subtree_control`, `+${name}`);
    } catch {
      // Without it, whoever needs it gets the error of its file.
    }
  }
}

/** The part of it that lies in the given hierarchies. */
export function withinMounts({ directories, made }: OciCgroup, mounts: readonly CgroupMount[]): OciCgroup {
  const isThere = (path: string) => mounts.some(({ mountPoint }) => path.startsWith(`${mountPoint}/`));
  return { directories: directories.filter(({ path }) => isThere(path)), made: made.filter(isThere) };
}

/** Removes what was made, as far as nobody else uses it. */
export function removeCgroup({ directories, made }: OciCgroup): void {
  for (const path of made.toSorted((a, b) => b.length - a.length)) {
    // In a parent there may be another container's by now, still without a process.
    if (directories.some((directory) => directory.path === path)) removeTree(path);
    else removeEmpty(path);
  }
  // Our own parent was made for whichever container came first; the one that goes last removes it.
  for (const { path } of directories) {
    const parent = posix.dirname(path);
    if (posix.basename(parent) === defaultParent) removeEmpty(parent);
  }
}

function removeEmpty(path: string): void {
  try {
    rmdirSync(path);
  } catch {
    // Gone, or still another container's parent.
  }
}

function removeTree(path: string): void {
  try {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      if (entry.isDirectory()) removeTree(`${path}/${entry.name}`);
    }
    rmdirSync(path);
  } catch {
    // Gone, or in use: another container's below a parent that was made for this one.
  }
}

/** The processes in it and below it. */
export function cgroupProcesses({ directories }: OciCgroup): number[] {
  const pids = new Set<number>();
  const visit = (path: string) => {
    for (const word of readWords(`${path}/cgroup.procs`)) pids.add(Number(word));
    try {
      for (const entry of readdirSync(path, { withFileTypes: true })) {
        if (entry.isDirectory()) visit(`${path}/${entry.name}`);
      }
    } catch {
      // gone
    }
  };
  // One hierarchy knows them all: the one with processes of this container only.
  const [first] = directories.filter(({ controllers, version }) => version === 2 || controllers.includes("pids"));
  const chosen = first ?? directories[0];
  if (chosen !== undefined) visit(chosen.path);
  pids.delete(0); // of a pid namespace that is not ours
  return [...pids];
}

/**
 * Directories below a container's own, one of each hierarchy; its own where none is named.
 *
 * @param wanted Each `PATH`, of all hierarchies, or `CONTROLLER,CONTROLLER:PATH`.
 * @throws {OciConfigError} If there is none such.
 */
export function subCgroups({ directories }: OciCgroup, wanted: readonly string[]): string[] {
  const paths = new Map<string, string>();
  for (const word of wanted) {
    const colon = word.indexOf(":");
    if (colon < 0 && wanted.length > 1)
      throw new OciConfigError(`--cgroup ${word}: name a controller for each of several`);
    for (const controller of colon < 0 ? [""] : word.slice(0, colon).split(",")) {
      const known =
        controller === "" ? colon < 0 : directories.some(({ controllers }) => controllers.includes(controller));
      if (!known) throw new OciConfigError(`--cgroup ${word}: unknown controller "${controller}"`);
      if (paths.has(controller)) throw new OciConfigError(`--cgroup ${word}: "${controller}" is named twice`);
      paths.set(controller, word.slice(colon + 1));
    }
  }
  return directories.map(({ path, controllers }) => {
    const below =
      paths.get("") ?? controllers.map((name) => paths.get(name)).find((found) => found !== undefined) ?? "";
    if (below.split("/").includes(".."))
      throw new OciConfigError(`--cgroup: bad sub cgroup path "${below}": it leads upwards`);
    const at = posix.normalize(`${path}/${below}`).replace(/\/+$/, "");
    if (existsSync(at)) return at;
    throw new OciConfigError(`--cgroup: error adding pid to cgroup "${at}": no such file or directory`);
  });
}

/** Sets what the configuration asks for. @throws {OciConfigError} If this host cannot. */
export function limitCgroup(
  cgroup: OciCgroup,
  resources: OciResources | undefined,
  devices: readonly DeviceRule[] | undefined,
): void {
  const { directories } = cgroup;
  if (directories.some(({ version }) => version === 1)) {
    for (const rule of devices ?? []) {
      const { file, line } = deviceLine(rule);
      writeLimit(directories, { controller: "devices", file, value: line, field: "linux.resources.devices" });
    }
  }
  if (resources !== undefined) setLimits(directories, resources);
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}

function readWords(path: string): string[] {
  return readText(path)?.split(/\s+/).filter(Boolean) ?? [];
}

/** v2: gives the container's root the files that may be delegated, if it gets a namespace and a writable mount for them. */
export function delegateCgroup(cgroup: OciCgroup, owner: number): void {
  const listed = readWords("/sys/kernel/cgroup/delegate");
  const files = listed.length > 0 ? listed : ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];
  for (const { path, version } of cgroup.directories) {
    if (version !== 2) continue;
    for (const file of ["", ...files]) {
      const at = `${path}/${file}`;
      if (existsSync(at)) chownSync(at, owner, statSync(at).gid);
    }
  }
}
