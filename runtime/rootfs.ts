/** The file systems of one container, made in the agent as detached mounts: overlay, /dev, workspace. */
import { chownSync, lstatSync, mkdirSync } from "node:fs";
import {
  AT_SYMLINK_NOFOLLOW,
  EINVAL,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  MS_NODEV,
  MS_NOEXEC,
  MS_NOSUID,
  MS_RDONLY,
  S_IFCHR,
} from "./linux.ts";
import type { PlannedMount } from "./launch-plan.ts";
import { cloneMount, makeMount, type MountOption } from "./mount.ts";
import { close, cString, SyscallError, syscall } from "./syscall.ts";
import type { UidRange } from "./uid-range.ts";

/** Idmapped clones of layers, kept because every container of a job uses the same ones. */
export class LayerMounts {
  readonly #mounts = new Map<string, number>();

  get(layer: string, range: UidRange): number {
    const key = `${range.base} ${layer}`;
    const known = this.#mounts.get(key);
    if (known !== undefined) return known;
    const mount = cloneMount(layer, { idMapFd: range.userNamespaceFd });
    this.#mounts.set(key, mount);
    return mount;
  }

  close(): void {
    for (const mount of this.#mounts.values()) close(mount);
    this.#mounts.clear();
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
  const options: MountOption[] = [
    ...layers.toReversed().map((fd) => ({ key: "lowerdir+", value: fd })),
    { key: "upperdir", value: upper },
    { key: "workdir", value: work },
    ...overlayOptions.map(([key, value]) => ({ key, ...(value === undefined ? {} : { value }) })),
  ];
  return makeMount("overlay", options, MOUNT_ATTR_NODEV);
}

/**
 * The data of mount(2) for an overlay whose layers are mounted at `l/0`, `l/1`, … below the working directory, base
 * first: for kernels before 6.13, where a launcher attaches the layers in a mount namespace of its own.
 *
 * @throws {Error} If there are more layers than the page that mount(2) takes has room for, about 400.
 */
export function overlayData(directory: string, layerCount: number, owner: { readonly base: number }): string {
  const { upper, work } = makeUpper(directory, owner);
  const lower = Array.from({ length: layerCount }, (_, i) => `l/${layerCount - 1 - i}`).join(":");
  const escape = (path: string) => path.replaceAll(/[\\,:]/g, "\\$&");
  const options = overlayOptions.map(([key, value]) => (value === undefined ? key : `${key}=${value}`));
  const data = [`lowerdir=${lower}`, `upperdir=${escape(upper)}`, `workdir=${escape(work)}`, ...options].join(",");
  if (Buffer.byteLength(data) >= 4096) {
    throw new Error(`Cannot mount overlay: ${layerCount} layers are too many for this kernel; Linux 6.13 takes 500`);
  }
  return data;
}

const overlayOptions: readonly (readonly [string, string?])[] = [
  ["index", "off"],
  ["metacopy", "off"],
  ["redirect_dir", "off"],
  ["xino", "off"],
  ["volatile"],
];

function makeUpper(directory: string, owner: { readonly base: number }): { upper: string; work: string } {
  const made = { upper: `${directory}/upper`, work: `${directory}/work` };
  for (const path of Object.values(made)) {
    mkdirSync(path, { recursive: true, mode: 0o755 });
    chownSync(path, owner.base, owner.base);
  }
  return made;
}

const devices = [
  ["null", 1, 3],
  ["zero", 1, 5],
  ["full", 1, 7],
  ["random", 1, 8],
  ["urandom", 1, 9],
  ["tty", 5, 0],
] as const;

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
export function mountDev(owner: { readonly base: number }): number {
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
  for (const [name, major, minor] of devices) {
    const path = cString(name);
    syscall("mknodat", mount, path, S_IFCHR | 0o666, (major << 8) | minor);
    syscall("fchmodat", mount, path, 0o666); // mknod obeys the umask
    syscall("fchownat", mount, path, owner.base, owner.base, 0);
  }
  for (const [name, target] of links) {
    syscall("symlinkat", cString(target), mount, cString(name));
    syscall("fchownat", mount, cString(name), owner.base, owner.base, AT_SYMLINK_NOFOLLOW);
  }
  for (const name of ["pts", "shm", "mqueue"]) syscall("mkdirat", mount, cString(name), 0o755);
  return mount;
}

/** Clones a directory of the host for a container, its ids mapped; read-only and without set-uid or devices. */
export function cloneForContainer(path: string, range: UidRange, options: { readonly readonly: boolean }): number {
  const attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (options.readonly ? MOUNT_ATTR_RDONLY : 0);
  try {
    return cloneMount(path, { attributes, idMapFd: range.userNamespaceFd, recursive: options.readonly });
  } catch (error) {
    if (!(error instanceof SyscallError) || error.errno !== EINVAL) throw error;
    // Something mounted below it does not know idmapped mounts: without that, then.
    if (options.readonly) return cloneMount(path, { attributes, idMapFd: range.userNamespaceFd });
    throw new Error(
      `Cannot mount "${path}" into a container: its file system does not support idmapped mounts; put the data directory on ext4, xfs or btrfs`,
      { cause: error },
    );
  }
}

/** The mounts of every container, in the order of the runtime specification; `dev`, binds and workspace by descriptor. */
export function standardMounts(options: {
  readonly dev: number;
  /** Of this network: a new sysfs, a clone of the host's, or the one that stage 0 makes in a job's network. */
  readonly sys: "own" | "network" | { readonly fd: number };
  readonly cgroupControllers: readonly string[] | "unified" | undefined;
  readonly attached: readonly { readonly fd: number; readonly target: string }[];
}): PlannedMount[] {
  const strict = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  const mounts: PlannedMount[] = [
    { kind: "attach", fd: options.dev, target: "dev" },
    { kind: "mount", type: "proc", target: "proc", flags: strict },
    sysMount(options.sys, strict | MS_RDONLY),
    {
      kind: "mount",
      type: "devpts",
      target: "dev/pts",
      flags: MS_NOSUID | MS_NOEXEC,
      data: "newinstance,ptmxmode=0666,mode=0620,gid=5",
    },
    { kind: "mount", type: "tmpfs", target: "dev/shm", flags: strict, data: "mode=1777,size=65536k" },
    { kind: "mount", type: "mqueue", target: "dev/mqueue", flags: strict },
  ];
  mounts.push(...cgroupMounts(options.cgroupControllers));
  for (const { fd, target } of options.attached) mounts.push({ kind: "attach", fd, target });
  return mounts;
}

/** A new sysfs shows the network namespace it is mounted in and may be mounted only by its owner. */
function sysMount(sys: "own" | "network" | { readonly fd: number }, flags: number): PlannedMount {
  if (sys === "own") return { kind: "mount", type: "sysfs", target: "sys", flags };
  if (sys === "network") return { kind: "networkSys", target: "sys" };
  return { kind: "attach", fd: sys.fd, target: "sys" };
}

/** What /sys/fs/cgroup shows: all of v2, or the v1 hierarchies that limit the container. */
function cgroupMounts(controllers: readonly string[] | "unified" | undefined): PlannedMount[] {
  const flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY;
  if (controllers === undefined) return [];
  if (controllers === "unified") return [{ kind: "mount", type: "cgroup2", target: "sys/fs/cgroup", flags }];
  return [
    {
      kind: "mount",
      type: "tmpfs",
      target: "sys/fs/cgroup",
      flags: flags & ~MS_RDONLY,
      data: "mode=755,size=64k",
    },
    ...controllers.flatMap((data): PlannedMount[] => {
      const target = `sys/fs/cgroup/${data}`;
      return [
        { kind: "directory", target },
        { kind: "mount", type: "cgroup", target, flags, data },
      ];
    }),
    { kind: "remount", target: "sys/fs/cgroup", flags },
  ];
}

/** Docker's masked paths (moby daemon/pkg/oci/defaults.go) that this kernel has. */
export function findMaskedPaths(): { path: string; directory: boolean }[] {
  const paths = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
  ];
  return paths.flatMap((path) => {
    const stat = lstatSync(`/${path}`, { throwIfNoEntry: false });
    return stat === undefined ? [] : [{ path, directory: stat.isDirectory() }];
  });
}

/** Docker's read-only paths that this kernel has. */
export function findReadonlyPaths(): string[] {
  const paths = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];
  return paths.filter((path) => lstatSync(`/${path}`, { throwIfNoEntry: false }) !== undefined);
}
