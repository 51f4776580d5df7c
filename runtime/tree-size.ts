/** Measures what containers have written while they go on writing: no symbolic link is followed, nothing is trusted. */
import { readdirSync, readFileSync, statfsSync } from "node:fs";
import { openDirectory, readEntries } from "./directory-entries.ts";
import { AT_FDCWD, AT_SYMLINK_NOFOLLOW } from "./linux.ts";
import { close, cString, trySyscall } from "./syscall.ts";

/** What there is on the disk. */
export interface TreeSize {
  /** As the file system has allotted it: holes cost nothing, a file of one byte a block. */
  readonly bytes: number;
  readonly files: number;
}

export interface MeasureRequest {
  readonly trees: readonly {
    readonly path: string;
    /** Files that were made since then are told from those that were there. @default all are new */
    readonly sinceMs?: number;
  }[];
  /** Processes that may hold files which nobody sees any more. */
  readonly pids: readonly number[];
  /** Files that are only mapped are looked for, too: many entries to go through. */
  readonly thoroughly: boolean;
  /** Of new ones; counting ends there. */
  readonly mostFiles: number;
}

export interface Measured {
  readonly made: TreeSize;
  readonly old: TreeSize;
  /** Directories are nested deeper than `mostLevels`, and what is below is not counted. */
  readonly tooDeep: boolean;
}

/** A path of more levels is longer than the kernel takes, but can be made step by step. */
export const mostLevels = 1000;

const STATX_BASIC_AND_BTIME = 0xfff;
const STATX_BTIME = 0x800;
const AT_STATX_DONT_SYNC = 0x4000;
const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

/** Measures trees, and files that are deleted and still open. Takes a second for some hundred thousand files. */
export function measure(request: MeasureRequest): Measured {
  const walk = new Walk(request.mostFiles);
  for (const { path, sinceMs = -Infinity } of request.trees) walk.tree(path, sinceMs);
  for (const pid of request.pids) {
    walk.openFiles(pid);
    if (request.thoroughly) walk.mappedFiles(pid);
  }
  return walk.result;
}

/** Whether a tree has few entries with plain names, none of them deep. Takes some microseconds, however large it is. */
export function isPlainTree(path: string, mostEntries: number): boolean {
  if (path === undefined) return true;
  let left = mostEntries;
  const isPlain = (parent: number, directory: Uint8Array, level: number): boolean => {
    const fd = openDirectory(parent, directory);
    if (fd < 0) return true;
    try {
      const below: Buffer[] = [];
      for (const { name, isDirectory } of readEntries(fd)) {
        left -= 1;
        if (left < 0 || level > mostPlainLevels || name.some((byte) => byte >= 0x80)) return false;
        if (isDirectory !== false) below.push(Buffer.from(name));
      }
      return below.every((name) => isPlain(fd, name, level + 1));
    } finally {
      close(fd);
    }
  };
  return isPlain(AT_FDCWD, cString(path), 1);
}

const mostPlainLevels = 8;

class Walk {
  readonly #mostFiles: number;
  readonly #stat = Buffer.alloc(256);
  readonly #made = { bytes: 0, files: 0 };
  readonly #old = { bytes: 0, files: 0 };
  /** Of files that have several names, or none. */
  readonly #seen = new Set<string>();
  #tooDeep = false;

  constructor(mostFiles: number) {
    this.#mostFiles = mostFiles;
  }

  get result(): Measured {
    return { made: { ...this.#made }, old: { ...this.#old }, tooDeep: this.#tooDeep };
  }

  tree(path: string, sinceMs: number): void {
    const fd = openDirectory(AT_FDCWD, cString(path));
    if (fd < 0) return;
    this.#directory(fd, sinceMs, 1);
    close(fd);
  }

  #directory(fd: number, sinceMs: number, level: number): void {
    const below: Buffer[] = [];
    for (const { name, isDirectory } of readEntries(fd)) {
      if (this.#made.files > this.#mostFiles) return;
      if (
        trySyscall("statx", fd, name, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, STATX_BASIC_AND_BTIME, this.#stat) < 0
      ) {
        continue; // gone meanwhile
      }
      this.#count(sinceMs);
      if (isDirectory ?? this.#type === S_IFDIR) below.push(Buffer.from(name));
    }
    if (below.length > 0 && level === mostLevels) {
      this.#tooDeep = true;
      return;
    }
    for (const name of below) {
      const child = openDirectory(fd, name);
      if (child < 0) continue;
      this.#directory(child, sinceMs, level + 1);
      close(child);
    }
  }

  /** Adds what statx(2) has said. */
  #count(sinceMs: number): void {
    const stat = this.#stat;
    const links = stat.readUInt32LE(16);
    if (links > 1 && this.#type !== S_IFDIR && this.#isSeen()) return;
    // Where a file system does not know when a file was made, it counts as made now.
    const hasBirth = (stat.readUInt32LE(0) & STATX_BTIME) !== 0;
    const bornMs = hasBirth ? Number(stat.readBigInt64LE(80)) * 1000 + stat.readUInt32LE(88) / 1e6 : Infinity;
    const sum = bornMs >= sinceMs ? this.#made : this.#old;
    sum.bytes += (stat.readUInt32LE(48) + stat.readUInt32LE(52) * 2 ** 32) * 512;
    sum.files += 1;
  }

  get #type(): number {
    return this.#stat.readUInt16LE(28) & S_IFMT;
  }

  #isSeen(): boolean {
    const stat = this.#stat;
    const key = `${stat.readUInt32LE(136)}:${stat.readUInt32LE(140)}:${stat.readBigUInt64LE(32)}`;
    if (this.#seen.has(key)) return true;
    this.#seen.add(key);
    return false;
  }

  openFiles(pid: number): void {
    const directory = `/proc/${pid}/fd`;
    for (const name of names(directory)) this.#unlinked(`${directory}/${name}`);
  }

  mappedFiles(pid: number): void {
    let maps: string;
    try {
      maps = readFileSync(`/proc/${pid}/maps`, "latin1");
    } catch {
      return; // ended meanwhile
    }
    for (const [, range] of maps.matchAll(/^([0-9a-f]+-[0-9a-f]+) \S+ \S+ \S+ [1-9]\d* .* \(deleted\)$/gm)) {
      this.#unlinked(`/proc/${pid}/map_files/${range}`);
    }
  }

  /** Counts a file that has no name any more, if it is on a disk. */
  #unlinked(path: string): void {
    if (trySyscall("statx", AT_FDCWD, cString(path), 0, STATX_BASIC_AND_BTIME, this.#stat) < 0) return;
    if (this.#type !== S_IFREG || this.#stat.readUInt32LE(16) !== 0 || this.#isSeen()) return;
    if (!isInMemory(path)) this.#count(-Infinity);
  }
}

const TMPFS_MAGIC = 0x01021994;
const HUGETLBFS_MAGIC = 0x958458f6;

/** What is in memory is counted there. */
function isInMemory(path: string): boolean {
  try {
    const { type } = statfsSync(path);
    return type === TMPFS_MAGIC || type === HUGETLBFS_MAGIC;
  } catch {
    return true; // closed meanwhile
  }
}

function names(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}
