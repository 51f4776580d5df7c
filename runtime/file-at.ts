/**
 * System calls on a name in an open directory.
 *
 * Names are byte strings: one character per byte, U+0000–U+00FF ("latin1"), for the kernel does not care how they are
 * encoded. A name is one component; nothing here follows a symbolic link in the last one, so that whoever walks a tree
 * descriptor by descriptor cannot be led out of it.
 *
 * Owners and file capabilities are those of the image, whatever ids the agent keeps its files with (file-owners.ts).
 */
import { constants, fstatSync, readdirSync } from "node:fs";
import {
  AT_SYMLINK_NOFOLLOW,
  ENOENT,
  ENOTDIR,
  O_CLOEXEC,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_PATH,
  O_RDONLY,
} from "./linux.ts";
import { diskCapability, diskOwner, imageCapability, imageOwner, overlayXattrs } from "./file-owners.ts";
import { close, SyscallError, trySyscall } from "./syscall.ts";

const { S_IFMT, S_IFDIR, S_IFREG, S_IFLNK, S_IFIFO, S_IFCHR, S_IFBLK } = constants;
const AT_EMPTY_PATH = 0x1000;
const AT_REMOVEDIR = 0x200;
const STATX_BASIC_STATS = 0x7ff;
const ERANGE = 34;
const ENODATA = 61;
const EOPNOTSUPP = 95;

export type FileType = "file" | "directory" | "symlink" | "fifo" | "character" | "block" | "socket";

export interface FileStat {
  readonly type: FileType;
  /** Permission bits with set-user-id, set-group-id and sticky. */
  readonly mode: number;
  readonly links: number;
  /** As containers see it. */
  readonly uid: number;
  readonly gid: number;
  /** The same for all names of a file: device and inode. */
  readonly identity: string;
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Changes with every change of the file, and only the kernel sets it. */
  readonly ctime: string;
  /** Of a device; 0 for a whiteout of overlayfs. */
  readonly device: { readonly major: number; readonly minor: number };
}

const types = new Map<number, FileType>([
  [S_IFREG, "file"],
  [S_IFDIR, "directory"],
  [S_IFLNK, "symlink"],
  [S_IFIFO, "fifo"],
  [S_IFCHR, "character"],
  [S_IFBLK, "block"],
]);

/** NUL-terminated, for the kernel. */
function bytes(name: string): Buffer {
  return Buffer.from(`${name}\0`, "latin1");
}

function fail(call: string, result: number, name: string): never {
  throw new SyscallError(call, -result, `${call} ${JSON.stringify(Buffer.from(name, "latin1").toString())}`);
}

/** Opens a directory of our own by its path. @throws {SyscallError} `ENOTDIR`, also if it is a link. */
export function openRoot(path: string): number {
  return openDirectoryAt(-100, byteString(path));
}

/** Opens a file by a path of our own for reading, links followed. @throws {SyscallError} */
export function openFile(path: string): number {
  const result = trySyscall("openat", -100, bytes(byteString(path)), O_RDONLY | O_CLOEXEC, 0);
  if (result < 0) fail("openat", result, path);
  return result;
}

/** Closes a descriptor. */
export function closeFile(fd: number): void {
  close(fd);
}

/** Text as a byte string. */
export function byteString(text: string): string {
  return Buffer.from(text).toString("latin1");
}

/** A byte string as text; what is not UTF-8 becomes U+FFFD. */
export function textOf(name: string): string {
  return Buffer.from(name, "latin1").toString();
}

const statxBuffer = Buffer.alloc(256);

