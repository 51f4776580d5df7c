/**
 * Writes the entries of one layer into a directory of its own, the way overlayfs wants a lower layer.
 *
 * Nothing an archive says can reach outside that directory: every system call is relative to a descriptor of the entry's
 * parent, which openat2(2) opened beneath the layer's root without following any symbolic link, and the last component is
 * never followed. Other layers are not looked at.
 *
 * @see {@link https://github.com/opencontainers/image-spec/blob/main/layer.md}
 * @see {@link https://docs.kernel.org/filesystems/overlayfs.html}
 */
import { constants as fsConstants, readdirSync } from "node:fs";
import { constants as osConstants } from "node:os";
import { diskCapability, diskOwner, isRootless, overlayXattrs } from "./file-owners.ts";
import { ImageError, formatBytes, quoteName } from "./image-error.ts";
import {
  AT_SYMLINK_NOFOLLOW,
  O_CLOEXEC,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_WRONLY,
  RESOLVE_BENEATH,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
  RESOLVE_NO_XDEV,
} from "./linux.ts";
import { close, SyscallError, trySyscall } from "./syscall.ts";
import type { TarEntry, TarSink } from "./tar-reader.ts";

/** What one layer may cost. */
export interface LayerLimits {
  /** Files, directories and links of one layer. @default 1000000 */
  readonly maxEntries: number;
  /** Bytes of file content of one layer, and of its archive once decompressed. @default 34359738368 (32 GiB) */
  readonly maxBytes: number;
  /**
   * Decompressed over compressed size; checked from 256 MiB decompressed on, since a short file of zeros compresses well
   * and hurts nobody. @default 200
   */
  readonly maxRatio: number;
}

export const defaultLayerLimits: LayerLimits = { maxEntries: 1_000_000, maxBytes: 32 * 2 ** 30, maxRatio: 200 };

/** What was written. */
export interface LayerSummary {
  readonly entries: number;
  readonly bytes: number;
  /** What was left out and why, for a person: `2 device nodes`. */
  readonly notes: readonly string[];
  /** The names in the layer's root directory that tell a root file system: some of `bin usr etc`. */
  readonly rootNames: readonly string[];
}

const {
  E2BIG,
  EEXIST,
  EFBIG,
  EINTR,
  EINVAL,
  EISDIR,
  ELOOP,
  EMLINK,
  ENAMETOOLONG,
  ENOENT,
  ENOTDIR,
  EOPNOTSUPP,
  ERANGE,
} = osConstants.errno;
const { S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT } = fsConstants;
const AT_REMOVEDIR = 0x200;

/** What only the entry itself can cause (ENOENT: a hard link that replaces its own target); a full disk (ENOSPC) or a missing right (EPERM) is ours. */
const entryErrors: ReadonlySet<number> = new Set([E2BIG, EFBIG, EINVAL, EMLINK, ENAMETOOLONG, ENOENT, ERANGE]);

const WHITEOUT = ".wh.";
const OPAQUE = ".wh..wh..opq";
const AUFS_METADATA = ".wh..wh.";
/** The kernel's PATH_MAX, its terminating NUL not counted. */
const MAX_PATH_BYTES = 4095;
const MAX_NAME_BYTES = 255;
const MAX_OPEN_DIRECTORIES = 64;

const resolveBeneath = Buffer.alloc(24);
resolveBeneath.writeBigUInt64LE(BigInt(O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), 0);
resolveBeneath.writeBigUInt64LE(
  BigInt(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV),
  16,
);

/** For an archive that is unpacked over a root file system: its links lead where they would in there. */
const resolveInRoot = Buffer.alloc(24);
resolveInRoot.writeBigUInt64LE(BigInt(O_DIRECTORY | O_CLOEXEC), 0);
resolveInRoot.writeBigUInt64LE(BigInt(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV), 16);

/** A byte string (see `TarReader`) for the kernel. */
function bytes(name: string): Buffer {
  return Buffer.from(`${name}\0`, "latin1");
}

/**
 * Unpacks into an empty directory that belongs to the caller alone.
 *
 * Order per entry as Docker and umoci have it: content, owner, extended attributes, mode, time. chown(2) and write(2)
 * remove set-user-id bits and file capabilities, so these come after. Modes and times of directories are set by `finish`.
 */
