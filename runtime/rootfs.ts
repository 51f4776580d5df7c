/** The file systems of one container, made in the agent as detached mounts: overlay, /dev, workspace. */
import { chmodSync, chownSync, lstatSync, mkdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { maskedPaths, readonlyPaths, standardDevices } from "./container-defaults.ts";
import { isRootless } from "./file-owners.ts";
import {
  AT_EMPTY_PATH,
  AT_SYMLINK_NOFOLLOW,
  EEXIST,
  EINVAL,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  S_IFBLK,
  S_IFCHR,
  S_IFIFO,
  S_IFREG,
} from "./linux.ts";
import { cloneMount, makeMount, type MountOption } from "./mount.ts";
import type { OciDevice } from "./oci-config.ts";
import { deviceNumber } from "./oci-file-system.ts";
import { OciConfigError } from "./oci-parser.ts";
import type { ShiftedLayers } from "./shifted-layers.ts";
import { OVERLAY_LAYERS_BY_PATH, splitLayers } from "./overlay-limit.ts";
import { close, cString, SyscallError, syscall, trySyscall } from "./syscall.ts";
import type { UidRange } from "./uid-range.ts";

/** Clones of layers as a range sees them, kept because every container of a job uses the same ones. */
export class LayerMounts {
  readonly #mounts = new Map<string, Map<string, { readonly mount: number; readonly key: string }>>();
  readonly #shifted: ShiftedLayers;

  /** @param shifted Where mounts map no ids. */
  constructor(shifted: ShiftedLayers) {
    this.#shifted = shifted;
  }

  /** The mount stays the host's; `key` is another for every other directory. */
  get(layer: string, range: UidRange): { readonly mount: number; readonly key: string } {
    let mounts = this.#mounts.get(range.key);
    if (mounts === undefined) this.#mounts.set(range.key, (mounts = new Map()));
    // A layer may have been removed from the store, and made again, since.
    const { dev, ino } = statSync(layer);
    const key = `${dev}:${ino}`;
    const known = mounts.get(layer);
    if (known?.key === key) return known;
    if (known !== undefined) close(known.mount);
    const made = { mount: this.clone(layer, range), key };
    mounts.set(layer, made);
    return made;
  }

  /** A detached mount that is the caller's. */
  clone(layer: string, range: UidRange): number {
    return isRootless()
      ? cloneMount(this.#shifted.get(layer, range))
      : cloneMount(layer, { idMapFd: range.userNamespaceFd });
  }

  /**
   * Forgets those of a range whose job is over: builds have hundreds that nobody else uses.
   *
   * @returns Mounts to close; directories to remove, copies for this range alone.
   */
  release({ key }: Pick<UidRange, "key">): { readonly mounts: readonly number[]; readonly copies: readonly string[] } {
    const mounts = [...(this.#mounts.get(key)?.values() ?? [])].map(({ mount }) => mount);
    this.#mounts.delete(key);
    return { mounts, copies: this.#shifted.release({ key }) };
  }

  close(): void {
    for (const key of this.#mounts.keys()) for (const mount of this.release({ key }).mounts) close(mount);
  }
}

/**
 * Stacks layers into one writable root file system and returns its detached mount (Linux 6.13, layers by descriptor).
 *
 * Upper and work directory are made in `directory` and owned by the mapped root: overlay cannot use them idmapped, and
 * with another owner it would silently mount read-only. `volatile`: nothing here outlives the step, so nothing is synced.
 *
 * @param layers Detached idmapped mounts, base first (image-spec order; overlayfs wants the reverse, done here).
 * @see {@link https://docs.kernel.org/filesystems/overlayfs.html}
 */
export function mountOverlay(directory: string, layers: readonly number[], owner: { readonly base: number }): number {
  const { upper, work } = makeUpper(directory, owner);
  const { base, rest } = splitLayers(layers);
  const bottom = base.length === 0 ? undefined : mountLower(base);
  try {
    const options: MountOption[] = [
      ...lowerOptions(bottom === undefined ? rest : [bottom, ...rest]),
      { key: "upperdir", value: upper },
      { key: "workdir", value: work },
      { key: "volatile" },
    ];
    return makeMount("overlay", options, MOUNT_ATTR_NODEV);
  } finally {
    if (bottom !== undefined) close(bottom);
  }
}

/** More layers than fit as one. */
function mountLower(layers: readonly number[]): number {
  return makeMount("overlay", lowerOptions(layers), MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY);
}

function lowerOptions(layers: readonly number[]): MountOption[] {
  return [
    ...layers.toReversed().map((fd) => ({ key: "lowerdir+", value: fd })),
    ...overlayOptions().map(([key, value]) => ({ key, ...(value === undefined ? {} : { value }) })),
  ];
}

/** One mount of an overlay by mount(2). */
export interface OverlayByPath {
  /** A directory below the working directory. */
  readonly target: "base" | "root";
  readonly data: string;
}

/**
 * What mount(2) is told for an overlay whose layers are mounted at `l/0`, `l/1`, … below the working directory, base
 * first: for kernels before 6.13, where a launcher attaches the layers in a mount namespace of its own.
 *
 * @returns The mounts in order, the last one on `root`.
 * @throws {Error} If the page that mount(2) takes has no room for it.
 */
export function overlaysByPath(directory: string, layerCount: number): readonly OverlayByPath[] {
  const { upper, work } = upperPaths(directory);
  const paths = Array.from({ length: layerCount }, (_, i) => `l/${i}`);
  const { base, rest } = splitLayers(paths, OVERLAY_LAYERS_BY_PATH);
  const escape = (path: string) => path.replaceAll(/[\\,:]/g, "\\$&");
  const options = overlayOptions().map(([key, value]) => (value === undefined ? key : `${key}=${value}`));
  const data = (lower: readonly string[], ...others: readonly string[]) => {
    const text = [`lowerdir=${lower.toReversed().join(":")}`, ...others, ...options].join(",");
    if (Buffer.byteLength(text) < 4096) return text;
    throw new Error(`Cannot mount overlay: ${layerCount} layers are too many for this kernel; Linux 6.13 takes more`);
  };
  const own = [`upperdir=${escape(upper)}`, `workdir=${escape(work)}`, "volatile"];
  if (base.length === 0) return [{ target: "root", data: data(rest, ...own) }];
  return [
    { target: "base", data: data(base) },
    { target: "root", data: data(["base", ...rest], ...own) },
  ];
}

/** In a user namespace overlayfs keeps its notes in `user.*` attributes: `trusted.*` is for the host's root (Linux 5.11). */
function overlayOptions(): readonly (readonly [string, string?])[] {
  return [
    ["index", "off"],
    ["metacopy", "off"],
    ["redirect_dir", isRootless() ? "nofollow" : "off"],
    ["xino", "off"],
    ...(isRootless() ? [["userxattr"] as const] : []),
  ];
}

function upperPaths(directory: string): { readonly upper: string; readonly work: string } {
  return { upper: `${directory}/upper`, work: `${directory}/work` };
}

/** Makes upper and work directory where they are missing. What an earlier overlay has left in `work` is in the way of a new one. */
export function makeUpper(
  directory: string,
  owner: { readonly base: number },
): { readonly upper: string; readonly work: string } {
  const made = upperPaths(directory);
  for (const path of Object.values(made)) {
    if (mkdirSync(path, { recursive: true, mode: 0o755 }) === undefined && path === made.work) {
      rmSync(`${path}/work`, { recursive: true, force: true });
    }
    chmodSync(path, 0o755); // mkdir obeys the umask
    chownSync(path, owner.base, owner.base);
  }
  return made;
}

const links = [
  ["fd", "/proc/self/fd"],
  ["stdin", "/proc/self/fd/0"],
  ["stdout", "/proc/self/fd/1"],
  ["stderr", "/proc/self/fd/2"],
  ["ptmx", "pts/ptmx"],
] as const;

/**
 * Makes a /dev with the nodes of the runtime specification and returns its detached mount.
 *
 * A file system made here, in the initial user namespace, has working device nodes wherever it is attached; nothing of
 * an image takes part, so no symlink of an image can lead a node elsewhere (CVE-2026-41579).
 */
export function mountDev(owner: { readonly base: number }, further: readonly OciDevice[] = []): number {
  const mount = makeMount(
    "tmpfs",
    [
      { key: "mode", value: "755" },
      { key: "size", value: "65536k" },
      { key: "uid", value: `${owner.base}` },
      { key: "gid", value: `${owner.base}` },
    ],
    MOUNT_ATTR_NOSUID,
  );
  for (const [name, major, minor] of standardDevices) {
    const path = cString(name);
    // In a user namespace a place for the host's node: nobody there may make one.
    const [type, number] = isRootless() ? [S_IFREG, 0] : [S_IFCHR, (major << 8) | minor];
    syscall("mknodat", mount, path, type | 0o666, number);
    syscall("fchmodat", mount, path, 0o666); // mknod obeys the umask
    syscall("fchownat", mount, path, owner.base, owner.base, 0);
  }
  for (const device of isRootless() ? [] : further) makeDevice(mount, device, owner);
  for (const [name, target] of links) {
    syscall("symlinkat", cString(target), mount, cString(name));
    syscall("fchownat", mount, cString(name), owner.base, owner.base, AT_SYMLINK_NOFOLLOW);
  }
  for (const name of ["pts", "shm", "mqueue"]) syscall("mkdirat", mount, cString(name), 0o755);
  return mount;
}

const devNames = [...standardDevices.map(([name]) => name), ...links.map(([name]) => name), "pts", "shm", "mqueue"].map(
  cString,
);
const STATX_BASIC_STATS = 0x7ff;

/** Everything about a /dev and its standard entries that changes when somebody changes it: struct statx of each but access times. */
export function devState(mount: number): string {
  const states = Buffer.alloc(256 * (devNames.length + 1));
  const stat = (name: Buffer, at: number) => {
    const state = states.subarray(at, at + 256);
    const result = trySyscall("statx", mount, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, state);
    if (result < 0) state.writeInt32LE(result, 0);
    state.fill(0, 64, 80); // stx_atime
  };
  stat(cString(""), 0);
  devNames.forEach((name, i) => stat(name, 256 * (i + 1)));
  return states.toString("latin1");
}

/**
 * The nodes that are not made but bound from the host's /dev, where no node can be made: by their path in the container.
 *
 * @throws {OciConfigError} If the host does not have the very device.
 */
export function boundDevices(further: readonly OciDevice[] = []): { readonly path: string; open(): number }[] {
  if (!isRootless()) return [];
  const standard = standardDevices.map(([name, major, minor]) => ({
    path: `/dev/${name}`,
    type: "c" as const,
    major,
    minor,
  }));
  return [...standard, ...further].map(({ path, type, major = 0, minor = 0 }) => ({
    path,
    open: () => {
      const stat = statSync(path, { throwIfNoEntry: false });
      const isIt = type === "b" ? stat?.isBlockDevice() : stat?.isCharacterDevice();
      if (isIt !== true || stat?.rdev !== deviceNumber(major, minor)) {
        throw new OciConfigError(`linux.devices "${path}" cannot be had rootless: the host has no such device there`);
      }
      return cloneMount(path, { attributes: MOUNT_ATTR_NOSUID });
    },
  }));
}

/** A node that a configuration asks for, in a /dev that nobody else sees yet. */
function makeDevice(dev: number, device: OciDevice, owner: { readonly base: number }): void {
  const { path, type, major = 0, minor = 0, fileMode = 0o666, uid = 0, gid = 0 } = device;
  const name = /^\/dev\/((?:[^/]+\/)*[^/]+)$/.exec(path)?.[1];
  if (name === undefined || name.split("/").includes("..")) {
    throw new OciConfigError(`linux.devices "${path}" is not supported in a step: it is not below /dev`);
  }
  const parts = name.split("/");
  for (let i = 1; i < parts.length; i++) {
    const directory = cString(parts.slice(0, i).join("/"));
    const made = trySyscall("mkdirat", dev, directory, 0o755);
    if (made < 0 && made !== -EEXIST) throw new SyscallError("mkdirat", -made, `make device "${path}"`);
    if (made === 0) syscall("fchownat", dev, directory, owner.base, owner.base, 0);
  }
  const kind = { c: S_IFCHR, u: S_IFCHR, b: S_IFBLK, p: S_IFIFO }[type];
  const number = deviceNumber(major, minor);
  const made = trySyscall("mknodat", dev, cString(name), kind | (fileMode & 0o7777), number);
  if (made < 0) throw new SyscallError("mknodat", -made, `make device "${path}"`);
  syscall("fchmodat", dev, cString(name), fileMode & 0o7777);
  syscall("fchownat", dev, cString(name), owner.base + uid, owner.base + gid, 0);
}

/** Clones a directory or file of the host for a container, its ids mapped where that can be done. @throws {SyscallError | OciConfigError} */
export function cloneForContainer(
  path: string,
  range: UidRange,
  options: { readonly attributes: number; readonly recursive: boolean; readonly idMapFd?: number | undefined },
): number {
  const { attributes, recursive, idMapFd = range.userNamespaceFd } = options;
  if (isRootless()) return cloneMount(path, { attributes, recursive });
  try {
    return cloneMount(path, { attributes, idMapFd, recursive });
  } catch (error) {
    if (!(error instanceof SyscallError) || error.errno !== EINVAL) throw error;
    // Something mounted below it does not know idmapped mounts: without that, then.
    if (recursive) return cloneMount(path, { attributes, idMapFd });
    throw new Error(
      `Cannot mount "${path}" into a container: its file system does not support idmapped mounts; put the data directory on ext4, xfs or btrfs`,
      { cause: error },
    );
  }
}

/** The masked paths that this kernel has. */
export function findMaskedPaths(): string[] {
  return existing(maskedPaths);
}

/** The read-only paths that this kernel has. */
export function findReadonlyPaths(): string[] {
  return existing(readonlyPaths);
}

/** Whether a mount of sysfs that may be written to is seen here: a user namespace may mount one only where it sees one. */
export function seesWritableSysfs(): boolean {
  // 23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
  const isReadonly = (options: string | undefined) => options?.split(",").includes("ro") !== false;
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" - "))
    .some(([left, right = ""]) => {
      const [type, , ofFileSystem] = right.split(" ");
      return type === "sysfs" && !isReadonly(ofFileSystem) && !isReadonly(left?.split(" ")[5]);
    });
}

function existing(paths: readonly string[]): string[] {
  return paths.filter((path) => lstatSync(path, { throwIfNoEntry: false }) !== undefined);
}
