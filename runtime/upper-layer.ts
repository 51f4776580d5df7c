/** Turns what a container wrote, the upper directory of its overlay, into a layer. */
import {
  chmodOpen,
  chownAt,
  type FileStat,
  isImageXattr,
  isWhiteout,
  namesOf,
  openAt,
  openDirectoryAt,
  OVERLAY_OPAQUE,
  readXattrs,
  removeXattr,
  setXattr,
  statAt,
  textOf,
  unlinkAt,
} from "./file-at.ts";
import { diskOwner, isRootless } from "./file-owners.ts";
import { ImageError } from "./image-error.ts";
import { O_NONBLOCK, O_RDONLY } from "./linux.ts";
import { close } from "./syscall.ts";

/** The ids that were the container's 0, 1, 2, …. */
export interface IdRange {
  readonly base: number;
  readonly size: number;
}

export interface UpperSummary {
  readonly entries: number;
  /** Of the content of files. */
  readonly bytes: number;
}

/** One descriptor per level is open, and an archive has no more; a container can make more levels than that. */
const MAX_DEPTH = 512;

/**
 * Gives everything in an upper directory the owner that the container saw, and takes away what layers do not keep: sockets,
 * extended attributes of access control lists and of the host's security modules.
 *
 * The container must be gone. An interrupted call can be made again only before the first change: throw the tree away.
 *
 * @param root Descriptor of the upper directory. Its own owner is left as it is.
 * @throws {ImageError} If the tree is too deep, or an owner is not of the range.
 */
export function adoptUpper(root: number, range: IdRange, checkCanceled: () => void = () => {}): UpperSummary {
  // What mounts do not map is kept with the ids that the first range has (file-owners.ts), and seen as in the image already.
  const isKept = isRootless() && range.base === diskOwner(0);
  const adoption = new Adoption(isKept ? { base: 0, size: range.size } : range, checkCanceled);
  adoption.directory(root, 0);
  return { entries: adoption.entries, bytes: adoption.bytes };
}

class Adoption {
  entries = 0;
  bytes = 0;
  readonly #range: IdRange;
  readonly #checkCanceled: () => void;
  /** Files of several names that are done. */
  readonly #done = new Set<string>();

  constructor(range: IdRange, checkCanceled: () => void) {
    this.#range = range;
    this.#checkCanceled = checkCanceled;
  }

  directory(fd: number, depth: number): void {
    if (depth > MAX_DEPTH) throw new ImageError(`what was written is more than ${MAX_DEPTH} directories deep`);
    for (const name of namesOf(fd)) {
      this.#checkCanceled();
      const stat = statAt(fd, name);
      if (stat !== undefined) this.#name(fd, name, stat, depth);
    }
  }

  #name(parent: number, name: string, stat: FileStat, depth: number): void {
    this.entries++;
    if (stat.type === "socket") {
      unlinkAt(parent, name);
      return;
    }
    if (isWhiteout(stat)) return;
    if (stat.type === "directory") {
      const fd = openDirectoryAt(parent, name);
      try {
        this.#clean(fd);
        this.#chown(parent, name, stat);
        this.directory(fd, depth + 1);
      } finally {
        close(fd);
      }
      return;
    }
    if (stat.links > 1) {
      if (this.#done.has(stat.identity)) return;
      this.#done.add(stat.identity);
    }
    if (stat.type === "file") this.#file(parent, name, stat);
    else this.#chown(parent, name, stat);
  }

  #file(parent: number, name: string, stat: FileStat): void {
    this.bytes += stat.size;
    const fd = openAt(parent, name, O_RDONLY | O_NONBLOCK);
    if (fd === undefined) return;
    try {
      const capability = this.#clean(fd);
      if (this.#range.base === 0) return;
      // chown(2) removes both, of whoever may do it.
      this.#chown(parent, name, stat);
      if ((stat.mode & 0o6000) !== 0) chmodOpen(fd, stat.mode);
      if (capability !== undefined) setXattr(fd, "security.capability", this.#unmapped(capability));
    } finally {
      close(fd);
    }
  }

  #chown(parent: number, name: string, stat: FileStat): void {
    if (this.#range.base === 0) return;
    chownAt(parent, name, { uid: this.#id(stat.uid, name), gid: this.#id(stat.gid, name) });
  }

  #id(id: number, name: string): number {
    const { base, size } = this.#range;
    if (id >= base && id < base + size) return id - base;
    throw new ImageError(`${JSON.stringify(textOf(name))} cannot be kept: its owner ${id} is none of the container's`);
  }

  /** Removes extended attributes that are not the image's. @returns The capabilities of a file. */
  #clean(fd: number): Buffer | undefined {
    const xattrs = readXattrs(fd, (name) => name !== OVERLAY_OPAQUE);
    if (xattrs.size === 0) return undefined;
    // What else overlayfs keeps (origin, impure, …) is about the layers that were below: a layer does not depend on them.
    for (const name of xattrs.keys()) if (!isImageXattr(name)) removeXattr(fd, name);
    return xattrs.get("security.capability");
  }

  /**
   * Capabilities as the first user namespace writes them: those that a container sets hold for its root only (struct
   * vfs_ns_cap_data, version 3), and it would be somebody else's elsewhere.
   */
  #unmapped(capability: Buffer): Buffer {
    if (capability.length !== 24 || capability.readUInt32LE(20) !== this.#range.base) return capability;
    const version2 = Buffer.from(capability.subarray(0, 20));
    version2.writeUInt32LE((version2.readUInt32LE(0) & 0xffffff) | 0x02000000, 0);
    return version2;
  }
}