export class LayerWriter implements TarSink, Disposable {
  readonly #root: number;
  readonly #limits: Pick<LayerLimits, "maxEntries" | "maxBytes">;
  readonly #whiteouts: boolean;
  readonly #resolve: Buffer;
  /** Descriptors of directories by path, the least recently used first. */
  readonly #open = new Map<string, number>();
  readonly #directories = new Map<string, { mode: number; seconds: number; nanoseconds: number }>();
  readonly #rootNames = new Set<string>();
  #lastPath = "";
  #lastFd: number;
  #entries = 0;
  #bytes = 0;
  #devices = 0;
  #droppedXattrs = 0;
  #file = -1;
  #fileEntry: TarEntry | undefined;
  readonly #times = Buffer.alloc(32);

  /**
   * @param root Descriptor of the layer's directory; stays open and the caller's.
   * @param options.whiteouts Whether `.wh.` names delete (layers) or are ordinary names (a copied directory).
   * @param options.followLinks The directory is not empty: links in it that stand for directories are followed, as if it were
   *   `/`, and stay. @default false
   */
  constructor(
    root: number,
    options: {
      readonly limits: Pick<LayerLimits, "maxEntries" | "maxBytes">;
      readonly whiteouts: boolean;
      readonly followLinks?: boolean;
    },
  ) {
    this.#root = root;
    this.#lastFd = root;
    this.#limits = options.limits;
    this.#whiteouts = options.whiteouts;
    this.#resolve = options.followLinks === true ? resolveInRoot : resolveBeneath;
  }

