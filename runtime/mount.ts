/** Detached mounts: file systems made in the agent, held by a descriptor and seen by nobody until a container attaches them. */
import { close as closeFile } from "node:fs";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  AT_RECURSIVE,
  FSCONFIG_CMD_CREATE,
  FSCONFIG_SET_FD,
  FSCONFIG_SET_FLAG,
  FSCONFIG_SET_STRING,
  FSMOUNT_CLOEXEC,
  FSOPEN_CLOEXEC,
  MOUNT_ATTR_IDMAP,
  MS_PRIVATE,
  OPEN_TREE_CLOEXEC,
  OPEN_TREE_CLONE,
} from "./linux.ts";
import { close, cString, SyscallError, type SyscallArgument, syscall, trySyscall } from "./syscall.ts";

export interface MountOption {
  readonly key: string;
  /** A string, a descriptor, or nothing for a flag. */
  readonly value?: string | number;
}

/**
 * Makes a new file system and returns its detached mount.
 *
 * @throws {SyscallError} With the kernel's own words where it gives any.
 * @see {@link https://man7.org/linux/man-pages/man2/fsopen.2.html}
 */
export function makeMount(type: string, options: readonly MountOption[], attributes: number): number {
  const context = syscall("fsopen", cString(type), FSOPEN_CLOEXEC);
  try {
    for (const { key, value } of options) {
      if (value === undefined) configure(context, type, key, [FSCONFIG_SET_FLAG, cString(key), 0, 0]);
      else if (typeof value === "number") configure(context, type, key, [FSCONFIG_SET_FD, cString(key), 0, value]);
      else configure(context, type, key, [FSCONFIG_SET_STRING, cString(key), cString(value), 0]);
    }
    configure(context, type, "", [FSCONFIG_CMD_CREATE, 0, 0, 0]);
    const mount = trySyscall("fsmount", context, FSMOUNT_CLOEXEC, attributes);
    if (mount < 0) throw new SyscallError("fsmount", -mount, `mount ${type}${kernelLog(context)}`);
    return mount;
  } finally {
    close(context);
  }
}

function configure(context: number, type: string, key: string, args: readonly SyscallArgument[]): void {
  const result = trySyscall("fsconfig", context, ...(args as [SyscallArgument, SyscallArgument]));
  if (result >= 0) return;
  const what = key === "" ? `make ${type}` : `set ${type} option "${key}"`;
  throw new SyscallError("fsconfig", -result, `${what}${kernelLog(context)}`);
}

/** What the kernel has to say about a file system context: lines `e message`, read one by one. */
function kernelLog(context: number): string {
  const lines: string[] = [];
  const buffer = Buffer.alloc(1024);
  for (let i = 0; i < 8; i++) {
    const length = trySyscall("read", context, buffer, buffer.length);
    if (length <= 0) break;
    lines.push(
      buffer
        .toString("utf8", 0, length)
        .replace(/^[ewi] /, "")
        .trim(),
    );
  }
  return lines.length > 0 ? ` (${lines.join("; ")})` : "";
}

/**
 * Closes detached mounts, beside this thread: the last descriptor of one takes its file system down, and whoever closes it
 * waits for a grace period of RCU. Never rejects.
 */
export async function closeMounts(mounts: readonly number[]): Promise<void> {
  await Promise.all(mounts.map((mount) => new Promise<void>((resolve) => closeFile(mount, () => resolve()))));
}

/**
 * Clones a directory or file of the host as a detached mount; `recursive` takes what is mounted below along.
 *
 * The clone is private: on a host whose mounts are shared (systemd makes them so) it would else be a peer of the original,
 * and what a container mounts on it would appear on the host.
 */
export function cloneMount(
  path: string | number,
  options: { readonly attributes?: number; readonly idMapFd?: number; readonly recursive?: boolean } = {},
): number {
  const depth = options.recursive ? AT_RECURSIVE : 0;
  const flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | depth;
  const mount =
    typeof path === "number"
      ? trySyscall("open_tree", path, cString(""), flags | AT_EMPTY_PATH)
      : trySyscall("open_tree", AT_FDCWD, cString(path), flags);
  if (mount < 0) throw new SyscallError("open_tree", -mount, `clone the mount of "${path}"`);
  const attr = Buffer.alloc(32); // struct mount_attr: set, clear, propagation, userns_fd
  const idMap = options.idMapFd === undefined ? 0 : MOUNT_ATTR_IDMAP;
  attr.writeBigUInt64LE(BigInt((options.attributes ?? 0) | idMap), 0);
  attr.writeBigUInt64LE(BigInt(MS_PRIVATE), 16);
  attr.writeBigUInt64LE(BigInt(options.idMapFd ?? 0), 24);
  const result = trySyscall("mount_setattr", mount, cString(""), AT_EMPTY_PATH | depth, attr, attr.length);
  if (result < 0) {
    close(mount);
    throw new SyscallError("mount_setattr", -result, `map the ids of the mount of "${path}"`);
  }
  return mount;
}