/** What a name is; undefined if there is none. An empty name is the directory itself. @throws {SyscallError} */
export function statAt(directory: number, name: string): FileStat | undefined {
  const flags = AT_SYMLINK_NOFOLLOW | (name === "" ? AT_EMPTY_PATH : 0);
  const result = trySyscall("statx", directory, bytes(name), flags, STATX_BASIC_STATS, statxBuffer);
  if (result === -ENOENT || result === -ENOTDIR) return undefined;
  if (result < 0) fail("statx", result, name);
  // struct statx, the same on every architecture.
  const mode = statxBuffer.readUInt16LE(28);
  return {
    type: types.get(mode & S_IFMT) ?? "socket",
    mode: mode & 0o7777,
    links: statxBuffer.readUInt32LE(16),
    uid: imageOwner(statxBuffer.readUInt32LE(20)),
    gid: imageOwner(statxBuffer.readUInt32LE(24)),
    identity: `${statxBuffer.readUInt32LE(136)}:${statxBuffer.readUInt32LE(140)}:${statxBuffer.readBigUInt64LE(32)}`,
    size: Number(statxBuffer.readBigUInt64LE(40)),
    ctime: `${statxBuffer.readBigInt64LE(96)}.${statxBuffer.readUInt32LE(104)}`,
    mtimeSeconds: Number(statxBuffer.readBigInt64LE(112)),
    mtimeNanoseconds: statxBuffer.readUInt32LE(120),
    device: { major: statxBuffer.readUInt32LE(128), minor: statxBuffer.readUInt32LE(132) },
  };
}

/** Opens a name without following it; the caller closes the descriptor. @returns undefined if there is none. */
export function openAt(directory: number, name: string, flags: number, mode = 0): number | undefined {
  const result = trySyscall("openat", directory, bytes(name), flags | O_NOFOLLOW | O_CLOEXEC, mode);
  if (result === -ENOENT) return undefined;
  if (result < 0) fail("openat", result, name);
  return result;
}