  /** @throws {ImageError} If the entry is hostile or cannot be written as it is. */
  entry(entry: TarEntry): void {
    if (++this.#entries > this.#limits.maxEntries) {
      throw new ImageError(`it has more than ${this.#limits.maxEntries} entries`);
    }
    const path = cleanPath(entry.name, entry);
    if (path === "") {
      if (entry.type !== "directory") this.#fail(entry, "would replace the root directory");
      this.#chown(this.#root, ".", entry);
      this.#setXattrs(this.#root, entry);
      this.#rememberDirectory("", entry);
      return;
    }
    const slash = path.lastIndexOf("/");
    const directory = slash === -1 ? "" : path.slice(0, slash);
    const base = path.slice(slash + 1);
    if (this.#whiteouts && path.includes(WHITEOUT) && this.#whiteout(entry, path, directory, base)) return;
    if (slash === -1) this.#rootNames.add(base);
    const parent = this.#parent(directory, entry);
    switch (entry.type) {
      case "directory":
        this.#makeDirectory(parent, path, base, entry);
        break;
      case "file":
        this.#createFile(parent, path, base, entry);
        break;
      case "symlink":
        this.#makeSymlink(parent, path, base, entry);
        break;
      case "link":
        this.#makeLink(parent, path, base, entry);
        break;
      case "fifo":
        this.#create(parent, path, base, entry, () => trySyscall("mknodat", parent, bytes(base), S_IFIFO | 0o600, 0));
        this.#chown(parent, base, entry);
        this.#check(entry, "fchmodat", trySyscall("fchmodat", parent, bytes(base), entry.mode));
        this.#setTimes(parent, base, entry);
        break;
      case "character":
      case "block":
        // Device nodes in a store on the host's disk would be the host's devices; containers get theirs in /dev.
        this.#devices++;
        break;
    }
  }

  data(chunk: Buffer, position: number): void {
    this.#bytes += chunk.length;
    if (this.#bytes > this.#limits.maxBytes) {
      throw new ImageError(`it unpacks to more than ${formatBytes(this.#limits.maxBytes)}`);
    }
    if (this.#file === -1) return;
    const entry = this.#fileEntry as TarEntry;
    for (let done = 0; done < chunk.length; ) {
      const rest = done === 0 ? chunk : chunk.subarray(done);
      const written = entry.sparse
        ? trySyscall("pwrite64", this.#file, rest, rest.length, position + done)
        : trySyscall("write", this.#file, rest, rest.length);
      if (written === -EINTR) continue;
      this.#check(entry, "write", written);
      done += written;
    }
  }

  end(): void {
    if (this.#file === -1) return;
    const file = this.#file;
    const entry = this.#fileEntry as TarEntry;
    if (entry.sparse) this.#check(entry, "ftruncate", trySyscall("ftruncate", file, entry.size));
    if (needsOwner(entry)) {
      this.#check(entry, "fchown", trySyscall("fchown", file, diskOwner(entry.uid), diskOwner(entry.gid)));
    }
    this.#setXattrs(file, entry);
    this.#check(entry, "fchmod", trySyscall("fchmod", file, entry.mode));
    this.#writeTimes(entry.mtimeSeconds, entry.mtimeNanoseconds);
    this.#check(entry, "utimensat", trySyscall("utimensat", file, null, this.#times, 0));
    this.#closeFile();
  }

  /** Gives directories their modes and times, which everything written into them would have changed. */
  finish(): LayerSummary {
    if (!this.#directories.has("") && this.#resolve !== resolveInRoot) {
      trySyscall("fchmod", this.#root, 0o755);
      trySyscall("fchown", this.#root, diskOwner(0), diskOwner(0));
    }
    for (const [path, { mode, seconds, nanoseconds }] of this.#directories) {
      const fd = path === "" ? this.#root : this.#openDirectory(path);
      // Replaced by a later entry of the archive.
      if (fd < 0) continue;
      trySyscall("fchmod", fd, mode);
      this.#writeTimes(seconds, nanoseconds);
      trySyscall("utimensat", fd, null, this.#times, 0);
      if (path !== "") close(fd);
    }
    const notes: string[] = [];
    if (this.#devices > 0) notes.push(`${this.#devices} device node${this.#devices === 1 ? "" : "s"} left out`);
    if (this.#droppedXattrs > 0) notes.push(`${this.#droppedXattrs} extended attributes left out`);
    const rootNames = [...this.#rootNames].filter((name) => name === "bin" || name === "usr" || name === "etc");
    return { entries: this.#entries, bytes: this.#bytes, notes, rootNames };
  }

  /** Closes what is open; the layer is incomplete unless `finish` has returned. */
  [Symbol.dispose](): void {
    this.#closeFile();
    this.#forgetDirectories("");
  }

  /** @returns Whether the name was one of those that are not files. */
  #whiteout(entry: TarEntry, path: string, directory: string, base: string): boolean {
    // aufs kept its own state under such names: `.wh..wh.plnk`, `.wh..wh.aufs`.
    const top = path.slice(0, path.indexOf("/") === -1 ? path.length : path.indexOf("/"));
    if (top.startsWith(AUFS_METADATA) && top !== OPAQUE) return true;
    if (!base.startsWith(WHITEOUT)) return false;
    if (base === OPAQUE) {
      this.#makeOpaque(this.#parent(directory, entry), entry);
      return true;
    }
    if (base.startsWith(AUFS_METADATA)) return true;
    const hidden = base.slice(WHITEOUT.length);
    if (hidden === "" || hidden === "." || hidden === "..") this.#fail(entry, "is a whiteout of no file");
    const parent = this.#parent(directory, entry);
    const made = trySyscall("mknodat", parent, bytes(hidden), S_IFCHR, 0);
    if (made === -EEXIST) {
      // The layer itself has the name (whiteouts are about lower layers, whatever the order of entries): a directory
      // must then hide the lower one's content, anything else hides it anyway.
      if (fileType(parent, hidden) === S_IFDIR) {
        const fd = this.#openDirectory(directory === "" ? hidden : `${directory}/${hidden}`);
        this.#check(entry, "openat2", fd);
        try {
          this.#makeOpaque(fd, entry);
        } finally {
          close(fd);
        }
      }
      return true;
    }
    this.#check(entry, "mknodat", made);
    return true;
  }

  #makeOpaque(fd: number, entry: TarEntry): void {
    this.#check(
      entry,
      "fsetxattr",
      trySyscall("fsetxattr", fd, bytes(`${overlayXattrs()}opaque`), Buffer.from("y"), 1, 0),
    );
  }

  #makeDirectory(parent: number, path: string, base: string, entry: TarEntry): void {
    const name = bytes(base);
    let made = trySyscall("mkdirat", parent, name, 0o700);
    let wasWhiteout = false;
    if (made === -EEXIST) {
      const type = fileType(parent, base);
      if (type === S_IFDIR) {
        made = 0;
      } else if (type === S_IFLNK && this.#leadsToDirectory(path)) {
        return;
      } else {
        wasWhiteout = type === S_IFCHR;
        this.#check(entry, "unlinkat", trySyscall("unlinkat", parent, name, 0));
        made = trySyscall("mkdirat", parent, name, 0o700);
      }
    }
    this.#check(entry, "mkdirat", made);
    this.#chown(parent, base, entry);
    this.#rememberDirectory(path, entry);
    if (!wasWhiteout && entry.xattrs === undefined) return;
    const fd = this.#openDirectory(path);
    this.#check(entry, "openat2", fd);
    try {
      if (wasWhiteout) this.#makeOpaque(fd, entry);
      this.#setXattrs(fd, entry);
    } finally {
      close(fd);
    }
  }

  #leadsToDirectory(path: string): boolean {
    const fd = this.#openDirectory(path);
    if (fd < 0) return false;
    close(fd);
    return true;
  }

  #rememberDirectory(path: string, entry: TarEntry): void {
    this.#directories.set(path, {
      mode: entry.mode,
      seconds: entry.mtimeSeconds,
      nanoseconds: entry.mtimeNanoseconds,
    });
  }

  #createFile(parent: number, path: string, base: string, entry: TarEntry): void {
    const flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    this.#fileEntry = entry;
    this.#file = this.#create(parent, path, base, entry, () => trySyscall("openat", parent, bytes(base), flags, 0o600));
  }

  #makeSymlink(parent: number, path: string, base: string, entry: TarEntry): void {
    if (entry.linkName === "") this.#fail(entry, "is a symbolic link to nothing");
    if (entry.linkName.length > MAX_PATH_BYTES) {
      this.#fail(entry, `is a symbolic link of ${entry.linkName.length} bytes, more than ${MAX_PATH_BYTES}`);
    }
    const target = bytes(entry.linkName);
    this.#create(parent, path, base, entry, () => trySyscall("symlinkat", target, parent, bytes(base)));
    this.#chown(parent, base, entry);
    this.#setTimes(parent, base, entry);
    // The kernel has no user.* attributes on symbolic links and capabilities make no sense there.
    this.#droppedXattrs += entry.xattrs?.size ?? 0;
  }

  #makeLink(parent: number, path: string, base: string, entry: TarEntry): void {
    const target = cleanPath(entry.linkName, entry, "is a hard link to");
    // GNU tar writes such an entry for a name that was given twice.
    if (target === path) return;
    const slash = target.lastIndexOf("/");
    const targetBase = target.slice(slash + 1);
    const missing = () =>
      this.#fail(entry, `is a hard link to ${quoteName(entry.linkName)}, which the layer does not have`);
    const targetParent = slash === -1 ? this.#root : this.#openDirectory(target.slice(0, slash));
    // ENOTDIR and ELOOP: through a file or a symbolic link.
    if (targetParent === -ENOENT || targetParent === -ENOTDIR || targetParent === -ELOOP) missing();
    this.#check(entry, "openat2", targetParent);
    try {
      const type = fileType(targetParent, targetBase);
      // The only character devices here are whiteouts: names that the layer says do not exist.
      if (type === 0 || type === S_IFCHR) missing();
      if (type === S_IFDIR) this.#fail(entry, `is a hard link to the directory ${quoteName(entry.linkName)}`);
      this.#create(parent, path, base, entry, () =>
        trySyscall("linkat", targetParent, bytes(targetBase), parent, bytes(base), 0),
      );
    } finally {
      if (targetParent !== this.#root) close(targetParent);
    }
  }

  /** Makes a name that must be new: what an earlier entry made there goes, as the last one of a name holds. */
  #create(parent: number, path: string, base: string, entry: TarEntry, make: () => number): number {
    let made = make();
    if (made === -EEXIST) {
      // Not `parent`, which is above `path`. `finish` passes over what is no directory any more.
      this.#forgetDirectories(path);
      removeTree(parent, base);
      made = make();
    }
    this.#check(entry, "create", made);
    return made;
  }

  #chown(parent: number, base: string, entry: TarEntry): void {
    if (!needsOwner(entry)) return;
    const owner = [diskOwner(entry.uid), diskOwner(entry.gid)] as const;
    const result = trySyscall("fchownat", parent, bytes(base), ...owner, AT_SYMLINK_NOFOLLOW);
    this.#check(entry, "fchownat", result);
  }

  #setTimes(parent: number, base: string, entry: TarEntry): void {
    this.#writeTimes(entry.mtimeSeconds, entry.mtimeNanoseconds);
    const result = trySyscall("utimensat", parent, bytes(base), this.#times, AT_SYMLINK_NOFOLLOW);
    this.#check(entry, "utimensat", result);
  }

  /** struct timespec[2]; both the same, so that the same archive gives the same tree. */
  #writeTimes(seconds: number, nanoseconds: number): void {
    // Beyond 34 bits no file system of Linux goes; the kernel clamps what is left to what the file system knows.
    const clamped = Math.max(-(2 ** 33), Math.min(2 ** 34, seconds));
    for (const at of [0, 16]) {
      this.#times.writeInt32LE(Math.floor(clamped / 2 ** 32), at + 4);
      this.#times.writeUInt32LE(clamped >>> 0, at);
      this.#times.writeUInt32LE(nanoseconds, at + 8);
    }
  }

  #setXattrs(fd: number, entry: TarEntry): void {
    if (entry.xattrs === undefined) return;
    for (const [name, value] of entry.xattrs) {
      // Not trusted.* and not user.overlay.*: they steer overlayfs (redirects, metacopy, whiteouts); security.* other
      // than capabilities belongs to the host's security modules.
      const allowed = name === "security.capability" || (name.startsWith("user.") && !name.startsWith("user.overlay."));
      if (!allowed) {
        this.#droppedXattrs++;
        continue;
      }
      const kept = name === "security.capability" && value.length >= 20 ? diskCapability(value) : value;
      const result = trySyscall("fsetxattr", fd, bytes(name), kept, kept.length, 0);
      if (result === -EOPNOTSUPP && name !== "security.capability") {
        this.#droppedXattrs++;
        continue;
      }
      if (result < 0) this.#check(entry, `set the extended attribute ${quoteName(name)} of`, result);
    }
  }

  /** A descriptor of a directory of the layer, made with its parents if it is missing. Borrowed: do not close. */
  #parent(path: string, entry: TarEntry): number {
    if (path === "") return this.#root;
    if (path === this.#lastPath) return this.#lastFd;
    let fd = this.#open.get(path);
    if (fd === undefined) {
      fd = this.#openDirectory(path);
      if (fd === -ENOENT || fd === -ENOTDIR) fd = this.#makeImplied(path, entry);
      if (fd === -ELOOP) this.#fail(entry, "goes through a symbolic link of the same layer");
      this.#check(entry, "openat2", fd);
      if (this.#open.size >= MAX_OPEN_DIRECTORIES) {
        const [oldest, oldestFd] = this.#open.entries().next().value as [string, number];
        this.#open.delete(oldest);
        close(oldestFd);
      }
    } else {
      this.#open.delete(path);
    }
    this.#open.set(path, fd);
    this.#lastPath = path;
    this.#lastFd = fd;
    return fd;
  }

  /** Makes a directory that the archive uses without having an entry for it. @returns A descriptor. */
  #makeImplied(path: string, entry: TarEntry): number {
    const slash = path.lastIndexOf("/");
    const base = path.slice(slash + 1);
    const parent = this.#parent(slash === -1 ? "" : path.slice(0, slash), entry);
    const name = bytes(base);
    const type = fileType(parent, base);
    if (type === S_IFDIR) return openBeneath(parent, name);
    if (type === S_IFLNK) this.#fail(entry, "goes through a symbolic link of the same layer");
    if (type !== 0 && type !== S_IFCHR) this.#fail(entry, "goes through something that is not a directory");
    if (++this.#entries > this.#limits.maxEntries) {
      throw new ImageError(`it has more than ${this.#limits.maxEntries} entries`);
    }
    if (slash === -1) this.#rootNames.add(base);
    // The layer deleted the name and made it anew: nothing of the lower directory may show.
    const wasWhiteout = type === S_IFCHR;
    if (wasWhiteout) this.#check(entry, "unlinkat", trySyscall("unlinkat", parent, name, 0));
    this.#check(entry, "mkdirat", trySyscall("mkdirat", parent, name, 0o755));
    this.#check(entry, "fchmodat", trySyscall("fchmodat", parent, name, 0o755));
    this.#chown(parent, base, { ...entry, uid: 0, gid: 0 });
    const fd = openBeneath(parent, name);
    this.#check(entry, "openat2", fd);
    try {
      if (wasWhiteout) this.#makeOpaque(fd, entry);
    } catch (error) {
      close(fd);
      throw error;
    }
    return fd;
  }

  /** A new descriptor, or minus errno. */
  #openDirectory(path: string): number {
    return trySyscall("openat2", this.#root, bytes(path), this.#resolve, this.#resolve.length);
  }

  /** Closes the descriptors of a directory and of what is in it. */
  #forgetDirectories(path: string): void {
    for (const [open, fd] of this.#open) {
      if (path !== "" && open !== path && !open.startsWith(`${path}/`)) continue;
      close(fd);
      this.#open.delete(open);
    }
    this.#lastPath = "";
    this.#lastFd = this.#root;
  }

  #closeFile(): void {
    if (this.#file !== -1) close(this.#file);
    this.#file = -1;
    this.#fileEntry = undefined;
  }

  #check(entry: TarEntry, call: string, result: number): void {
    if (result >= 0) return;
    const error = new SyscallError(call, -result, `unpack the entry ${quoteName(entry.name)}: ${call}`);
    if (entryErrors.has(-result)) this.#fail(entry, `cannot be written: ${call}: ${error.code}`);
    throw error;
  }

  #fail(entry: TarEntry, what: string): never {
    throw new ImageError(`the entry ${quoteName(entry.name)} ${what}`);
  }
}