/** Opens a directory to be read and walked. @throws {SyscallError} `ENOTDIR` if it is none, `ENOENT` if there is none. */
export function openDirectoryAt(directory: number, name: string): number {
  const result = trySyscall("openat", directory, bytes(name), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (result < 0) fail("openat", result, name);
  return result;
}

/** Names of a directory in the order of their bytes, which is the same everywhere. */
export function namesOf(directory: number): string[] {
  return readdirSync(`/proc/self/fd/${directory}`, "latin1").sort();
}

const linkBuffer = Buffer.alloc(4096);

/** The target of a symbolic link. @throws {SyscallError} `EINVAL` if it is none. */
export function readLinkAt(directory: number, name: string): string {
  const length = trySyscall("readlinkat", directory, bytes(name), linkBuffer, linkBuffer.length);
  if (length < 0) fail("readlinkat", length, name);
  return linkBuffer.toString("latin1", 0, length);
}

/** Makes a directory, 0700. @throws {SyscallError} `EEXIST` */
export function makeDirectoryAt(directory: number, name: string): void {
  const result = trySyscall("mkdirat", directory, bytes(name), 0o700);
  if (result < 0) fail("mkdirat", result, name);
}

/** Makes a symbolic link. @throws {SyscallError} `EEXIST` */
export function symlinkAt(directory: number, name: string, target: string): void {
  const result = trySyscall("symlinkat", bytes(target), directory, bytes(name));
  if (result < 0) fail("symlinkat", result, name);
}

/**
 * Gives a file another name.
 *
 * @param path Of the file, relative to `from`, through directories that the caller knows to be no links.
 * @throws {SyscallError} `EEXIST`, `EXDEV`, `EMLINK`
 */
export function linkAt(from: number, path: string, directory: number, name: string): void {
  const result = trySyscall("linkat", from, bytes(path), directory, bytes(name), 0);
  if (result < 0) fail("linkat", result, name);
}

/** Makes a FIFO, 0600. @throws {SyscallError} `EEXIST` */
export function makeFifoAt(directory: number, name: string): void {
  const result = trySyscall("mknodat", directory, bytes(name), S_IFIFO | 0o600, 0);
  if (result < 0) fail("mknodat", result, name);
}

/** Removes a name that is no directory, or an empty directory. A missing one is fine. @throws {SyscallError} */
export function unlinkAt(directory: number, name: string, options: { readonly directory?: boolean } = {}): void {
  const result = trySyscall("unlinkat", directory, bytes(name), options.directory === true ? AT_REMOVEDIR : 0);
  if (result < 0 && result !== -ENOENT) fail("unlinkat", result, name);
}

/** Gives a name another owner; a symbolic link its own. Clears set-user-id bits and capabilities of files. */
export function chownAt(directory: number, name: string, owner: { readonly uid: number; readonly gid: number }): void {
  const flags = AT_SYMLINK_NOFOLLOW | (name === "" ? AT_EMPTY_PATH : 0);
  const [uid, gid] = [diskOwner(owner.uid), diskOwner(owner.gid)];
  const result = trySyscall("fchownat", directory, bytes(name), uid, gid, flags);
  if (result < 0) fail("fchownat", result, name);
}

/** Gives a name the owner of an open file, whoever that is. */
export function copyOwnerAt(like: number, directory: number, name: string): void {
  const { uid, gid } = fstatSync(like);
  const flags = AT_SYMLINK_NOFOLLOW | (name === "" ? AT_EMPTY_PATH : 0);
  const result = trySyscall("fchownat", directory, bytes(name), uid, gid, flags);
  if (result < 0) fail("fchownat", result, name);
}

/** Sets the permission bits of an open file (no O_PATH). */
export function chmodOpen(file: number, mode: number): void {
  const result = trySyscall("fchmod", file, mode);
  if (result < 0) fail("fchmod", result, "");
}

/** Sets the permission bits of a name that is no symbolic link. */
export function chmodAt(directory: number, name: string, mode: number): void {
  const result = trySyscall("fchmodat", directory, bytes(name), mode);
  if (result < 0) fail("fchmodat", result, name);
}

const times = Buffer.alloc(32);

/** Sets the modification time, and the access time to the same, so that one tree made twice is the same. */
export function setTimesAt(
  directory: number,
  name: string,
  time: { readonly mtimeSeconds: number; readonly mtimeNanoseconds: number },
): void {
  for (const at of [0, 16]) {
    times.writeBigInt64LE(BigInt(Math.floor(time.mtimeSeconds)), at);
    times.writeBigInt64LE(BigInt(time.mtimeNanoseconds), at + 8);
  }
  const flags = AT_SYMLINK_NOFOLLOW | (name === "" ? AT_EMPTY_PATH : 0);
  const result = trySyscall("utimensat", directory, bytes(name), times, flags);
  if (result < 0) fail("utimensat", result, name);
}

const xattrNames = Buffer.alloc(65_536);
const xattrValue = Buffer.alloc(65_536);

/**
 * The extended attributes of an open file or directory, by name; none where the file system has none.
 *
 * @param file No O_PATH descriptor.
 * @param wanted Which of the names to read.
 */
export function readXattrs(file: number, wanted: (name: string) => boolean): ReadonlyMap<string, Buffer> {
  const length = trySyscall("flistxattr", file, xattrNames, xattrNames.length);
  if (length === 0 || length === -EOPNOTSUPP) return none;
  if (length < 0) fail("flistxattr", length, "");
  let found: Map<string, Buffer> | undefined;
  for (const name of xattrNames.toString("latin1", 0, length).split("\0").sort()) {
    if (name === "" || !wanted(name)) continue;
    const size = trySyscall("fgetxattr", file, bytes(name), xattrValue, xattrValue.length);
    // Removed since it was listed, or of a kind that is not for us.
    if (size === -ENODATA || size === -EOPNOTSUPP || size === -ERANGE) continue;
    if (size < 0) fail("fgetxattr", size, name);
    found ??= new Map();
    const value = Buffer.from(xattrValue.subarray(0, size));
    found.set(name, name === capability ? imageCapability(value) : value);
  }
  return found ?? none;
}

const none: ReadonlyMap<string, Buffer> = new Map();

/** Sets an extended attribute of an open file or directory. @returns False where the file system has none. */
export function setXattr(file: number, name: string, value: Uint8Array): boolean {
  const kept = name === capability ? diskCapability(Buffer.from(value)) : value;
  const result = trySyscall("fsetxattr", file, bytes(name), kept, kept.length, 0);
  if (result === -EOPNOTSUPP) return false;
  if (result < 0) fail("fsetxattr", result, name);
  return true;
}

/** Removes an extended attribute of an open file or directory; a missing one is fine. */
export function removeXattr(file: number, name: string): void {
  const result = trySyscall("fremovexattr", file, bytes(name));
  if (result < 0 && result !== -ENODATA) fail("fremovexattr", result, name);
}

/** Says `y` on a directory that hides all of the lower layers' directory of its name (overlayfs.rst). */
export const OVERLAY_OPAQUE = `${overlayXattrs()}opaque`;

const capability = "security.capability";

/** What of a file's extended attributes belongs to an image: what layers keep of archives (layer.ts). */
export function isImageXattr(name: string): boolean {
  return name === capability || (name.startsWith("user.") && !name.startsWith("user.overlay."));
}

/** Whether a stat is that of a whiteout: a character device 0:0 says that a name is not there (overlayfs.rst). */
export function isWhiteout({ type, device }: FileStat): boolean {
  return type === "character" && device.major === 0 && device.minor === 0;
}

/** Reads on from an open file's position. @returns Bytes read; 0 at its end. */
export function readFile(file: number, buffer: Buffer): number {
  const length = trySyscall("read", file, buffer, buffer.length);
  if (length < 0) fail("read", length, "");
  return length;
}

/** So much is copied before anybody can cancel it. */
const COPY_CHUNK = 64 << 20;

/**
 * Copies the rest of one open file to another, in the kernel where it can.
 *
 * @param options.maxBytes About where to stop: somebody may write into it as fast as it is read. @default at its end
 * @param options.checkCanceled Called now and then; may throw.
 * @returns Bytes copied.
 */
export function copyContent(
  from: number,
  to: number,
  {
    maxBytes = Infinity,
    checkCanceled,
  }: { readonly maxBytes?: number; readonly checkCanceled?: (() => void) | undefined } = {},
): number {
  let total = 0;
  for (;;) {
    checkCanceled?.();
    if (total > maxBytes) return total;
    const copied = trySyscall("copy_file_range", from, null, to, null, COPY_CHUNK, 0);
    if (copied < 0) {
      // Between some file systems the kernel cannot (EXDEV before 5.19, EOPNOTSUPP, EINVAL on special ones).
      if (total === 0) return copyThrough(from, to, { maxBytes, checkCanceled });
      fail("copy_file_range", copied, "");
    }
    if (copied === 0) return total;
    total += copied;
  }
}

function copyThrough(
  from: number,
  to: number,
  { maxBytes, checkCanceled }: { readonly maxBytes: number; readonly checkCanceled: (() => void) | undefined },
): number {
  const buffer = Buffer.allocUnsafeSlow(1 << 20);
  let total = 0;
  for (;;) {
    checkCanceled?.();
    if (total > maxBytes) return total;
    const length = trySyscall("read", from, buffer, buffer.length);
    if (length < 0) fail("read", length, "");
    if (length === 0) return total;
    for (let done = 0; done < length; ) {
      const written = trySyscall("write", to, buffer.subarray(done, length), length - done);
      if (written < 0) fail("write", written, "");
      done += written;
    }
    total += length;
  }
}

/**
 * Where a path leads inside a root, symbolic links followed as if the root were `/`.
 *
 * @returns The path without links, `.` and `..`, relative to the root ("" for the root itself), and how many of its
 *   components, from the front, are there. Components that are missing, or below something that is no directory, are taken
 *   as they are.
 * @throws {SyscallError} `ELOOP` for more than 40 links.
 */
export function resolveInRoot(root: number, path: string): { readonly path: string; readonly found: number } {
  const pending = path.split("/").reverse();
  const resolved: { readonly name: string; readonly fd: number }[] = [];
  let links = 0;
  let missing = 0;
  try {
    for (let component = pending.pop(); component !== undefined; component = pending.pop()) {
      if (component === "" || component === ".") continue;
      if (component === "..") {
        const left = resolved.pop();
        if (left !== undefined && left.fd !== -1) close(left.fd);
        if (left !== undefined && left.fd === -1) missing--;
        continue;
      }
      const parent = resolved.at(-1)?.fd ?? root;
      const fd = parent === -1 ? undefined : openPath(parent, component);
      if (fd === undefined) {
        resolved.push({ name: component, fd: -1 });
        missing++;
        continue;
      }
      if (statAt(fd, "")?.type !== "symlink") {
        resolved.push({ name: component, fd });
        continue;
      }
      const target = readLinkAt(fd, "");
      close(fd);
      if (++links > 40) throw new SyscallError("open", 40, `follow "${textOf(path)}"`);
      if (target.startsWith("/")) {
        for (const { fd: open } of resolved) if (open !== -1) close(open);
        resolved.length = 0;
      }
      pending.push(...target.split("/").reverse());
    }
    return { path: resolved.map(({ name }) => name).join("/"), found: resolved.length - missing };
  } finally {
    for (const { fd } of resolved) if (fd !== -1) close(fd);
  }
}

/** A handle on whatever a name is; undefined if there is none, or `parent` is no directory. */
function openPath(parent: number, name: string): number | undefined {
  const result = trySyscall("openat", parent, bytes(name), O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
  if (result === -ENOENT || result === -ENOTDIR) return undefined;
  if (result < 0) fail("openat", result, name);
  return result;
}

/**
 * Opens a directory by a path without links, `.` and `..`, as `resolveInRoot` gives it; the caller closes it.
 *
 * @throws {SyscallError} `ENOENT`, `ENOTDIR`, or `ELOOP` if a link is in its way.
 */
export function openDirectoryBelow(root: number, path: string): number {
  let fd = openDirectoryAt(root, ".");
  for (const name of path.split("/")) {
    if (name === "") continue;
    try {
      const next = openDirectoryAt(fd, name);
      close(fd);
      fd = next;
    } catch (error) {
      close(fd);
      throw error;
    }
  }
  return fd;
}

/**
 * Reads a small text file of a stranger's root, links followed as if that were `/`.
 *
 * @returns undefined if there is no such file, or it is larger than `maxBytes`.
 */
export function readTextInRoot(root: number, path: string, maxBytes: number): string | undefined {
  return readInRoot(root, path, maxBytes)?.toString();
}

/** As `readTextInRoot`, for what is no text. */
export function readInRoot(root: number, path: string, maxBytes: number): Buffer | undefined {
  const resolved = resolveInRoot(root, path).path;
  const slash = resolved.lastIndexOf("/");
  let directory: number;
  try {
    directory = openDirectoryBelow(root, resolved.slice(0, Math.max(0, slash)));
  } catch {
    return undefined;
  }
  try {
    // A FIFO would wait for somebody to write.
    const fd = openAt(directory, resolved.slice(slash + 1), O_RDONLY | O_NONBLOCK);
    if (fd === undefined) return undefined;
    try {
      const stat = statAt(fd, "");
      if (stat?.type !== "file" || stat.size > maxBytes) return undefined;
      const content = Buffer.alloc(stat.size);
      let length = 0;
      for (let read = -1; read !== 0 && length < content.length; length += read) {
        read = readFile(fd, content.subarray(length));
      }
      return content.subarray(0, length);
    } finally {
      close(fd);
    }
  } finally {
    close(directory);
  }
}