/** Whether it would else have another owner than it should: a root agent's files are root's. */
function needsOwner({ uid, gid }: TarEntry): boolean {
  return uid !== 0 || gid !== 0 || isRootless();
}

/** The path of an entry relative to the root: no empty, `.` or `..` components; "" for the root itself. */
function cleanPath(name: string, entry: TarEntry, role?: string): string {
  const what = role === undefined ? "has a name" : `${role} ${quoteName(name)}, a name`;
  const fail = (why: string): never => {
    throw new ImageError(`the entry ${quoteName(entry.name)} ${what} ${why}`);
  };
  if (name.length > MAX_PATH_BYTES) fail(`of ${name.length} bytes, more than ${MAX_PATH_BYTES}`);
  if (name.includes("\0")) fail("with a NUL byte");
  const components: string[] = [];
  for (const component of name.split("/")) {
    // A leading slash means the layer's root: buildpacks write such layers and Docker reads them so.
    if (component === "" || component === ".") continue;
    if (component === "..") fail('with a ".." component');
    if (component.length > MAX_NAME_BYTES)
      fail(`with a component of ${component.length} bytes, more than ${MAX_NAME_BYTES}`);
    components.push(component);
  }
  return components.join("/");
}

/** Opens a directory without following any link on the way. @returns A descriptor or minus errno. */
function openBeneath(directory: number, path: Buffer): number {
  return trySyscall("openat2", directory, path, resolveBeneath, resolveBeneath.length);
}

const statxBuffer = Buffer.alloc(256);
const STATX_TYPE = 1;

/** S_IFDIR, S_IFREG, …; 0 if there is no such name. Never follows a link. `name` is a byte string. */
function fileType(directory: number, name: string): number {
  const result = trySyscall("statx", directory, bytes(name), AT_SYMLINK_NOFOLLOW, STATX_TYPE, statxBuffer);
  if (result === -ENOENT || result === -ENOTDIR) return 0;
  if (result < 0) throw new SyscallError("statx", -result, `stat ${quoteName(name)}`);
  // struct statx: stx_mode is the 16 bits at 28 on every architecture.
  return statxBuffer.readUInt16LE(28) & S_IFMT;
}

/**
 * Deletes a file or directory tree relative to a directory, never following a link. A missing one is fine.
 *
 * @param name One path component, a byte string.
 * @throws {SyscallError}
 */
export function removeTree(directory: number, name: string): void {
  const path = bytes(name);
  const unlinked = trySyscall("unlinkat", directory, path, 0);
  if (unlinked === 0 || unlinked === -ENOENT) return;
  if (unlinked !== -EISDIR) throw new SyscallError("unlinkat", -unlinked, `remove ${quoteName(name)}`);
  const fd = trySyscall("openat", directory, path, O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0) throw new SyscallError("openat", -fd, `remove ${quoteName(name)}`);
  try {
    for (const child of readdirSync(`/proc/self/fd/${fd}`, "latin1")) removeTree(fd, child);
  } finally {
    close(fd);
  }
  const removed = trySyscall("unlinkat", directory, path, AT_REMOVEDIR);
  if (removed < 0 && removed !== -ENOENT) throw new SyscallError("unlinkat", -removed, `remove ${quoteName(name)}`);
}
